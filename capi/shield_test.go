//go:build linux

package main_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/vectors"
	"github.com/opendivert/divert/packet"
)

// shieldRow is a filter to try on a live packet.
type shieldRow struct {
	Layer, Filter string
	Packet        vectors.Bytes
}

// allRows makes TestShield try every row that can be sent, not only a selection.
const allRows = "DIVERT_TEST_ALL_ROWS"

// shieldRows are rows of the eval vectors whose filters can be opened, and whose packets are whole and have addresses
// that a host sends to and from.
func shieldRows(t *testing.T) (rows []shieldRow) {
	vectors.Run(t, "eval", func(r shieldRow) error {
		var p packet.Parsed
		if r.Layer != "NETWORK" || !p.ParseExact(r.Packet) || p.Fragment || !sendable(r.Packet, &p) {
			return nil
		}
		program, err := filter.Compile(r.Filter, packet.LayerNetwork, filter.Strict)
		if err == nil && (*prog.Program)(program).DriverCheck() == nil {
			rows = append(rows, r)
		}
		return err
	})
	if os.Getenv(allRows) == "" {
		rows = rows[:min(len(rows), 150)]
	}
	return rows
}

// sendable reports whether a host sends packets with such addresses.
func sendable(b []byte, p *packet.Parsed) bool {
	if p.Family == 4 {
		h := packet.IPv4(b)
		return h.Src().IsGlobalUnicast() && h.Dst().IsGlobalUnicast()
	}
	h := packet.IPv6(b) // Linux sends no packets with mapped addresses
	return h.Src().IsGlobalUnicast() && h.Dst().IsGlobalUnicast() && !h.Src().Is4In6() && !h.Dst().Is4In6()
}

// TestShield tries the filters of the eval vectors on live packets, between two handles that keep all other traffic away,
// and checks how each filter appears at the layer REFLECT (specification: samples.md 9).
func TestShield(t *testing.T) {
	program := compile(t, "shield.c", gccModern)
	pair := lab.TwoHostsT(t, lab.LinkOptions{MTU: 65535}) // longer packets than the path carries would arrive in fragments
	rows := shieldRows(t)
	var in, out strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&in, "%s %s\n", hex.EncodeToString([]byte(r.Filter)), hex.EncodeToString(r.Packet))
	}
	cmd := exec.Command(program)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in.String()), &out, os.Stderr
	err := pair.A.Exec(cmd)
	answers := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	complaints := slices.DeleteFunc(slices.Clone(answers), func(a string) bool { return !strings.HasPrefix(a, "wrong") })
	if err == nil && len(answers) != len(rows) {
		err = errors.New("not an answer for each row")
	}
	if err != nil {
		t.Fatalf("%v; %d answers for %d rows, the last: %s; %q", err, len(answers), len(rows), answers[len(answers)-1], complaints)
	}
	counts := make(map[string]int)
	for i, a := range answers {
		counts[a]++
		switch {
		case a == "match ", a == "none ":
		default:
			t.Errorf("%s: %s\n\t%x", a, rows[i].Filter, rows[i].Packet)
		}
	}
	t.Logf("%d rows: %v", len(rows), counts)
	if counts["match "] == 0 || counts["none "] == 0 {
		t.Error("no packet matched, or all did")
	}
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/impair"
)

// impairedRules returns the counters of rules from the summary of a run that has ended.
func impairedRules(t *testing.T, errout string) []impair.RuleStats {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(errout), "\n")
	var s summary
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil || s.Event != "summary" || s.Impaired == nil {
		t.Fatalf("%v\n%s", err, errout)
	}
	return s.Impaired.Rules
}

// Packets still queued when a run is interrupted go on unimpaired, so the counters may lack the last packets.
func TestImpairLive(t *testing.T) {
	pair, echo := hosts(t)
	p := start(t, pair.A, "impair", "--loss", "100%", "--direction", "out", "--seed", "5", "--json", "udp")
	if n := exchange(t, pair.A, echo, 5, 10*time.Millisecond); n != 0 {
		t.Errorf("%d datagrams came back", n)
	}
	decided(t, pair.A)
	if _, status := p.end(t, os.Interrupt); status != 0 {
		t.Errorf("status %d", status)
	}
	if !strings.Contains(p.errout.String(), `"seed":5`) {
		t.Errorf("the seed is not printed: %s", p.errout)
	}
	if r := impairedRules(t, p.errout.String()); len(r) != 1 || r[0].Lost == 0 || r[0].Lost != r[0].Packets {
		t.Errorf("rules %+v", r)
	}
	if n := exchange(t, pair.A, echo, 5, 5*time.Second); n != 5 {
		t.Errorf("afterwards %d came back", n)
	}
}

// Held packets go on when the run is interrupted; after SIGKILL all packets pass.
func TestImpairEnds(t *testing.T) {
	pair, echo := hosts(t)
	counter, err := pair.B.CountUDP("10.77.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	defer counter.Close()
	p := start(t, pair.A, "delay", "1h", "udp", "--json")
	c, err := pair.A.Dial(t.Context(), "udp", counter.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 20 {
		if _, err := c.Write([]byte("held")); err != nil {
			t.Fatal(err)
		}
	}
	if n := exchange(t, pair.A, echo, 1, 100*time.Millisecond); n != 0 { // behind the held packets
		t.Errorf("a datagram came back before its time")
	}
	if _, status := p.end(t, os.Interrupt); status != 0 {
		t.Errorf("status %d", status)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := counter.Wait(ctx, 20); err != nil {
		n, _ := counter.Count()
		t.Errorf("%d arrived, %v\n%s", n, err, p.errout)
	}

	p = start(t, pair.A, "delay", "1h", "udp")
	_ = exchange(t, pair.A, echo, 1, 100*time.Millisecond)
	p.end(t, syscall.SIGKILL)
	if n := exchange(t, pair.A, echo, 5, 5*time.Second); n != 5 {
		t.Errorf("after SIGKILL %d came back", n)
	}
	if out, status := runIn(t, pair.A, "clean"); status != 0 {
		t.Errorf("clean: %d, %q", status, out)
	}
	if tables, err := pair.A.NFTables(); err != nil || len(tables) != 0 {
		t.Errorf("left: %q, %v", tables, err)
	}
}

func TestImpairSet(t *testing.T) {
	pair, echo := hosts(t)
	path := filepath.Join(t.TempDir(), "far.txt")
	if err := os.WriteFile(path, []byte("10.77.0.2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, pair.A, "impair", "--loss", "100%", "--direction", "out", "--json", "remoteAddr in @far="+path)
	if n := exchange(t, pair.A, echo, 3, 10*time.Millisecond); n != 0 {
		t.Errorf("%d datagrams came back", n)
	}
	decided(t, pair.A)
	p.end(t, os.Interrupt)
	if r := impairedRules(t, p.errout.String()); len(r) != 1 || r[0].Lost == 0 || r[0].Lost != r[0].Packets {
		t.Errorf("rules %+v", r)
	}
}

// TestImpairScheduleByNames: the rules of a schedule may name processes, interfaces and sets.
func TestImpairScheduleByNames(t *testing.T) {
	pair, echo := hosts(t)
	path, set := filepath.Join(t.TempDir(), "schedule.yaml"), filepath.Join(t.TempDir(), "far.txt")
	if err := os.WriteFile(set, []byte("10.77.0.2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mine, _ := os.ReadFile("/proc/self/comm")
	for _, rule := range []string{`iface == "eth0"`, "remoteAddr in @far", "remoteAddr in @far=" + set, "process == " + filter.QuoteName(strings.TrimSpace(string(mine))), fmt.Sprint("processId == ", os.Getpid())} {
		if strings.HasPrefix(rule, "process") && needProcesses() != nil {
			continue
		}
		text := "rules:\n  - filter: tcp or iface == \"other\"\n    lag: 5ms\n  - filter: udp.DstPort == 7 and " + rule + "\n    loss: 100%\n  - filter: udp\n    lag: 1ms\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args := []string{"impair", "--schedule", path, "--json"}
		if strings.HasSuffix(rule, "@far") {
			args = append(args, "--set", "far="+set)
		}
		p := start(t, pair.A, args...)
		if n := exchange(t, pair.A, echo, 3, 10*time.Millisecond); n != 0 {
			t.Errorf("%s: %d datagrams came back", rule, n)
		}
		decided(t, pair.A)
		p.end(t, os.Interrupt)
		if r := impairedRules(t, p.errout.String()); len(r) != 3 || r[0].Packets != 0 || r[1].Lost != 3 || r[2].Packets != 0 {
			t.Errorf("%s: rules %+v, %s", rule, r, p.errout)
		}
	}
}

// TestImpairScheduleInterface: -i narrows the rules of a schedule.
func TestImpairScheduleInterface(t *testing.T) {
	pair, echo := hosts(t)
	path := filepath.Join(t.TempDir(), "schedule.yaml")
	if err := os.WriteFile(path, []byte("rules:\n  - {filter: udp.DstPort == 7, loss: 100%}\n  - {filter: tcp, lag: 5ms}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		device string
		back   int
	}{{"lo", 3}, {"eth0", 0}} {
		p := start(t, pair.A, "impair", "--schedule", path, "-i", row.device, "--json")
		if n := exchange(t, pair.A, echo, 3, answersIn(row.back)); n != row.back {
			t.Errorf("%s: %d datagrams came back, want %d", row.device, n, row.back)
		}
		p.end(t, os.Interrupt)
	}
}

// The run ends with its schedule.
func TestImpairSchedule(t *testing.T) {
	pair, echo := hosts(t)
	path := filepath.Join(t.TempDir(), "schedule.yaml")
	text := "phases:\n  - for: 1m\n    rules:\n      - {filter: udp.DstPort == 7, loss: 100%}\n      - {lag: 5ms}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, pair.A, "impair", "--schedule", path, "--json", "tcp")
	if n := exchange(t, pair.A, echo, 3, 10*time.Millisecond); n != 0 {
		t.Errorf("%d datagrams came back", n)
	}
	decided(t, pair.A)
	p.end(t, os.Interrupt)
	if r := impairedRules(t, p.errout.String()); len(r) != 2 || r[0].Lost == 0 || r[0].Lost != r[0].Packets || r[1].Packets != 0 {
		t.Errorf("rules %+v", r)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(text, "1m", "50ms", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	p = start(t, pair.A, "impair", "--schedule", path, "tcp")
	if _, status := p.end(t, nil); status != 0 {
		t.Errorf("status %d: %s", status, p.errout)
	}
	for _, want := range []string{"phase 1, rule 1 (udp.DstPort == 7): 0 packets", "0 packets matched"} {
		if !strings.Contains(p.errout.String(), want) {
			t.Errorf("no %q in %s", want, p.errout)
		}
	}
}

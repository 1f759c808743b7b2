//go:build linux

package codegen

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// randomIPv6 returns the text of an address.
func randomIPv6(r *rand.Rand) string {
	var a [16]byte
	for i := range a {
		a[i] = byte(r.Uint32())
	}
	a[0] = 0x20
	return netip.AddrFrom16(a).String()
}

// deepMix returns a filter of about n tests, of nested and, or and conditionals.
func deepMix(r *rand.Rand, n int) string {
	if n <= 1 {
		return [...]string{
			fmt.Sprintf("tcp.DstPort == %d", r.IntN(65536)),
			fmt.Sprintf("udp.SrcPort > %d", r.IntN(65535)),
			fmt.Sprintf("ip.TTL < %d", 1+r.IntN(255)),
			fmt.Sprintf("ipv6.HopLimit != %d", r.IntN(256)),
			fmt.Sprintf("remoteAddr >= %s", randomIPv6(r)),
			fmt.Sprintf("localPort <= %d", r.IntN(65535)),
			fmt.Sprintf("tcp.Payload32[%d] == %d", r.IntN(9), r.Uint32()),
			fmt.Sprintf("packet[-%d] >= %d", 1+r.IntN(60), 1+r.IntN(255)),
			"tcp.Syn", "fragment", "not udp",
		}[r.IntN(11)]
	}
	a := 1 + r.IntN(n-1)
	switch {
	case r.IntN(4) == 0 && n >= 3:
		b := 1 + r.IntN(n-1)
		c := max(1, n-a/2-b/2)
		return "(" + deepMix(r, max(1, a/2)) + "? " + deepMix(r, max(1, b/2)) + ": " + deepMix(r, min(c, n-2)) + ")"
	case r.IntN(2) == 0:
		return "(" + deepMix(r, a) + " or " + deepMix(r, n-a) + ")"
	}
	return "(" + deepMix(r, a) + " and " + deepMix(r, n-a) + ")"
}

// join makes one filter of n tests.
func join(n int, operator string, test func(i int) string) string {
	all := make([]string, n)
	for i := range all {
		all[i] = test(i)
	}
	return strings.Join(all, operator)
}

var largeFilters = []struct {
	name string
	text func(r *rand.Rand, n int) string
}{
	{"or of ports", func(r *rand.Rand, n int) string {
		return join(n, " or ", func(i int) string { return fmt.Sprintf("tcp.DstPort == %d", i) })
	}},
	{"and of ports", func(r *rand.Rand, n int) string {
		return join(n, " and ", func(i int) string { return fmt.Sprintf("udp.DstPort != %d", i) })
	}},
	{"or of addresses", func(r *rand.Rand, n int) string {
		return join(n, " or ", func(i int) string { return "ipv6.DstAddr == " + randomIPv6(r) })
	}},
	{"order of addresses", func(r *rand.Rand, n int) string {
		return join(n/2, " and ", func(i int) string { return "(remoteAddr > " + randomIPv6(r) + " or ip)" })
	}},
	{"payload elements", func(r *rand.Rand, n int) string {
		return join(n, " or ", func(i int) string { return fmt.Sprintf("tcp.Payload16[%d] == %d", i, 1+r.IntN(65535)) })
	}},
	{"elements from the end", func(r *rand.Rand, n int) string {
		return join(n, " or ", func(i int) string { return fmt.Sprintf("udp.Payload[-%d] == %d", 1+i%1500, r.IntN(256)) })
	}},
	{"local ports", func(r *rand.Rand, n int) string {
		return join(n/2, " or ", func(i int) string { return fmt.Sprintf("localPort == %d and remotePort > %d", i, i) })
	}},
	{"small sets", func(r *rand.Rand, n int) string {
		return join(n, " or ", func(i int) string {
			return fmt.Sprintf("tcp.SrcPort in {%d, %d-%d, %d}", i, i+10, i+20, i+30)
		})
	}},
	{"interfaces", func(r *rand.Rand, n int) string { // each asks the kernel for more instructions than the program has
		return join(n, " or ", func(i int) string { return fmt.Sprintf("ifIdx == %d", 2+i) })
	}},
	{"deep mix", deepMix},
}

// maxTests is the number of tests that a program must at least have room for.
const maxTests = 4096

func TestLargeFilters(t *testing.T) {
	requireBPF(t)
	packets := samplePackets()
	for _, f := range largeFilters {
		t.Run(f.name, func(t *testing.T) {
			p, err := filter.Compile(f.text(rand.New(rand.NewPCG(1, 2)), maxTests), packet.LayerNetwork, filter.Extended)
			if err != nil {
				t.Fatal(err)
			}
			a := packet.Address{Outbound: true}
			h := hookOf(&a)
			h.Index = IndexDevice
			u, err := Build(p, h, Options{})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			loaded, err := u.Load()
			if err != nil {
				t.Fatal(err)
			}
			defer loaded.Close()
			info, err := loaded.program.Info()
			if err != nil {
				t.Fatal(err)
			}
			verified, _ := info.VerifiedInstructions()
			t.Logf("%d tests, %d instructions, %d verified, loaded in %v", p.Len(), len(u.Instructions), verified, time.Since(start))
			for _, b := range packets {
				got, err := run(loaded, b)
				if want := p.MatchExact(b, &a); err != nil || got != want {
					t.Errorf("packet %x: got %v, %v, want %v", b, got, err, want)
				}
			}
		})
	}
}

// TestTooLarge holds the error for what the kernel cannot take to its type.
func TestTooLarge(t *testing.T) {
	requireBPF(t)
	p, err := filter.Compile(join(60_000, " or ", func(i int) string {
		return fmt.Sprintf("tcp.Payload16[%d] == %d", i%700, 1+i%65535)
	}), packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	u, err := Build(p, Hook{}, Options{})
	if err == nil {
		var loaded *Program
		if loaded, err = u.Load(); err == nil {
			loaded.Close()
		}
	}
	var limit *LimitError
	if !errors.As(err, &limit) {
		t.Fatalf("got %v, want a LimitError", err)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error has several lines: %q", err)
	}
	t.Log(err)
}

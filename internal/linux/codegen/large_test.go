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
		return join(n, " or ", func(i int) string { return fmt.Sprintf("tcp.%s == %d", turns("DstPort", "SrcPort", i), i) })
	}},
	{"and of ports", func(r *rand.Rand, n int) string {
		return join(n, " and ", func(i int) string { return fmt.Sprintf("udp.%s != %d", turns("DstPort", "SrcPort", i), i) })
	}},
	{"or of addresses", func(r *rand.Rand, n int) string {
		return join(n, " or ", func(i int) string { return "ipv6." + turns("DstAddr", "SrcAddr", i) + " == " + randomIPv6(r) })
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
			return fmt.Sprintf("tcp.%s in {%d, %d-%d, %d}", turns("DstPort", "SrcPort", i), i, i+10, i+20, i+30)
		})
	}},
	{"interfaces", func(r *rand.Rand, n int) string { // each asks the kernel for more instructions than the program has
		return join(n/6, " or ", func(i int) string { return fmt.Sprintf("ifIdx == %d or tcp.DstPort == %d", 2+i, i) })
	}},
	{"deep mix", func(r *rand.Rand, n int) string { return deepMix(r, n-n/50) }},
}

// turns returns one of two fields in turn, so that the tests of a list do not become a set.
func turns(even, odd string, i int) string {
	if i%2 == 0 {
		return even
	}
	return odd
}

func TestLargeFilters(t *testing.T) {
	requireBPF(t)
	packets := samplePackets()
	for _, f := range largeFilters {
		t.Run(f.name, func(t *testing.T) {
			p := compile(t, f.text(rand.New(rand.NewPCG(1, 2)), MaxTests))
			a := packet.Address{Outbound: true}
			h := hookOf(&a)
			h.Index = IndexDevice
			u, err := Build(p, h, here(Options{}))
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
					t.Errorf("packet %.100x: got %v, %v, want %v", b, got, err, want)
				}
			}
		})
	}
}

// TestTooLarge refuses a filter that is too large before the kernel is asked, and says how large it may be.
func TestTooLarge(t *testing.T) {
	for _, row := range []struct {
		name, text, says string
	}{
		{"tests", join(20_001, " or ", func(i int) string { return fmt.Sprintf("tcp.%s == %d", turns("DstPort", "SrcPort", i), i) }),
			"it takes 7000 tests, the filter comes to 20001"},
		{"instructions", join(6_900, " or ", func(i int) string {
			var set []string
			for j := range 14 {
				set = append(set, fmt.Sprintf("2001:db8:%x:%x::%x", i, j*j, j))
			}
			return "ipv6." + turns("DstAddr", "SrcAddr", i) + " in {" + strings.Join(set, ", ") + "}"
		}), "it takes 900000 instructions, the filter comes to "},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := Build(compile(t, row.text), Hook{}, here(Options{}))
			var limit *LimitError
			if !errors.As(err, &limit) || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v", err)
			}
			t.Log(err)
		})
	}
}

// TestListsAreSets loads lists that are longer than a program may have tests.
func TestListsAreSets(t *testing.T) {
	for _, row := range []struct {
		name, text string
		match, not uint16 // ports
	}{
		{"or", join(20_001, " or ", func(i int) string { return fmt.Sprintf("udp.DstPort == %d", 3*i) }), 30_000, 30_001},
		{"and", join(20_001, " and ", func(i int) string { return fmt.Sprintf("udp.DstPort != %d", 3*i) }), 30_001, 30_000},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := load(t, row.text, Hook{}, Options{})
			for port, want := range map[uint16]bool{row.match: true, row.not: false} {
				wantRun(t, p, withValue["udp.DstPort"](low(uint64(port))), want)
			}
		})
	}
}

//go:build linux

package rules

import (
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/opendivert/divert/internal/prog"
)

// TestCasesOfDatagrams: of the packets that meet a filter's terms the cases have plain UDP, each in one of them, and no others.
func TestCasesOfDatagrams(t *testing.T) {
	plain := func(b []byte) bool {
		if b[0]>>4 == 6 {
			return b[6] == 17
		}
		return b[9] == 17 && b[6]&0x3F == 0 && b[7] == 0
	}
	r := rand.New(rand.NewPCG(3, 4))
	for _, text := range append(slices.Clone(termFilters), "true", "false", "udp", "udp and remotePort == 53", "fragment") {
		terms := demandOf(t, text)
		for _, terms := range [][]prog.Term{terms, prog.WithFragments(slices.Clone(terms))} {
			cases := CasesOfDatagrams(terms)
			for range 1000 {
				b := anyIncoming(r)
				n := 0
				for _, c := range cases {
					if c.Only != AllPackets {
						t.Fatalf("%s: %+v", text, c)
					}
					if c.Term.Meets(b) {
						n++
					}
				}
				if want := plain(b) && meetsOne(terms, b); want != (n > 0) || n > 1 && len(terms) == 1 {
					t.Fatalf("%s: packet %x is in %d cases, wanted %t", text, b, n, want)
				}
			}
		}
	}
}

// TestCutting: datagrams are led through the chain that cuts before all else while a handle has rules in it, and no longer.
func TestCutting(t *testing.T) {
	h, ns := newHost(t)
	cut := plain()
	for _, when := range CasesOfDatagrams([]prog.Term{{}}) {
		cut = append(cut, Rule{Chain: OutboundCut, Action: ToCutter{Num: 0xfff0}, When: when})
	}
	check := func(when string, leads bool, want ...string) {
		t.Helper()
		all, _ := comments(t, h)
		if got := distinct(t, OutboundCut, all[OutboundCut]); !slices.Equal(got, want) {
			t.Errorf("%s: cut by %q, want %q", when, got, want)
		}
		origin := all[OutboundOrigin]
		if got := len(origin) > 0 && origin[0] == fixedComment[cutting]; got != leads || slices.Contains(origin[1:], fixedComment[cutting]) {
			t.Errorf("%s: %q", when, origin)
		}
	}
	first := open(t, ns, 1, 0)
	check("a handle that does not cut", false)
	var others []*Entry
	for id := range uint64(2) {
		e, err := enter(ns, Owner{ID: 2 + id, PID: os.Getpid(), Priority: int16(id)}, cut)
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, e)
	}
	check("two that do", true, "handle 3", "handle 2")
	if err := first.Vouch(NewCredentials()); err != nil {
		t.Fatal(err)
	}
	check("injected packets", true, "handle 3", "handle 2")
	if err := others[0].Replace(plain()); err != nil {
		t.Fatal(err)
	}
	check("other rules", true, "handle 3")
	if err := others[0].Replace(cut); err != nil {
		t.Fatal(err)
	}
	check("the rules again", true, "handle 3", "handle 2")
	closeAll(t, others[1])
	check("one of two", true, "handle 2")
	closeAll(t, others[0])
	check("none any more", false)
	closeAll(t, first)
	noTable(t, h)
}

//go:build linux

package rules

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// demandOf compiles a filter and returns the demand of a handle with it on outgoing packets.
func demandOf(t testing.TB, text string) []prog.Term {
	t.Helper()
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	return p.Necessary(true)
}

// TestDemandsInTheRegistry: the registry holds a demand as it is, or a wider one where it is long, in the room that a rule has.
func TestDemandsInTheRegistry(t *testing.T) {
	long := "remoteAddr in {2001:db8::1, 10.0.0.0/8, 192.0.2.0/24, 2001:db8:1::/48, 2001:db8:3::/48, 2001:db8:5::/48, 2001:db8:7::/48} and tcp.DstPort in {1, 3, 5, 7, 9, 11}"
	r := rand.New(rand.NewPCG(5, 6))
	for _, text := range append(slices.Clone(termFilters), long, "true", "false") {
		d := demand{handle: 0xfedcba9876543210, chain: Outbound, terms: demandOf(t, text)}
		data := d.userData()
		if len(data) > maxUserData {
			t.Errorf("%s: %d bytes", text, len(data))
		}
		got, ok := parseDemand(data)
		if !ok || got.handle != d.handle || got.chain != Outbound {
			t.Fatalf("%s: %+v, %v", text, got, ok)
		}
		if text != long && !prog.SameTerms(got.terms, d.terms) {
			t.Errorf("%s: %+v, want %+v", text, got.terms, d.terms)
		}
		for range 500 {
			b := anyIncoming(r)
			if meetsOne(d.terms, b) && !meetsOne(got.terms, b) {
				t.Fatalf("%s: packet %x does not meet %+v", text, b, got.terms)
			}
		}
	}
	if _, ok := parseDemand(Owner{ID: 1}.userData()); ok {
		t.Error("an owner is read as a demand")
	}
}

func meetsOne(terms []prog.Term, b []byte) bool {
	return slices.ContainsFunc(terms, func(t prog.Term) bool { return t.Meets(b) })
}

// FuzzDemands reads text that others may write into the registry: text that is no demand lets all packets through, and a demand
// is written as it was read.
func FuzzDemands(f *testing.F) {
	for _, text := range termFilters {
		d := demand{handle: 1, chain: Inbound, terms: demandOf(f, text)}
		f.Add(d.userData())
		f.Add(appendTerms([]byte{byte(Outbound)}, d.terms, 0))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if d, ok := parseDemand(data); ok && len(data) > 0 {
			if again, ok := parseDemand(d.userData()); !ok || again.handle != d.handle || again.chain != d.chain {
				t.Errorf("%+v becomes %+v, %v", d, again, ok)
			}
		}
		if terms, ok := readTerms(data); ok && !bytes.Equal(appendTerms(nil, terms, 0), data) {
			t.Errorf("%x becomes %x", data, appendTerms(nil, terms, 0))
		}
	})
}

// TestDemandsOfRules: rules that look at the destination late, and rules that take marks away, are for all packets.
func TestDemandsOfRules(t *testing.T) {
	terms := demandOf(t, "ip and udp.DstPort == 53")
	rule := func(c Chain, program int, a Action) []Rule {
		var rules []Rule
		for _, w := range Cases(AllPackets, terms) {
			rules = append(rules, Rule{Chain: c, Program: program, Action: a, When: w})
		}
		return rules
	}
	udp := demandOf(t, "ip and udp")
	for _, row := range []struct {
		name  string
		rules []Rule
		want  demands
	}{
		{"to a queue", rule(Outbound, 7, ToQueue{}), demands{Outbound: terms}},
		{"to a queue, inbound", rule(Inbound, 7, ToQueue{}), demands{Inbound: terms}},
		{"copies, inbound", rule(Inbound, 7, ToNobody{}), demands{Inbound: udp}},
		{"the interpreter, outbound", rule(Outbound, NoProgram, ToQueue{}), demands{Outbound: {{}}}},
		{"the interpreter, inbound", rule(Inbound, NoProgram, ToQueue{}), demands{Inbound: udp}},
		{"forwarded", rule(Forward, 7, ToQueue{}), demands{}},
		{"TCP", []Rule{{Chain: Outbound, Program: 7, Action: ToQueue{}, When: When{Only: TCP}}}, demands{Outbound: demandOf(t, "tcp")}},
	} {
		got := demandsOf(row.rules)
		for c := range numChains {
			wide := func(b []byte) bool { return meetsOne(row.want[c], b) == meetsOne(got[c], b) }
			if len(got[c]) > 0 != (len(row.want[c]) > 0) {
				t.Errorf("%s, %s: %+v, want %+v", row.name, chains[c].name, got[c], row.want[c])
			}
			r := rand.New(rand.NewPCG(1, 1))
			for range 200 {
				if b := anyIncoming(r); !laterFragment(b) && !wide(b) {
					t.Fatalf("%s, %s: packet %x: %+v, want %+v", row.name, chains[c].name, b, got[c], row.want[c])
				}
			}
		}
	}
}

//go:build linux

package rules

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/prog"
)

// Where many handles have rules in a chain, a gate stands before them: a few comparisons for all of them together, which lead
// packets that no handle demands past them all. Every transaction that enters or removes rules makes the gate anew, so the
// registry has each handle's demands on packets, in rules that do nothing.

// leastGated is how many handles a chain has when it gets a gate.
const leastGated = 3

// gates are the chains with a gate, and the chain that each gate is.
var gates = map[Chain]Chain{Inbound: InboundGate, Outbound: OutboundGate}

// gateFormat is the comment of the rules of a gate, with a number that identifies the demands it was made for.
const gateFormat = "divert: gate %x"

// demands are a handle's demands on packets, by the chain.
type demands map[Chain][]prog.Term

// demandsOf returns the demands of rules on packets of the chains with a gate.
func demandsOf(rules []Rule) demands {
	d := demands{}
	for _, r := range rules {
		if _, gated := gates[r.Chain]; !gated {
			continue
		}
		terms := r.When.terms()
		switch {
		case r.Program == NoProgram && r.Chain == Outbound:
			terms = []prog.Term{{}} // the mark of forwarded packets has to go
		case r.late():
			for i := range terms {
				terms[i].Dst, terms[i].DstPort = nil, nil
			}
		}
		d[r.Chain] = prog.JoinTerms(slices.Clone(d[r.Chain]), terms)
	}
	return d
}

// terms returns terms of which every packet of a When meets one.
func (w *When) terms() []prog.Term {
	protocol := uint64(0)
	switch {
	case w.Only == TCP && w.Term.Family == 0:
		protocol = unix.IPPROTO_TCP
	case w.Only == SCTP && w.Term.Family == 0:
		protocol = unix.IPPROTO_SCTP
	default:
		return []prog.Term{w.Term}
	}
	list := []prog.Range{{First: prog.Value{Lo: protocol}, Last: prog.Value{Lo: protocol}}}
	return []prog.Term{{Family: 4, Protocol: list}, {Family: 6, Protocol: list}, {Family: 6, Extends: true}}
}

// demand is the registry's record of a handle's demand in one chain.
type demand struct {
	handle uint64
	chain  Chain
	terms  []prog.Term
}

const (
	typeDemand          = userdata.Type(0xD2) // types of libnftnl count up from 0
	demandCommentFormat = "divert demand of handle=%x"
	maxDemand           = 180 // bytes of terms, so that the comment has room beside them
)

// userData returns the demand as the userdata of a rule: the chain, and the terms, made wider if they are too long.
func (d *demand) userData() []byte {
	data := userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf(demandCommentFormat, d.handle))
	terms := appendTerms(nil, d.terms, 0)
	for _, n := range []int{16, 8, 4, 2, 1} {
		if len(terms) > maxDemand {
			terms = appendTerms(nil, d.terms, n)
		}
	}
	if len(terms) > maxDemand {
		terms = appendTerms(nil, []prog.Term{{}}, 0)
	}
	return userdata.Append(data, typeDemand, append([]byte{byte(d.chain)}, terms...))
}

// parseDemand reads a demand from the userdata of a rule. Unreadable userdata demands nothing: all packets meet it.
func parseDemand(data []byte) (d demand, ok bool) {
	text, ok := comment(data)
	if !ok {
		return d, false
	}
	if d.handle, ok = parseID(demandCommentFormat, text); !ok {
		return d, false
	}
	b := entry(data, typeDemand)
	if len(b) == 0 {
		return d, false
	}
	d.chain = Chain(b[0])
	if d.terms, ok = readTerms(b[1:]); !ok {
		d.terms = []prog.Term{{}}
	}
	return d, true
}

// Parts of the first byte of a term, and the mark of a list of all values, in place of its length.
const (
	termFamily  = 0x0F
	termPieces  = 4 // where they begin
	termExtends = 1 << 7
	listAll     = 0xFF
)

// keysOf are the lists of a term with the kinds of their values.
func keysOf(t *prog.Term) (lists [5]*[]prog.Range, keys [5]kindOfKey) {
	address := keyIPv4
	if t.Family == 6 {
		address = keyIPv6
	}
	return [5]*[]prog.Range{&t.Protocol, &t.Src, &t.Dst, &t.SrcPort, &t.DstPort}, [5]kindOfKey{keyProtocol, address, address, keyPort, keyPort}
}

// appendTerms appends terms, with lists of at most n ranges, or all of them if n is 0.
func appendTerms(b []byte, terms []prog.Term, n int) []byte {
	for _, t := range terms {
		first := t.Family | byte(t.Pieces)<<termPieces
		if t.Extends {
			first |= termExtends
		}
		b = append(b, first)
		lists, keys := keysOf(&t)
		for i, list := range lists {
			if *list == nil {
				b = append(b, listAll)
				continue
			}
			ranges := *list
			if n > 0 {
				ranges = prog.Enclose(ranges, n)
			}
			b = append(b, byte(len(ranges)))
			for _, r := range ranges {
				b = append(append(b, keys[i].bytes(r.First)...), keys[i].bytes(r.Last)...)
			}
		}
	}
	return b
}

// readTerms reads the form that appendTerms writes. It is not ok if the bytes are of another form.
func readTerms(b []byte) (terms []prog.Term, ok bool) {
	for len(b) > 0 {
		t := prog.Term{Family: b[0] & termFamily, Pieces: prog.Pieces(b[0] &^ termExtends >> termPieces), Extends: b[0]&termExtends != 0}
		if t.Family != 0 && t.Family != 4 && t.Family != 6 || t.Pieces > prog.Fragments || t.Family != 4 && t.Pieces != prog.AnyPiece ||
			t.Family != 6 && t.Extends {
			return nil, false
		}
		b = b[1:]
		lists, keys := keysOf(&t)
		for i, list := range lists {
			if *list, b, ok = readRanges(b, keys[i]); !ok {
				return nil, false
			}
		}
		terms = append(terms, t)
	}
	return terms, true
}

// readRanges reads a list of a term, which is ascending, and returns the rest.
func readRanges(b []byte, k kindOfKey) (list []prog.Range, rest []byte, ok bool) {
	if len(b) == 0 || b[0] == 0 {
		return nil, nil, false
	}
	n, size := int(b[0]), int(k.length)
	if b = b[1:]; n == listAll {
		return nil, b, true
	}
	if len(b) < 2*n*size {
		return nil, nil, false
	}
	for range n {
		r := prog.Range{First: k.value(b[:size]), Last: k.value(b[size : 2*size])}
		if r.Last.Compare(r.First) < 0 || len(list) > 0 && r.First.Compare(list[len(list)-1].Last) <= 0 {
			return nil, nil, false
		}
		list, b = append(list, r), b[2*size:]
	}
	return list, b, true
}

// value reads a value as packets have it.
func (k kindOfKey) value(b []byte) prog.Value {
	var all [16]byte
	copy(all[16-len(b):], b)
	v := prog.Value{Hi: binary.BigEndian.Uint64(all[:]), Lo: binary.BigEndian.Uint64(all[8:])}
	if k == keyIPv4 {
		v.Lo |= 0xFFFF << 32 // ::ffff:0:0/96
	}
	return v
}

// demand enters the demands of a handle's rules.
func (t *tx) demand(o Owner, rules []Rule) {
	d := demandsOf(rules)
	for c := range numChains {
		if _, gated := gates[c]; gated && len(d[c]) > 0 {
			one := demand{o.ID, c, d[c]}
			t.rules[Handles] = append(t.rules[Handles], rule{data: one.userData(), demand: &one})
		}
	}
}

// setGates makes the gates for the handles that have rules now.
func (t *tx) setGates() {
	if !t.loaded || !t.table.there {
		return // the rules are as they were
	}
	for c := range numChains {
		gate, gated := gates[c]
		if !gated || !t.chains[c] {
			continue
		}
		if union, ok := t.union(c); ok {
			t.gate(c, gate, union)
		} else {
			t.ungate(c, gate)
		}
	}
}

// union returns the joint demands of the handles with rules in a chain. It is not ok if they demand nothing, or are few.
func (t *tx) union(c Chain) (terms []prog.Term, ok bool) {
	handles := map[uint64]bool{}
	for _, r := range t.rules[c] {
		if r.owner != nil {
			handles[r.owner.ID] = true
		}
	}
	if len(handles) < leastGated {
		return nil, false
	}
	for _, r := range t.rules[Handles] {
		if d := r.demand; d != nil && d.chain == c && handles[d.handle] {
			delete(handles, d.handle)
			terms = prog.JoinTerms(terms, d.terms)
		}
	}
	all := len(terms) == 1 && terms[0].Family == 0
	return terms, len(handles) == 0 && !all
}

// gate makes a chain's gate let packets through that meet one of the terms.
func (t *tx) gate(c, gate Chain, union []prog.Term) {
	sum := fnv.New64a()
	sum.Write(appendTerms(nil, union, 0))
	data := userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf(gateFormat, sum.Sum64()))
	if !t.has(c, gating) {
		at := 0
		for at < len(t.rules[c]) && t.rules[c][at].owner == nil && !c.behind(t.rules[c][at].data) {
			at++
		}
		t.rules[c] = slices.Insert(t.rules[c], at, rule{data: gating.userData(), exprs: jumpTo(gate)})
	}
	if rs := t.rules[gate]; len(rs) == len(union)+2 && string(rs[0].data) == string(data) {
		return
	}
	t.clear(gate)
	for i := range union {
		before, destination := termExprs(&union[i])
		match := append(append(before, destination...), &expr.Verdict{Kind: expr.VerdictReturn})
		t.rules[gate] = append(t.rules[gate], rule{data: data, exprs: match})
	}
	t.rules[gate] = append(t.rules[gate],
		rule{data: data, exprs: closing.exprs()},
		rule{data: data, exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}},
	)
}

// clear makes a gate an empty chain.
func (t *tx) clear(gate Chain) {
	if !t.chains[gate] {
		t.batch.newChain(&nftables.Chain{Name: chains[gate].name})
		t.chains[gate] = true
	} else {
		t.batch.flushChain(chains[gate].name)
	}
	t.rules[gate] = nil
}

// ungate takes a chain's gate away.
func (t *tx) ungate(c, gate Chain) {
	t.removeFixed(c, gating)
	if t.chains[gate] && len(t.rules[gate]) > 0 {
		t.clear(gate)
	}
}

// removeFixed takes a fixed rule out of a chain.
func (t *tx) removeFixed(c Chain, f fixed) {
	t.rules[c] = slices.DeleteFunc(t.rules[c], func(r rule) bool {
		if !f.is(r.data) {
			return false
		}
		if r.number != 0 {
			t.batch.deleteRule(chains[c].name, r.number)
		}
		return true
	})
}

// jumpTo leads packets through a gate, which lets those return that a handle may look at.
func jumpTo(gate Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chains[gate].name}}
}

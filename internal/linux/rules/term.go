//go:build linux

package rules

import (
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/prog"
)

// A rule first tests the conditions that its filter demands in any case (prog.Term), because they cost a fraction of a call to a
// program. An expression that cannot be evaluated ends the rule, as one that does not match: those of a term do so only for
// packets that do not meet it.

// kindOfKey is the type of a packet's value in nftables: its length in bytes, and the number by which nft prints it
// (nftables, datatype.h).
type kindOfKey struct {
	length, number uint32
}

var (
	keyIPv4     = kindOfKey{4, 7}
	keyIPv6     = kindOfKey{16, 8}
	keyProtocol = kindOfKey{1, 12}
	keyPort     = kindOfKey{2, 13}
)

// bytes returns a value as packets have it.
func (k kindOfKey) bytes(v prog.Value) []byte {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], v.Hi)
	binary.BigEndian.PutUint64(b[8:], v.Lo)
	return b[16-k.length:]
}

// last is the greatest value.
func (k kindOfKey) last() []byte { return slices.Repeat([]byte{0xFF}, int(k.length)) }

// termExprs match the packets that meet a term: those of before, which do not look at the destination, and those that do.
func termExprs(t *prog.Term) (before, destination []expr.Any) {
	if t.Family == 0 {
		return nil, nil
	}
	network, transport := expr.PayloadBaseNetworkHeader, expr.PayloadBaseTransportHeader
	family, protocol, address, src, dst, ports := byte(unix.NFPROTO_IPV4), uint32(9), keyIPv4, uint32(12), uint32(16), uint32(0)
	if t.Family == 6 {
		// Without extension headers the ports lie behind the header; where the kernel sees them there may be others.
		family, protocol, address, src, dst, ports, transport = unix.NFPROTO_IPV6, 6, keyIPv6, 8, 24, 40, network
	}
	before = []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{family}},
	}
	if t.Extends {
		before = append(before, among(keyProtocol, network, protocol, prog.ExtensionHeaders)...)
	}
	if t.Pieces != prog.AnyPiece {
		before = append(before, pieces(t)...)
	} else {
		before = append(before, among(keyProtocol, network, protocol, t.Protocol)...)
	}
	before = append(before, among(keyPort, transport, ports, t.SrcPort)...)
	before = append(before, among(address, network, src, t.Src)...)
	destination = among(keyPort, transport, ports+2, t.DstPort)
	return before, append(destination, among(address, network, dst, t.Dst)...)
}

// pieces match the fragments of IPv4 that a term is for, and its protocols: both lie in the four bytes of fragment flags and
// offset, time to live and protocol.
func pieces(t *prog.Term) []expr.Any {
	flags, op := []byte{0, 0}, expr.CmpOpEq // nothing follows, and the offset is 0
	switch t.Pieces {
	case prog.FirstPiece:
		flags[0] = 0x20
	case prog.Fragments:
		op = expr.CmpOpNeq
	}
	mask, want := []byte{0x3F, 0xFF}, flags
	one := op == expr.CmpOpEq && len(t.Protocol) == 1 && t.Protocol[0].First == t.Protocol[0].Last
	if one {
		mask, want = append(mask, 0, 0xFF), append(flags, 0, byte(t.Protocol[0].First.Lo))
	}
	e := []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: 6, Len: uint32(len(mask))},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))},
		&expr.Cmp{Op: op, Register: reg1, Data: want},
	}
	if one {
		return e
	}
	return append(e, among(keyProtocol, expr.PayloadBaseNetworkHeader, 9, t.Protocol)...)
}

// among matches packets of which a value lies in one of the ranges; all, if there is no list.
func among(k kindOfKey, base expr.PayloadBase, offset uint32, list []prog.Range) []expr.Any {
	if list == nil {
		return nil
	}
	load := &expr.Payload{DestRegister: reg1, Base: base, Offset: offset, Len: k.length}
	return []expr.Any{load, k.within(list)}
}

// within matches if the value in reg1 lies in one of the ranges.
func (k kindOfKey) within(list []prog.Range) expr.Any {
	first, last := k.bytes(list[0].First), k.bytes(list[len(list)-1].Last)
	least := make([]byte, k.length)
	if len(list) == 1 {
		return inRange(expr.CmpOpEq, first, last)
	}
	if len(list) == 2 && slices.Equal(first, least) && slices.Equal(last, k.last()) { // all but a range
		return inRange(expr.CmpOpNeq, next(k.bytes(list[0].Last), 1), next(k.bytes(list[1].First), -1))
	}
	return &inSet{Lookup: expr.Lookup{SourceRegister: reg1}, kind: k, ranges: list}
}

// inRange compares reg1 with the values from first to last.
func inRange(op expr.CmpOp, first, last []byte) expr.Any {
	if slices.Equal(first, last) {
		return &expr.Cmp{Op: op, Register: reg1, Data: first}
	}
	return &expr.Range{Op: op, Register: reg1, FromData: first, ToData: last}
}

// next returns the number after b, or with -1 the one before.
func next(b []byte, by int) []byte {
	out := slices.Clone(b)
	for i := len(out) - 1; i >= 0; i-- {
		out[i] += byte(by)
		if by > 0 && out[i] != 0 || by < 0 && out[i] != 0xFF {
			break
		}
	}
	return out
}

// inSet is a look-up in an anonymous set, which is made and removed with its rule.
type inSet struct {
	expr.Lookup
	kind   kindOfKey
	ranges []prog.Range
}

// single reports whether the set has single values only.
func (s *inSet) single() bool {
	return !slices.ContainsFunc(s.ranges, func(r prog.Range) bool { return r.First != r.Last })
}

// When selects the packets that a rule is for: those of a kind that meet a term. The zero When selects all packets.
type When struct {
	Only Only
	Term prog.Term
}

// exprs match the packets: those of before, which do not look at the destination, and those that do.
func (w *When) exprs() (before, destination []expr.Any) {
	before, destination = termExprs(&w.Term)
	if w.Only == TCP && slices.Equal(w.Term.Protocol, tcpOnly) {
		return before, destination // which say it already
	}
	return append(w.Only.exprs(), before...), destination
}

var tcpOnly = []prog.Range{{First: prog.Value{Lo: unix.IPPROTO_TCP}, Last: prog.Value{Lo: unix.IPPROTO_TCP}}}

// Cases returns the cases for rules that lead packets of a kind on if they meet one of the terms; no packet is in two of
// the cases.
func Cases(o Only, terms []prog.Term) []When {
	var cases []When
	for i := range terms {
		if o.possible(&terms[i]) {
			cases = append(cases, When{o, terms[i]})
		}
	}
	if o == TCP && len(cases) == 3 && !slices.ContainsFunc(cases, func(w When) bool { return !isOnly(&w.Term, tcpOnly) }) {
		return []When{{Only: o}} // IPv4, IPv6, and IPv6 with extension headers
	}
	return cases
}

// isOnly reports whether a term's only conditions, besides the family, are a protocol of the list and extension headers.
func isOnly(t *prog.Term, protocol []prog.Range) bool {
	return t.Src == nil && t.Dst == nil && t.SrcPort == nil && t.DstPort == nil && (t.Protocol == nil || slices.Equal(t.Protocol, protocol))
}

// CasesBesides is Cases for all packets except those that other rules lead elsewhere: rules for PlainTCP4 and PlainTCP6, or for
// TCP with a program that takes these.
func CasesBesides(terms []prog.Term) []When {
	var cases []When
	for _, t := range terms {
		if t.Protocol == nil || !TCP.possible(&t) {
			cases = append(cases, When{Term: t})
			continue
		}
		if t.Family == 4 {
			odd := t
			odd.Protocol = tcpOnly
			cases = append(cases, When{OddTCP4, odd})
		}
		if t.Protocol = without(t.Protocol, unix.IPPROTO_TCP); len(t.Protocol) > 0 {
			cases = append(cases, When{Term: t})
		}
	}
	return cases
}

// without returns a list of protocols without one of them.
func without(list []prog.Range, protocol uint64) (out []prog.Range) {
	for _, r := range list {
		if r.First.Lo > protocol || r.Last.Lo < protocol {
			out = append(out, r)
			continue
		}
		if r.First.Lo < protocol {
			out = append(out, prog.Range{First: r.First, Last: prog.Value{Lo: protocol - 1}})
		}
		if r.Last.Lo > protocol {
			out = append(out, prog.Range{First: prog.Value{Lo: protocol + 1}, Last: r.Last})
		}
	}
	return out
}

// possible reports whether a packet that meets a term can be of the kind.
func (o Only) possible(t *prog.Term) bool {
	if t.Family == 0 {
		return true
	}
	family, protocol := uint8(0), uint64(unix.IPPROTO_TCP)
	switch o {
	case AllPackets:
		return true
	case SCTP:
		protocol = unix.IPPROTO_SCTP
	case PlainTCP4, OddTCP4:
		family = 4
	case PlainTCP6, TCP6, BigTCP6:
		family = 6
	}
	if family != 0 && t.Family != family {
		return false
	}
	switch {
	case t.Extends:
		return o != PlainTCP6
	case o == BigTCP6:
		return t.Protocol == nil
	}
	return t.Protocol == nil || slices.ContainsFunc(t.Protocol, func(r prog.Range) bool {
		return r.First.Lo <= protocol && protocol <= r.Last.Lo
	})
}

package prog

import (
	"encoding/binary"
	"slices"

	"github.com/opendivert/divert/packet"
)

// A Term is a condition that a packet filter without programs, such as nftables, can test. Every packet meets the zero
// Term. Values are in host order; a nil list allows every value, and no list is empty. IPv4 addresses are values of
// ::ffff:0:0/96, as in the language.
type Term struct {
	Family  uint8 // 4 or 6; 0: both, and then there is no other condition
	Extends bool  // IPv6: the Next Header of the IPv6 header is one of ExtensionHeaders; Protocol, SrcPort and DstPort are nil
	Pieces  Pieces

	// Protocol is the protocol of the IPv4 header, or the Next Header of the IPv6 header; for IPv6 it contains none of
	// ExtensionHeaders.
	Protocol []Range
	Src, Dst []Range // addresses of the IP header

	// SrcPort and DstPort are the first and the second 16 bits behind the IP header. If one of them is not nil, Protocol
	// allows only TCP and UDP.
	SrcPort, DstPort []Range
}

// Pieces selects fragments of IPv4 for a term.
type Pieces uint8

// The kinds of pieces. The first fragment of several may end before its transport header does.
const (
	AnyPiece   Pieces = iota
	WholePiece        // packets that are not fragmented
	FirstPiece        // the first fragment of several; SrcPort and DstPort are nil
	Fragments         // every fragment; the same
)

// ExtensionHeaders are the Next Headers of IPv6 behind which filters look for a transport header (specification:
// packets.md 1.1).
var ExtensionHeaders = []Range{
	only(packet.ProtocolHopByHop), {First: Value{Lo: packet.ProtocolRouting}, Last: Value{Lo: packet.ProtocolFragment}},
	only(packet.ProtocolAH), only(packet.ProtocolDestOptions), only(packet.ProtocolMobility),
}

// only is the range of one number.
func only(v uint64) Range { return Range{First: Value{Lo: v}, Last: Value{Lo: v}} }

// Necessary returns conditions for the given direction: every matching packet meets exactly one of the terms. Without
// terms no packet matches. The conditions are as narrow as can be found cheaply: a packet that meets one may still fail
// to match; a packet that meets none never matches, whatever its address holds besides the direction. That includes first
// fragments that end before their transport header does, for which see MayMatchHeaders. The program must be one of a
// layer with packets. At LayerForward the direction has no meaning.
func (p *Program) Necessary(outbound bool) []Term {
	tests := p.Gathered()
	if len(tests) > maxNecessary {
		return []Term{{}}
	}
	n := newAnalysis(p.layer, outbound, tests)
	var terms []Term
	for i := range classes {
		if f := n.run(&classes[i]); f != nil {
			terms = append(terms, f.term(&classes[i]))
		}
	}
	terms = apart(terms)
	for i := range short {
		if f := n.run(&short[i]); f != nil {
			terms = withShort(terms, f.term(&short[i]))
		}
	}
	return apart(terms)
}

// withShort adds the term of first fragments that end before their transport header to disjoint terms.
func withShort(terms []Term, first Term) []Term {
	if first.Family == 6 {
		return append(terms, first)
	}
	for i := range terms {
		t := &terms[i]
		if t.Family == 0 {
			return terms
		}
		if t.Family != 4 || t.Pieces != AnyPiece || t.Protocol != nil && len(intersect(t.Protocol, first.Protocol)) == 0 {
			continue
		}
		if t.SrcPort == nil && t.DstPort == nil {
			first.Pieces = AnyPiece // already a part of the term, or now
			break
		}
		// Then the term covers whole packets, and the other term its first fragments.
		other := *t
		other.Pieces, other.SrcPort, other.DstPort = FirstPiece, nil, nil
		t.Pieces = WholePiece
		terms = append(terms, other)
		break
	}
	return append(terms, first)
}

// WithoutEnds returns wider terms: if one packet of a flow meets one of the given terms, all packets of the flow meet the
// result, although addresses and ports change sides in the other direction.
func WithoutEnds(terms []Term) []Term { return withoutEnds(terms, func(*Term) bool { return true }) }

// WithBeginnings returns wider terms: if one packet of a TCP flow meets one of the given terms, the packets that begin
// the flow meet the result, even in the other direction.
func WithBeginnings(terms []Term) []Term { return withoutEnds(terms, (*Term).mayBeTCP) }

// mayBeTCP reports whether TCP packets may meet the term.
func (t *Term) mayBeTCP() bool {
	return t.Protocol == nil || slices.ContainsFunc(t.Protocol, func(r Range) bool {
		return r.First.Lo <= packet.ProtocolTCP && packet.ProtocolTCP <= r.Last.Lo
	})
}

func withoutEnds(terms []Term, of func(*Term) bool) []Term {
	var wide []Term
	for _, t := range terms {
		if !of(&t) {
			wide = append(wide, t)
			continue
		}
		t.Src, t.Dst, t.SrcPort, t.DstPort, t.Pieces = nil, nil, nil, nil, AnyPiece
		wide = append(wide, t)
	}
	return apart(wide)
}

// JoinTerms returns terms such that a packet meets exactly one of them if it meets one of a or of b.
func JoinTerms(a, b []Term) []Term { return apart(slices.Concat(a, b)) }

// WithFragments returns wider terms: if the first fragment of an IPv4 datagram meets one of the given terms, all its
// fragments meet the result, so that they can be kept in order. It takes over the argument.
func WithFragments(terms []Term) []Term {
	for i := range terms {
		if terms[i].Pieces == FirstPiece {
			terms[i].Pieces = Fragments
		}
	}
	return terms
}

// SameTerms reports whether two lists of terms are the same conditions in the same order.
func SameTerms(a, b []Term) bool {
	return slices.EqualFunc(a, b, func(s, t Term) bool {
		return s.Family == t.Family && s.Extends == t.Extends && s.Pieces == t.Pieces && same(s.Protocol, t.Protocol) && s.alike(&t)
	})
}

// apart joins terms so that no packet meets two of them, and also joins those that can be one without allowing more. It
// takes over the argument.
func apart(terms []Term) []Term {
	var four, plain, extended []Term
	for _, t := range terms {
		switch {
		case t.Family == 0:
			return []Term{{}}
		case t.Family == 4:
			four = append(four, t)
		case t.Extends:
			extended = append(extended, t)
		default:
			plain = append(plain, t)
		}
	}
	six := plain
	for i := range plain {
		if plain[i].Protocol != nil {
			continue
		}
		for _, e := range extended { // plain[i] includes packets with extension headers
			plain[i] = plain[i].join(&Term{Family: 6, Src: e.Src, Dst: e.Dst})
		}
		extended = nil
		break
	}
	six, extended = merge(six), mergeAll(extended)
	if len(extended) == 1 && len(six) == 1 && slices.Equal(six[0].Protocol, plainHeaders) && six[0].alike(&extended[0]) {
		six[0].Protocol, extended = nil, nil
	}
	if four, six = merge(four), append(six, extended...); len(four) == 1 && len(six) == 1 && four[0].isFamily(4) && six[0].isFamily(6) {
		return []Term{{}}
	}
	return append(four, six...)
}

// Meets reports whether a packet, an IP header first, meets the term. It defines the meaning of a Term; but users of
// terms may treat ports in later IPv4 fragments, which have none, as met.
func (t *Term) Meets(b []byte) bool {
	if t.Family == 0 {
		return true
	}
	if len(b) < packet.IPv4HeaderLen || b[0]>>4 != t.Family {
		return false
	}
	var next uint64
	var src, dst Value
	transport := packet.IPv6HeaderLen
	if t.Family == 4 {
		transport = int(b[0]&0x0F) * 4
		fragment := binary.BigEndian.Uint16(b[6:]) & 0x3FFF // more follow, and the offset
		if fragment&0x1FFF != 0 {
			transport = len(b) // the transport header is in another fragment
		}
		switch {
		case t.Pieces == WholePiece && fragment != 0, t.Pieces == FirstPiece && fragment != 0x2000, t.Pieces == Fragments && fragment == 0:
			return false
		}
		next = uint64(b[9])
		src = Value{Lo: ipv4Prefix | uint64(binary.BigEndian.Uint32(b[12:]))}
		dst = Value{Lo: ipv4Prefix | uint64(binary.BigEndian.Uint32(b[16:]))}
	} else {
		if len(b) < packet.IPv6HeaderLen {
			return false
		}
		next = uint64(b[6])
		src = Value{Hi: binary.BigEndian.Uint64(b[8:]), Lo: binary.BigEndian.Uint64(b[16:])}
		dst = Value{Hi: binary.BigEndian.Uint64(b[24:]), Lo: binary.BigEndian.Uint64(b[32:])}
	}
	if t.Extends && !within(ExtensionHeaders, Value{Lo: next}) ||
		!within(t.Protocol, Value{Lo: next}) || !within(t.Src, src) || !within(t.Dst, dst) {
		return false
	}
	return meetsPort(t.SrcPort, b, transport) && meetsPort(t.DstPort, b, transport+2)
}

// meetsPort reports whether a list allows the 16 bits at an offset of a packet; if it allows all, the bits may be
// missing.
func meetsPort(list []Range, b []byte, at int) bool {
	if list == nil {
		return true
	}
	return at+2 <= len(b) && within(list, Value{Lo: uint64(binary.BigEndian.Uint16(b[at:]))})
}

// within reports whether a list allows a value.
func within(list []Range, v Value) bool {
	return list == nil || (&Set{Ranges: list}).Contains(v)
}

// isFamily reports whether the term has no condition but the family.
func (t *Term) isFamily(family uint8) bool {
	return t.Family == family && !t.Extends && t.Pieces == AnyPiece && t.Protocol == nil && t.Src == nil && t.Dst == nil && t.SrcPort == nil && t.DstPort == nil
}

// maxNecessary is the most tests of a program to analyse, maxRanges the most ranges of a list.
const (
	maxNecessary = 500
	maxRanges    = 64
)

// class is a kind of packets that is analysed separately.
type class struct {
	shapes   shapes // the bit of one shape, in either direction
	family   uint8
	extends  bool
	protocol []Range // the possible values of the field protocol
	next     []Range // IPv6: possible values of Next Header
	open     shapes  // first fragments that end before the transport header: shapes on which unknown values depend; else 0
	src, dst []Range // possible values of localPort and remotePort, as the source's and the destination's
}

var (
	anyByte = []Range{{Last: Value{Lo: 0xFF}}}
	anyPort = []Range{{Last: Value{Lo: 0xFFFF}}}
	noPort  = []Range{{}} // packets without ports have the port 0
	mapped  = []Range{{First: Value{Lo: ipv4Prefix}, Last: Value{Lo: ipv4Prefix | 0xFFFFFFFF}}}
	whole   = []Range{{Last: maxValue}}

	plainHeaders = clip(complement(ExtensionHeaders), anyByte[0])
)

// classes are all kinds of packets.
var classes = func() (cs []class) {
	for _, c := range []class{
		{shapes: shapeTCP4, family: 4, protocol: []Range{only(packet.ProtocolTCP)}, src: anyPort, dst: anyPort},
		{shapes: shapeUDP4, family: 4, protocol: []Range{only(packet.ProtocolUDP)}, src: anyPort, dst: anyPort},
		{shapes: shapeICMP4, family: 4, protocol: []Range{only(packet.ProtocolICMP)}, src: anyByte, dst: noPort},
		{shapes: shapeOther4, family: 4, protocol: anyByte, src: noPort, dst: noPort},
		{shapes: shapeTCP6, family: 6, protocol: []Range{only(packet.ProtocolTCP)}, src: anyPort, dst: anyPort},
		{shapes: shapeUDP6, family: 6, protocol: []Range{only(packet.ProtocolUDP)}, src: anyPort, dst: anyPort},
		{shapes: shapeICMP6, family: 6, protocol: []Range{only(packet.ProtocolICMPv6)}, src: anyByte, dst: noPort},
		{shapes: shapeOther6, family: 6, protocol: anyByte, src: noPort, dst: noPort},
	} {
		if c.family == 6 {
			extended := c
			extended.extends, extended.next = true, ExtensionHeaders
			cs = append(cs, extended)
			c.protocol = clip(plainHeaders, c.protocol[0])
			c.next = c.protocol
		}
		cs = append(cs, c)
	}
	return cs
}()

// short are the kinds of first fragments that end before their transport header; see MayMatchHeaders.
var short = func() (cs []class) {
	for _, protocol := range []uint8{packet.ProtocolTCP, packet.ProtocolUDP, packet.ProtocolICMP, packet.ProtocolICMPv6} {
		cs = append(cs, class{
			shapes: shapeOther4, family: 4, protocol: []Range{only(uint64(protocol))}, src: noPort, dst: noPort, open: transportShapes(protocol),
		})
	}
	return append(cs, class{
		shapes: shapeOther6, family: 6, extends: true, protocol: anyByte, next: ExtensionHeaders, src: noPort, dst: noPort, open: allShapes,
	})
}()

// The values of a packet that the analysis follows.
const (
	ofSrc = iota
	ofDst
	ofSrcPort
	ofDstPort
	ofProtocol
	ofNext
	numOf
)

// facts are the possible values of each of them at a place of a program. No list is empty.
type facts [numOf][]Range

// analysis follows the packets of a class through a program.
type analysis struct {
	layer       packet.Layer
	outbound    bool
	tests       []Test
	holds, fail [][]Range // of each test, the values with which it holds and fails; nil: any
}

func newAnalysis(layer packet.Layer, outbound bool, tests []Test) *analysis {
	n := &analysis{layer: layer, outbound: outbound, tests: tests, holds: make([][]Range, len(tests)), fail: make([][]Range, len(tests))}
	for i := range tests {
		if values, ok := holding(&tests[i]); ok {
			n.holds[i], n.fail[i] = atMost(values), atMost(complement(values))
		}
	}
	return n
}

// holding returns the values of a field with which a test holds, if known; see Program.decode.
func holding(t *Test) (values []Range, ok bool) {
	info := t.Field.Info()
	none := []Range{}
	switch {
	case t.Named != nil || t.Op > OpNotIn || info.Kind == KindSigned:
		return nil, false
	case t.Op == OpIn || t.Op == OpNotIn:
		values = slices.Concat(none, t.Set.Ranges)
		if t.Op == OpNotIn {
			values = complement(values)
		}
		return values, true
	case t.Neg: // below all values
		if t.Op == OpNe || t.Op == OpGt || t.Op == OpGe {
			return whole, true
		}
		return none, true
	}
	lit := t.Value
	if !info.Wide {
		lit = Value{Lo: lit.Lo & 0xFFFF_FFFF}
	}
	r, invert := acceptedBy(t.Op, lit)
	if values = []Range{r}; invert {
		values = complement(values)
	}
	return values, true
}

// complement returns the values outside all ranges, which are ascending and disjoint; never nil.
func complement(ranges []Range) []Range {
	out := make([]Range, 0, len(ranges)+1)
	var from Value
	for _, r := range ranges {
		if from.Less(r.First) {
			out = append(out, Range{First: from, Last: r.First.Prev()})
		}
		if r.Last == maxValue {
			return out
		}
		from = r.Last.Next()
	}
	return append(out, Range{First: from, Last: maxValue})
}

// atMost closes the narrowest gaps of a list that is too long.
func atMost(list []Range) []Range { return Enclose(list, maxRanges) }

// Enclose returns a list of at most n ranges, n at least 1, that contains the list: it closes the narrowest gaps.
func Enclose(list []Range, n int) []Range {
	if len(list) <= n {
		return list
	}
	return enclose(list, n)
}

// run returns the facts of the packets of a class that the program may accept, nil if there are none.
func (n *analysis) run(c *class) *facts {
	at := make([]*facts, len(n.tests)) // the facts at the entry of each test; nil: unreachable
	address := whole
	if c.family == 4 {
		address = mapped
	}
	at[0] = &facts{address, address, c.src, c.dst, c.protocol, c.next}
	var accepted *facts
	lead := func(t Target, f *facts) {
		to := &accepted
		switch {
		case f == nil || t == Reject:
			return
		case t >= 0:
			to = &at[t]
		}
		*to = f.join(*to)
	}
	for i := range n.tests { // jumps only go forward
		if f := at[i]; f != nil {
			holds, fails := n.decide(i, c, f)
			lead(n.tests[i].Succ, holds)
			lead(n.tests[i].Fail, fails)
			at[i] = nil
		}
	}
	return accepted
}

// decide returns the facts when a test holds and when it fails; nil where that is impossible.
func (n *analysis) decide(i int, c *class, f *facts) (holds, fails *facts) {
	t := &n.tests[i]
	if c.open != 0 && t.Field.ofTransport(n.layer, c.open) {
		return f, f
	}
	if v, ok := n.constant(t.Field, c); ok && n.holds[i] != nil {
		switch {
		case len(n.holds[i]) == maxRanges: // the true list may be longer
			return f, f
		case within(n.holds[i], v):
			return f, nil
		}
		return nil, f
	}
	if header(t.Field, n.layer)&both(c.shapes) == 0 {
		return nil, f
	}
	of, ok := n.place(t.Field, c)
	if !ok || n.holds[i] == nil {
		return f, f
	}
	return f.with(of, n.holds[i]), f.with(of, n.fail[i])
}

// constant returns the value of a field that is the same for all packets of a class.
func (n *analysis) constant(f Field, c *class) (v Value, ok bool) {
	if f == FieldZero {
		return Value{}, true
	}
	s, ok := having(f, n.layer)
	if !ok || n.layer != packet.LayerNetwork && (f == FieldInbound || f == FieldOutbound) {
		return Value{}, false
	}
	of := c.shapes
	if n.outbound {
		of <<= outward
	}
	if s&of != 0 {
		v.Lo = 1
	}
	return v, true
}

// place returns the followed value that a field is, if the packets of a class with the field's header all have that
// value.
func (n *analysis) place(f Field, c *class) (of int, ok bool) {
	if !f.Info().In(false).Has(n.layer) {
		return 0, false
	}
	local, remote := 1, 0 // of a pair
	if n.outbound {
		local, remote = 0, 1
	}
	switch f {
	case FieldIPSrcAddr, FieldIPv6SrcAddr:
		return ofSrc, true
	case FieldIPDstAddr, FieldIPv6DstAddr:
		return ofDst, true
	case FieldLocalAddr:
		return ofSrc + local, true
	case FieldRemoteAddr:
		return ofSrc + remote, true
	case FieldTCPSrcPort, FieldUDPSrcPort:
		return ofSrcPort, true
	case FieldTCPDstPort, FieldUDPDstPort:
		return ofDstPort, true
	case FieldLocalPort:
		return ofSrcPort + local, true
	case FieldRemotePort:
		return ofSrcPort + remote, true
	case FieldIPProtocol, FieldProtocol:
		return ofProtocol, true
	case FieldIPv6NextHdr:
		if c.extends {
			return ofNext, true
		}
		return ofProtocol, true
	}
	return 0, false
}

// with returns the facts with one value restricted to a list too, nil if no value remains.
func (f *facts) with(of int, list []Range) *facts {
	both := intersect(f[of], list)
	if len(both) == 0 {
		return nil
	}
	g := *f
	g[of] = atMost(both)
	return &g
}

// join returns the facts that hold where two paths meet, one of which may be nil.
func (f *facts) join(o *facts) *facts {
	if o == nil {
		return f
	}
	g := *f
	for i := range g {
		g[i] = union(f[i], o[i])
	}
	return &g
}

// intersect returns the values in both lists.
func intersect(a, b []Range) (out []Range) {
	for len(a) > 0 && len(b) > 0 {
		r := Range{First: highest(a[0].First, b[0].First), Last: lowest(a[0].Last, b[0].Last)}
		if !r.Last.Less(r.First) {
			out = append(out, r)
		}
		if a[0].Last.Less(b[0].Last) {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return out
}

// union returns the values in either list, and a few more if the lists are too long.
func union(a, b []Range) []Range {
	if slices.Equal(a, b) {
		return a
	}
	return atMost(NewSet(slices.Concat(a, b)).Ranges)
}

// term returns the facts of packets of a class as a term.
func (f *facts) term(c *class) Term {
	list := func(of int, all []Range) []Range {
		if slices.Equal(f[of], all) {
			return nil
		}
		return f[of]
	}
	t := Term{Family: c.family, Extends: c.extends}
	if c.open != 0 && c.family == 4 {
		t.Pieces = FirstPiece
	}
	address, protocols := whole, anyByte
	if c.family == 4 {
		address = mapped
	}
	t.Src, t.Dst = list(ofSrc, address), list(ofDst, address)
	if c.extends {
		return t
	}
	if t.Protocol = list(ofProtocol, protocols); c.family == 6 {
		t.Protocol = intersect(t.Protocol, plainHeaders)
	}
	if slices.Equal(c.dst, anyPort) {
		t.SrcPort, t.DstPort = list(ofSrcPort, anyPort), list(ofDstPort, anyPort)
	}
	return t
}

// same reports whether two lists of a term allow the same.
func same(a, b []Range) bool { return (a == nil) == (b == nil) && slices.Equal(a, b) }

// either returns the list that allows the values of both lists of a term.
func either(a, b []Range) []Range {
	if a == nil || b == nil {
		return nil
	}
	return union(a, b)
}

// join returns a term of the same family that a packet meets if it meets either of the two, which must both have
// extension headers or both not.
func (t *Term) join(o *Term) Term {
	j := Term{
		Family: t.Family, Extends: t.Extends, Pieces: t.Pieces, Protocol: either(t.Protocol, o.Protocol),
		Src: either(t.Src, o.Src), Dst: either(t.Dst, o.Dst),
		SrcPort: either(t.SrcPort, o.SrcPort), DstPort: either(t.DstPort, o.DstPort),
	}
	switch {
	case t.Pieces == o.Pieces:
	case t.Pieces >= FirstPiece && o.Pieces >= FirstPiece:
		j.Pieces = Fragments
	default:
		j.Pieces = AnyPiece
	}
	if j.Family == 6 && j.Protocol != nil {
		j.Protocol = intersect(j.Protocol, plainHeaders)
	}
	return j
}

// alike reports whether two terms differ at most in the protocol.
func (t *Term) alike(o *Term) bool {
	return t.Pieces == o.Pieces && same(t.Src, o.Src) && same(t.Dst, o.Dst) && same(t.SrcPort, o.SrcPort) && same(t.DstPort, o.DstPort)
}

// merge joins terms of one family until no protocol is in two of them, and those that differ only in the protocol.
func merge(terms []Term) []Term {
	for i := 0; i < len(terms); i++ {
		for j := i + 1; j < len(terms); j++ {
			a, b := &terms[i], &terms[j]
			apart := a.Pieces != b.Pieces && (a.Pieces == WholePiece || b.Pieces == WholePiece) && a.Pieces != AnyPiece && b.Pieces != AnyPiece
			overlap := !apart && (a.Protocol == nil || b.Protocol == nil || len(intersect(a.Protocol, b.Protocol)) > 0)
			if !overlap && !a.alike(b) {
				continue
			}
			terms[i] = a.join(b)
			terms = slices.Delete(terms, j, j+1)
			i = -1 // start again: it may overlap others now
			break
		}
	}
	return terms
}

// mergeAll joins terms into one.
func mergeAll(terms []Term) []Term {
	for len(terms) > 1 {
		terms[0] = terms[0].join(&terms[1])
		terms = slices.Delete(terms, 1, 2)
	}
	return terms
}

package tcpdump

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Neighbour converts a filter of Divert to one of tcpdump that matches the same IP packets. Notes name possible
// differences. The error names the field or the layer without a counterpart.
func Neighbour(p *prog.Program) (Result, error) {
	if l := p.Layer(); l != packet.LayerNetwork && l != packet.LayerForward {
		return Result{}, fmt.Errorf("tcpdump sees packets, and the layer %v has events", l)
	}
	n := neighbour{}
	c := n.expr(p.Expr(), context{ip4: true, ip6: true, in: true, out: true}, 0)
	switch {
	case n.err != nil:
		return Result{}, n.err
	case c.is(false):
		return Result{}, errors.New("the filter matches nothing, which tcpdump refuses to say")
	case c.is(true):
		c = clause{text: "ip or ip6"}
	}
	if len(c.text) > maxText {
		return Result{}, errTooLong
	}
	return Result{c.text, n.notes}, nil
}

var errTooLong = fmt.Errorf("the filter of tcpdump would be longer than %d bytes", maxText)

// neighbour converts one filter.
type neighbour struct {
	notes []string
	err   error // the first error
}

// context holds the possibilities that the tests joined by and with this one leave.
type context struct{ ip4, ip6, in, out bool }

// bindingOf is the operator that joins the parts of a clause.
type bindingOf uint8

const (
	single bindingOf = iota
	byAnd
	byOr
	always
	never
)

// clause is a part of a filter of tcpdump.
type clause struct {
	text string
	by   bindingOf
}

func (c clause) is(value bool) bool { return c.by == always && value || c.by == never && !value }

func certain(value bool) clause {
	if value {
		return clause{by: always}
	}
	return clause{by: never}
}

// within returns the text as a part of another clause. In tcpdump's language and binds as loosely as or.
func (c clause) within() string {
	if c.by == single {
		return c.text
	}
	return "(" + c.text + ")"
}

// both joins clauses by and, either by or.
func both(cs ...clause) clause   { return joinClauses(cs, byAnd, " and ", always, never) }
func either(cs ...clause) clause { return joinClauses(cs, byOr, " or ", never, always) }

func joinClauses(cs []clause, by bindingOf, word string, neutral, decisive bindingOf) clause {
	var parts []string
	last := clause{by: neutral}
	for _, c := range cs {
		switch c.by {
		case neutral:
			continue
		case decisive:
			return c
		}
		text := c.within()
		if c.by == by {
			text = c.text
		}
		if !slices.Contains(parts, text) {
			parts, last = append(parts, text), c
		}
	}
	if len(parts) < 2 {
		return last
	}
	return clause{strings.Join(parts, word), by}
}

func opposite(c clause) clause {
	switch {
	case c.is(true), c.is(false):
		return certain(c.is(false))
	case c.by == single && strings.HasPrefix(c.text, "not "):
		return clause{text: c.text[len("not "):]}
	}
	return clause{text: "not " + c.within()}
}

func (n *neighbour) note(s string) {
	if !slices.Contains(n.notes, s) {
		n.notes = append(n.notes, s)
	}
}

// none records that a part has no counterpart.
func (n *neighbour) none(format string, args ...any) clause {
	if n.err == nil {
		n.err = fmt.Errorf(format, args...)
	}
	return certain(false)
}

// deepest is the deepest nesting of expressions, so that no filter exhausts the stack.
const deepest = 1000

func (n *neighbour) expr(e *prog.Expr, in context, depth int) clause {
	if n.err != nil {
		return certain(false)
	}
	if depth++; depth > deepest {
		return n.none("the filter is nested too deeply")
	}
	var c clause
	switch e.Kind {
	case prog.ExprConst:
		return certain(e.Value)
	case prog.ExprTest:
		return n.test(e.Test, in)
	case prog.ExprAnd:
		parts := flat(e, nil)
		for _, part := range parts {
			in = in.narrowed(part)
		}
		c = both(n.all(parts, in, depth)...)
	case prog.ExprOr:
		c = either(n.all(flat(e, nil), in, depth)...)
	case prog.ExprNot:
		c = opposite(n.expr(e.Parts[0], in, depth))
	case prog.ExprCond:
		condition := n.expr(e.Parts[0], in, depth)
		then, otherwise := n.expr(e.Parts[1], in.narrowed(e.Parts[0]), depth), n.expr(e.Parts[2], in, depth)
		switch {
		case then.is(true):
			c = either(condition, otherwise)
		case otherwise.is(true):
			c = either(opposite(condition), then)
		default:
			c = either(both(condition, then), both(opposite(condition), otherwise))
		}
	}
	if len(c.text) > maxText && n.err == nil { // before it grows further
		n.err = errTooLong
	}
	return c
}

// flat appends the parts of a chain of and, or of or, including those of nested chains.
func flat(e *prog.Expr, parts []*prog.Expr) []*prog.Expr {
	for _, part := range e.Chain() {
		if part.Kind == e.Kind {
			parts = flat(part, parts)
		} else {
			parts = append(parts, part)
		}
	}
	return parts
}

func (n *neighbour) all(parts []*prog.Expr, in context, depth int) []clause {
	out := make([]clause, len(parts))
	for i, part := range parts {
		out[i] = n.expr(part, in, depth)
	}
	return out
}

// narrowed returns the context of a part beside another that holds.
func (in context) narrowed(e *prog.Expr) context {
	if e.Kind != prog.ExprTest {
		return in
	}
	field := e.Test.Field
	if base := field.Info().Base; base != prog.FieldZero {
		field = base
	} else if !e.IsBare() {
		return in
	}
	switch field {
	case prog.FieldIP, prog.FieldICMP:
		in.ip6 = false
	case prog.FieldIPv6, prog.FieldICMPv6:
		in.ip4 = false
	case prog.FieldInbound:
		in.out = false
	case prog.FieldOutbound:
		in.in = false
	}
	return in
}

// accepted are the values with which a test holds: those in ranges, or all other possible values of the field.
type accepted struct {
	ranges []prog.Range
	others bool
}

// valuesOf returns the values with which a test holds.
func valuesOf(t *prog.Test) (accepted, bool) {
	info := t.Field.Info()
	low, high := info.DrvLo.Mag, info.DrvHi.Mag
	if t.Named != nil || t.Set == nil && (t.Op == prog.OpIn || t.Op == prog.OpNotIn) || t.Neg && t.Value != (prog.Value{}) || info.DrvLo.Neg {
		return accepted{}, false
	}
	v := t.Value
	if !info.Wide {
		v = prog.Value{Lo: v.Lo & 0xffffffff}
	}
	var r accepted
	switch t.Op {
	case prog.OpEq, prog.OpNe:
		r = accepted{[]prog.Range{{First: v, Last: v}}, t.Op == prog.OpNe}
	case prog.OpIn, prog.OpNotIn:
		r = accepted{t.Set.Ranges, t.Op == prog.OpNotIn}
	case prog.OpLt:
		if v.Compare(low) <= 0 {
			return accepted{}, true
		}
		r.ranges = []prog.Range{{First: low, Last: v.Prev()}}
	case prog.OpLe:
		r.ranges = []prog.Range{{First: low, Last: v}}
	case prog.OpGe:
		r.ranges = []prog.Range{{First: v, Last: high}}
	case prog.OpGt:
		if v.Compare(high) >= 0 {
			return accepted{}, true
		}
		r.ranges = []prog.Range{{First: v.Next(), Last: high}}
	}
	var within []prog.Range
	for _, each := range r.ranges {
		if each.First.Compare(low) < 0 {
			each.First = low
		}
		if each.Last.Compare(high) > 0 {
			each.Last = high
		}
		if each.First.Compare(each.Last) <= 0 {
			within = append(within, each)
		}
	}
	r.ranges = within
	return r, true
}

// has reports whether the test holds with a value.
func (v accepted) has(x uint64) bool {
	found := slices.ContainsFunc(v.ranges, func(r prog.Range) bool {
		return r.First.Compare(prog.Value{Lo: x}) <= 0 && prog.Value{Lo: x}.Compare(r.Last) <= 0
	})
	return found != v.others
}

// The words for headers, by field.
var headerWords = map[prog.Field]string{
	prog.FieldIP: "ip", prog.FieldIPv6: "ip6", prog.FieldTCP: "tcp", prog.FieldUDP: "udp", prog.FieldICMP: "icmp", prog.FieldICMPv6: "icmp6",
}

// numbers are the protocol numbers of transport headers.
var numbers = map[prog.Field]int{prog.FieldTCP: packet.ProtocolTCP, prog.FieldUDP: packet.ProtocolUDP}

// header tests for a header.
func (n *neighbour) header(f prog.Field, in context) clause {
	switch f {
	case prog.FieldZero:
		return certain(true)
	case prog.FieldIP:
		if !in.ip6 {
			return clause{text: "ip"}
		}
	case prog.FieldIPv6:
	default:
		n.noteTransport(f, in)
		n.note("tcpdump takes every fragment of a protocol for it; here those after the first have no header.")
	}
	return clause{text: headerWords[f]}
}

func (n *neighbour) noteTransport(f prog.Field, in context) {
	if in.ip6 && f != prog.FieldICMP {
		n.note("tcpdump looks for headers right behind that of IPv6, and not behind extension headers.")
	}
}

func (n *neighbour) test(t *prog.Test, in context) clause {
	v, ok := valuesOf(t)
	info := t.Field.Info()
	if !ok {
		return n.none("%s: tcpdump has nothing of the kind", t.Text())
	}
	if info.Boolean && info.Base == prog.FieldZero {
		return n.flag(t, v, in)
	}
	switch t.Field {
	case prog.FieldIPSrcAddr, prog.FieldIPv6SrcAddr, prog.FieldIPDstAddr, prog.FieldIPv6DstAddr:
		source := t.Field == prog.FieldIPSrcAddr || t.Field == prog.FieldIPv6SrcAddr
		return n.excluding(v, info.Base, in, n.addresses(v.ranges, source))
	case prog.FieldTCPSrcPort, prog.FieldTCPDstPort, prog.FieldUDPSrcPort, prog.FieldUDPDstPort:
		source := t.Field == prog.FieldTCPSrcPort || t.Field == prog.FieldUDPSrcPort
		return n.ports(v, info.Base, source, in)
	case prog.FieldLocalAddr, prog.FieldRemoteAddr:
		c := n.ends(t.Field == prog.FieldLocalAddr, in, func(source bool) clause { return n.addresses(prog.SplitFamilies(v.ranges...), source) })
		if v.others {
			return opposite(c)
		}
		return c
	case prog.FieldLocalPort, prog.FieldRemotePort:
		n.note("localPort and remotePort have the type of ICMP messages too; tcpdump's ports are those of TCP and UDP.")
		return n.ends(t.Field == prog.FieldLocalPort, in, func(source bool) clause {
			return either(n.ports(v, prog.FieldTCP, source, in), n.ports(v, prog.FieldUDP, source, in))
		})
	case prog.FieldProtocol:
		n.noteTransport(t.Field, in)
		return n.families(in, func(header prog.Field, _ int) clause {
			place := map[prog.Field]string{prog.FieldIP: "ip[9]", prog.FieldIPv6: "ip6[6]"}[header]
			return compared(place, v, 0, 0xff)
		})
	case prog.FieldLength:
		n.note(fmt.Sprintf("tcpdump's length counts from the link header on: %d bytes more on Ethernet.", linkHeader))
		for i := range v.ranges {
			if v.ranges[i].First.Lo <= packet.IPv4HeaderLen { // no packet is shorter
				v.ranges[i].First.Lo = 0
			}
		}
		return compared("len", v, linkHeader, info.DrvHi.Mag.Lo+linkHeader)
	case prog.FieldTCPPayloadLength, prog.FieldUDPPayloadLength:
		return n.transport(info.Base, in, func(header prog.Field) clause { return compared(payloadLengths[t.Field][header], v, 0, 0xffff) })
	}
	switch {
	case info.Elem > 0:
		return n.element(t, v, in)
	default:
		return n.bits(t, v, in)
	}
}

// payloadLengths are expressions for the length of the payload behind each header of the network layer.
var payloadLengths = map[prog.Field]map[prog.Field]string{
	prog.FieldTCPPayloadLength: {
		prog.FieldIP:   "ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2)",
		prog.FieldIPv6: "ip6[4:2] - ((ip6[52] & 0xf0) >> 2)",
	},
	prog.FieldUDPPayloadLength: {prog.FieldIP: "ip[2:2] - ((ip[0] & 0xf) << 2) - 8", prog.FieldIPv6: "ip6[4:2] - 8"},
}

// flag converts a test of a flag that every packet has.
func (n *neighbour) flag(t *prog.Test, v accepted, in context) clause {
	var c clause
	switch t.Field {
	case prog.FieldZero:
		return certain(v.has(0))
	case prog.FieldInbound, prog.FieldOutbound:
		n.note("inbound and outbound are for live captures: files do not tell tcpdump the direction.")
		c = clause{text: t.Field.Info().Name}
	case prog.FieldFragment:
		n.noteTransport(t.Field, in)
		c = n.families(in, func(header prog.Field, _ int) clause {
			return map[prog.Field]clause{prog.FieldIP: {text: "ip[6:2] & 0x3fff != 0"}, prog.FieldIPv6: {text: "ip6[6] = 44"}}[header]
		})
	case prog.FieldIP, prog.FieldIPv6, prog.FieldTCP, prog.FieldUDP, prog.FieldICMP, prog.FieldICMPv6:
		c = n.header(t.Field, in)
	default:
		return n.none("%s: tcpdump has nothing of the kind", t.Field.Info().Name)
	}
	switch unset, set := v.has(0), v.has(1); {
	case set && unset, !set && !unset:
		return certain(set)
	case unset:
		return opposite(c)
	}
	return c
}

// excluding negates a clause if the values are those that do not hold, for packets that have the header.
func (n *neighbour) excluding(v accepted, header prog.Field, in context, c clause) clause {
	if !v.others {
		return c
	}
	return both(n.header(header, in), opposite(c))
}

func endWord(source bool) string {
	if source {
		return "src"
	}
	return "dst"
}

// mostPrefixes is the most networks that a test may become.
const mostPrefixes = 256

// addresses tests an end of the packet for ranges of addresses, each of one family.
func (n *neighbour) addresses(ranges []prog.Range, source bool) clause {
	var list []clause
	for _, r := range ranges {
		for _, p := range prefixesOf(r) {
			what := " net "
			if p.IsSingleIP() {
				what = " host "
			}
			text := strings.TrimSuffix(p.String(), map[bool]string{true: "/32", false: "/128"}[p.Addr().Is4()])
			if !p.IsSingleIP() {
				text = p.String()
			}
			list = append(list, clause{text: endWord(source) + what + text})
		}
		if len(list) > mostPrefixes {
			return n.none("the addresses are more than %d networks, which tcpdump would try one by one", mostPrefixes)
		}
	}
	return either(list...)
}

// ports tests an end for ports of a protocol.
func (n *neighbour) ports(v accepted, header prog.Field, source bool, in context) clause {
	n.noteTransport(header, in)
	var list []clause
	for _, r := range v.ranges {
		what := fmt.Sprintf("port %d", r.First.Lo)
		if r.First != r.Last {
			what = fmt.Sprintf("portrange %d-%d", r.First.Lo, r.Last.Lo)
		}
		list = append(list, clause{text: headerWords[header] + " " + endWord(source) + " " + what})
	}
	return n.excluding(v, header, in, either(list...))
}

// ends converts a test of this host's end, or of the other's.
func (n *neighbour) ends(local bool, in context, end func(source bool) clause) clause {
	out, into := end(local), end(!local)
	switch {
	case !in.in:
		return out
	case !in.out:
		return into
	}
	n.note("inbound and outbound are for live captures: files do not tell tcpdump the direction.")
	return either(both(clause{text: "outbound"}, out), both(clause{text: "inbound"}, into))
}

// families converts the parts that differ between the versions of IP. IPv6's header has a fixed length; tcpdump finds the
// length of IPv4's itself.
func (n *neighbour) families(in context, convert func(header prog.Field, length int) clause) clause {
	var list []clause
	if in.ip4 {
		list = append(list, convert(prog.FieldIP, 0))
	}
	if in.ip6 {
		list = append(list, convert(prog.FieldIPv6, packet.IPv6HeaderLen))
	}
	return either(list...)
}

// transport converts a test of bytes at or behind a header of TCP or UDP, which tcpdump reads behind IPv4 only.
func (n *neighbour) transport(f prog.Field, in context, convert func(header prog.Field) clause) clause {
	n.noteTransport(f, in)
	return n.families(in, func(header prog.Field, _ int) clause {
		if header == prog.FieldIPv6 {
			return both(clause{text: fmt.Sprintf("ip6[6] = %d", numbers[f])}, convert(header))
		}
		c := convert(header)
		if strings.HasPrefix(c.text, headerWords[f]+"[") && c.by == single { // reading it implies the header
			return c
		}
		return both(clause{text: headerWords[f]}, c)
	})
}

// element converts a test of bytes of the packet or of its payload.
func (n *neighbour) element(t *prog.Test, v accepted, in context) clause {
	if t.Index < 0 {
		return n.none("%s: tcpdump does not count from the end of a packet", t.Text())
	}
	n.note("tcpdump passes over a packet that ends before a byte that is asked for, whatever else the filter says.")
	info := t.Field.Info()
	size, high := info.Elem, uint64(1)<<(8*info.Elem)-1
	at := func(where string) clause { return compared(fmt.Sprintf("%s%s]", where, sizeWord(size)), v, 0, high) }
	switch info.Base {
	case prog.FieldTCP:
		return n.transport(prog.FieldTCP, in, func(header prog.Field) clause {
			if header == prog.FieldIPv6 {
				return at(fmt.Sprintf("ip6[((ip6[52] & 0xf0) >> 2) + %d", packet.IPv6HeaderLen+t.Index))
			}
			return at(fmt.Sprintf("tcp[((tcp[12] & 0xf0) >> 2) + %d", t.Index))
		})
	case prog.FieldUDP:
		return n.transport(prog.FieldUDP, in, func(header prog.Field) clause {
			if header == prog.FieldIPv6 {
				return at(fmt.Sprintf("ip6[%d", packet.IPv6HeaderLen+packet.UDPHeaderLen+t.Index))
			}
			return at(fmt.Sprintf("udp[%d", packet.UDPHeaderLen+t.Index))
		})
	}
	return n.families(in, func(header prog.Field, _ int) clause {
		return at(fmt.Sprintf("%s[%d", headerWords[header], t.Index))
	})
}

func sizeWord(size int) string {
	if size == 1 {
		return ""
	}
	return fmt.Sprintf(":%d", size)
}

// bits converts a test of a field that is bits of a header.
func (n *neighbour) bits(t *prog.Test, v accepted, in context) clause {
	b, ok := prog.HeaderBits(t.Field)
	if !ok {
		return n.none("%s: tcpdump has nothing of the kind", t.Field.Info().Name)
	}
	// The bytes of the word with the bits: 1, 2 or 4.
	first, last := 3-(b.Shift+b.Width-1)/8, 3-b.Shift/8
	if last-first == 2 {
		first, last = 0, 3
	}
	size, shift := last-first+1, b.Shift-8*(3-last)
	mask := (uint64(1)<<b.Width - 1) << shift
	access := func(name string, before int) clause {
		where := fmt.Sprintf("%s[%d%s]", name, before+b.Offset+first, sizeWord(size))
		bit, named := tcpFlags[mask]
		if b.Header == prog.FieldTCP && name == "tcp" && b.Width == 1 && named {
			return masked1("tcp[tcpflags] & "+bit, v)
		}
		if mask != 1<<(8*size)-1 {
			where = fmt.Sprintf("%s & %#x", where, mask)
		}
		if b.Width == 1 {
			return masked1(where, v)
		}
		return shifted(where, v, shift, b.Width)
	}
	switch b.Header {
	case prog.FieldTCP, prog.FieldUDP:
		return n.transport(b.Header, in, func(header prog.Field) clause {
			if header == prog.FieldIPv6 {
				return access("ip6", packet.IPv6HeaderLen)
			}
			return access(headerWords[b.Header], 0)
		})
	case prog.FieldICMPv6:
		n.noteTransport(b.Header, in)
	}
	return access(headerWords[b.Header], 0)
}

var tcpFlags = map[uint64]string{1: "tcp-fin", 2: "tcp-syn", 4: "tcp-rst", 8: "tcp-push", 16: "tcp-ack", 32: "tcp-urg"}

// masked1 tests a bit.
func masked1(where string, v accepted) clause {
	switch unset, set := v.has(0), v.has(1); {
	case set && unset, !set && !unset:
		// Even a bit that may have either value is compared: the header must be there.
		if !set {
			return certain(false)
		}
		return clause{text: where + " >= 0"}
	case unset:
		return clause{text: where + " = 0"}
	}
	return clause{text: where + " != 0"}
}

// shifted compares masked bits whose lowest is at bit shift.
func shifted(where string, v accepted, shift, width int) clause {
	moved := accepted{others: v.others}
	for _, r := range v.ranges {
		moved.ranges = append(moved.ranges, prog.Range{First: prog.Value{Lo: r.First.Lo << shift}, Last: prog.Value{Lo: r.Last.Lo << shift}})
	}
	if v.others && !(len(v.ranges) == 1 && v.ranges[0].First == v.ranges[0].Last) {
		moved.others = false
		moved.ranges = nil
		for _, r := range complement(v.ranges, uint64(1)<<width-1) {
			moved.ranges = append(moved.ranges, prog.Range{First: prog.Value{Lo: r.First.Lo << shift}, Last: prog.Value{Lo: r.Last.Lo << shift}})
		}
	}
	return compared(where, moved, 0, (uint64(1)<<width-1)<<shift)
}

// compared compares an expression of tcpdump, with the greatest value high, with the accepted values plus add.
func compared(where string, v accepted, add, high uint64) clause {
	if v.others && len(v.ranges) == 1 && v.ranges[0].First == v.ranges[0].Last {
		return clause{text: fmt.Sprintf("%s != %d", where, v.ranges[0].First.Lo+add)}
	}
	ranges := v.ranges
	if v.others {
		ranges = complement(v.ranges, high-add)
	}
	var list []clause
	for _, r := range ranges {
		first, last := r.First.Lo+add, r.Last.Lo+add
		switch {
		case first == last:
			list = append(list, clause{text: fmt.Sprintf("%s = %d", where, first)})
		case r.First.Lo == 0 && last >= high: // whatever the value, the header must be there
			list = append(list, clause{text: where + " >= 0"})
		case r.First.Lo == 0:
			list = append(list, clause{text: fmt.Sprintf("%s <= %d", where, last)})
		case last >= high:
			list = append(list, clause{text: fmt.Sprintf("%s >= %d", where, first)})
		default:
			list = append(list, both(clause{text: fmt.Sprintf("%s >= %d", where, first)}, clause{text: fmt.Sprintf("%s <= %d", where, last)}))
		}
	}
	return either(list...)
}

// complement returns the values up to high outside all ranges, which ascend.
func complement(ranges []prog.Range, high uint64) (rest []prog.Range) {
	next := uint64(0)
	for _, r := range ranges {
		if r.First.Lo > next {
			rest = append(rest, prog.Range{First: prog.Value{Lo: next}, Last: prog.Value{Lo: r.First.Lo - 1}})
		}
		next = r.Last.Lo + 1
	}
	if next <= high {
		rest = append(rest, prog.Range{First: prog.Value{Lo: next}, Last: prog.Value{Lo: high}})
	}
	return rest
}

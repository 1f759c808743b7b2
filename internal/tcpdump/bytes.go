package tcpdump

import (
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// part is a field of Divert that is some bits at a place in a header.
type part struct {
	field        string
	shift, width int
}

// layouts are the fields in the bytes of headers, by header, offset and size.
var layouts = map[string][]part{
	"ip 0 1": {{"ip.HdrLength", 0, 4}}, "ip 1 1": {{"ip.TOS", 0, 8}}, "ip 2 2": {{"ip.Length", 0, 16}}, "ip 4 2": {{"ip.Id", 0, 16}},
	"ip 6 1": {{"ip.DF", 6, 1}, {"ip.MF", 5, 1}}, "ip 6 2": {{"ip.DF", 14, 1}, {"ip.MF", 13, 1}, {"ip.FragOff", 0, 13}},
	"ip 8 1": {{"ip.TTL", 0, 8}}, "ip 9 1": {{"ip.Protocol", 0, 8}}, "ip 10 2": {{"ip.Checksum", 0, 16}},
	"ip 12 4": {{"ip.SrcAddr", 0, 32}}, "ip 16 4": {{"ip.DstAddr", 0, 32}},
	"ip6 4 2": {{"ipv6.Length", 0, 16}}, "ip6 6 1": {{"ipv6.NextHdr", 0, 8}}, "ip6 7 1": {{"ipv6.HopLimit", 0, 8}},
	"tcp 0 2": {{"tcp.SrcPort", 0, 16}}, "tcp 2 2": {{"tcp.DstPort", 0, 16}}, "tcp 4 4": {{"tcp.SeqNum", 0, 32}},
	"tcp 8 4": {{"tcp.AckNum", 0, 32}}, "tcp 12 1": {{"tcp.HdrLength", 4, 4}},
	"tcp 13 1": {{"tcp.Urg", 5, 1}, {"tcp.Ack", 4, 1}, {"tcp.Psh", 3, 1}, {"tcp.Rst", 2, 1}, {"tcp.Syn", 1, 1}, {"tcp.Fin", 0, 1}},
	"tcp 14 2": {{"tcp.Window", 0, 16}}, "tcp 16 2": {{"tcp.Checksum", 0, 16}}, "tcp 18 2": {{"tcp.UrgPtr", 0, 16}},
	"udp 0 2": {{"udp.SrcPort", 0, 16}}, "udp 2 2": {{"udp.DstPort", 0, 16}}, "udp 4 2": {{"udp.Length", 0, 16}}, "udp 6 2": {{"udp.Checksum", 0, 16}},
	"icmp 0 1": {{"icmp.Type", 0, 8}}, "icmp 1 1": {{"icmp.Code", 0, 8}}, "icmp 2 2": {{"icmp.Checksum", 0, 16}}, "icmp 4 4": {{"icmp.Body", 0, 32}},
	"icmp6 0 1": {{"icmpv6.Type", 0, 8}}, "icmp6 1 1": {{"icmpv6.Code", 0, 8}}, "icmp6 2 2": {{"icmpv6.Checksum", 0, 16}}, "icmp6 4 4": {{"icmpv6.Body", 0, 32}},
}

// place is the bytes that a relation reads.
type place struct {
	proto string
	off   int
	size  int
	data  bool // off counts from the payload of TCP
}

// relation converts a comparison of bytes or of the length.
func (c *converter) relation(n *relation) (condition, error) {
	accesses, lengths := reads(n.a, nil), 0
	accesses = reads(n.b, accesses)
	for _, side := range []arithmetic{n.a, n.b} {
		lengths += countLengths(side)
	}
	if lengths > 0 {
		return c.lengthRelation(n, len(accesses))
	}
	if len(accesses) == 0 {
		return constant(compareOp(n.op, eval(n.a, nil), eval(n.b, nil))), nil
	}
	if cond := payloadLength(n, accesses); cond != nil {
		c.noteIPv4("tcp")
		return cond, nil
	}
	p, err := c.place(n, accesses)
	if err != nil {
		return nil, err
	}
	if p.size == 4 {
		return c.wide(n, p)
	}
	return c.narrow(n, p)
}

// noteIPv4 notes that tcpdump looks for a transport header behind IPv4 only.
func (c *converter) noteIPv4(proto string) {
	c.note("tcpdump reads " + proto + "[…] in IPv4 packets only; the filter matches IPv6 too.")
}

// lengthRelation converts a comparison of len with a number.
func (c *converter) lengthRelation(n *relation, accesses int) (condition, error) {
	a, b, op := n.a, n.b, n.op
	if _, ok := b.(*length); ok {
		a, b, op = b, a, turned(op)
	}
	if _, ok := a.(*length); !ok || accesses > 0 || countLengths(b) > 0 {
		return nil, c.fail(n.at, n.len, "len can be compared with a number only")
	}
	if op == "=" {
		op = "=="
	}
	return c.length(op, int64(eval(b, nil))), nil
}

// turned is the comparison with its sides exchanged.
func turned(op string) string {
	return map[string]string{"<": ">", ">": "<", "<=": ">=", ">=": "<="}[op] + map[string]string{"=": "=", "!=": "!="}[op]
}

// reads appends the accesses of an expression. Accesses in an offset belong to their access.
func reads(a arithmetic, list []*access) []*access {
	switch a := a.(type) {
	case *access:
		list = append(list, a)
	case *operation:
		list = reads(a.b, reads(a.a, list))
	}
	return list
}

func countLengths(a arithmetic) int {
	switch a := a.(type) {
	case *length:
		return 1
	case *access:
		return countLengths(a.off)
	case *operation:
		return countLengths(a.a) + countLengths(a.b)
	}
	return 0
}

// eval computes an expression in 32 bits, as BPF does. value returns the value that an access reads.
func eval(a arithmetic, value func(*access) uint32) uint32 {
	switch a := a.(type) {
	case *number:
		return a.v
	case *access:
		return value(a)
	case *operation:
		x, y := eval(a.a, value), eval(a.b, value)
		switch a.op {
		case "+":
			return x + y
		case "-":
			return x - y
		case "*":
			return x * y
		case "/":
			if y != 0 {
				return x / y
			}
		case "%":
			if y != 0 {
				return x % y
			}
		case "&":
			return x & y
		case "|":
			return x | y
		case "^":
			return x ^ y
		case "<<":
			return x << y
		case ">>":
			return x >> y
		}
	}
	return 0
}

func compareOp(op string, a, b uint32) bool {
	switch op {
	case "=":
		return a == b
	case "!=":
		return a != b
	case "<":
		return a < b
	case "<=":
		return a <= b
	case ">":
		return a > b
	}
	return a >= b
}

// place returns the place that all the accesses of a relation read.
func (c *converter) place(n *relation, accesses []*access) (place, error) {
	var p place
	for i, a := range accesses {
		q := place{proto: a.proto, size: a.size}
		inner := reads(a.off, nil)
		switch {
		case len(inner) == 0:
			if v := eval(a.off, nil); v > 0xffff {
				return p, c.fail(n.at, n.len, "the offset is outside of every packet")
			}
			q.off = int(eval(a.off, nil))
		case a.proto == "tcp" && behindHeader(a.off, inner, &q.off):
			q.data = true
		default:
			return p, c.fail(n.at, n.len, "an offset that depends on the packet has no counterpart, but for the payload of TCP: tcp[((tcp[12] & 0xf0) >> 2)]")
		}
		if i > 0 && q != p {
			return p, c.fail(n.at, n.len, "one comparison can read one place of the packet only")
		}
		p = q
	}
	if p.proto == "udp" && p.off >= 8 {
		p.off, p.data = p.off-8, true
	}
	return p, nil
}

// behindHeader reports whether an offset is that of TCP's payload plus a constant, and stores the constant.
func behindHeader(off arithmetic, inner []*access, constant *int) bool {
	for _, a := range inner {
		if o, ok := a.off.(*number); !ok || a.proto != "tcp" || o.v != 12 || a.size != 1 {
			return false
		}
	}
	for words := uint32(5); words < 16; words++ {
		k := eval(off, func(*access) uint32 { return words << 4 }) - 4*words
		if k > 0xffff || words > 5 && int(k) != *constant {
			return false
		}
		*constant = int(k)
	}
	return true
}

// payloadLength recognises the length of TCP's payload: ip[2:2] - ((ip[0]&0xf)<<2) - ((tcp[12]&0xf0)>>2), compared with
// a constant.
func payloadLength(n *relation, accesses []*access) condition {
	seen := places(accesses)
	if len(seen) != 3 || !seen["ip 2 2"] || !seen["ip 0 1"] || !seen["tcp 12 1"] {
		return nil
	}
	if len(reads(n.b, nil)) > 0 {
		return nil
	}
	for i := range uint32(64) {
		length, ihl, words := 40+i*997%1400, 5+i%11, 5+i*7%11
		got := eval(n.a, func(a *access) uint32 {
			switch key(a) {
			case "ip 2 2":
				return length
			case "ip 0 1":
				return 0x40 | ihl
			}
			return words << 4
		})
		if got != length-4*ihl-4*words {
			return nil
		}
	}
	op := n.op
	if op == "=" {
		op = "=="
	}
	return allOf(field("tcp"), ranged("tcp.PayloadLength", op, int64(eval(n.b, nil)), 0, 0xffff))
}

// key identifies the place that an access reads, "" if that depends on the packet.
func key(a *access) string {
	off, ok := a.off.(*number)
	if !ok {
		return ""
	}
	return fmt.Sprint(a.proto, " ", off.v, " ", a.size)
}

func places(accesses []*access) map[string]bool {
	seen := make(map[string]bool)
	for _, a := range accesses {
		seen[key(a)] = true
	}
	return seen
}

// headers are the protocols whose bytes can be read, with their names in Divert.
var headers = map[string]string{"ip": "ip", "ip6": "ipv6", "tcp": "tcp", "udp": "udp", "icmp": "icmp", "icmp6": "icmpv6"}

// parts returns the fields at a place, and the condition under which the place exists; nil if there are no fields.
func (p place) parts() ([]part, condition) {
	name, ok := headers[p.proto]
	if !ok {
		return nil, nil
	}
	if p.data {
		return []part{{fmt.Sprintf("%s.Payload%s[%db]", name, sizes[p.size], p.off), 0, 8 * p.size}}, field(name)
	}
	if ps, ok := layouts[fmt.Sprint(p.proto, " ", p.off, " ", p.size)]; ok {
		return ps, field(name)
	}
	return p.packetBytes(), field(name)
}

var sizes = map[int]string{1: "", 2: "16", 4: "32"}

// packetBytes returns the bytes of an IP header as bytes of the packet.
func (p place) packetBytes() []part {
	if p.proto != "ip" && p.proto != "ip6" {
		return nil
	}
	return []part{{fmt.Sprintf("packet%s[%db]", sizes[p.size], p.off), 0, 8 * p.size}}
}

// narrow converts a comparison of one or two bytes: it finds the values for which it holds.
func (c *converter) narrow(n *relation, p place) (condition, error) {
	parts, present := p.parts()
	if parts == nil {
		return nil, c.fail(n.at, n.len, "no field of Divert has these bytes")
	}
	holds := make([]bool, 1<<(8*p.size))
	for v := range holds {
		value := func(*access) uint32 { return uint32(v) }
		holds[v] = compareOp(n.op, eval(n.a, value), eval(n.b, value))
	}
	fixed, fixedMask := p.fixed()
	cond, ok := fields(parts, holds, n.op, fixed, fixedMask)
	if !ok && p.proto == "tcp" && p.off == 13 && !p.data {
		// Comparisons of the whole byte, such as tcp[13] == 2, include the two bits without a field.
		low := slices.Clone(holds)
		for v := range low {
			low[v] = holds[v&0x3f]
			ok = ok || holds[v] && v > 0x3f
		}
		if ok {
			return nil, c.fail(n.at, n.len, "the flags ECE and CWR have no field")
		}
		c.note("The flags ECE and CWR have no field: the filter does not look at them.")
		cond, ok = fields(parts, low, n.op, 0, 0)
	}
	if !ok {
		if parts = p.packetBytes(); parts != nil {
			cond, ok = fields(parts, holds, n.op, fixed, fixedMask)
		}
	}
	if !ok {
		return nil, c.fail(n.at, n.len, "no field of Divert tells these values apart")
	}
	if p.proto == "tcp" || p.proto == "udp" {
		c.noteIPv4(p.proto)
	}
	return allOf(present, cond), nil
}

// fixed returns the bits of a place that are the same in every packet (the version), and their mask.
func (p place) fixed() (value, mask uint32) {
	if p.data || p.off != 0 || p.size != 1 {
		return 0, 0
	}
	switch p.proto {
	case "ip":
		return 0x40, 0xf0
	case "ip6":
		return 0x60, 0xf0
	}
	return 0, 0
}

// fields returns the condition on its fields under which a place has one of the values that hold. It returns false if the
// fields do not determine that.
func fields(parts []part, holds []bool, op string, fixed, fixedMask uint32) (condition, bool) {
	universe := 0
	var yes, no product
	yes.init(parts)
	no.init(parts)
	for v := range holds {
		if uint32(v)&fixedMask != fixed {
			continue
		}
		universe++
		if holds[v] {
			yes.add(parts, uint32(v))
		} else {
			no.add(parts, uint32(v))
		}
	}
	switch {
	case yes.count == 0:
		return constant(false), true
	case no.count == 0:
		return constant(true), true
	case yes.full(parts, universe):
		return allOf(yes.tests(parts, op, false)...), true
	case no.full(parts, universe):
		return anyOf(no.tests(parts, op, true)...), true
	}
	return nil, false
}

// product has the values of each field over a set of values.
type product struct {
	count int
	seen  [][]bool
}

func (s *product) init(parts []part) {
	for _, p := range parts {
		s.seen = append(s.seen, make([]bool, 1<<p.width))
	}
}

func (s *product) add(parts []part, v uint32) {
	s.count++
	for i, p := range parts {
		s.seen[i][v>>p.shift&(1<<p.width-1)] = true
	}
}

// full reports whether the set has every combination of the values of its fields, whatever the other bits.
func (s *product) full(parts []part, universe int) bool {
	want := universe
	for i, p := range parts {
		n := 0
		for _, b := range s.seen[i] {
			if b {
				n++
			}
		}
		want = want >> p.width * n
	}
	return want == s.count
}

// tests returns a test for each field that is not free.
func (s *product) tests(parts []part, op string, opposite bool) []condition {
	var list []condition
	for i, p := range parts {
		if !slices.Contains(s.seen[i], false) {
			continue
		}
		is := slices.Clone(s.seen[i])
		if opposite {
			for v := range is {
				is[v] = !is[v]
			}
		}
		list = append(list, values(p, is, op))
	}
	return list
}

// values returns the test whether a field has one of a set of values.
func values(p part, is []bool, op string) condition {
	if p.width == 1 {
		if is[1] {
			return field(p.field)
		}
		return &test{field: p.field, op: "not"}
	}
	in, out := ranges(is, true), ranges(is, false)
	top := len(is) - 1
	switch {
	case len(in) == 1 && in[0][0] == in[0][1]:
		return equals(p.field, strconv.Itoa(in[0][0]))
	case len(out) == 1 && out[0][0] == out[0][1] && (op == "!=" || out[0][0] > 0 && out[0][0] < top):
		return compare(p.field, "!=", strconv.Itoa(out[0][0]))
	case len(in) == 1 && in[0][0] == 0 && op == "<=":
		return compare(p.field, "<=", strconv.Itoa(in[0][1]))
	case len(in) == 1 && in[0][0] == 0:
		return compare(p.field, "<", strconv.Itoa(in[0][1]+1))
	case len(in) == 1 && in[0][1] == top && op == ">=":
		return compare(p.field, ">=", strconv.Itoa(in[0][0]))
	case len(in) == 1 && in[0][1] == top:
		return compare(p.field, ">", strconv.Itoa(in[0][0]-1))
	case len(out) < len(in):
		return &test{p.field, "not in", texts(out)}
	}
	return equals(p.field, texts(in)...)
}

// ranges returns the runs of values equal to b.
func ranges(is []bool, b bool) (list [][2]int) {
	for v := 0; v < len(is); v++ {
		if is[v] != b {
			continue
		}
		from := v
		for v+1 < len(is) && is[v+1] == b {
			v++
		}
		list = append(list, [2]int{from, v})
	}
	return list
}

func texts(list [][2]int) []string {
	s := make([]string, len(list))
	for i, r := range list {
		if s[i] = strconv.Itoa(r[0]); r[1] > r[0] {
			s[i] += "-" + strconv.Itoa(r[1])
		}
	}
	return s
}

// wide converts a comparison of four bytes with a constant. If the bytes are an address, they may be masked.
func (c *converter) wide(n *relation, p place) (condition, error) {
	parts, present := p.parts()
	if parts == nil {
		return nil, c.fail(n.at, n.len, "no field of Divert has these bytes")
	}
	a, b, op := n.a, n.b, n.op
	if len(reads(a, nil)) == 0 {
		a, b, op = b, a, turned(op)
	}
	if len(reads(b, nil)) > 0 {
		return nil, c.fail(n.at, n.len, "four bytes can be compared with a number only")
	}
	v, name := eval(b, nil), parts[0].field
	address := strings.HasSuffix(name, "Addr")
	if o, ok := a.(*operation); ok && o.op == "&" && (op == "=" || op == "!=") {
		if cond := masked(name, address, o, v); cond != nil {
			if op == "!=" {
				cond = negate(cond)
			}
			return allOf(present, cond), nil
		}
	}
	if _, ok := a.(*access); !ok {
		return nil, c.fail(n.at, n.len, "four bytes can be compared as they are only")
	}
	value := strconv.FormatUint(uint64(v), 10)
	switch {
	case address:
		value = addressText(v)
	case p.data || strings.HasPrefix(name, "packet"):
		value = fmt.Sprintf("0x%08x", v)
	}
	if p.proto == "tcp" || p.proto == "udp" {
		c.noteIPv4(p.proto)
	}
	if op == "=" {
		op = "=="
	}
	cond := ranged(name, op, int64(v), 0, math.MaxUint32)
	if t, ok := cond.(*test); ok {
		t.values[0] = value
	}
	return allOf(present, cond), nil
}

// masked converts a comparison of an address under a mask without holes; it returns nil for other comparisons.
func masked(name string, address bool, o *operation, v uint32) condition {
	_, plain := o.a.(*access)
	mask, ok := o.b.(*number)
	if !plain || !ok || !address {
		return nil
	}
	ones := bits.LeadingZeros32(^mask.v)
	if mask.v != ^uint32(0)<<(32-ones) {
		return nil
	}
	if v&^mask.v != 0 {
		return constant(false)
	}
	return equals(name, fmt.Sprintf("%s/%d", addressText(v), ones))
}

func addressText(v uint32) string {
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}).String()
}

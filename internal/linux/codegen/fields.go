//go:build linux

package codegen

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/prog"
)

// presence names the header whose absence makes a test fail.
type presence uint8

const (
	hasAlways presence = iota
	hasIPv4
	hasIPv6
	hasICMP
	hasTCP
	hasUDP
	hasICMPv6
	hasCounts
	hasElement // an element of the packet, which may be too short
)

// place is where a value is loaded from.
type place uint8

const (
	inHook      place = iota // only ever a constant of the hook, see Hook.constant
	inIP                     // the IP header, network byte order
	inTransport              // the TCP, UDP or ICMP header, network byte order
	inPacket                 // an element of the packet, network byte order, loaded for each test
	inFrame                  // a variable of the program
	inContext                // struct __sk_buff
	inRest                   // the number of bytes from the start of the payload to the end of the packet
)

// location says how the value of a field is found: size bytes at offset, shifted right, then masked.
type location struct {
	has      presence
	place    place
	offset   int16
	size     asm.Size
	shift    int32
	mask     uint32 // 0: all bits of size
	kind     valueKind
	min, max uint64 // the values it can have, for 32-bit kinds
	needs    need   // the parser's part
}

// valueKind is the form of a value in registers.
type valueKind uint8

const (
	value32        valueKind = iota // R1
	valueScrambled                  // R1, the flow label in the byte order of the original
	valueIPv4                       // R1, stands for ::ffff:a.b.c.d
	value64                         // R1, the biased timestamp
	value128                        // R1 the upper, R2 the lower half
)

// need is a set of things that the parser provides.
type need uint32

const (
	needIPv6      need = 1 << iota // all 40 bytes of the IPv6 header instead of 20
	needTCP                        // which packets have a TCP header, and its bytes
	needUDP                        // the same for UDP
	needICMP                       // the same for ICMP
	needICMPv6                     // the same for ICMPv6
	needFragment                   // the fragment flag
	needProtocol                   // the protocol after extension headers
	needPayload                    // where the payload starts
	needAddresses                  // localAddr and remoteAddr
	needPorts                      // localPort and remotePort
	needTime                       // the timestamp
	needRandom                     // the hash with the timestamp as seed
	needHash                       // the hash with seed 0
	needProcess                    // the process, before the tests
	needName                       // its name
	needCounts                     // the counts of the flow

	needTransport = needTCP | needUDP | needICMP | needICMPv6
	needWalk      = needTransport | needFragment | needProtocol | needPayload
	needFlags     = needTransport | needFragment
	needFlow      = needIPv6 | needTransport | needFragment | needProtocol
	needSides     = needAddresses | needPorts | needProtocol // which together tell a socket
)

// implied completes a set of needs.
func (n need) implied() need {
	if n&needRandom != 0 {
		n |= needTime
	}
	if n&(needRandom|needHash) != 0 {
		n |= needIPv6 | needTransport
	}
	if n&needName != 0 {
		n |= needProcess
	}
	if n&needProcess != 0 {
		n |= needSides
	}
	if n&needCounts != 0 {
		n |= needFlow
	}
	if n&needPorts != 0 {
		n |= needTransport
	}
	if n&needAddresses != 0 {
		n |= needIPv6
	}
	return n
}

// flags of the variable varFlags. One bit is always set: the verifier remembers stored zeros, and
// would then go through the tests once for every way the parser can end.
const (
	flagFragment = iota
	flagTCP
	flagUDP
	flagICMP
	flagICMPv6
	flagLater     // a later fragment: no transport header
	flagSet       // always
	flagCounted   // the packet belongs to a flow
	flagUndecided // there are more extension headers than the program could skip, or than the first fragment has
	flagMore      // fragments follow
)

func ip4(offset int16, size asm.Size) location {
	return location{has: hasIPv4, place: inIP, offset: offset, size: size}.whole()
}

func ip6(offset int16, size asm.Size) location {
	return location{has: hasIPv6, place: inIP, offset: offset, size: size}.whole()
}

func tcp(offset int16, size asm.Size) location {
	return location{has: hasTCP, place: inTransport, offset: offset, size: size, needs: needTCP}.whole()
}

func udp(offset int16, size asm.Size) location {
	return location{has: hasUDP, place: inTransport, offset: offset, size: size, needs: needUDP}.whole()
}

func icmp(offset int16, size asm.Size) location {
	return location{has: hasICMP, place: inTransport, offset: offset, size: size, needs: needICMP}.whole()
}

func icmp6(offset int16, size asm.Size) location {
	return location{has: hasICMPv6, place: inTransport, offset: offset, size: size, needs: needICMPv6}.whole()
}

func element(size asm.Size, has presence, n need) location {
	return location{has: has, place: inPacket, size: size, needs: n}.whole()
}

func variable(offset int16, size asm.Size, n need) location {
	return location{place: inFrame, offset: offset, size: size, needs: n}.whole()
}

func flag(bit int32, n need) location {
	return variable(varFlags, asm.Word, n).bits(bit, 1)
}

func rest(has presence, n need) location {
	return location{has: has, place: inRest, max: 0xFFFF, needs: n | needPayload}
}

func count(n int16) location {
	l := variable(varCounts+4*n, asm.Word, needCounts)
	l.has = hasCounts
	return l
}

func skbMember(offset int16) location {
	return location{place: inContext, offset: offset, size: asm.Word}.whole()
}

// family is the version nibble; Hook.locate turns conditions on ip and ipv6 into conditions on it.
func family() location {
	return location{place: inIP, size: asm.Byte, shift: 4, mask: 15, max: 1}
}

func constant(max uint64) location { return location{max: max} }

// whole sets the range of values that size bytes can have.
func (l location) whole() location {
	l.max = 1<<(8*min(l.size.Sizeof(), 4)) - 1
	return l
}

func (l location) bits(shift int32, mask uint32) location {
	l.shift, l.mask, l.max = shift, mask, uint64(mask)
	return l
}

func (l location) as(k valueKind) location { l.kind = k; return l }

func (l location) needing(n need) location { l.needs |= n; return l }

func (l location) between(lo, hi uint64) location { l.min, l.max = lo, hi; return l }

// locations says where the fields of the packet layers are found. Fields that are not in it do not
// exist there. (Offsets: RFC 791, 8200, 9293, 768, 792, 4443; specification: filter-language.md 3.)
var locations = withHeaders(map[prog.Field]location{
	prog.FieldZero:      constant(0),
	prog.FieldInbound:   constant(1),
	prog.FieldOutbound:  constant(1),
	prog.FieldIfIdx:     skbMember(skbIfindex), // or another place, see Hook.locate
	prog.FieldInterface: skbMember(skbIfindex), // the same
	prog.FieldSubIfIdx:  constant(1<<32 - 1),
	prog.FieldLoopback:  constant(1), // or by interface, see Hook.locate
	prog.FieldImpostor:  constant(1),
	prog.FieldEvent:     constant(255),

	prog.FieldProcessID: variable(varProcess, asm.Word, needProcess),

	prog.FieldProcess: variable(varName, asm.DWord, needName).as(value128),

	prog.FieldFlowPackets:    count(0),
	prog.FieldFlowBytes:      count(1),
	prog.FieldFlowWayPackets: count(2),
	prog.FieldFlowWayBytes:   count(3),

	// Events only, see eventFields.
	prog.FieldEndpointID:       location{kind: value128},
	prog.FieldParentEndpointID: location{kind: value128},
	prog.FieldFamilyIP:         constant(1),
	prog.FieldFamilyIPv6:       constant(1),

	prog.FieldIP:       family(),
	prog.FieldIPv6:     family(),
	prog.FieldICMP:     flag(flagICMP, needICMP),
	prog.FieldTCP:      flag(flagTCP, needTCP),
	prog.FieldUDP:      flag(flagUDP, needUDP),
	prog.FieldICMPv6:   flag(flagICMPv6, needICMPv6),
	prog.FieldFragment: flag(flagFragment, needFragment),

	prog.FieldIPSrcAddr: ip4(12, asm.Word).as(valueIPv4),
	prog.FieldIPDstAddr: ip4(16, asm.Word).as(valueIPv4),

	prog.FieldIPv6FlowLabel: ip6(0, asm.Word).bits(0, 0xFFFFF).as(valueScrambled).between(0, 0xFFFFFFFF),
	prog.FieldIPv6SrcAddr:   ip6(8, asm.DWord).as(value128).needing(needIPv6),
	prog.FieldIPv6DstAddr:   ip6(24, asm.DWord).as(value128).needing(needIPv6),

	prog.FieldTCPPayloadLength: rest(hasTCP, needTCP),

	prog.FieldUDPPayloadLength: rest(hasUDP, needUDP),

	prog.FieldLocalAddr:  variable(varLocalAddr, asm.DWord, needAddresses).as(value128),
	prog.FieldRemoteAddr: variable(varRemoteAddr, asm.DWord, needAddresses).as(value128),
	prog.FieldLocalPort:  variable(varLocalPort, asm.Word, needPorts).between(0, 0xFFFF),
	prog.FieldRemotePort: variable(varRemotePort, asm.Word, needPorts).between(0, 0xFFFF),
	prog.FieldProtocol:   variable(varProtocol, asm.Word, needProtocol).between(0, 0xFF),

	prog.FieldPacket:       element(asm.Byte, hasElement, 0),
	prog.FieldPacket16:     element(asm.Half, hasElement, 0),
	prog.FieldPacket32:     element(asm.Word, hasElement, 0),
	prog.FieldTCPPayload:   element(asm.Byte, hasTCP, needTCP|needPayload),
	prog.FieldTCPPayload16: element(asm.Half, hasTCP, needTCP|needPayload),
	prog.FieldTCPPayload32: element(asm.Word, hasTCP, needTCP|needPayload),
	prog.FieldUDPPayload:   element(asm.Byte, hasUDP, needUDP|needPayload),
	prog.FieldUDPPayload16: element(asm.Half, hasUDP, needUDP|needPayload),
	prog.FieldUDPPayload32: element(asm.Word, hasUDP, needUDP|needPayload),

	prog.FieldLength:    skbMember(skbLen).between(20, 65575),
	prog.FieldTimestamp: variable(varTime, asm.DWord, needTime).as(value64),
	prog.FieldRandom32:  variable(varRandom, asm.DWord, needRandom).bits(0, 0xFFFFFFFF),
	prog.FieldRandom16:  variable(varRandom, asm.DWord, needRandom).bits(32, 0xFFFF),
	prog.FieldRandom8:   variable(varRandom, asm.DWord, needRandom).bits(48, 0xFF),
})

// withHeaders adds the fields that are bits of a header to those that are found in other ways.
func withHeaders(all map[prog.Field]location) map[prog.Field]location {
	for f := range prog.Field(prog.NumFields) {
		if at, ok := prog.HeaderBits(f); ok && all[f] == (location{}) {
			all[f] = bitsAt(at)
		}
	}
	return all
}

// inHeader are the locations of headers.
var inHeader = map[prog.Field]func(offset int16, size asm.Size) location{
	prog.FieldIP: ip4, prog.FieldIPv6: ip6, prog.FieldTCP: tcp, prog.FieldUDP: udp, prog.FieldICMP: icmp, prog.FieldICMPv6: icmp6,
}

// bitsAt returns the location of bits of a header: the fewest aligned bytes that have them all.
func bitsAt(at prog.Bits) location {
	first, last := (32-at.Shift-at.Width)/8, (31-at.Shift)/8 // bytes of the word
	size := asm.Byte
	switch {
	case first == last:
	case first&1 == 0 && first+1 == last:
		size = asm.Half
	default:
		size, first, last = asm.Word, 0, 3
	}
	l := inHeader[at.Header](int16(at.Offset+first), size)
	if at.Width == 8*size.Sizeof() {
		return l
	}
	return l.bits(int32(at.Shift-8*(3-last)), 1<<at.Width-1)
}

// presenceOf returns the header whose absence makes a test of the field fail.
func presenceOf(f prog.Field) presence { return locations[f].has }

// isWide reports whether a field is compared in 128 bits.
func isWide(f prog.Field) bool {
	k := locations[f].kind
	return k == value128 || k == valueIPv4
}

// mappedPrefix precedes the 32 bits of an IPv4 address in its 128-bit value.
const mappedPrefix = 0xFFFF << 32

// domainOf returns the values that a field can have.
func domainOf(f prog.Field) prog.Range {
	switch l := locations[f]; l.kind {
	case value128:
		return prog.Range{First: zero, Last: maximum}
	case value64:
		return prog.Range{First: zero, Last: low(^uint64(0))}
	case valueIPv4:
		return prog.Range{First: low(mappedPrefix), Last: low(mappedPrefix | 0xFFFFFFFF)}
	default:
		return prog.Range{First: low(l.min), Last: low(l.max)}
	}
}

// locate returns the location of a condition's field at this hook. It may restate the condition.
func (h *Hook) locate(c *condition) location {
	l := locations[c.field]
	switch c.field {
	case prog.FieldIfIdx, prog.FieldInterface:
		if h.Index == IndexIngress {
			l.offset = skbIngressIfindex
		}
	case prog.FieldLoopback:
		l = skbMember(skbIfindex)
		c.restate(netns.LoopbackIndex, low(l.max))
	case prog.FieldIP:
		c.restate(4, low(15))
	case prog.FieldIPv6:
		c.restate(6, low(15))
	}
	return l
}

// restate turns a condition on a flag into one on a value that is v exactly if the flag is 1.
func (c *condition) restate(v uint64, last prog.Value) {
	c.negate = !c.holds(low(1))
	c.ranges = []prog.Range{{First: low(v), Last: low(v)}}
	c.domain = prog.Range{First: zero, Last: last}
}

package filter

import (
	"strings"

	"github.com/opendivert/divert/packet"
)

// layerMask is a set of layers, bit n for layer n.
type layerMask uint8

const (
	onNetwork layerMask = 1 << packet.LayerNetwork
	onForward layerMask = 1 << packet.LayerForward
	onFlow    layerMask = 1 << packet.LayerFlow
	onSocket  layerMask = 1 << packet.LayerSocket
	onReflect layerMask = 1 << packet.LayerReflect

	onPackets = onNetwork | onForward         // layers with packets
	onLocal   = onNetwork | onFlow | onSocket // layers of this host's own traffic
	onTraffic = onPackets | onFlow | onSocket // all but REFLECT
	onAll     = onTraffic | onReflect
)

// has reports whether layer l is in the set. Numbers that are no layer never are.
func (m layerMask) has(l Layer) bool {
	return l < packet.NumLayers && m&(1<<l) != 0
}

// bound is an end of a field's range: sign and 128-bit magnitude.
type bound struct {
	neg bool
	mag Value
}

// The bounds that occur more than once.
var (
	bound0   = bound{}
	bound1   = bound{mag: Value{Lo: 1}}
	boundU8  = bound{mag: Value{Lo: 0xFF}}
	boundU16 = bound{mag: Value{Lo: 0xFFFF}}
	boundU32 = bound{mag: Value{Lo: 0xFFFFFFFF}}
	boundU64 = bound{mag: Value{Lo: 0xFFFFFFFFFFFFFFFF}}
	boundMax = bound{mag: Value{Hi: 0xFFFFFFFFFFFFFFFF, Lo: 0xFFFFFFFFFFFFFFFF}}

	boundIPv4Lo = bound{mag: Value{Lo: 0xFFFF_0000_0000}} // ::ffff:0.0.0.0
	boundIPv4Hi = bound{mag: Value{Lo: 0xFFFF_FFFF_FFFF}} // ::ffff:255.255.255.255
)

// fieldInfo is all that the package knows of a field.
type fieldInfo struct {
	name   string    // as written in filters
	layers layerMask // where the field exists
	more   layerMask // where it exists in the extended dialect too
	kind   FieldKind
	doc    string // for people, a few words

	// Tests of the field are folded against lo..hi when they are placed, if folds is set
	// (specification: filter-language.md 5).
	folds  bool
	lo, hi bound

	// The range that the original driver accepts for literals of the field
	// (specification: windows-driver.md 6). Except for loopback, impostor, length and event it is
	// also the range of values the field can take.
	drvLo, drvHi bound

	base    Field // protocol field that a folded test turns into; FieldZero: none
	boolean bool  // has the values 0 and 1 and is printed as a bare name
	elem    int   // index fields: size of an element in bytes; 0: not an index field
	wide    bool  // compared in 128 bits; otherwise in the low 32 bits of the literal
}

const (
	// Constant fields of the language that no compiled test names: they always fold.
	fieldTrue Field = FieldFamilyIPv6 + 1 + iota
	fieldFalse

	numFields = int(fieldFalse) + 1
)

// fieldTable has everything about each field, indexed by Field.
// (Specification: filter-language.md 3 and 6.)
var fieldTable = [numFields]fieldInfo{
	FieldZero:     flag("zero", onAll, FieldZero, "always 0").upTo(bound0),
	FieldInbound:  flag("inbound", onLocal, FieldZero, "comes to this host"),
	FieldOutbound: flag("outbound", onLocal, FieldZero, "leaves this host"),
	FieldIfIdx:    number("ifIdx", onPackets, FieldZero, boundU32, "interface index"),
	FieldSubIfIdx: number("subIfIdx", onPackets, FieldZero, boundU32, "sub-interface index"),
	FieldIP:       flag("ip", onTraffic, FieldZero, "is IPv4"),
	FieldIPv6:     flag("ipv6", onTraffic, FieldZero, "is IPv6"),
	FieldICMP:     flag("icmp", onTraffic, FieldZero, "is ICMP over IPv4"),
	FieldTCP:      flag("tcp", onTraffic, FieldZero, "is TCP"),
	FieldUDP:      flag("udp", onTraffic, FieldZero, "is UDP"),
	FieldICMPv6:   flag("icmpv6", onTraffic, FieldZero, "is ICMPv6"),

	FieldIPHdrLength: number("ip.HdrLength", onPackets, FieldIP, small(15), "header length in 4-byte words"),
	FieldIPTOS:       number("ip.TOS", onPackets, FieldIP, boundU8, "type of service").foldUpTo(boundU16),
	FieldIPLength:    number("ip.Length", onPackets, FieldIP, boundU16, "total length field, in bytes"),
	FieldIPID:        number("ip.Id", onPackets, FieldIP, boundU16, "identification"),
	FieldIPDF:        flag("ip.DF", onPackets, FieldIP, "don't-fragment flag"),
	FieldIPMF:        flag("ip.MF", onPackets, FieldIP, "more-fragments flag"),
	FieldIPFragOff:   number("ip.FragOff", onPackets, FieldIP, small(8191), "fragment offset in units of 8 bytes"),
	FieldIPTTL:       number("ip.TTL", onPackets, FieldIP, boundU8, "time to live"),
	FieldIPProtocol:  number("ip.Protocol", onPackets, FieldIP, boundU8, "protocol number in the header"),
	FieldIPChecksum:  number("ip.Checksum", onPackets, FieldIP, boundU16, "header checksum"),
	FieldIPSrcAddr:   addr4("ip.SrcAddr", "source address"),
	FieldIPDstAddr:   addr4("ip.DstAddr", "destination address"),

	FieldIPv6TrafficClass: number("ipv6.TrafficClass", onPackets, FieldIPv6, boundU8, "traffic class"),
	FieldIPv6FlowLabel:    number("ipv6.FlowLabel", onPackets, FieldIPv6, small(0xFFFFF), "flow label with the byte order of the original"),
	FieldIPv6Length:       number("ipv6.Length", onPackets, FieldIPv6, boundU16, "payload length field, in bytes"),
	FieldIPv6NextHdr:      number("ipv6.NextHdr", onPackets, FieldIPv6, boundU8, "next header field of the fixed header"),
	FieldIPv6HopLimit:     number("ipv6.HopLimit", onPackets, FieldIPv6, boundU8, "hop limit"),
	FieldIPv6SrcAddr:      addr6("ipv6.SrcAddr", onPackets, FieldIPv6, KindIPv6, "source address"),
	FieldIPv6DstAddr:      addr6("ipv6.DstAddr", onPackets, FieldIPv6, KindIPv6, "destination address"),

	FieldICMPType:       number("icmp.Type", onPackets, FieldICMP, boundU8, "message type"),
	FieldICMPCode:       number("icmp.Code", onPackets, FieldICMP, boundU8, "message code"),
	FieldICMPChecksum:   number("icmp.Checksum", onPackets, FieldICMP, boundU16, "checksum"),
	FieldICMPBody:       number("icmp.Body", onPackets, FieldICMP, boundU32, "the 4 bytes after the checksum").neverFolds(),
	FieldICMPv6Type:     number("icmpv6.Type", onPackets, FieldICMPv6, boundU8, "message type"),
	FieldICMPv6Code:     number("icmpv6.Code", onPackets, FieldICMPv6, boundU8, "message code"),
	FieldICMPv6Checksum: number("icmpv6.Checksum", onPackets, FieldICMPv6, boundU16, "checksum"),
	FieldICMPv6Body:     number("icmpv6.Body", onPackets, FieldICMPv6, boundU32, "the 4 bytes after the checksum").neverFolds(),

	FieldTCPSrcPort:       number("tcp.SrcPort", onPackets, FieldTCP, boundU16, "source port"),
	FieldTCPDstPort:       number("tcp.DstPort", onPackets, FieldTCP, boundU16, "destination port"),
	FieldTCPSeqNum:        number("tcp.SeqNum", onPackets, FieldTCP, boundU32, "sequence number").neverFolds(),
	FieldTCPAckNum:        number("tcp.AckNum", onPackets, FieldTCP, boundU32, "acknowledgement number").neverFolds(),
	FieldTCPHdrLength:     number("tcp.HdrLength", onPackets, FieldTCP, small(15), "header length in 4-byte words"),
	FieldTCPUrg:           flag("tcp.Urg", onPackets, FieldTCP, "URG flag"),
	FieldTCPAck:           flag("tcp.Ack", onPackets, FieldTCP, "ACK flag"),
	FieldTCPPsh:           flag("tcp.Psh", onPackets, FieldTCP, "PSH flag"),
	FieldTCPRst:           flag("tcp.Rst", onPackets, FieldTCP, "RST flag"),
	FieldTCPSyn:           flag("tcp.Syn", onPackets, FieldTCP, "SYN flag"),
	FieldTCPFin:           flag("tcp.Fin", onPackets, FieldTCP, "FIN flag"),
	FieldTCPWindow:        number("tcp.Window", onPackets, FieldTCP, boundU16, "window field, unscaled"),
	FieldTCPChecksum:      number("tcp.Checksum", onPackets, FieldTCP, boundU16, "checksum"),
	FieldTCPUrgPtr:        number("tcp.UrgPtr", onPackets, FieldTCP, boundU16, "urgent pointer"),
	FieldTCPPayloadLength: number("tcp.PayloadLength", onPackets, FieldTCP, boundU16, "bytes after the TCP header"),

	FieldUDPSrcPort:       number("udp.SrcPort", onPackets, FieldUDP, boundU16, "source port"),
	FieldUDPDstPort:       number("udp.DstPort", onPackets, FieldUDP, boundU16, "destination port"),
	FieldUDPLength:        number("udp.Length", onPackets, FieldUDP, boundU16, "length field, in bytes"),
	FieldUDPChecksum:      number("udp.Checksum", onPackets, FieldUDP, boundU16, "checksum"),
	FieldUDPPayloadLength: number("udp.PayloadLength", onPackets, FieldUDP, boundU16, "bytes after the UDP header"),

	FieldLoopback: flag("loopback", onLocal, FieldZero, "from this host to itself").driverUpTo(boundU32).neverFolds(),
	FieldImpostor: flag("impostor", onPackets, FieldZero, "injected by another program").driverUpTo(boundU32).neverFolds(),

	FieldProcessID:        number("processId", onFlow|onSocket|onReflect, FieldZero, boundU32, "process that owns the packet, flow, socket or handle; 0: unknown, or none").extendedTo(onNetwork),
	FieldLocalAddr:        addr6("localAddr", onLocal, FieldZero, KindAddr, "address of this host"),
	FieldRemoteAddr:       addr6("remoteAddr", onLocal, FieldZero, KindAddr, "address of the other host"),
	FieldLocalPort:        number("localPort", onLocal, FieldZero, boundU16, "port of this host, or ICMP type"),
	FieldRemotePort:       number("remotePort", onLocal, FieldZero, boundU16, "port of the other host, or ICMP type"),
	FieldProtocol:         number("protocol", onLocal, FieldZero, boundU8, "protocol number, extension headers skipped"),
	FieldEndpointID:       number("endpointId", onFlow|onSocket, FieldZero, boundU64, "endpoint identifier").compared128(),
	FieldParentEndpointID: number("parentEndpointId", onFlow|onSocket, FieldZero, boundU64, "identifier of the listening endpoint").compared128(),

	FieldLayer:    number("layer", onReflect, FieldZero, small(4), "layer of the handle"),
	FieldPriority: signed("priority", onReflect, 30000, 30000, "priority of the handle"),
	FieldEvent:    number("event", onAll, FieldZero, small(9), "what happened"),

	FieldPacket:       element("packet", FieldZero, 1, "byte of the packet"),
	FieldPacket16:     element("packet16", FieldZero, 2, "2 bytes of the packet, network byte order"),
	FieldPacket32:     element("packet32", FieldZero, 4, "4 bytes of the packet, network byte order").neverFolds(),
	FieldTCPPayload:   element("tcp.Payload", FieldTCP, 1, "byte of the TCP payload"),
	FieldTCPPayload16: element("tcp.Payload16", FieldTCP, 2, "2 bytes of the TCP payload, network byte order"),
	FieldTCPPayload32: element("tcp.Payload32", FieldTCP, 4, "4 bytes of the TCP payload, network byte order"),
	FieldUDPPayload:   element("udp.Payload", FieldUDP, 1, "byte of the UDP payload"),
	FieldUDPPayload16: element("udp.Payload16", FieldUDP, 2, "2 bytes of the UDP payload, network byte order"),
	FieldUDPPayload32: element("udp.Payload32", FieldUDP, 4, "4 bytes of the UDP payload, network byte order"),

	FieldLength:    number("length", onPackets, FieldZero, small(65575), "packet length in bytes").from(20),
	FieldTimestamp: signed("timestamp", onAll, 1<<63, 1<<63-1, "time of the capture, in clock ticks").compared128(),
	FieldRandom8:   number("random8", onPackets, FieldZero, boundU8, "random number of the packet"),
	FieldRandom16:  number("random16", onPackets, FieldZero, boundU16, "random number of the packet"),
	FieldRandom32:  number("random32", onPackets, FieldZero, boundU32, "random number of the packet"),
	FieldFragment:  flag("fragment", onPackets, FieldZero, "is a fragment"),

	FieldFlowLabel:  number("ipv6.FlowLabel", onPackets, FieldIPv6, small(0xFFFFF), "flow label"),
	FieldFamilyIP:   flag("ip", onFlow|onSocket, FieldZero, "is IPv4"),
	FieldFamilyIPv6: flag("ipv6", onFlow|onSocket, FieldZero, "is IPv6"),

	fieldTrue:  flag("true", onAll, FieldZero, "always holds").from(1),
	fieldFalse: flag("false", onAll, FieldZero, "never holds").upTo(bound0),
}

// info returns the table entry of a field, an empty one for numbers that are no field.
func (f Field) info() *fieldInfo {
	if int(f) < numFields {
		return &fieldTable[f]
	}
	return &fieldInfo{}
}

func small(n uint64) bound { return bound{mag: Value{Lo: n}} }

// number makes the entry of an unsigned field with values up to hi.
func number(name string, layers layerMask, base Field, hi bound, doc string) fieldInfo {
	return fieldInfo{
		name: name, layers: layers, kind: KindNumber, doc: doc,
		folds: true, hi: hi, drvHi: hi, base: base,
	}
}

// flag makes the entry of a field with the values 0 and 1.
func flag(name string, layers layerMask, base Field, doc string) fieldInfo {
	i := number(name, layers, base, bound1, doc)
	i.kind, i.boolean = KindBool, true
	return i
}

// signed makes the entry of a field with values from -lo to hi.
func signed(name string, layers layerMask, lo, hi uint64, doc string) fieldInfo {
	i := number(name, layers, FieldZero, small(hi), doc)
	i.kind = KindSigned
	i.lo = bound{neg: true, mag: Value{Lo: lo}}
	i.drvLo = i.lo
	return i
}

// addr4 makes the entry of an IPv4 address.
func addr4(name, doc string) fieldInfo {
	i := number(name, onPackets, FieldIP, boundIPv4Hi, doc)
	i.kind, i.wide = KindIPv4, true
	i.lo, i.drvLo = boundIPv4Lo, boundIPv4Lo
	return i
}

// addr6 makes the entry of an address of 128 bits.
func addr6(name string, layers layerMask, base Field, kind FieldKind, doc string) fieldInfo {
	i := number(name, layers, base, boundMax, doc)
	i.kind, i.wide = kind, true
	return i
}

// element makes the entry of an index field with elements of size bytes.
func element(name string, base Field, size int, doc string) fieldInfo {
	i := number(name, onPackets, base, small(1<<(8*size)-1), doc)
	i.kind, i.elem = KindBytes, size
	return i
}

// upTo and from change the range; foldUpTo and driverUpTo change one of its two uses only.
func (i fieldInfo) upTo(hi bound) fieldInfo       { i.hi, i.drvHi = hi, hi; return i }
func (i fieldInfo) from(lo uint64) fieldInfo      { i.lo, i.drvLo = small(lo), small(lo); return i }
func (i fieldInfo) foldUpTo(hi bound) fieldInfo   { i.hi = hi; return i }
func (i fieldInfo) driverUpTo(hi bound) fieldInfo { i.drvHi = hi; return i }

// extendedTo adds layers at which only the extended dialect has the field.
func (i fieldInfo) extendedTo(m layerMask) fieldInfo { i.more = m; return i }

// in returns where the field exists in a dialect.
func (i *fieldInfo) in(d Dialect) layerMask {
	if d == Extended {
		return i.layers | i.more
	}
	return i.layers
}

// neverFolds marks a field whose tests the original never folds.
func (i fieldInfo) neverFolds() fieldInfo { i.folds = false; return i }

// compared128 marks a field that is compared in all 128 bits of the literal.
func (i fieldInfo) compared128() fieldInfo { i.wide = true; return i }

// String lists the layers by name.
func (m layerMask) String() string {
	var names []string
	for l := range packet.NumLayers {
		if m.has(l) {
			names = append(names, l.String())
		}
	}
	return strings.Join(names, ", ")
}

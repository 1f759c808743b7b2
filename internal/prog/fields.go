package prog

import (
	"strings"

	"github.com/opendivert/divert/packet"
)

// Layers is a set of layers, bit n for layer n.
type Layers uint8

const (
	OnNetwork Layers = 1 << packet.LayerNetwork
	OnForward Layers = 1 << packet.LayerForward
	OnFlow    Layers = 1 << packet.LayerFlow
	OnSocket  Layers = 1 << packet.LayerSocket
	OnReflect Layers = 1 << packet.LayerReflect

	OnPackets = OnNetwork | OnForward         // layers with packets
	OnLocal   = OnNetwork | OnFlow | OnSocket // layers of this host's own traffic
	OnTraffic = OnPackets | OnFlow | OnSocket // all but REFLECT
	OnAll     = OnTraffic | OnReflect
)

// Has reports whether layer l is in the set. It is false for invalid numbers.
func (m Layers) Has(l packet.Layer) bool {
	return l < packet.NumLayers && m&(1<<l) != 0
}

// Bound is an end of a field's range: sign and 128-bit magnitude.
type Bound struct {
	Neg bool
	Mag Value
}

// Compare returns -1, 0 or 1 as b is less than, equal to or greater than c. Negative zero is less
// than zero, as in the original.
func (b Bound) Compare(c Bound) int {
	switch {
	case b.Neg && !c.Neg:
		return -1
	case !b.Neg && c.Neg:
		return 1
	case b.Neg:
		return c.Mag.Compare(b.Mag)
	}
	return b.Mag.Compare(c.Mag)
}

// The bounds that occur more than once.
var (
	bound0   = Bound{}
	bound1   = Bound{Mag: Value{Lo: 1}}
	boundU8  = Bound{Mag: Value{Lo: 0xFF}}
	boundU16 = Bound{Mag: Value{Lo: 0xFFFF}}
	boundU32 = Bound{Mag: Value{Lo: 0xFFFFFFFF}}
	boundU64 = Bound{Mag: Value{Lo: 0xFFFFFFFFFFFFFFFF}}
	boundMax = Bound{Mag: Value{Hi: 0xFFFFFFFFFFFFFFFF, Lo: 0xFFFFFFFFFFFFFFFF}}

	boundIPv4Lo = Bound{Mag: Value{Lo: 0xFFFF_0000_0000}} // ::ffff:0.0.0.0
	boundIPv4Hi = Bound{Mag: Value{Lo: 0xFFFF_FFFF_FFFF}} // ::ffff:255.255.255.255
)

// Info is the description of a field.
type Info struct {
	Name   string // in the notation of filters
	Layers Layers // layers of the field
	More   Layers // further layers in the extended dialect
	Kind   Kind
	Doc    string // for people, a few words

	// The range of values. If Folds is set, tests of the field are folded against it when they are placed (specification:
	// filter-language.md 5).
	Folds  bool
	Lo, Hi Bound

	// The range that the original driver accepts for literals of the field (specification: windows-driver.md 6). Except
	// for loopback, impostor, length and event it is also the range of the field's values.
	DrvLo, DrvHi Bound

	Base    Field    // protocol field of the header with the value, into which a folded test turns; FieldZero: none
	bits    bitfield // place of the value in that header, for fields that are bits of it
	Boolean bool     // has the values 0 and 1 and is printed as a bare name
	Elem    int      // index fields: size of an element in bytes; 0: not an index field
	Wide    bool     // compared in 128 bits; otherwise in the low 32 bits of the literal
}

// fieldTable has the descriptions of all fields, indexed by Field. (Specification: filter-language.md 3 and 6.)
var fieldTable = [NumFields]Info{
	FieldZero:     flag("zero", OnAll, FieldZero, "always 0").upTo(bound0),
	FieldInbound:  flag("inbound", OnLocal, FieldZero, "comes to this host"),
	FieldOutbound: flag("outbound", OnLocal, FieldZero, "leaves this host"),
	FieldIfIdx:    number("ifIdx", OnPackets, FieldZero, boundU32, "interface index"),
	FieldSubIfIdx: number("subIfIdx", OnPackets, FieldZero, boundU32, "sub-interface index"),
	FieldIP:       flag("ip", OnTraffic, FieldZero, "is IPv4"),
	FieldIPv6:     flag("ipv6", OnTraffic, FieldZero, "is IPv6"),
	FieldICMP:     flag("icmp", OnTraffic, FieldZero, "is ICMP over IPv4"),
	FieldTCP:      flag("tcp", OnTraffic, FieldZero, "is TCP"),
	FieldUDP:      flag("udp", OnTraffic, FieldZero, "is UDP"),
	FieldICMPv6:   flag("icmpv6", OnTraffic, FieldZero, "is ICMPv6"),

	FieldIPHdrLength: number("ip.HdrLength", OnPackets, FieldIP, BoundOf(15), "header length in 4-byte words").at(0, 24, 4),
	FieldIPTOS:       number("ip.TOS", OnPackets, FieldIP, boundU8, "type of service").foldUpTo(boundU16).at(0, 16, 8),
	FieldIPLength:    number("ip.Length", OnPackets, FieldIP, boundU16, "total length field, in bytes").at(0, 0, 16),
	FieldIPID:        number("ip.Id", OnPackets, FieldIP, boundU16, "identification").at(4, 16, 16),
	FieldIPDF:        flag("ip.DF", OnPackets, FieldIP, "don't-fragment flag").at(4, 14, 1),
	FieldIPMF:        flag("ip.MF", OnPackets, FieldIP, "more-fragments flag").at(4, 13, 1),
	FieldIPFragOff:   number("ip.FragOff", OnPackets, FieldIP, BoundOf(8191), "fragment offset in units of 8 bytes").at(4, 0, 13),
	FieldIPTTL:       number("ip.TTL", OnPackets, FieldIP, boundU8, "time to live").at(8, 24, 8),
	FieldIPProtocol:  number("ip.Protocol", OnPackets, FieldIP, boundU8, "protocol number in the header").at(8, 16, 8),
	FieldIPChecksum:  number("ip.Checksum", OnPackets, FieldIP, boundU16, "header checksum").at(8, 0, 16),
	FieldIPSrcAddr:   addr4("ip.SrcAddr", "source address").at(12, 0, 32),
	FieldIPDstAddr:   addr4("ip.DstAddr", "destination address").at(16, 0, 32),

	FieldIPv6TrafficClass: number("ipv6.TrafficClass", OnPackets, FieldIPv6, boundU8, "traffic class").at(0, 20, 8),
	FieldIPv6FlowLabel:    number("ipv6.FlowLabel", OnPackets, FieldIPv6, BoundOf(0xFFFFF), "flow label with the byte order of the original"),
	FieldIPv6Length:       number("ipv6.Length", OnPackets, FieldIPv6, boundU16, "payload length field, in bytes").at(4, 16, 16),
	FieldIPv6NextHdr:      number("ipv6.NextHdr", OnPackets, FieldIPv6, boundU8, "next header field of the fixed header").at(4, 8, 8),
	FieldIPv6HopLimit:     number("ipv6.HopLimit", OnPackets, FieldIPv6, boundU8, "hop limit").at(4, 0, 8),
	FieldIPv6SrcAddr:      addr6("ipv6.SrcAddr", OnPackets, FieldIPv6, KindIPv6, "source address"),
	FieldIPv6DstAddr:      addr6("ipv6.DstAddr", OnPackets, FieldIPv6, KindIPv6, "destination address"),

	FieldICMPType:       number("icmp.Type", OnPackets, FieldICMP, boundU8, "message type").at(0, 24, 8),
	FieldICMPCode:       number("icmp.Code", OnPackets, FieldICMP, boundU8, "message code").at(0, 16, 8),
	FieldICMPChecksum:   number("icmp.Checksum", OnPackets, FieldICMP, boundU16, "checksum").at(0, 0, 16),
	FieldICMPBody:       number("icmp.Body", OnPackets, FieldICMP, boundU32, "the 4 bytes after the checksum").neverFolds().at(4, 0, 32),
	FieldICMPv6Type:     number("icmpv6.Type", OnPackets, FieldICMPv6, boundU8, "message type").at(0, 24, 8),
	FieldICMPv6Code:     number("icmpv6.Code", OnPackets, FieldICMPv6, boundU8, "message code").at(0, 16, 8),
	FieldICMPv6Checksum: number("icmpv6.Checksum", OnPackets, FieldICMPv6, boundU16, "checksum").at(0, 0, 16),
	FieldICMPv6Body:     number("icmpv6.Body", OnPackets, FieldICMPv6, boundU32, "the 4 bytes after the checksum").neverFolds().at(4, 0, 32),

	FieldTCPSrcPort:       number("tcp.SrcPort", OnPackets, FieldTCP, boundU16, "source port").at(0, 16, 16),
	FieldTCPDstPort:       number("tcp.DstPort", OnPackets, FieldTCP, boundU16, "destination port").at(0, 0, 16),
	FieldTCPSeqNum:        number("tcp.SeqNum", OnPackets, FieldTCP, boundU32, "sequence number").neverFolds().at(4, 0, 32),
	FieldTCPAckNum:        number("tcp.AckNum", OnPackets, FieldTCP, boundU32, "acknowledgement number").neverFolds().at(8, 0, 32),
	FieldTCPHdrLength:     number("tcp.HdrLength", OnPackets, FieldTCP, BoundOf(15), "header length in 4-byte words").at(12, 28, 4),
	FieldTCPUrg:           flag("tcp.Urg", OnPackets, FieldTCP, "URG flag").at(12, 21, 1),
	FieldTCPAck:           flag("tcp.Ack", OnPackets, FieldTCP, "ACK flag").at(12, 20, 1),
	FieldTCPPsh:           flag("tcp.Psh", OnPackets, FieldTCP, "PSH flag").at(12, 19, 1),
	FieldTCPRst:           flag("tcp.Rst", OnPackets, FieldTCP, "RST flag").at(12, 18, 1),
	FieldTCPSyn:           flag("tcp.Syn", OnPackets, FieldTCP, "SYN flag").at(12, 17, 1),
	FieldTCPFin:           flag("tcp.Fin", OnPackets, FieldTCP, "FIN flag").at(12, 16, 1),
	FieldTCPWindow:        number("tcp.Window", OnPackets, FieldTCP, boundU16, "window field, unscaled").at(12, 0, 16),
	FieldTCPChecksum:      number("tcp.Checksum", OnPackets, FieldTCP, boundU16, "checksum").at(16, 16, 16),
	FieldTCPUrgPtr:        number("tcp.UrgPtr", OnPackets, FieldTCP, boundU16, "urgent pointer").at(16, 0, 16),
	FieldTCPPayloadLength: number("tcp.PayloadLength", OnPackets, FieldTCP, boundU16, "bytes after the TCP header"),

	FieldUDPSrcPort:       number("udp.SrcPort", OnPackets, FieldUDP, boundU16, "source port").at(0, 16, 16),
	FieldUDPDstPort:       number("udp.DstPort", OnPackets, FieldUDP, boundU16, "destination port").at(0, 0, 16),
	FieldUDPLength:        number("udp.Length", OnPackets, FieldUDP, boundU16, "length field, in bytes").at(4, 16, 16),
	FieldUDPChecksum:      number("udp.Checksum", OnPackets, FieldUDP, boundU16, "checksum").at(4, 0, 16),
	FieldUDPPayloadLength: number("udp.PayloadLength", OnPackets, FieldUDP, boundU16, "bytes after the UDP header"),

	FieldLoopback: flag("loopback", OnLocal, FieldZero, "from this host to itself").driverUpTo(boundU32).neverFolds(),
	FieldImpostor: flag("impostor", OnPackets, FieldZero, "injected by another program").driverUpTo(boundU32).neverFolds(),

	FieldProcessID:        number("processId", OnFlow|OnSocket|OnReflect, FieldZero, boundU32, "process that owns the packet, flow, socket or handle; 0: unknown, or none").extendedTo(OnNetwork),
	FieldLocalAddr:        addr6("localAddr", OnLocal, FieldZero, KindAddr, "address of this host"),
	FieldRemoteAddr:       addr6("remoteAddr", OnLocal, FieldZero, KindAddr, "address of the other host"),
	FieldLocalPort:        number("localPort", OnLocal, FieldZero, boundU16, "port of this host, or ICMP type"),
	FieldRemotePort:       number("remotePort", OnLocal, FieldZero, boundU16, "port of the other host, or ICMP type"),
	FieldProtocol:         number("protocol", OnLocal, FieldZero, boundU8, "protocol number, extension headers skipped"),
	FieldEndpointID:       number("endpointId", OnFlow|OnSocket, FieldZero, boundU64, "endpoint identifier").compared128(),
	FieldParentEndpointID: number("parentEndpointId", OnFlow|OnSocket, FieldZero, boundU64, "identifier of the listening endpoint").compared128(),

	FieldLayer:    number("layer", OnReflect, FieldZero, BoundOf(4), "layer of the handle"),
	FieldPriority: signed("priority", OnReflect, 30000, 30000, "priority of the handle"),
	FieldEvent:    number("event", OnAll, FieldZero, BoundOf(9), "kind of event"),

	FieldPacket:       element("packet", FieldZero, 1, "byte of the packet"),
	FieldPacket16:     element("packet16", FieldZero, 2, "2 bytes of the packet, network byte order"),
	FieldPacket32:     element("packet32", FieldZero, 4, "4 bytes of the packet, network byte order").neverFolds(),
	FieldTCPPayload:   element("tcp.Payload", FieldTCP, 1, "byte of the TCP payload"),
	FieldTCPPayload16: element("tcp.Payload16", FieldTCP, 2, "2 bytes of the TCP payload, network byte order"),
	FieldTCPPayload32: element("tcp.Payload32", FieldTCP, 4, "4 bytes of the TCP payload, network byte order"),
	FieldUDPPayload:   element("udp.Payload", FieldUDP, 1, "byte of the UDP payload"),
	FieldUDPPayload16: element("udp.Payload16", FieldUDP, 2, "2 bytes of the UDP payload, network byte order"),
	FieldUDPPayload32: element("udp.Payload32", FieldUDP, 4, "4 bytes of the UDP payload, network byte order"),

	FieldLength:    number("length", OnPackets, FieldZero, BoundOf(65575), "packet length in bytes").from(20),
	FieldTimestamp: signed("timestamp", OnAll, 1<<63, 1<<63-1, "time of the capture, in clock ticks").compared128(),
	FieldRandom8:   number("random8", OnPackets, FieldZero, boundU8, "random number of the packet"),
	FieldRandom16:  number("random16", OnPackets, FieldZero, boundU16, "random number of the packet"),
	FieldRandom32:  number("random32", OnPackets, FieldZero, boundU32, "random number of the packet"),
	FieldFragment:  flag("fragment", OnPackets, FieldZero, "is a fragment"),

	FieldFlowLabel:  number("ipv6.FlowLabel", OnPackets, FieldIPv6, BoundOf(0xFFFFF), "flow label").at(0, 0, 20),
	FieldFamilyIP:   flag("ip", OnFlow|OnSocket, FieldZero, "is IPv4"),
	FieldFamilyIPv6: flag("ipv6", OnFlow|OnSocket, FieldZero, "is IPv6"),

	FieldIPDSCP:   number("ip.DSCP", 0, FieldIP, BoundOf(63), "differentiated services code point (RFC 2474)").extendedTo(OnPackets).at(0, 18, 6),
	FieldIPv6DSCP: number("ipv6.DSCP", 0, FieldIPv6, BoundOf(63), "differentiated services code point (RFC 2474)").extendedTo(OnPackets).at(0, 22, 6),

	FieldFlowPackets:    number("flow.Packets", 0, FieldZero, boundU32, "packets of the flow so far, both ways, this one included").extendedTo(OnPackets),
	FieldFlowBytes:      number("flow.Bytes", 0, FieldZero, boundU32, "bytes of the flow so far, both ways, this packet included").extendedTo(OnPackets),
	FieldFlowWayPackets: number("flow.WayPackets", 0, FieldZero, boundU32, "packets of the flow so far that go the way of this one, which is included").extendedTo(OnPackets),
	FieldFlowWayBytes:   number("flow.WayBytes", 0, FieldZero, boundU32, "bytes of the flow so far that go the way of this packet, which is included").extendedTo(OnPackets),

	FieldInterface: name("iface", OnPackets, boundU32, "name of the interface"),
	FieldProcess:   name("process", OnLocal, boundMax, "name of the process, at most 15 bytes").compared128(),

	FieldTrue:  flag("true", OnAll, FieldZero, "always holds").from(1),
	FieldFalse: flag("false", OnAll, FieldZero, "never holds").upTo(bound0),
}

// Info returns the table entry of a field, an empty one for invalid numbers.
func (f Field) Info() *Info {
	if int(f) < NumFields {
		return &fieldTable[f]
	}
	return &Info{}
}

// BoundOf returns a bound that is not negative.
func BoundOf(n uint64) Bound { return Bound{Mag: Value{Lo: n}} }

// number makes the entry of an unsigned field with values up to hi.
func number(name string, layers Layers, base Field, hi Bound, doc string) Info {
	return Info{
		Name: name, Layers: layers, Kind: KindNumber, Doc: doc,
		Folds: true, Hi: hi, DrvHi: hi, Base: base,
	}
}

// flag makes the entry of a field with the values 0 and 1.
func flag(name string, layers Layers, base Field, doc string) Info {
	i := number(name, layers, base, bound1, doc)
	i.Kind, i.Boolean = KindBool, true
	return i
}

// signed makes the entry of a field with values from -lo to hi.
func signed(name string, layers Layers, lo, hi uint64, doc string) Info {
	i := number(name, layers, FieldZero, BoundOf(hi), doc)
	i.Kind = KindSigned
	i.Lo = Bound{Neg: true, Mag: Value{Lo: lo}}
	i.DrvLo = i.Lo
	return i
}

// addr4 makes the entry of an IPv4 address.
func addr4(name, doc string) Info {
	i := number(name, OnPackets, FieldIP, boundIPv4Hi, doc)
	i.Kind, i.Wide = KindIPv4, true
	i.Lo, i.DrvLo = boundIPv4Lo, boundIPv4Lo
	return i
}

// addr6 makes the entry of an address of 128 bits.
func addr6(name string, layers Layers, base Field, kind Kind, doc string) Info {
	i := number(name, layers, base, boundMax, doc)
	i.Kind, i.Wide = kind, true
	return i
}

// name makes the entry of a field that is compared with names, in the extended dialect.
func name(field string, layers Layers, hi Bound, doc string) Info {
	i := number(field, 0, FieldZero, hi, doc).extendedTo(layers)
	i.Kind = KindName
	return i
}

// element makes the entry of an index field with elements of size bytes.
func element(name string, base Field, size int, doc string) Info {
	i := number(name, OnPackets, base, BoundOf(1<<(8*size)-1), doc)
	i.Kind, i.Elem = KindBytes, size
	return i
}

// at sets the place of the value's bits in the header.
func (i Info) at(off int32, shift, width uint8) Info { i.bits = bitfield{off, shift, width}; return i }

// upTo and from change the range; foldUpTo and driverUpTo change only one of its two uses.
func (i Info) upTo(hi Bound) Info       { i.Hi, i.DrvHi = hi, hi; return i }
func (i Info) from(lo uint64) Info      { i.Lo, i.DrvLo = BoundOf(lo), BoundOf(lo); return i }
func (i Info) foldUpTo(hi Bound) Info   { i.Hi = hi; return i }
func (i Info) driverUpTo(hi Bound) Info { i.DrvHi = hi; return i }

// extendedTo adds layers at which only the extended dialect has the field.
func (i Info) extendedTo(m Layers) Info { i.More = m; return i }

// In returns the layers of the field in the strict or the extended dialect.
func (i *Info) In(strict bool) Layers {
	if strict {
		return i.Layers
	}
	return i.Layers | i.More
}

// neverFolds marks a field whose tests the original never folds.
func (i Info) neverFolds() Info { i.Folds = false; return i }

// compared128 marks a field that is compared in all 128 bits of the literal.
func (i Info) compared128() Info { i.Wide = true; return i }

// String lists the layers by name.
func (m Layers) String() string {
	var names []string
	for l := range packet.NumLayers {
		if m.Has(l) {
			names = append(names, l.String())
		}
	}
	return strings.Join(names, ", ")
}

package filter

import (
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// The fields that belong to no header; Fields gives the meaning and the layers of each.
const (
	True             = Flag(prog.FieldTrue)
	False            = Flag(prog.FieldFalse)
	Zero             = Flag(prog.FieldZero) // never holds
	Inbound          = Flag(prog.FieldInbound)
	Outbound         = Flag(prog.FieldOutbound)
	Loopback         = Flag(prog.FieldLoopback)
	Impostor         = Flag(prog.FieldImpostor)
	Fragment         = Flag(prog.FieldFragment)
	FlowPackets      = Number[uint32](prog.FieldFlowPackets) // these four in the extended dialect only
	FlowBytes        = Number[uint32](prog.FieldFlowBytes)
	FlowWayPackets   = Number[uint32](prog.FieldFlowWayPackets)
	FlowWayBytes     = Number[uint32](prog.FieldFlowWayBytes)
	Interface        = Name(prog.FieldInterface) // iface, extended dialect only
	Process          = Name(prog.FieldProcess)   // extended dialect only
	IfIdx            = Number[uint32](prog.FieldIfIdx)
	SubIfIdx         = Number[uint32](prog.FieldSubIfIdx)
	Length           = Number[uint32](prog.FieldLength)
	ProcessID        = Number[uint32](prog.FieldProcessID)
	Random32         = Number[uint32](prog.FieldRandom32)
	LocalPort        = Number[uint16](prog.FieldLocalPort)
	RemotePort       = Number[uint16](prog.FieldRemotePort)
	Random16         = Number[uint16](prog.FieldRandom16)
	Protocol         = Number[uint8](prog.FieldProtocol)
	Random8          = Number[uint8](prog.FieldRandom8)
	EndpointID       = Number[uint64](prog.FieldEndpointID)
	ParentEndpointID = Number[uint64](prog.FieldParentEndpointID)
	LocalAddr        = Addr(prog.FieldLocalAddr)
	RemoteAddr       = Addr(prog.FieldRemoteAddr)
	Timestamp        = Signed[int64](prog.FieldTimestamp)
	Priority         = Signed[int16](prog.FieldPriority)
	Event            = Number[packet.Event](prog.FieldEvent)
	HandleLayer      = Number[packet.Layer](prog.FieldLayer) // the field "layer"
)

// The fields of IPv4. IP is the test for it.
const (
	IP          = Flag(prog.FieldIP)
	IPDF        = Flag(prog.FieldIPDF)
	IPMF        = Flag(prog.FieldIPMF)
	IPHdrLength = Number[uint8](prog.FieldIPHdrLength)
	IPTOS       = Number[uint8](prog.FieldIPTOS)
	IPDSCP      = Number[uint8](prog.FieldIPDSCP) // extended dialect only
	IPTTL       = Number[uint8](prog.FieldIPTTL)
	IPProtocol  = Number[uint8](prog.FieldIPProtocol)
	IPLength    = Number[uint16](prog.FieldIPLength)
	IPID        = Number[uint16](prog.FieldIPID)
	IPFragOff   = Number[uint16](prog.FieldIPFragOff)
	IPChecksum  = Number[uint16](prog.FieldIPChecksum)
	IPSrcAddr   = Addr(prog.FieldIPSrcAddr)
	IPDstAddr   = Addr(prog.FieldIPDstAddr)
)

// The fields of IPv6. IPv6 is the test for it.
const (
	IPv6             = Flag(prog.FieldIPv6)
	IPv6TrafficClass = Number[uint8](prog.FieldIPv6TrafficClass)
	IPv6DSCP         = Number[uint8](prog.FieldIPv6DSCP) // extended dialect only
	IPv6NextHdr      = Number[uint8](prog.FieldIPv6NextHdr)
	IPv6HopLimit     = Number[uint8](prog.FieldIPv6HopLimit)
	IPv6Length       = Number[uint16](prog.FieldIPv6Length)
	IPv6FlowLabel    = Number[uint32](prog.FieldFlowLabel)
	IPv6SrcAddr      = Addr(prog.FieldIPv6SrcAddr)
	IPv6DstAddr      = Addr(prog.FieldIPv6DstAddr)
)

// The fields of ICMP and ICMPv6. ICMP and ICMPv6 are the tests for them.
const (
	ICMP         = Flag(prog.FieldICMP)
	ICMPType     = Number[uint8](prog.FieldICMPType)
	ICMPCode     = Number[uint8](prog.FieldICMPCode)
	ICMPChecksum = Number[uint16](prog.FieldICMPChecksum)
	ICMPBody     = Number[uint32](prog.FieldICMPBody)

	ICMPv6         = Flag(prog.FieldICMPv6)
	ICMPv6Type     = Number[uint8](prog.FieldICMPv6Type)
	ICMPv6Code     = Number[uint8](prog.FieldICMPv6Code)
	ICMPv6Checksum = Number[uint16](prog.FieldICMPv6Checksum)
	ICMPv6Body     = Number[uint32](prog.FieldICMPv6Body)
)

// The fields of TCP. TCP is the test for it; for its payload see TCPPayload.
const (
	TCP              = Flag(prog.FieldTCP)
	TCPUrg           = Flag(prog.FieldTCPUrg)
	TCPAck           = Flag(prog.FieldTCPAck)
	TCPPsh           = Flag(prog.FieldTCPPsh)
	TCPRst           = Flag(prog.FieldTCPRst)
	TCPSyn           = Flag(prog.FieldTCPSyn)
	TCPFin           = Flag(prog.FieldTCPFin)
	TCPSrcPort       = Number[uint16](prog.FieldTCPSrcPort)
	TCPDstPort       = Number[uint16](prog.FieldTCPDstPort)
	TCPWindow        = Number[uint16](prog.FieldTCPWindow)
	TCPChecksum      = Number[uint16](prog.FieldTCPChecksum)
	TCPUrgPtr        = Number[uint16](prog.FieldTCPUrgPtr)
	TCPPayloadLength = Number[uint16](prog.FieldTCPPayloadLength)
	TCPSeqNum        = Number[uint32](prog.FieldTCPSeqNum)
	TCPAckNum        = Number[uint32](prog.FieldTCPAckNum)
	TCPHdrLength     = Number[uint8](prog.FieldTCPHdrLength)
)

// The fields of UDP. UDP is the test for it; for its payload see UDPPayload.
const (
	UDP              = Flag(prog.FieldUDP)
	UDPSrcPort       = Number[uint16](prog.FieldUDPSrcPort)
	UDPDstPort       = Number[uint16](prog.FieldUDPDstPort)
	UDPLength        = Number[uint16](prog.FieldUDPLength)
	UDPChecksum      = Number[uint16](prog.FieldUDPChecksum)
	UDPPayloadLength = Number[uint16](prog.FieldUDPPayloadLength)
)

// elementOf returns the constant of an index field, i elements (or bytes) from the start, or for negative i
// from the end (specification: filter-language.md 4).
func elementOf[T ~uint8 | ~uint16 | ~uint32 | ~uint64](f prog.Field, i int, inBytes bool) Number[T] {
	size := f.Info().Elem
	if !inBytes && i >= -maxOffset && i <= maxOffset {
		i *= size
	}
	if i > maxOffset-size || i < 0 && i > -size || i < -maxOffset {
		return Number[T](f) | indexOutOfRange
	}
	return Number[T](f) | Number[T](uint32(i))<<indexShift
}

// Packet, Packet16 and Packet32 are 1, 2 and 4 bytes of the packet in network byte order: element i from the start, or
// with a negative i from the end. Packet16At and Packet32At count in bytes.
func Packet(i int) Number[uint8] { return elementOf[uint8](prog.FieldPacket, i, false) }

// Packet16 is the 2-byte element i of the packet.
func Packet16(i int) Number[uint16] { return elementOf[uint16](prog.FieldPacket16, i, false) }

// Packet32 is the 4-byte element i of the packet.
func Packet32(i int) Number[uint32] { return elementOf[uint32](prog.FieldPacket32, i, false) }

// Packet16At is the 2 bytes at a byte offset of the packet.
func Packet16At(offset int) Number[uint16] {
	return elementOf[uint16](prog.FieldPacket16, offset, true)
}

// Packet32At is the 4 bytes at a byte offset of the packet.
func Packet32At(offset int) Number[uint32] {
	return elementOf[uint32](prog.FieldPacket32, offset, true)
}

// TCPPayload, TCPPayload16 and TCPPayload32 are 1, 2 and 4 bytes of the TCP payload in network byte order: element i from the start, or
// with a negative i from the end. TCPPayload16At and TCPPayload32At count in bytes.
func TCPPayload(i int) Number[uint8] { return elementOf[uint8](prog.FieldTCPPayload, i, false) }

// TCPPayload16 is the 2-byte element i of the TCP payload.
func TCPPayload16(i int) Number[uint16] { return elementOf[uint16](prog.FieldTCPPayload16, i, false) }

// TCPPayload32 is the 4-byte element i of the TCP payload.
func TCPPayload32(i int) Number[uint32] { return elementOf[uint32](prog.FieldTCPPayload32, i, false) }

// TCPPayload16At is the 2 bytes at a byte offset of the TCP payload.
func TCPPayload16At(offset int) Number[uint16] {
	return elementOf[uint16](prog.FieldTCPPayload16, offset, true)
}

// TCPPayload32At is the 4 bytes at a byte offset of the TCP payload.
func TCPPayload32At(offset int) Number[uint32] {
	return elementOf[uint32](prog.FieldTCPPayload32, offset, true)
}

// UDPPayload, UDPPayload16 and UDPPayload32 are 1, 2 and 4 bytes of the UDP payload in network byte order: element i from the start, or
// with a negative i from the end. UDPPayload16At and UDPPayload32At count in bytes.
func UDPPayload(i int) Number[uint8] { return elementOf[uint8](prog.FieldUDPPayload, i, false) }

// UDPPayload16 is the 2-byte element i of the UDP payload.
func UDPPayload16(i int) Number[uint16] { return elementOf[uint16](prog.FieldUDPPayload16, i, false) }

// UDPPayload32 is the 4-byte element i of the UDP payload.
func UDPPayload32(i int) Number[uint32] { return elementOf[uint32](prog.FieldUDPPayload32, i, false) }

// UDPPayload16At is the 2 bytes at a byte offset of the UDP payload.
func UDPPayload16At(offset int) Number[uint16] {
	return elementOf[uint16](prog.FieldUDPPayload16, offset, true)
}

// UDPPayload32At is the 4 bytes at a byte offset of the UDP payload.
func UDPPayload32At(offset int) Number[uint32] {
	return elementOf[uint32](prog.FieldUDPPayload32, offset, true)
}

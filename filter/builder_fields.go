package filter

import "github.com/opendivert/divert/packet"

func flagOf(f Field) Expr {
	return subject{field: f}.compare(OpNe, false, Value{})
}

func numberOf[T ~uint8 | ~uint16 | ~uint32 | ~uint64](f Field) Number[T] {
	return Number[T]{subject{field: f}}
}

func addrOfField(f Field) Addr { return Addr{subject{field: f}} }

// The fields that belong to no header, see Fields for what each means and on which layers it exists.
var (
	True  = Expr{tree: exprTrue}
	False = Expr{tree: exprFalse}
	Zero  = flagOf(FieldZero) // never holds

	Inbound  = flagOf(FieldInbound)
	Outbound = flagOf(FieldOutbound)
	Loopback = flagOf(FieldLoopback)
	Impostor = flagOf(FieldImpostor)
	Fragment = flagOf(FieldFragment)

	IfIdx    = numberOf[uint32](FieldIfIdx)
	SubIfIdx = numberOf[uint32](FieldSubIfIdx)

	ProcessID        = numberOf[uint32](FieldProcessID)
	LocalAddr        = addrOfField(FieldLocalAddr)
	RemoteAddr       = addrOfField(FieldRemoteAddr)
	LocalPort        = numberOf[uint16](FieldLocalPort)
	RemotePort       = numberOf[uint16](FieldRemotePort)
	Protocol         = numberOf[uint8](FieldProtocol)
	EndpointID       = numberOf[uint64](FieldEndpointID)
	ParentEndpointID = numberOf[uint64](FieldParentEndpointID)

	HandleLayer = numberOf[Layer](FieldLayer) // the field "layer"
	Priority    = Signed[int16]{subject{field: FieldPriority}}
	Event       = numberOf[packet.Event](FieldEvent)

	Length    = numberOf[uint32](FieldLength)
	Timestamp = Signed[int64]{subject{field: FieldTimestamp}}
	Random8   = numberOf[uint8](FieldRandom8)
	Random16  = numberOf[uint16](FieldRandom16)
	Random32  = numberOf[uint32](FieldRandom32)
)

// Packet, Packet16 and Packet32 are 1, 2 and 4 bytes of the packet in network byte order: element i from
// the start, or with a negative i from the end. Packet16At and Packet32At count in bytes.
func Packet(i int) Number[uint8]    { return Number[uint8]{elementOf(FieldPacket, i, false)} }
func Packet16(i int) Number[uint16] { return Number[uint16]{elementOf(FieldPacket16, i, false)} }
func Packet32(i int) Number[uint32] { return Number[uint32]{elementOf(FieldPacket32, i, false)} }
func Packet16At(offset int) Number[uint16] {
	return Number[uint16]{elementOf(FieldPacket16, offset, true)}
}
func Packet32At(offset int) Number[uint32] {
	return Number[uint32]{elementOf(FieldPacket32, offset, true)}
}

// payloadFields is the payload of a transport protocol. Its methods are elements of it in network byte order: of
// 1, 2 and 4 bytes, element i from the start, or with a negative i from the end.
type payloadFields struct{ size1, size2, size4 Field }

// Payload is byte i of the payload.
func (p payloadFields) Payload(i int) Number[uint8] {
	return Number[uint8]{elementOf(p.size1, i, false)}
}

// Payload16 is the 2-byte element i of the payload.
func (p payloadFields) Payload16(i int) Number[uint16] {
	return Number[uint16]{elementOf(p.size2, i, false)}
}

// Payload32 is the 4-byte element i of the payload.
func (p payloadFields) Payload32(i int) Number[uint32] {
	return Number[uint32]{elementOf(p.size4, i, false)}
}

// Payload16At is the 2 bytes at a byte offset of the payload.
func (p payloadFields) Payload16At(offset int) Number[uint16] {
	return Number[uint16]{elementOf(p.size2, offset, true)}
}

// Payload32At is the 4 bytes at a byte offset of the payload.
func (p payloadFields) Payload32At(offset int) Number[uint32] {
	return Number[uint32]{elementOf(p.size4, offset, true)}
}

// IPFields are the fields of the IPv4 header. As an expression it is the test "ip".
type IPFields struct {
	Expr
	HdrLength, TOS, TTL, Protocol Number[uint8]
	Length, ID, FragOff, Checksum Number[uint16]
	DF, MF                        Expr
	SrcAddr, DstAddr              Addr
}

// IP is the group of the IPv4 fields and the test for IPv4.
var IP = IPFields{
	Expr:      flagOf(FieldIP),
	HdrLength: numberOf[uint8](FieldIPHdrLength),
	TOS:       numberOf[uint8](FieldIPTOS),
	Length:    numberOf[uint16](FieldIPLength),
	ID:        numberOf[uint16](FieldIPID),
	DF:        flagOf(FieldIPDF),
	MF:        flagOf(FieldIPMF),
	FragOff:   numberOf[uint16](FieldIPFragOff),
	TTL:       numberOf[uint8](FieldIPTTL),
	Protocol:  numberOf[uint8](FieldIPProtocol),
	Checksum:  numberOf[uint16](FieldIPChecksum),
	SrcAddr:   addrOfField(FieldIPSrcAddr),
	DstAddr:   addrOfField(FieldIPDstAddr),
}

// IPv6Fields are the fields of the IPv6 header. As an expression it is the test "ipv6".
type IPv6Fields struct {
	Expr
	TrafficClass, NextHdr, HopLimit Number[uint8]
	FlowLabel                       Number[uint32]
	Length                          Number[uint16]
	SrcAddr, DstAddr                Addr
}

// IPv6 is the group of the IPv6 fields and the test for IPv6.
var IPv6 = IPv6Fields{
	Expr:         flagOf(FieldIPv6),
	TrafficClass: numberOf[uint8](FieldIPv6TrafficClass),
	FlowLabel:    numberOf[uint32](FieldFlowLabel),
	Length:       numberOf[uint16](FieldIPv6Length),
	NextHdr:      numberOf[uint8](FieldIPv6NextHdr),
	HopLimit:     numberOf[uint8](FieldIPv6HopLimit),
	SrcAddr:      addrOfField(FieldIPv6SrcAddr),
	DstAddr:      addrOfField(FieldIPv6DstAddr),
}

// ICMPFields are the fields of the ICMP or ICMPv6 header. As an expression it is the test "icmp"
// or "icmpv6".
type ICMPFields struct {
	Expr
	Type, Code Number[uint8]
	Checksum   Number[uint16]
	Body       Number[uint32]
}

// ICMP and ICMPv6 are the groups of the ICMP fields and the tests for the protocols.
var (
	ICMP = ICMPFields{
		Expr:     flagOf(FieldICMP),
		Type:     numberOf[uint8](FieldICMPType),
		Code:     numberOf[uint8](FieldICMPCode),
		Checksum: numberOf[uint16](FieldICMPChecksum),
		Body:     numberOf[uint32](FieldICMPBody),
	}
	ICMPv6 = ICMPFields{
		Expr:     flagOf(FieldICMPv6),
		Type:     numberOf[uint8](FieldICMPv6Type),
		Code:     numberOf[uint8](FieldICMPv6Code),
		Checksum: numberOf[uint16](FieldICMPv6Checksum),
		Body:     numberOf[uint32](FieldICMPv6Body),
	}
)

// TCPFields are the fields of the TCP header and payload. As an expression it is the test "tcp".
type TCPFields struct {
	Expr
	payloadFields
	SrcPort, DstPort, Window, Checksum, UrgPtr, PayloadLength Number[uint16]
	SeqNum, AckNum                                            Number[uint32]
	HdrLength                                                 Number[uint8]
	Urg, Ack, Psh, Rst, Syn, Fin                              Expr
}

// TCP is the group of the TCP fields and the test for TCP.
var TCP = TCPFields{
	Expr:          flagOf(FieldTCP),
	payloadFields: payloadFields{FieldTCPPayload, FieldTCPPayload16, FieldTCPPayload32},
	SrcPort:       numberOf[uint16](FieldTCPSrcPort),
	DstPort:       numberOf[uint16](FieldTCPDstPort),
	SeqNum:        numberOf[uint32](FieldTCPSeqNum),
	AckNum:        numberOf[uint32](FieldTCPAckNum),
	HdrLength:     numberOf[uint8](FieldTCPHdrLength),
	Urg:           flagOf(FieldTCPUrg),
	Ack:           flagOf(FieldTCPAck),
	Psh:           flagOf(FieldTCPPsh),
	Rst:           flagOf(FieldTCPRst),
	Syn:           flagOf(FieldTCPSyn),
	Fin:           flagOf(FieldTCPFin),
	Window:        numberOf[uint16](FieldTCPWindow),
	Checksum:      numberOf[uint16](FieldTCPChecksum),
	UrgPtr:        numberOf[uint16](FieldTCPUrgPtr),
	PayloadLength: numberOf[uint16](FieldTCPPayloadLength),
}

// UDPFields are the fields of the UDP header and payload. As an expression it is the test "udp".
type UDPFields struct {
	Expr
	payloadFields
	SrcPort, DstPort, Length, Checksum, PayloadLength Number[uint16]
}

// UDP is the group of the UDP fields and the test for UDP.
var UDP = UDPFields{
	Expr:          flagOf(FieldUDP),
	payloadFields: payloadFields{FieldUDPPayload, FieldUDPPayload16, FieldUDPPayload32},
	SrcPort:       numberOf[uint16](FieldUDPSrcPort),
	DstPort:       numberOf[uint16](FieldUDPDstPort),
	Length:        numberOf[uint16](FieldUDPLength),
	Checksum:      numberOf[uint16](FieldUDPChecksum),
	PayloadLength: numberOf[uint16](FieldUDPPayloadLength),
}

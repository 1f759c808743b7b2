package filter

// Field identifies a field of the language. The values up to FieldFragment are the numeric
// identifiers of the specification (filter-language.md 3); those from FieldFlowLabel on are ours.
type Field uint8

// The fields of the specification.
const (
	FieldZero Field = iota
	FieldInbound
	FieldOutbound
	FieldIfIdx
	FieldSubIfIdx
	FieldIP
	FieldIPv6
	FieldICMP
	FieldTCP
	FieldUDP
	FieldICMPv6
	FieldIPHdrLength
	FieldIPTOS
	FieldIPLength
	FieldIPID
	FieldIPDF
	FieldIPMF
	FieldIPFragOff
	FieldIPTTL
	FieldIPProtocol
	FieldIPChecksum
	FieldIPSrcAddr
	FieldIPDstAddr
	FieldIPv6TrafficClass
	FieldIPv6FlowLabel // the scrambled value of the original (filter-language.md 6, quirk)
	FieldIPv6Length
	FieldIPv6NextHdr
	FieldIPv6HopLimit
	FieldIPv6SrcAddr
	FieldIPv6DstAddr
	FieldICMPType
	FieldICMPCode
	FieldICMPChecksum
	FieldICMPBody
	FieldICMPv6Type
	FieldICMPv6Code
	FieldICMPv6Checksum
	FieldICMPv6Body
	FieldTCPSrcPort
	FieldTCPDstPort
	FieldTCPSeqNum
	FieldTCPAckNum
	FieldTCPHdrLength
	FieldTCPUrg
	FieldTCPAck
	FieldTCPPsh
	FieldTCPRst
	FieldTCPSyn
	FieldTCPFin
	FieldTCPWindow
	FieldTCPChecksum
	FieldTCPUrgPtr
	FieldTCPPayloadLength
	FieldUDPSrcPort
	FieldUDPDstPort
	FieldUDPLength
	FieldUDPChecksum
	FieldUDPPayloadLength
	FieldLoopback
	FieldImpostor
	FieldProcessID
	FieldLocalAddr
	FieldRemoteAddr
	FieldLocalPort
	FieldRemotePort
	FieldProtocol
	FieldEndpointID
	FieldParentEndpointID
	FieldLayer
	FieldPriority
	FieldEvent
	FieldPacket
	FieldPacket16
	FieldPacket32
	FieldTCPPayload
	FieldTCPPayload16
	FieldTCPPayload32
	FieldUDPPayload
	FieldUDPPayload16
	FieldUDPPayload32
	FieldLength
	FieldTimestamp
	FieldRandom8
	FieldRandom16
	FieldRandom32
	FieldFragment

	numSpecFields // how many fields the specification has
)

// Our own fields: what names of the language mean in the extended dialect. They have no object form
// of their own.
const (
	FieldFlowLabel  Field = 128 + iota // ipv6.FlowLabel: the true 20-bit label
	FieldFamilyIP                      // ip at FLOW and SOCKET: the event is of IPv4
	FieldFamilyIPv6                    // ipv6 at FLOW and SOCKET: the event is of IPv6
)

package prog

import "fmt"

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

	NumSpecFields // number of fields in the specification
)

// Our own fields: the meanings of some names in the extended dialect. They have no object form of their own.
const (
	FieldFlowLabel   Field = 128 + iota // ipv6.FlowLabel: the true 20-bit label
	FieldFamilyIP                       // ip at FLOW and SOCKET: the event is of IPv4
	FieldFamilyIPv6                     // ipv6 at FLOW and SOCKET: the event is of IPv6
	FieldFlowPackets                    // flow.Packets; for this and the next ones see flow.Counts
	FieldFlowBytes
	FieldFlowWayPackets
	FieldFlowWayBytes
	FieldIPDSCP    // ip.DSCP
	FieldIPv6DSCP  // ipv6.DSCP
	FieldInterface // iface: the interface index, compared by name; see Named.Interface
	FieldProcess   // process: the name of the process, see NameValue

	// Constant fields of the language, which compiled tests never contain: they always fold.
	FieldTrue
	FieldFalse

	NumFields = int(FieldFalse) + 1
)

// Kind is the kind of a field's values.
type Kind uint8

// The kinds of fields.
const (
	KindNumber Kind = iota // unsigned number
	KindBool               // 0 or 1
	KindSigned             // number that may be negative
	KindIPv4               // IPv4 address
	KindIPv6               // IPv6 address
	KindAddr               // address of either family, IPv4 ones mapped (::ffff:a.b.c.d)
	KindBytes              // element of a byte sequence, written with an index: packet16[2]
	KindName               // name, in quotes
)

var fieldKindNames = [...]string{
	"number", "flag", "signed number", "IPv4 address", "IPv6 address", "address", "bytes", "name",
}

// String returns the kind in words.
func (k Kind) String() string {
	if int(k) < len(fieldKindNames) {
		return fieldKindNames[k]
	}
	return fmt.Sprintf("FieldKind(%d)", uint8(k))
}

// String returns the field's name in the filter language, without an index.
func (f Field) String() string {
	if name := f.Info().Name; name != "" {
		return name
	}
	return fmt.Sprintf("Field(%d)", uint8(f))
}

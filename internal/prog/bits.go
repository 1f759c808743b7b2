package prog

// bitfield says in which bits of which header word a field lies. Offsets are from the start of the
// header; the words are read in network byte order.
// (Sources: RFC 791, 8200, 792, 4443, 9293, 768.)
type bitfield struct {
	base  base
	off   int32
	shift uint8
	bits  uint8
}

// headerFields has a row for each field that is bits of a header.
var headerFields = [NumFields]*bitfield{
	FieldIPHdrLength: {baseIPv4, 0, 24, 4},
	FieldIPTOS:       {baseIPv4, 0, 16, 8},
	FieldIPLength:    {baseIPv4, 0, 0, 16},
	FieldIPID:        {baseIPv4, 4, 16, 16},
	FieldIPDF:        {baseIPv4, 4, 14, 1},
	FieldIPMF:        {baseIPv4, 4, 13, 1},
	FieldIPFragOff:   {baseIPv4, 4, 0, 13},
	FieldIPTTL:       {baseIPv4, 8, 24, 8},
	FieldIPProtocol:  {baseIPv4, 8, 16, 8},
	FieldIPChecksum:  {baseIPv4, 8, 0, 16},
	FieldIPSrcAddr:   {baseIPv4, 12, 0, 32},
	FieldIPDstAddr:   {baseIPv4, 16, 0, 32},

	FieldIPv6TrafficClass: {baseIPv6, 0, 20, 8},
	FieldFlowLabel:        {baseIPv6, 0, 0, 20},
	FieldIPDSCP:           {baseIPv4, 0, 18, 6},
	FieldIPv6DSCP:         {baseIPv6, 0, 22, 6},
	FieldIPv6Length:       {baseIPv6, 4, 16, 16},
	FieldIPv6NextHdr:      {baseIPv6, 4, 8, 8},
	FieldIPv6HopLimit:     {baseIPv6, 4, 0, 8},

	FieldICMPType:       {baseICMP, 0, 24, 8},
	FieldICMPCode:       {baseICMP, 0, 16, 8},
	FieldICMPChecksum:   {baseICMP, 0, 0, 16},
	FieldICMPBody:       {baseICMP, 4, 0, 32},
	FieldICMPv6Type:     {baseICMPv6, 0, 24, 8},
	FieldICMPv6Code:     {baseICMPv6, 0, 16, 8},
	FieldICMPv6Checksum: {baseICMPv6, 0, 0, 16},
	FieldICMPv6Body:     {baseICMPv6, 4, 0, 32},

	FieldTCPSrcPort:   {baseTCP, 0, 16, 16},
	FieldTCPDstPort:   {baseTCP, 0, 0, 16},
	FieldTCPSeqNum:    {baseTCP, 4, 0, 32},
	FieldTCPAckNum:    {baseTCP, 8, 0, 32},
	FieldTCPHdrLength: {baseTCP, 12, 28, 4},
	FieldTCPUrg:       {baseTCP, 12, 21, 1},
	FieldTCPAck:       {baseTCP, 12, 20, 1},
	FieldTCPPsh:       {baseTCP, 12, 19, 1},
	FieldTCPRst:       {baseTCP, 12, 18, 1},
	FieldTCPSyn:       {baseTCP, 12, 17, 1},
	FieldTCPFin:       {baseTCP, 12, 16, 1},
	FieldTCPWindow:    {baseTCP, 12, 0, 16},
	FieldTCPChecksum:  {baseTCP, 16, 16, 16},
	FieldTCPUrgPtr:    {baseTCP, 16, 0, 16},

	FieldUDPSrcPort:  {baseUDP, 0, 16, 16},
	FieldUDPDstPort:  {baseUDP, 0, 0, 16},
	FieldUDPLength:   {baseUDP, 4, 16, 16},
	FieldUDPChecksum: {baseUDP, 4, 0, 16},
}

// Bits says where the header has the value of a field.
type Bits struct {
	Header Field // the test for the header: FieldIP, FieldTCP and so on
	Offset int   // of the word of 4 bytes that has the value, in network byte order, from the start of the header
	Shift  int   // of the value's lowest bit in the word
	Width  int   // of the value, in bits
}

// HeaderBits returns where the value of a field lies, if it is that of some bits of a header.
func HeaderBits(f Field) (Bits, bool) {
	if int(f) >= NumFields || headerFields[f] == nil {
		return Bits{}, false
	}
	at := headerFields[f]
	for header, b := range presence {
		if b == at.base {
			return Bits{Header: header, Offset: int(at.off), Shift: int(at.shift), Width: int(at.bits)}, true
		}
	}
	return Bits{}, false
}

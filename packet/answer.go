package packet

// This file makes the packets with which a host refuses another packet: TCP resets and ICMP error messages.
// (Specification: samples.md 2.)

// Codes for AppendUnreachable: no process listens at the port, in ICMP (RFC 792) and in ICMPv6 (RFC 4443 section 3.1).
const (
	ICMPPortUnreachable   = 3
	ICMPv6PortUnreachable = 4
)

// The types of the messages about an unreachable destination.
const (
	icmpUnreachable   = 3 // RFC 792
	icmpv6Unreachable = 1 // RFC 4443 section 3.1
)

// Values shared by the headers of all answers. One identification serves for all: they are too short to be fragmented.
const (
	answerTTL = defaultTTL
	answerID  = 0xDEAD
)

// The parts of a refused packet that an error message quotes, in bytes. IPv4: this many behind its header (RFC 792).
// IPv6: this many in all, or this many behind the extension headers if these reach farther, because the receiver finds
// the socket by the ports. An ICMPv6 message is no longer than the least MTU (RFC 4443 section 2.4 c).
const (
	quotedBehindHeader = 8
	quotedIPv6         = 60
	leastIPv6MTU       = 1280
)

// AppendReset appends to dst the TCP segment that refuses the one in b, parsed as p, and ends its connection: RST and
// ACK, from its destination to its source, as an IP packet of 40 or 60 bytes with correct checksums. It returns the
// extended slice, or dst unchanged and false if there must be no answer: b holds no whole TCP header, the segment has RST
// or FIN, or its source or destination is not the address of one host (RFC 9293 sections 3.5.2 and 3.9.2.3, RFC 1122
// sections 3.2.1.3 and 4.2.3.10).
//
// The answer's sequence number is the segment's acknowledgment number, or 0 without ACK. The answer acknowledges the
// segment's SYN, or else its payload of the length given by the IP header. AppendReset does not verify the segment's
// checksum, which outgoing packets may still lack. It cannot recognise the broadcast address of a subnet; leave such
// packets out. dst and b must not overlap.
func AppendReset(dst, b []byte, p *Parsed) ([]byte, bool) {
	tcp := p.TCP(b)
	if tcp == nil || tcp.HeaderLen() != len(tcp) || tcp.Flags()&(TCPRst|TCPFin) != 0 || !p.answerable(b) {
		return dst, false
	}
	dst, answer, payload := p.appendReply(dst, b, ProtocolTCP, ProtocolTCP, TCPHeaderLen)
	r := TCP(payload)
	r.SetSrcPort(tcp.DstPort())
	r.SetDstPort(tcp.SrcPort())
	if tcp.Flags()&TCPAck != 0 {
		r.SetSeq(tcp.Ack())
	}
	received := uint32(p.Length - p.HeaderLen)
	if tcp.Flags()&TCPSyn != 0 {
		received = 1 // data in a SYN is refused (RFC 7413 section 4.2.2)
	}
	r.SetAck(tcp.Seq() + received)
	r.SetHeaderLen(TCPHeaderLen)
	r.SetFlags(TCPRst | TCPAck)
	CalcChecksums(answer, nil, 0)
	return dst, true
}

// AppendUnreachable appends to dst the ICMP or ICMPv6 message that tells the source of the packet in b, parsed as p, that
// its destination cannot be reached; code is the reason, for instance ICMPPortUnreachable. The message comes from the
// packet's destination, has correct checksums, and quotes as much of b as the source needs to find its socket: for IPv4
// the header with its options and 8 bytes; for IPv6 60 bytes, or up to 8 bytes behind the extension headers if that is
// more (at most 1280 bytes with the message's headers); less if b is shorter.
//
// It returns the extended slice, or dst unchanged and false if there must be no answer (RFC 1122 section 3.2.2, RFC 4443
// section 2.4 e): b holds an error message or a redirect, or possibly one, or a fragment other than the first, or its source
// or destination is not the address of one host. It cannot recognise the broadcast address of a subnet; leave such packets
// out. dst and b must not overlap.
func AppendUnreachable(dst, b []byte, p *Parsed, code uint8) ([]byte, bool) {
	if !p.answerable(b) || p.tellsError(b) {
		return dst, false
	}
	kind, behind := uint8(icmpUnreachable), int(p.transportStart())+quotedBehindHeader
	if p.Family == 6 {
		kind = icmpv6Unreachable
		behind = min(max(behind, quotedIPv6), leastIPv6MTU-IPv6HeaderLen-ICMPHeaderLen)
	}
	quoted := b[:min(behind, int(p.Length), len(b))]
	dst, answer, payload := p.appendReply(dst, b, ProtocolICMP, ProtocolICMPv6, ICMPHeaderLen+len(quoted))
	ICMP(payload).SetType(kind)
	ICMP(payload).SetCode(code)
	copy(payload[ICMPHeaderLen:], quoted)
	CalcChecksums(answer, nil, 0)
	return dst, true
}

// appendReply appends an IP packet with size zero bytes behind its header, from the destination of the packet in b to its
// source. It returns the extended slice, the packet in it, and the part behind the packet's header.
func (p *Parsed) appendReply(dst, b []byte, protocol4, protocol6 uint8, size int) (all, answer, payload []byte) {
	dst, answer, header := appendHeader(dst, p.Family, protocol4, protocol6, answerTTL, size)
	if p.Family == 6 {
		copy(answer[8:24], b[24:40])
		copy(answer[24:40], b[8:24])
		return dst, answer, answer[header:]
	}
	IPv4(answer).SetID(answerID)
	copy(answer[12:16], b[16:20])
	copy(answer[16:20], b[12:16])
	return dst, answer, answer[header:]
}

// transportStart returns the offset of the upper-layer protocol in the packet.
func (p *Parsed) transportStart() int32 {
	if at := max(p.TCPOff, p.UDPOff, p.ICMPOff, p.ICMPv6Off); at >= 0 {
		return at
	}
	return p.HeaderLen
}

// answerable reports whether the packet in b goes from one host to one host and is not a later fragment, so that a
// refusal may answer it. The addresses of this host itself count as a host's: RFC 1122 forbids only those that come from
// the network, and they never get here.
func (p *Parsed) answerable(b []byte) bool {
	if p.FragOff != 0 {
		return false
	}
	switch p.Family {
	case 4:
		ip := p.IPv4(b)
		return ip != nil && oneHost4([4]byte(ip[12:16])) && oneHost4([4]byte(ip[16:20]))
	case 6:
		ip := p.IPv6(b)
		return ip != nil && oneHost6([16]byte(ip[8:24])) && oneHost6([16]byte(ip[24:40]))
	}
	return false
}

// oneHost4 reports whether an address can be that of one host: not of this network, multicast, class E or
// broadcast (RFC 1122 section 3.2.1.3).
func oneHost4(a [4]byte) bool { return a[0] != 0 && a[0] < 224 }

// oneHost6 is oneHost4 for IPv6: neither unspecified nor multicast (RFC 4291 section 2.4), nor a mapped address of IPv4
// that is not one host's.
func oneHost6(a [16]byte) bool {
	if [12]byte(a[:12]) == [12]byte{10: 0xFF, 11: 0xFF} {
		return oneHost4([4]byte(a[12:]))
	}
	return a != [16]byte{} && a[0] != 0xFF
}

// icmpErrors are the ICMP types of error messages (RFC 1122 section 3.2.2): unreachable, source quench, redirect, time
// exceeded, parameter problem.
var icmpErrors = [256]bool{3: true, 4: true, 5: true, 11: true, 12: true}

// ICMPv6 types up to this one are error messages (RFC 4443 section 2.1); redirects must not be answered either (2.4 e).
const (
	lastICMPv6Error = 127
	icmpv6Redirect  = 137
)

// tellsError reports whether the packet in b is an error message, or may be one because its type is cut off.
func (p *Parsed) tellsError(b []byte) bool {
	switch {
	case p.Family == 4 && p.Protocol == ProtocolICMP:
		h := p.ICMP(b)
		return h == nil || icmpErrors[h.Type()]
	case p.Family == 6 && p.Protocol == ProtocolICMPv6:
		h := p.ICMPv6(b)
		return h == nil || h.Type() <= lastICMPv6Error || h.Type() == icmpv6Redirect
	case p.Family == 6 && isExtension[p.Protocol]:
		return true // an extension header that is cut off hides the rest
	}
	return false
}

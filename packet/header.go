package packet

import (
	"encoding/binary"
	"net/netip"
)

// The header views below are the packet's own bytes: a setter changes the packet, and the view lives as long as the
// packet does. Get them from a Parsed, which makes sure that the header is there; a view made by conversion must have at
// least the length of the fixed header. Values are in host order. Setters leave all checksums alone. (Specification:
// api.md 2.2.)

var be = binary.BigEndian

// IPv4 is an IPv4 header with its options (RFC 791 section 3.1).
//
//	 0 version, header length   1 TOS        2 total length
//	 4 identification           6 flags, fragment offset
//	 8 TTL                      9 protocol  10 header checksum
//	12 source                  16 destination
type IPv4 []byte

// IPv4 returns the IPv4 header in the parsed b, nil if there is none.
func (p *Parsed) IPv4(b []byte) IPv4 {
	if p.IPv4Off < 0 || len(b) < IPv4HeaderLen || IPv4(b).HeaderLen() < IPv4HeaderLen {
		return nil
	}
	return part(b, 0, int32(IPv4(b).HeaderLen()))
}

// Version returns the version nibble: 4.
func (h IPv4) Version() uint8 { return h[0] >> 4 }

// HeaderLen returns the length of the header with its options, in bytes.
func (h IPv4) HeaderLen() int { return int(h[0]&0x0F) * 4 }

// SetHeaderLen sets the length of the header in bytes: a multiple of 4 from 20 to 60. It reports
// whether n is one; if not, nothing changes.
func (h IPv4) SetHeaderLen(n int) bool { return setWordCount(h, 0, 0, n) }

// TOS returns the type of service: DSCP and ECN.
func (h IPv4) TOS() uint8 { return h[1] }

// SetTOS sets the type of service.
func (h IPv4) SetTOS(v uint8) { h[1] = v }

// Length returns the length of the whole packet, in bytes.
func (h IPv4) Length() uint16 { return be.Uint16(h[2:]) }

// SetLength sets the length of the whole packet, in bytes.
func (h IPv4) SetLength(v uint16) { be.PutUint16(h[2:], v) }

// ID returns the identification.
func (h IPv4) ID() uint16 { return be.Uint16(h[4:]) }

// SetID sets the identification.
func (h IPv4) SetID(v uint16) { be.PutUint16(h[4:], v) }

// The flag bits of byte 6.
const (
	ipReserved = 0x80
	ipDF       = 0x40
	ipMF       = 0x20
)

// Reserved reports whether the reserved flag is set.
func (h IPv4) Reserved() bool { return h[6]&ipReserved != 0 }

// SetReserved sets or clears the reserved flag.
func (h IPv4) SetReserved(on bool) { setBits(&h[6], ipReserved, on) }

// DF reports whether the packet must not be fragmented.
func (h IPv4) DF() bool { return h[6]&ipDF != 0 }

// SetDF sets or clears the don't-fragment flag.
func (h IPv4) SetDF(on bool) { setBits(&h[6], ipDF, on) }

// MF reports whether more fragments follow.
func (h IPv4) MF() bool { return h[6]&ipMF != 0 }

// SetMF sets or clears the more-fragments flag.
func (h IPv4) SetMF(on bool) { setBits(&h[6], ipMF, on) }

// FragOff returns the fragment offset in units of 8 bytes, 13 bits.
func (h IPv4) FragOff() uint16 { return be.Uint16(h[6:]) & 0x1FFF }

// SetFragOff sets the fragment offset in units of 8 bytes, the low 13 bits of v.
func (h IPv4) SetFragOff(v uint16) { be.PutUint16(h[6:], be.Uint16(h[6:])&0xE000|v&0x1FFF) }

// TTL returns the time to live.
func (h IPv4) TTL() uint8 { return h[8] }

// SetTTL sets the time to live.
func (h IPv4) SetTTL(v uint8) { h[8] = v }

// Protocol returns the IP protocol number.
func (h IPv4) Protocol() uint8 { return h[9] }

// SetProtocol sets the IP protocol number.
func (h IPv4) SetProtocol(v uint8) { h[9] = v }

// Checksum returns the header checksum.
func (h IPv4) Checksum() uint16 { return be.Uint16(h[10:]) }

// SetChecksum sets the header checksum.
func (h IPv4) SetChecksum(v uint16) { be.PutUint16(h[10:], v) }

// Src returns the source address.
func (h IPv4) Src() netip.Addr { return netip.AddrFrom4([4]byte(h[12:16])) }

// SetSrc sets the source address. It reports whether a is an IPv4 address, mapped to IPv6 or
// not; if it is none, nothing changes.
func (h IPv4) SetSrc(a netip.Addr) bool { return setAddr4(h[12:16], a) }

// Dst returns the destination address.
func (h IPv4) Dst() netip.Addr { return netip.AddrFrom4([4]byte(h[16:20])) }

// SetDst sets the destination address, as SetSrc does.
func (h IPv4) SetDst(a netip.Addr) bool { return setAddr4(h[16:20], a) }

// Options returns the options, nil if there are none.
func (h IPv4) Options() []byte { return options(h, IPv4HeaderLen, h.HeaderLen()) }

// IPv6 is an IPv6 header of 40 bytes, without extension headers (RFC 8200 section 3).
//
//	0 version, traffic class, flow label
//	4 payload length   6 next header   7 hop limit
//	8 source          24 destination
type IPv6 []byte

// IPv6 returns the IPv6 header in the parsed b, nil if there is none.
func (p *Parsed) IPv6(b []byte) IPv6 { return part(b, p.IPv6Off, IPv6HeaderLen) }

// Version returns the version nibble: 6.
func (h IPv6) Version() uint8 { return h[0] >> 4 }

// TrafficClass returns the traffic class: DSCP and ECN.
func (h IPv6) TrafficClass() uint8 { return uint8(be.Uint16(h) >> 4) }

// SetTrafficClass sets the traffic class.
func (h IPv6) SetTrafficClass(v uint8) { be.PutUint16(h, be.Uint16(h)&0xF00F|uint16(v)<<4) }

// FlowLabel returns the flow label, 20 bits.
func (h IPv6) FlowLabel() uint32 { return be.Uint32(h) & 0xFFFFF }

// SetFlowLabel sets the flow label, the low 20 bits of v.
func (h IPv6) SetFlowLabel(v uint32) { be.PutUint32(h, be.Uint32(h)&^0xFFFFF|v&0xFFFFF) }

// Length returns the length of the packet behind this header, in bytes.
func (h IPv6) Length() uint16 { return be.Uint16(h[4:]) }

// SetLength sets the length of the packet behind this header, in bytes.
func (h IPv6) SetLength(v uint16) { be.PutUint16(h[4:], v) }

// NextHeader returns the number of the header that follows this one.
func (h IPv6) NextHeader() uint8 { return h[6] }

// SetNextHeader sets the number of the header that follows this one.
func (h IPv6) SetNextHeader(v uint8) { h[6] = v }

// HopLimit returns the hop limit.
func (h IPv6) HopLimit() uint8 { return h[7] }

// SetHopLimit sets the hop limit.
func (h IPv6) SetHopLimit(v uint8) { h[7] = v }

// Src returns the source address as it stands in the header: IPv4-mapped addresses stay mapped.
func (h IPv6) Src() netip.Addr { return netip.AddrFrom16([16]byte(h[8:24])) }

// SetSrc sets the source address; an IPv4 address becomes IPv4-mapped, a zone is dropped. It
// reports whether a is an address at all; if not, nothing changes.
func (h IPv6) SetSrc(a netip.Addr) bool { return setAddr16(h[8:24], a) }

// Dst returns the destination address, as Src does.
func (h IPv6) Dst() netip.Addr { return netip.AddrFrom16([16]byte(h[24:40])) }

// SetDst sets the destination address, as SetSrc does.
func (h IPv6) SetDst(a netip.Addr) bool { return setAddr16(h[24:40], a) }

// ICMP is the first 8 bytes of an ICMP or ICMPv6 message (RFC 792, RFC 4443 section 2.1).
//
//	0 type   1 code   2 checksum   4 body
type ICMP []byte

// ICMP returns the ICMP header in the parsed b, nil if there is none.
func (p *Parsed) ICMP(b []byte) ICMP { return part(b, p.ICMPOff, ICMPHeaderLen) }

// ICMPv6 returns the ICMPv6 header in the parsed b, nil if there is none.
func (p *Parsed) ICMPv6(b []byte) ICMP { return part(b, p.ICMPv6Off, ICMPHeaderLen) }

// Type returns the message type.
func (h ICMP) Type() uint8 { return h[0] }

// SetType sets the message type.
func (h ICMP) SetType(v uint8) { h[0] = v }

// Code returns the code.
func (h ICMP) Code() uint8 { return h[1] }

// SetCode sets the code.
func (h ICMP) SetCode(v uint8) { h[1] = v }

// Checksum returns the checksum.
func (h ICMP) Checksum() uint16 { return be.Uint16(h[2:]) }

// SetChecksum sets the checksum.
func (h ICMP) SetChecksum(v uint16) { be.PutUint16(h[2:], v) }

// Body returns the 4 bytes whose meaning depends on the type, as one number: in an echo, identifier and sequence number.
func (h ICMP) Body() uint32 { return be.Uint32(h[4:]) }

// SetBody sets the 4 bytes whose meaning depends on the type.
func (h ICMP) SetBody(v uint32) { be.PutUint32(h[4:], v) }

// TCPFlags are the control bits of a TCP header, byte 13.
type TCPFlags uint8

// The control bits (RFC 9293 section 3.1).
const (
	TCPFin TCPFlags = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// TCP is a TCP header with its options, as far as the packet holds them (RFC 9293 section 3.1).
//
//	 0 source port   2 destination port
//	 4 sequence number   8 acknowledgment number
//	12 data offset, reserved   13 control bits   14 window
//	16 checksum   18 urgent pointer
type TCP []byte

// TCP returns the TCP header in the parsed b, nil if there is none.
func (p *Parsed) TCP(b []byte) TCP { return part(b, p.TCPOff, p.HeaderLen-p.TCPOff) }

// SrcPort returns the source port.
func (h TCP) SrcPort() uint16 { return be.Uint16(h) }

// SetSrcPort sets the source port.
func (h TCP) SetSrcPort(v uint16) { be.PutUint16(h, v) }

// DstPort returns the destination port.
func (h TCP) DstPort() uint16 { return be.Uint16(h[2:]) }

// SetDstPort sets the destination port.
func (h TCP) SetDstPort(v uint16) { be.PutUint16(h[2:], v) }

// Seq returns the sequence number.
func (h TCP) Seq() uint32 { return be.Uint32(h[4:]) }

// SetSeq sets the sequence number.
func (h TCP) SetSeq(v uint32) { be.PutUint32(h[4:], v) }

// Ack returns the acknowledgment number.
func (h TCP) Ack() uint32 { return be.Uint32(h[8:]) }

// SetAck sets the acknowledgment number.
func (h TCP) SetAck(v uint32) { be.PutUint32(h[8:], v) }

// HeaderLen returns the length of the header with its options, in bytes, by the data offset. The packet may hold less.
func (h TCP) HeaderLen() int { return int(h[12]>>4) * 4 }

// SetHeaderLen sets the data offset, given in bytes: a multiple of 4 from 20 to 60. It reports
// whether n is one; if not, nothing changes.
func (h TCP) SetHeaderLen(n int) bool { return setWordCount(h, 12, 4, n) }

// Flags returns the control bits.
func (h TCP) Flags() TCPFlags { return TCPFlags(h[13]) }

// SetFlags sets the control bits.
func (h TCP) SetFlags(v TCPFlags) { h[13] = uint8(v) }

// Reserved returns the 4 reserved bits next to the data offset.
func (h TCP) Reserved() uint8 { return h[12] & 0x0F }

// SetReserved sets the 4 reserved bits next to the data offset.
func (h TCP) SetReserved(v uint8) { h[12] = h[12]&0xF0 | v&0x0F }

// Window returns the window.
func (h TCP) Window() uint16 { return be.Uint16(h[14:]) }

// SetWindow sets the window.
func (h TCP) SetWindow(v uint16) { be.PutUint16(h[14:], v) }

// Checksum returns the checksum.
func (h TCP) Checksum() uint16 { return be.Uint16(h[16:]) }

// SetChecksum sets the checksum.
func (h TCP) SetChecksum(v uint16) { be.PutUint16(h[16:], v) }

// Urgent returns the urgent pointer.
func (h TCP) Urgent() uint16 { return be.Uint16(h[18:]) }

// SetUrgent sets the urgent pointer.
func (h TCP) SetUrgent(v uint16) { be.PutUint16(h[18:], v) }

// Options returns the options that the packet holds, nil if there are none.
func (h TCP) Options() []byte { return options(h, TCPHeaderLen, h.HeaderLen()) }

// UDP is a UDP header of 8 bytes (RFC 768).
//
//	0 source port   2 destination port   4 length   6 checksum
type UDP []byte

// UDP returns the UDP header in the parsed b, nil if there is none.
func (p *Parsed) UDP(b []byte) UDP { return part(b, p.UDPOff, UDPHeaderLen) }

// SrcPort returns the source port.
func (h UDP) SrcPort() uint16 { return be.Uint16(h) }

// SetSrcPort sets the source port.
func (h UDP) SetSrcPort(v uint16) { be.PutUint16(h, v) }

// DstPort returns the destination port.
func (h UDP) DstPort() uint16 { return be.Uint16(h[2:]) }

// SetDstPort sets the destination port.
func (h UDP) SetDstPort(v uint16) { be.PutUint16(h[2:], v) }

// Length returns the length of header and payload in bytes, as the header gives it. The parser uses the IP header
// instead.
func (h UDP) Length() uint16 { return be.Uint16(h[4:]) }

// SetLength sets the length of header and payload in bytes.
func (h UDP) SetLength(v uint16) { be.PutUint16(h[4:], v) }

// Checksum returns the checksum; 0 means that there is none.
func (h UDP) Checksum() uint16 { return be.Uint16(h[6:]) }

// SetChecksum sets the checksum.
func (h UDP) SetChecksum(v uint16) { be.PutUint16(h[6:], v) }

// setBits sets or clears the bits of mask.
func setBits(b *byte, mask byte, on bool) {
	if on {
		*b |= mask
	} else {
		*b &^= mask
	}
}

// setWordCount writes n bytes as a count of 32-bit words into the nibble of h[at] that starts at bit shift.
func setWordCount(h []byte, at, shift, n int) bool {
	if n < 20 || n > 60 || n%4 != 0 {
		return false
	}
	h[at] = h[at]&^(0x0F<<shift) | byte(n/4)<<shift
	return true
}

// options returns the part of h behind the fixed header, up to size.
func options(h []byte, fixed, size int) []byte {
	size = min(size, len(h))
	if size <= fixed {
		return nil
	}
	return h[fixed:size:size]
}

func setAddr4(dst []byte, a netip.Addr) bool {
	a = a.Unmap()
	if !a.Is4() {
		return false
	}
	ip := a.As4()
	copy(dst, ip[:])
	return true
}

func setAddr16(dst []byte, a netip.Addr) bool {
	if !a.IsValid() {
		return false
	}
	ip := a.As16()
	copy(dst, ip[:])
	return true
}

package packet

import (
	"encoding/binary"
	"math/bits"
)

// ChecksumFlags are checksums for CalcChecksums to leave alone: the WINDIVERT_HELPER_NO_*_CHECKSUM flags. Other bits mean
// nothing.
type ChecksumFlags uint64

// The flags of CalcChecksums.
const (
	NoIPChecksum ChecksumFlags = 1 << iota
	NoICMPChecksum
	NoICMPv6Checksum
	NoTCPChecksum
	NoUDPChecksum
)

// CalcChecksums computes the checksums of the packet in b and writes them: the IPv4 header's and the transport header's.
// It sets the bits of addr, which may be nil, for the checksums that it writes, and never clears one. In a batch it
// touches only the first packet. (Specification: packets.md 4.)
//
// It returns false if it cannot compute a checksum that was asked for: b is not a packet, or the transport header is
// there but not all the bytes under its checksum (the packet is truncated, the first of several fragments, or its TCP
// header reaches beyond the packet). It still writes the IPv4 header checksum then, unless b is not a packet. A packet
// without a transport header is no failure.
func CalcChecksums(b []byte, addr *Address, flags ChecksumFlags) bool {
	var p Parsed
	if !p.Parse(b) {
		return false
	}
	if addr == nil {
		addr = new(Address) // does not escape
	}
	if p.Family == 4 && flags&NoIPChecksum == 0 {
		p.WriteIPChecksum(b)
		addr.IPChecksum = true
	}
	t := p.transport()
	if t == nil || flags&t.skip != 0 {
		return true
	}
	if !p.WriteTransportChecksum(b) {
		return false
	}
	switch t.skip {
	case NoTCPChecksum:
		addr.TCPChecksum = true
	case NoUDPChecksum:
		addr.UDPChecksum = true
	}
	return true
}

// transport describes the checksum of a transport protocol.
type transport struct {
	skip     ChecksumFlags // the flag to leave it alone
	protocol uint8
	field    int  // its offset in the header
	pseudo   bool // whether it covers a pseudo-header
}

var (
	transportTCP    = transport{NoTCPChecksum, ProtocolTCP, 16, true}
	transportUDP    = transport{NoUDPChecksum, ProtocolUDP, 6, true}
	transportICMP   = transport{NoICMPChecksum, ProtocolICMP, 2, false}
	transportICMPv6 = transport{NoICMPv6Checksum, ProtocolICMPv6, 2, true}
)

// transport returns the description of the packet's transport header, nil if there is none.
func (p *Parsed) transport() *transport {
	switch {
	case p.Family == 0: // nothing was parsed
		return nil
	case p.TCPOff >= 0:
		return &transportTCP
	case p.UDPOff >= 0:
		return &transportUDP
	case p.ICMPOff >= 0:
		return &transportICMP
	case p.ICMPv6Off >= 0:
		return &transportICMPv6
	}
	return nil
}

// segment returns the part of b under the checksum of the transport header t, from that header to the end of the packet.
// It returns nil if some of it is missing.
func (p *Parsed) segment(b []byte, t *transport) []byte {
	if t == nil || p.Truncated || p.MF || len(b) < int(p.Length) {
		return nil
	}
	segment := b[max(p.TCPOff, p.UDPOff, p.ICMPOff, p.ICMPv6Off):p.Length]
	if t == &transportTCP && TCP(segment).HeaderLen() > len(segment) {
		return nil // the pseudo-header of the original then has another length than the packet
	}
	return segment
}

// WriteIPChecksum writes the header checksum of the IPv4 packet in the parsed b. It
// reports whether there is such a header.
func (p *Parsed) WriteIPChecksum(b []byte) bool {
	ip := p.IPv4(b)
	if ip == nil {
		return false
	}
	ip.SetChecksum(0)
	ip.SetChecksum(Checksum(ip))
	return true
}

// WriteTransportChecksum writes the TCP, UDP, ICMP or ICMPv6 checksum of the packet in the parsed b, over the whole
// segment. It ignores the field's old value, such as the sum of the pseudo-header that a kernel leaves there for the
// hardware to complete. It writes a UDP checksum of 0 as 0xFFFF (RFC 768). It returns false and writes nothing if there
// is no transport header or some bytes under the checksum are missing: the packet is truncated, a fragment that is not
// the last, or its TCP header reaches beyond the packet.
func (p *Parsed) WriteTransportChecksum(b []byte) bool {
	t := p.transport()
	segment := p.segment(b, t)
	if segment == nil {
		return false
	}
	be.PutUint16(segment[t.field:], 0)
	sum := ^p.segmentSum(b, segment, t)
	if sum == 0 && t == &transportUDP {
		sum = 0xFFFF
	}
	be.PutUint16(segment[t.field:], sum)
	return true
}

// VerifyIPChecksum reports whether the packet in the parsed b has an IPv4 header with the right
// checksum.
func (p *Parsed) VerifyIPChecksum(b []byte) bool {
	ip := p.IPv4(b)
	return ip != nil && Sum(ip, 0) == 0xFFFF
}

// VerifyTransportChecksum reports whether the packet in the parsed b has a transport header with a correct checksum. A
// missing UDP checksum (0) is correct in IPv4 packets only (RFC 8200 section 8.1). It is false where WriteTransportChecksum
// is.
func (p *Parsed) VerifyTransportChecksum(b []byte) bool {
	t := p.transport()
	segment := p.segment(b, t)
	if segment == nil {
		return false
	}
	if t == &transportUDP && UDP(segment).Checksum() == 0 {
		return p.Family == 4
	}
	return p.segmentSum(b, segment, t) == 0xFFFF
}

// segmentSum returns the sum of a segment with its pseudo-header.
func (p *Parsed) segmentSum(b, segment []byte, t *transport) uint16 {
	if !t.pseudo {
		return Sum(segment, 0)
	}
	return Sum(segment, p.pseudoSum(b, len(segment), t.protocol))
}

// PseudoHeaderSum returns the sum, not complemented, of the pseudo-header of the TCP, UDP or ICMPv6 packet in the parsed
// b: the kernel leaves it in the checksum field for the hardware to complete. Such a sum is never 0; PseudoHeaderSum
// returns 0 if the packet has no transport header with a pseudo-header.
func (p *Parsed) PseudoHeaderSum(b []byte) uint16 {
	t := p.transport()
	if t == nil || !t.pseudo || len(b) < int(p.HeaderLen) {
		return 0
	}
	off := max(p.TCPOff, p.UDPOff, p.ICMPv6Off)
	return p.pseudoSum(b, int(p.Length-off), t.protocol)
}

// pseudoSum is the sum of the pseudo-header for an upper-layer packet of size bytes (RFC 9293 section 3.1, RFC 8200
// section 8.1). The addresses are those of the IP header, the protocol is that behind the extension headers. The order of
// the fields makes no difference to the sum.
func (p *Parsed) pseudoSum(b []byte, size int, protocol uint8) uint16 {
	addrs := b[12:20]
	if p.Family == 6 {
		addrs = b[8:40]
	}
	return fold64(uint64(Sum(addrs, 0)) + uint64(size) + uint64(protocol))
}

// Checksum returns the internet checksum of b (RFC 1071): the complement of its Sum.
func Checksum(b []byte) uint16 { return ^Sum(b, 0) }

// Sum returns the ones' complement sum of initial and the 16-bit words of b, not complemented. An odd last byte counts as
// if a zero byte followed. Sums of several parts therefore chain through initial if all parts but the last have an even
// length. Data that includes its correct checksum has the sum 0xFFFF.
func Sum(b []byte, initial uint16) uint16 {
	// Swapping the bytes of all words swaps those of the sum, so the loads can be little-endian ones (RFC 1071 section 2
	// B), and take eight bytes at a time because 2^16 = 1 modulo 2^16 - 1.
	le := binary.LittleEndian
	sum := uint64(bits.ReverseBytes16(initial))
	var carry uint64
	for len(b) >= 64 {
		sum, carry = bits.Add64(sum, le.Uint64(b[0:8]), 0)
		sum, carry = bits.Add64(sum, le.Uint64(b[8:16]), carry)
		sum, carry = bits.Add64(sum, le.Uint64(b[16:24]), carry)
		sum, carry = bits.Add64(sum, le.Uint64(b[24:32]), carry)
		sum, carry = bits.Add64(sum, le.Uint64(b[32:40]), carry)
		sum, carry = bits.Add64(sum, le.Uint64(b[40:48]), carry)
		sum, carry = bits.Add64(sum, le.Uint64(b[48:56]), carry)
		sum, carry = bits.Add64(sum, le.Uint64(b[56:64]), carry)
		sum, carry = bits.Add64(sum, 0, carry)
		sum += carry
		b = b[64:]
	}
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, le.Uint64(b), 0)
		sum += carry
		b = b[8:]
	}
	var last uint64
	if len(b) >= 4 {
		last = uint64(le.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		last += uint64(le.Uint16(b))
		b = b[2:]
	}
	if len(b) > 0 {
		last += uint64(b[0])
	}
	sum, carry = bits.Add64(sum, last, 0)
	return bits.ReverseBytes16(fold64(sum + carry))
}

// fold64 folds a ones' complement sum to 16 bits. It is 0 only if sum is.
func fold64(sum uint64) uint16 {
	sum = sum>>32 + sum&0xFFFFFFFF
	sum = sum>>16 + sum&0xFFFF
	sum = sum>>16 + sum&0xFFFF
	sum = sum>>16 + sum&0xFFFF
	return uint16(sum)
}

// UpdateChecksum16 returns the checksum after a 16-bit field under it has changed (RFC 1624, equation 3). The field must
// be at an even offset of the covered bytes. A UDP checksum of 0 means none, so leave it; store a result of 0 as 0xFFFF.
func UpdateChecksum16(checksum, before, after uint16) uint16 {
	return ^fold64(uint64(^checksum) + uint64(^before) + uint64(after))
}

// UpdateChecksum32 is UpdateChecksum16 for a 32-bit field, such as an IPv4 address or a TCP
// sequence number.
func UpdateChecksum32(checksum uint16, before, after uint32) uint16 {
	return ^fold64(uint64(^checksum) + uint64(^before) + uint64(after))
}

// UpdateChecksum128 is UpdateChecksum16 for a 128-bit field, an IPv6 address in network order.
func UpdateChecksum128(checksum uint16, before, after [16]byte) uint16 {
	return ^fold64(uint64(^checksum) + uint64(^Sum(before[:], 0)) + uint64(Sum(after[:], 0)))
}

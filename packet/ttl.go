package packet

import "encoding/binary"

// DecrementTTL lowers the TTL or hop limit of the packet in b by one and adjusts the IPv4 header checksum: a correct checksum
// stays correct, a wrong one stays wrong. It returns false and changes nothing if the TTL is 0 or 1 or if b does not start
// with an IP header; it checks no other part of the header. (Specification: packets.md 2.)
func DecrementTTL(b []byte) bool {
	if len(b) < IPv4HeaderLen {
		return false
	}
	switch b[0] >> 4 {
	case 4:
		if b[8] <= 1 {
			return false
		}
		b[8]--
		// The TTL is the high byte of its word, so the complemented sum grows by 0x0100: that is 1 in the swapped order,
		// where ones' complement arithmetic is the same (RFC 1071 section 2). Ones' complement has two zeros: FFFF counts
		// as 0000 before, and FFFE + 1 becomes 0000.
		sum := binary.LittleEndian.Uint16(b[10:])
		if sum >= 0xFFFE {
			sum -= 0xFFFE
		} else {
			sum++
		}
		binary.LittleEndian.PutUint16(b[10:], sum)
		return true
	case 6:
		if len(b) < IPv6HeaderLen || b[7] <= 1 {
			return false
		}
		b[7]--
		return true
	}
	return false
}

package packet

import "math/bits"

// Ntohs swaps 2 bytes. Like all functions here it swaps whatever the machine's own byte order is, as if that
// were little-endian. (Specification: packets.md 8.)
func Ntohs(v uint16) uint16 { return bits.ReverseBytes16(v) }

// Htons swaps 2 bytes.
func Htons(v uint16) uint16 { return bits.ReverseBytes16(v) }

// Ntohl swaps 4 bytes.
func Ntohl(v uint32) uint32 { return bits.ReverseBytes32(v) }

// Htonl swaps 4 bytes.
func Htonl(v uint32) uint32 { return bits.ReverseBytes32(v) }

// Ntohll swaps 8 bytes.
func Ntohll(v uint64) uint64 { return bits.ReverseBytes64(v) }

// Htonll swaps 8 bytes.
func Htonll(v uint64) uint64 { return bits.ReverseBytes64(v) }

// NtohIPv6Address reverses 16 bytes: it turns the words of an address as they are loaded from a packet
// into those of an AddrWords.
func NtohIPv6Address(w [4]uint32) [4]uint32 {
	return [4]uint32{Ntohl(w[3]), Ntohl(w[2]), Ntohl(w[1]), Ntohl(w[0])}
}

// HtonIPv6Address reverses 16 bytes: the inverse of NtohIPv6Address.
func HtonIPv6Address(w [4]uint32) [4]uint32 { return NtohIPv6Address(w) }

//go:build linux

package lab

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// ChecksumState is the state of a checksum in a packet.
type ChecksumState uint8

// The states.
const (
	ChecksumNone  ChecksumState = iota // there is none, or it cannot be checked: not IP, a fragment, cut short
	ChecksumRight                      // it matches the bytes
	ChecksumWrong                      // it does not match
)

// String returns the state as a word.
func (s ChecksumState) String() string { return [...]string{"none", "right", "wrong"}[s] }

// Checksums checks the checksums in the frame from its bytes alone: that of the IPv4 header and that of TCP, UDP, ICMP
// or ICMPv6 (RFC 1071, RFC 8200 8.1). It checks a segment that offloading left large as a whole. It is independent of
// package packet, so that each can test the other.
func (f Frame) Checksums() (header, transport ChecksumState) {
	if len(f.Data) < 14 {
		return ChecksumNone, ChecksumNone
	}
	return PacketChecksums(f.Data[14:])
}

// PacketChecksums is Checksums for a packet that starts with its IP header.
func PacketChecksums(b []byte) (header, transport ChecksumState) {
	if len(b) == 0 {
		return ChecksumNone, ChecksumNone
	}
	switch b[0] >> 4 {
	case 4:
		return checksums4(b)
	case 6:
		return ChecksumNone, checksum6(b)
	}
	return ChecksumNone, ChecksumNone
}

func checksums4(b []byte) (header, transport ChecksumState) {
	if len(b) < 20 {
		return ChecksumNone, ChecksumNone
	}
	size := int(b[0]&15) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	if total == 0 {
		total = len(b) // larger than 64 KiB: segmentation offload (include/linux/ip.h, iph_totlen)
	}
	if size < 20 || size > len(b) {
		return ChecksumNone, ChecksumNone
	}
	header = judge(onesSum(0, b[:size]))
	const moreOrOffset = 0x3fff
	if total > len(b) || total < size || binary.BigEndian.Uint16(b[6:])&moreOrOffset != 0 {
		return header, ChecksumNone
	}
	return header, transportChecksum(b[9], b[12:20], b[size:total])
}

// extensions6 are the IPv6 extension headers that leave the transport header in reach: the length is
// in units of 8 bytes, without the first 8 (RFC 8200 4).
var extensions6 = map[byte]bool{unix.IPPROTO_HOPOPTS: true, unix.IPPROTO_ROUTING: true, unix.IPPROTO_DSTOPTS: true}

func checksum6(b []byte) ChecksumState {
	if len(b) < 40 {
		return ChecksumNone
	}
	next, addresses := b[6], b[8:40]
	payload := b[40:]
	if n := int(binary.BigEndian.Uint16(b[4:])); n > len(payload) {
		return ChecksumNone
	} else if n > 0 {
		payload = payload[:n]
	}
	for extensions6[next] {
		if len(payload) < 8 {
			return ChecksumNone
		}
		if next == unix.IPPROTO_ROUTING && payload[3] != 0 {
			return ChecksumNone // the sum covers the final destination, which is elsewhere
		}
		size := 8 + 8*int(payload[1])
		if size > len(payload) {
			return ChecksumNone
		}
		next, payload = payload[0], payload[size:]
	}
	return transportChecksum(next, addresses, payload)
}

// transports locate the checksum, and tell whether the sum covers the pseudo header.
var transports = map[byte]struct {
	offset int
	pseudo bool
}{
	unix.IPPROTO_TCP:    {16, true},
	unix.IPPROTO_UDP:    {6, true},
	unix.IPPROTO_ICMP:   {2, false},
	unix.IPPROTO_ICMPV6: {2, true},
}

func transportChecksum(protocol byte, addresses, segment []byte) ChecksumState {
	t, ok := transports[protocol]
	if !ok || len(segment) < t.offset+2 {
		return ChecksumNone
	}
	if protocol == unix.IPPROTO_UDP && segment[6] == 0 && segment[7] == 0 {
		if len(addresses) == 8 {
			return ChecksumNone // the sender made none (RFC 768)
		}
		return ChecksumWrong // forbidden in IPv6 (RFC 8200 8.1)
	}
	var sum uint64
	if t.pseudo {
		sum = onesSum(uint64(protocol)+uint64(len(segment)>>16)+uint64(len(segment)&0xffff), addresses)
	}
	return judge(onesSum(sum, segment))
}

// onesSum adds b, as big-endian 16-bit words padded with a zero byte, to sum.
func onesSum(sum uint64, b []byte) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

// judge reports whether the sum over everything including its checksum is all ones.
func judge(sum uint64) ChecksumState {
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		return ChecksumRight
	}
	return ChecksumWrong
}

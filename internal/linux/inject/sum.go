package inject

import (
	"encoding/binary"
	"net/netip"

	"github.com/opendivert/divert/packet"
)

// setIPv4Checksum writes the checksum of an IPv4 header of hlen bytes.
func setIPv4Checksum(pkt []byte, hlen int) {
	binary.BigEndian.PutUint16(pkt[10:], 0)
	binary.BigEndian.PutUint16(pkt[10:], packet.Checksum(pkt[:hlen]))
}

// ends is packet.Parsed.Ends of a packet.
func ends(pkt []byte) (src, dst netip.Addr, ok bool) {
	var p packet.Parsed
	if !p.Parse(pkt) {
		return src, dst, false
	}
	return p.Ends(pkt)
}

// endsSum returns the sum of the addresses that the transport checksum of a packet covers: those of its ends.
func endsSum(pkt []byte) uint16 {
	if src, dst, ok := ends(pkt); ok {
		return packet.Sum(dst.AsSlice(), packet.Sum(src.AsSlice(), 0))
	}
	if pkt[0]>>4 == 6 {
		return packet.Sum(pkt[8:40], 0)
	}
	return packet.Sum(pkt[12:20], 0)
}

// transportChecksum returns the checksum of a whole TCP segment or UDP datagram with its pseudo header, whose addresses
// have the sum ends (RFC 9293 section 3.1, RFC 8200 section 8.1). Its checksum field must be 0.
func transportChecksum(ends uint16, segment []byte, proto byte) uint16 {
	sum := uint32(ends) + uint32(len(segment)) + uint32(proto)
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return ^packet.Sum(segment, uint16(sum))
}

package inject

import (
	"encoding/binary"

	"github.com/opendivert/divert/packet"
)

// setIPv4Checksum writes the checksum of an IPv4 header of hlen bytes.
func setIPv4Checksum(pkt []byte, hlen int) {
	binary.BigEndian.PutUint16(pkt[10:], 0)
	binary.BigEndian.PutUint16(pkt[10:], packet.Checksum(pkt[:hlen]))
}

// transportChecksum returns the checksum of segment, a whole TCP segment or UDP datagram in pkt, with
// its pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1). Its checksum field must be 0. The
// headers between IP and segment are known, so pkt need not be parsed again for each segment.
func transportChecksum(pkt, segment []byte, proto byte) uint16 {
	addrs := pkt[12:20]
	if pkt[0]>>4 == 6 {
		addrs = pkt[8:40]
	}
	sum := uint32(packet.Sum(addrs, 0)) + uint32(len(segment)) + uint32(proto)
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return ^packet.Sum(segment, uint16(sum))
}

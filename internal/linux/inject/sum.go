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

package inject

import (
	"encoding/binary"
	"net/netip"

	"github.com/opendivert/divert/packet"
)

// ip returns an IP packet of either family with the given payload and right IP header checksum.
func ip(src, dst string, proto byte, payload []byte) []byte {
	s, d := netip.MustParseAddr(src), netip.MustParseAddr(dst)
	if s.Is4() {
		p := make([]byte, 20+len(payload))
		p[0], p[8], p[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[4:], 0x1234)
		copy(p[12:], s.AsSlice())
		copy(p[16:], d.AsSlice())
		copy(p[20:], payload)
		setIPv4Checksum(p, 20)
		return p
	}
	p := make([]byte, 40+len(payload))
	p[0], p[6], p[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
	copy(p[8:], s.AsSlice())
	copy(p[24:], d.AsSlice())
	copy(p[40:], payload)
	return p
}

// udp returns an IP packet with a UDP datagram, checksums right.
func udp(src, dst string, sport, dport uint16, data []byte) []byte {
	u := make([]byte, 8+len(data))
	binary.BigEndian.PutUint16(u, sport)
	binary.BigEndian.PutUint16(u[2:], dport)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	copy(u[8:], data)
	return summed(ip(src, dst, protoUDP, u))
}

// tcp returns an IP packet with a TCP segment, checksums right.
func tcp(src, dst string, seq uint32, flags byte, options, data []byte) []byte {
	h := make([]byte, 20+len(options)+len(data))
	binary.BigEndian.PutUint16(h, 1000)
	binary.BigEndian.PutUint16(h[2:], 2000)
	binary.BigEndian.PutUint32(h[4:], seq)
	h[12], h[13] = byte((20+len(options))/4)<<4, flags
	copy(h[20:], options)
	copy(h[20+len(options):], data)
	return summed(ip(src, dst, protoTCP, h))
}

func summed(p []byte) []byte {
	packet.CalcChecksums(p, nil, 0)
	return p
}

// pattern returns n bytes that repeat only after 251.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

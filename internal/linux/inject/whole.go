//go:build linux

package inject

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/packet"
)

// whole says how the kernel is to cut a packet of TCP (linux/virtio_net.h). The zero whole is that of packets which it does not cut.
type whole struct {
	size    int // bytes of payload in a segment
	ip      int // length of the IP header, in bytes
	headers int // length of all headers, in bytes
}

// Lengths in bytes: of struct virtio_net_hdr, and of the longest headers that begin copies.
const (
	virtioHeaderLen = 10
	maxWholeHeaders = packet.IPv6HeaderLen + 60
)

// errNotWhole says that a packet cannot go to the kernel as one, and must be cut before.
var errNotWhole = errors.New("inject: the packet must be cut")

// wholeOf returns how the kernel is to cut a packet into segments with mss bytes of payload. It is not ok if the packet must be cut
// before: it has IP options or extension headers, needs no cutting, or has flags that the kernel would treat otherwise.
func wholeOf(pkt []byte, mss int) (o whole, ok bool) {
	var p packet.Parsed
	if mss <= 0 || !p.ParseExact(pkt) || p.TCPOff < 0 || p.Fragment || p.Extended {
		return o, false
	}
	o = whole{size: mss, ip: int(p.TCPOff), headers: int(p.HeaderLen)}
	fixed := packet.IPv4HeaderLen
	if p.Family == 6 {
		fixed = packet.IPv6HeaderLen
	}
	const flags, odd = 13, 0x80 | 0x20 | 0x04 | 0x02 // CWR, URG, RST, SYN
	return o, o.ip == fixed && o.headers <= maxWholeHeaders && len(pkt) > o.headers+mss && pkt[o.ip+flags]&odd == 0
}

// begin writes the beginning of a frame behind its header: what the kernel is to do, and the packet's headers with the sum of the
// pseudo-header, which the kernel completes. It returns the length of those headers, 0 for a packet that stays as it is.
func (o *whole) begin(frame, pkt []byte) int {
	if o.size == 0 {
		return 0
	}
	const (
		needsSum   = 1    // VIRTIO_NET_HDR_F_NEEDS_CSUM
		tcp4, tcp6 = 1, 4 // VIRTIO_NET_HDR_GSO_…
	)
	h := frame[len(frameHeader{}):][:o.headers]
	copy(h, pkt)
	kind := byte(tcp4)
	if pkt[0]>>4 == 6 {
		kind = tcp6
	} else {
		setIPv4Checksum(h, o.ip)
	}
	var p packet.Parsed
	p.Parse(pkt)
	binary.BigEndian.PutUint16(h[o.ip+16:], p.PseudoHeaderSum(pkt))
	ne := binary.NativeEndian
	frame[0], frame[1] = needsSum, kind
	ne.PutUint16(frame[2:], uint16(etherHeaderLen+o.headers))
	ne.PutUint16(frame[4:], uint16(o.size))
	ne.PutUint16(frame[6:], uint16(etherHeaderLen+o.ip))
	ne.PutUint16(frame[8:], 16)
	return o.headers
}

// refusesWhole reports whether the device does not take packets to be cut, or not this one.
func refusesWhole(err error) bool { return errors.Is(err, errNotWhole) || errors.Is(err, unix.EINVAL) }

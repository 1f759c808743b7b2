//go:build linux

package codegen

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
)

// header4 makes an IPv4 packet with a total length that is right.
func header4(protocol byte, options []byte, fragment uint16, rest []byte) []byte {
	b := make([]byte, 20, 20+len(options)+len(rest))
	b[0] = 0x40 | byte(5+len(options)/4)
	b[1] = 0x12
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(options)+len(rest)))
	binary.BigEndian.PutUint16(b[4:], 0x1234)
	binary.BigEndian.PutUint16(b[6:], fragment)
	b[8], b[9] = 64, protocol
	copy(b[12:], []byte{10, 0, 0, 1, 192, 0, 2, 7})
	return append(append(b, options...), rest...)
}

// header6 makes an IPv6 packet with a payload length that is right.
func header6(next byte, rest []byte) []byte {
	b := make([]byte, 40, 40+len(rest))
	binary.BigEndian.PutUint32(b, 0x61234567)
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	b[6], b[7] = next, 64
	copy(b[8:], []byte{0x20, 0x01, 0x0d, 0xb8, 14: 0, 15: 1})
	copy(b[24:], []byte{0x20, 0x01, 0x0d, 0xb8, 14: 1, 15: 2})
	return append(b, rest...)
}

func tcpHeader(dataOffset byte, flags byte, rest string) []byte {
	b := make([]byte, 20, 20+len(rest))
	binary.BigEndian.PutUint16(b, 40000)
	binary.BigEndian.PutUint16(b[2:], 443)
	binary.BigEndian.PutUint32(b[4:], 0xDEADBEEF)
	b[12], b[13] = dataOffset<<4, flags
	return append(b, rest...)
}

func udpHeader(rest string) []byte {
	return append([]byte{0x13, 0x88, 0, 53, 0, byte(8 + len(rest)), 0xAB, 0xCD}, rest...)
}

// extensions makes n destination options headers, the last one before next.
func extensions(n int, next byte, rest []byte) []byte {
	var b []byte
	for i := range n {
		h := [8]byte{0: protoDestination, 2: 1, 3: 4}
		if i == n-1 {
			h[0] = next
		}
		b = append(b, h[:]...)
	}
	return append(b, rest...)
}

// chain makes a packet with n extension headers, of the kinds in turn (destination options if none is named), before
// next. Only one can be a fragment header: its other turns are destination options.
func chain(n int, next byte, rest []byte, kinds ...byte) []byte {
	if len(kinds) == 0 {
		kinds = []byte{protoDestination}
	}
	fragmented := false
	order := make([]byte, 0, n+1)
	for i := range n {
		kind := kinds[i%len(kinds)]
		if kind == protoFragment {
			if fragmented {
				kind = protoDestination
			}
			fragmented = true
		}
		order = append(order, kind)
	}
	order = append(order, next)
	var b []byte
	for i, kind := range order[:n] {
		h := [12]byte{0: order[i+1]}
		switch kind {
		case protoAH:
			h[1] = 1
			b = append(b, h[:12]...)
			continue
		case protoFragment:
			h[3] = 1 // the first fragment, more follow
		default:
			h[2], h[3] = 1, 4 // PadN
		}
		b = append(b, h[:8]...)
	}
	return header6(order[0], append(b, rest...))
}

// samplePackets are packets of every kind that the parser tells apart.
func samplePackets() [][]byte {
	icmp := []byte{8, 0, 0x33, 0x36, 0, 1, 0, 2, 'a', 'b'}
	frag := func(next byte, offset uint16, rest []byte) []byte {
		h := []byte{next, 0, 0, 0, 0, 0, 0, 9}
		binary.BigEndian.PutUint16(h[2:], offset)
		return append(h, rest...)
	}
	auth := append([]byte{protoTCP, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1}, tcpHeader(5, 2, "x")...)
	samples := [][]byte{
		header4(protoTCP, nil, 0, tcpHeader(5, 0x12, "hello world")),
		header4(protoTCP, make([]byte, 8), 0, tcpHeader(6, 0x2F, "optshello")),
		header4(protoTCP, nil, 0, tcpHeader(15, 0x02, "abcd")), // data offset beyond the packet
		header4(protoTCP, nil, 0, tcpHeader(4, 0x02, "abcd")),  // no TCP header
		header4(protoTCP, nil, 0, tcpHeader(5, 2, "")[:12]),    // truncated
		header4(protoTCP, nil, 0x2000, tcpHeader(5, 2, "first fragment")),
		header4(protoTCP, nil, 0x0003, tcpHeader(5, 2, "later fragment")),
		header4(protoUDP, nil, 0x4000, udpHeader("payload")),
		header4(protoUDP, nil, 0, udpHeader("")),
		header4(protoUDP, nil, 0, udpHeader("")[:7]),
		header4(protoICMP, nil, 0, icmp),
		header4(protoICMPv6, nil, 0, icmp),
		header4(50, nil, 0, []byte("esp")),
		header4(255, nil, 0, nil),
		append(header4(protoUDP, nil, 0, udpHeader("x")), 0), // longer than it says
		header4(protoUDP, nil, 0, udpHeader("x"))[:28],       // shorter
		{0x44, 19: 0}, {0x50, 19: 0}, // a short header length, an unknown version
		header6(protoTCP, tcpHeader(5, 0x10, "hello")),
		header6(protoUDP, udpHeader("dns")),
		header6(protoICMPv6, icmp),
		header6(protoICMP, icmp),
		header6(59, nil),
		header6(protoHopByHop, extensions(1, protoUDP, udpHeader("abc"))),
		header6(protoRouting, extensions(5, protoTCP, tcpHeader(8, 1, "options 12345"))),
		header6(protoMobility, extensions(2, protoICMPv6, icmp)),
		header6(protoAH, auth),
		header6(protoFragment, frag(protoUDP, 1, udpHeader("first"))),
		header6(protoFragment, frag(protoUDP, 9, udpHeader("later"))),
		header6(protoFragment, frag(protoDestination, 1, extensions(1, protoTCP, tcpHeader(5, 0, "")))),
		header6(protoFragment, frag(protoFragment, 1, frag(protoUDP, 1, udpHeader("twice")))),
		header6(protoFragment, frag(protoDestination, 8, extensions(1, protoTCP, tcpHeader(5, 0, "")))),
		header6(protoDestination, []byte{protoUDP, 4, 0, 0, 0, 0, 0, 0}), // longer than the packet
		header6(protoDestination, []byte{protoUDP}),
		chain(MaxExtensionHeaders, protoUDP, udpHeader("far")),
		chain(MaxExtensionHeaders+1, protoUDP, udpHeader("farther"), protoMobility, protoDestination),
		chain(170, protoTCP, tcpHeader(5, 2, "farthest"), protoHopByHop, protoRouting, protoFragment, protoAH),
		header6(protoUDP, udpHeader("x"))[:47],
	}
	if Loops.Err() != nil {
		// A bounded program leaves these to its caller.
		samples = slices.DeleteFunc(samples, PastWalk)
	}
	return samples
}

// mutate returns a copy of a packet with some bytes changed, for the most part with the right length.
func mutate(r *rand.Rand, b []byte) []byte {
	b = append([]byte(nil), b...)
	for range r.IntN(4) {
		i := r.IntN(len(b))
		if r.IntN(3) != 0 && i < 4 {
			continue
		}
		b[i] = byte(r.Uint32())
	}
	if r.IntN(4) == 0 && len(b) > 21 {
		b = b[:20+r.IntN(len(b)-20)]
		switch b[0] >> 4 {
		case 4:
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		case 6:
			binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
		}
	}
	return b
}

package inject

import "encoding/binary"

// Fields of the IP headers (RFC 791 section 3.1, RFC 8200 section 3).
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40

	ipv4DontFragment  = 0x4000
	ipv4MoreFragments = 0x2000
	ipv4OffsetMask    = 0x1fff // in units of 8 bytes

	protoHopByHop = 0
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoDestOpts = 60
)

// maxPacket is the length of the longest IP packet without a jumbo option: IPv6's header and the
// largest payload length.
const maxPacket = ipv6HeaderLen + 0xffff

// MinScratch is a buffer length that is enough for every segment or fragment, in bytes.
const MinScratch = maxPacket

// version returns 4 or 6 for a packet whose fixed header is whole and whose length field says len(pkt),
// and ErrMalformed for all else. The kernel rewrites IPv4's length field to the number of bytes it is
// given and leaves IPv6's as it is; a packet that disagrees with itself is refused for both.
func version(pkt []byte) (int, error) {
	if len(pkt) < ipv4HeaderLen {
		return 0, ErrMalformed
	}
	switch pkt[0] >> 4 {
	case 4:
		hlen := int(pkt[0]&15) * 4
		if hlen < ipv4HeaderLen || hlen > len(pkt) || int(binary.BigEndian.Uint16(pkt[2:])) != len(pkt) {
			return 0, ErrMalformed
		}
		return 4, nil
	case 6:
		if len(pkt) < ipv6HeaderLen || int(binary.BigEndian.Uint16(pkt[4:]))+ipv6HeaderLen != len(pkt) {
			return 0, ErrMalformed
		}
		return 6, nil
	}
	return 0, ErrMalformed
}

// chain is where the IPv6 extension headers in front of a payload end.
type chain struct {
	next       byte // protocol of the payload
	nextAt     int  // position of the next-header byte that says so
	end        int  // position of the payload
	routingEnd int  // end of the last header that every fragment carries (RFC 8200 section 4.5)
	routingAt  int  // position of the next-header byte at routingEnd
	rerouted   bool // a routing header has segments left: the destination is not the last one
}

// walk follows the extension headers of an IPv6 packet of which version said 6, up to the first
// that is not hop-by-hop options, routing or destination options.
func walk(pkt []byte) (chain, error) {
	c := chain{next: pkt[6], nextAt: 6, end: ipv6HeaderLen, routingEnd: ipv6HeaderLen, routingAt: 6}
	for c.next == protoHopByHop || c.next == protoRouting || c.next == protoDestOpts {
		if c.end+8 > len(pkt) {
			return c, ErrMalformed
		}
		kind, length := c.next, (int(pkt[c.end+1])+1)*8
		if c.end+length > len(pkt) {
			return c, ErrMalformed
		}
		if kind == protoRouting && pkt[c.end+3] != 0 {
			c.rerouted = true
		}
		c.next, c.nextAt, c.end = pkt[c.end], c.end, c.end+length
		if kind != protoDestOpts {
			c.routingEnd, c.routingAt = c.end, c.nextAt
		}
	}
	return c, nil
}

package inject

import "encoding/binary"

// Flags of TCP (RFC 9293 section 3.1).
const (
	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpCWR = 0x80
)

// MinScratch is a buffer length that is enough for every segment or fragment, in bytes.
const MinScratch = maxPacket

// Segmenter cuts one large TCP packet into segments, or one large UDP packet into datagrams, as the
// kernel's segmentation offload would (net/ipv4/tcp_offload.c, udp_offload.c). It is a value, made by
// NewSegmenter; it refers to the packet, which must stay unchanged until the last call of Next.
// Not for use by several goroutines at once.
type Segmenter struct {
	pkt   []byte
	v6    bool
	proto byte
	l4    int // position of the TCP or UDP header
	hlen  int // length of all headers
	mss   int
	ends  uint16 // sum of the addresses that the checksums cover
	pos   int    // payload handed out so far
	index int    // segments handed out so far
}

// NewSegmenter prepares to cut pkt, a whole IPv4 or IPv6 packet with TCP or UDP in it, into packets
// with mss bytes of payload, the last with what is left. The packet's checksums need not be right:
// all are computed anew, except that an IPv4 UDP checksum of 0 (none) stays.
//
// The errors are ErrMalformed and ErrNotSegmentable.
func NewSegmenter(pkt []byte, mss int) (Segmenter, error) {
	v, err := version(pkt)
	if err != nil {
		return Segmenter{}, err
	}
	s := Segmenter{pkt: pkt, v6: v == 6, mss: mss}
	if s.v6 {
		c, err := walk(pkt)
		if err != nil {
			return Segmenter{}, err
		}
		if _, _, known := ends(pkt); c.rerouted && !known {
			return Segmenter{}, ErrNotSegmentable
		}
		s.proto, s.l4 = c.next, c.end
	} else {
		if binary.BigEndian.Uint16(pkt[6:])&(ipv4MoreFragments|ipv4OffsetMask) != 0 {
			return Segmenter{}, ErrNotSegmentable
		}
		s.proto, s.l4 = pkt[9], int(pkt[0]&15)*4
	}
	switch s.proto {
	case protoTCP:
		if s.l4+20 > len(pkt) {
			return Segmenter{}, ErrMalformed
		}
		n := int(pkt[s.l4+12]>>4) * 4
		if n < 20 || s.l4+n > len(pkt) {
			return Segmenter{}, ErrMalformed
		}
		s.hlen = s.l4 + n
	case protoUDP:
		if s.l4+8 > len(pkt) {
			return Segmenter{}, ErrMalformed
		}
		s.hlen = s.l4 + 8
	default:
		return Segmenter{}, ErrNotSegmentable
	}
	if mss <= 0 {
		return Segmenter{}, ErrNotSegmentable
	}
	s.ends = endsSum(pkt)
	return s, nil
}

// Next writes the next segment to dst and returns its length, 0 after the last. A packet without
// payload is one segment. dst must hold the headers and mss bytes, or MinScratch bytes, and must
// not overlap the packet; if it is too short, Next panics as copy to a short slice would.
func (s *Segmenter) Next(dst []byte) int {
	left := len(s.pkt) - s.hlen - s.pos
	if left == 0 && s.index > 0 {
		return 0
	}
	payload := min(s.mss, left)
	n := s.hlen + payload
	dst = dst[:n]
	copy(dst, s.pkt[:s.hlen])
	copy(dst[s.hlen:], s.pkt[s.hlen+s.pos:])
	if s.v6 {
		binary.BigEndian.PutUint16(dst[4:], uint16(n-ipv6HeaderLen))
	} else {
		binary.BigEndian.PutUint16(dst[2:], uint16(n))
		id := binary.BigEndian.Uint16(dst[4:])
		binary.BigEndian.PutUint16(dst[4:], id+uint16(s.index))
		setIPv4Checksum(dst, int(dst[0]&15)*4)
	}
	if s.proto == protoTCP {
		s.fixTCP(dst, payload == left)
	} else {
		s.fixUDP(dst)
	}
	s.pos += payload
	s.index++
	return n
}

func (s *Segmenter) fixTCP(dst []byte, last bool) {
	t := dst[s.l4:]
	binary.BigEndian.PutUint32(t[4:], binary.BigEndian.Uint32(t[4:])+uint32(s.pos))
	if !last {
		t[13] &^= tcpFIN | tcpPSH
	}
	if s.index > 0 {
		// The peer must be told once that the congestion window was reduced (RFC 3168 section 6.1.2).
		t[13] &^= tcpCWR
	}
	binary.BigEndian.PutUint16(t[16:], 0)
	binary.BigEndian.PutUint16(t[16:], transportChecksum(s.ends, t, protoTCP))
}

func (s *Segmenter) fixUDP(dst []byte) {
	u := dst[s.l4:]
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	if !s.v6 && u[6] == 0 && u[7] == 0 {
		return
	}
	binary.BigEndian.PutUint16(u[6:], 0)
	sum := transportChecksum(s.ends, u, protoUDP)
	if sum == 0 {
		sum = 0xffff // 0 means no checksum (RFC 768)
	}
	binary.BigEndian.PutUint16(u[6:], sum)
}

// Segment cuts pkt as a Segmenter does and calls emit with each segment, in order. The segments lie
// in scratch (MinScratch bytes are enough for all) and are valid during the call of emit. It stops
// at emit's first error and returns it; else the errors are those of NewSegmenter.
func Segment(pkt, scratch []byte, mss int, emit func(segment []byte) error) error {
	s, err := NewSegmenter(pkt, mss)
	if err != nil {
		return err
	}
	for n := s.Next(scratch); n > 0; n = s.Next(scratch) {
		if err := emit(scratch[:n]); err != nil {
			return err
		}
	}
	return nil
}

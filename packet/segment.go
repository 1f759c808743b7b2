package packet

import (
	"bytes"
	"errors"
	"fmt"
)

// ErrNotSegmentable means that a packet cannot be cut into TCP segments or UDP datagrams: it is a fragment, or of another
// protocol. The errors of NewSegmenter wrap it and name the reason.
var ErrNotSegmentable = errors.New("cannot be cut into segments")

// Segmenter cuts one large TCP packet into segments, or one large UDP packet into datagrams, as the kernel and network
// cards do (net/ipv4/tcp_offload.c, udp_offload.c). On Linux a captured TCP packet may have 64 KiB. A Segmenter is a
// value that refers to the packet, which must not change until the last Next. One goroutine may use it at a time.
type Segmenter struct {
	b       []byte
	parsed  Parsed
	size    int    // bytes of payload in each segment
	pos     int    // payload handed out so far
	index   int    // segments handed out so far
	ends    uint16 // sum of the addresses
	segment int32  // offset of the TCP or UDP header
}

// NewSegmenter prepares to cut b, one whole TCP or UDP packet, into packets with size bytes of payload each, at least 1;
// the last has the rest. For a path of a given MTU, size is the MTU less the HeaderLen of a Parsed. The checksums in b
// may be wrong: Next computes all, except that an IPv4 UDP checksum of 0 (none) stays. The errors are ErrMalformed and
// ErrNotSegmentable.
func NewSegmenter(b []byte, size int) (Segmenter, error) {
	s := Segmenter{b: b, size: size}
	p := &s.parsed
	switch {
	case !p.ParseExact(b):
		return Segmenter{}, fmt.Errorf("packet: cut into segments: %w", ErrMalformed)
	case p.Fragment:
		return Segmenter{}, fmt.Errorf("packet: a fragment %w", ErrNotSegmentable)
	case p.headerCut(b):
		return Segmenter{}, fmt.Errorf("packet: cut into segments: %w", ErrMalformed)
	case p.TCPOff < 0 && p.UDPOff < 0:
		return Segmenter{}, fmt.Errorf("packet: a packet of protocol %d %w", p.Protocol, ErrNotSegmentable)
	case size < 1:
		return Segmenter{}, fmt.Errorf("packet: %w of %d bytes of payload", ErrNotSegmentable, size)
	}
	s.segment = max(p.TCPOff, p.UDPOff)
	if src, dst, ok := p.Ends(b); ok {
		s.ends = Sum(dst.AsSlice(), Sum(src.AsSlice(), 0))
	} else {
		s.ends = Sum(p.addrField(b, false), Sum(p.addrField(b, true), 0))
	}
	return s, nil
}

// HeaderLen returns the length of the headers in each segment, in bytes.
func (s *Segmenter) HeaderLen() int { return int(s.parsed.HeaderLen) }

// Next writes the next segment to dst and returns its length, 0 after the last. A packet without payload is one segment.
// dst must have room for HeaderLen plus the size given to NewSegmenter, or for the whole packet, and must not overlap it;
// if it is too short, Next panics as an assignment to a short slice would.
func (s *Segmenter) Next(dst []byte) int {
	headers := s.HeaderLen()
	left := len(s.b) - headers - s.pos
	if left == 0 && s.index > 0 {
		return 0
	}
	payload := min(s.size, left)
	n := headers + payload
	dst = dst[:n:n]
	copy(dst, s.b[:headers])
	copy(dst[headers:], s.b[headers+s.pos:])
	if s.parsed.Family == 6 {
		IPv6(dst).SetLength(uint16(n - IPv6HeaderLen))
	} else {
		ip := IPv4(dst[:s.segment])
		ip.SetLength(uint16(n))
		ip.SetID(ip.ID() + uint16(s.index))
		ip.SetChecksum(0)
		ip.SetChecksum(Checksum(ip))
	}
	if s.parsed.TCPOff >= 0 {
		s.finishTCP(dst[s.segment:], payload == left)
	} else {
		s.finishUDP(dst[s.segment:])
	}
	s.pos += payload
	s.index++
	return n
}

func (s *Segmenter) finishTCP(t TCP, last bool) {
	t.SetSeq(t.Seq() + uint32(s.pos))
	if !last {
		t.SetFlags(t.Flags() &^ (TCPFin | TCPPsh))
	}
	if s.index > 0 {
		// The peer is told once that the congestion window was reduced (RFC 3168 section 6.1.2).
		t.SetFlags(t.Flags() &^ TCPCwr)
	}
	t.SetChecksum(0)
	t.SetChecksum(^s.sum(t, ProtocolTCP))
}

func (s *Segmenter) finishUDP(u UDP) {
	u.SetLength(uint16(len(u)))
	if s.parsed.Family == 4 && u.Checksum() == 0 {
		return
	}
	u.SetChecksum(0)
	sum := ^s.sum(u, ProtocolUDP)
	if sum == 0 {
		sum = 0xFFFF // 0 means no checksum (RFC 768)
	}
	u.SetChecksum(sum)
}

// sum returns the sum of a segment with its pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
func (s *Segmenter) sum(segment []byte, protocol uint8) uint16 {
	return Sum(segment, fold64(uint64(s.ends)+uint64(len(segment))+uint64(protocol)))
}

// AppendJoined appends to dst one TCP packet that joins the payloads of as many of the first packets as it can, so that a
// Segmenter would make the same packets again. They must be consecutive segments of one connection that differ only in
// sequence number, IPv4 identification, length and checksums, all of one size. The last may be shorter, and only it may
// have FIN or PSH. The result has at most 65,535 bytes. The kernel joins the segments from a network card likewise
// (net/ipv4/tcp_offload.c, tcp_gro_receive). AppendJoined returns the extended slice and the number of packets that it
// joined: at least 1, with the bytes of the first unchanged if no other joins it. With no packets it returns dst and 0.
func AppendJoined(dst []byte, packets ...[]byte) ([]byte, int) {
	if len(packets) == 0 {
		return dst, 0
	}
	begin := len(dst)
	dst = append(dst, packets[0]...)
	var first Parsed
	if !joinable(&first, packets[0]) {
		return dst, 1
	}
	n := 1
	for ; n < len(packets) && first.continued(packets[0], packets[n-1], packets[n], len(dst)-begin); n++ {
		var p Parsed
		p.ParseExact(packets[n])
		dst = append(dst, p.Payload(packets[n])...)
	}
	if n == 1 {
		return dst, 1
	}
	var last, whole Parsed
	last.ParseExact(packets[n-1])
	b := dst[begin:]
	if first.Family == 6 {
		IPv6(b).SetLength(uint16(len(b) - IPv6HeaderLen))
	} else {
		IPv4(b).SetLength(uint16(len(b)))
	}
	whole.ParseExact(b)
	t := whole.TCP(b)
	t.SetFlags(t.Flags() | last.TCP(packets[n-1]).Flags()&(TCPFin|TCPPsh))
	whole.WriteIPChecksum(b)
	whole.WriteTransportChecksum(b)
	return dst, n
}

// joinable parses a packet and reports whether another may be joined to it.
func joinable(p *Parsed, b []byte) bool {
	if !p.ParseExact(b) || p.TCPOff < 0 || p.Fragment || p.headerCut(b) || p.PayloadLen == 0 {
		return false
	}
	_, _, led := p.Ends(b)
	return !led && p.TCP(b).Flags()&^(TCPAck|TCPEce|TCPFin|TCPPsh) == 0
}

// continued reports whether next can be joined to first behind before, the last packet joined so far, when the whole has
// length bytes. p is the parse of first.
func (p *Parsed) continued(first, before, next []byte, length int) bool {
	var q, r Parsed
	q.ParseExact(before)
	if !joinable(&r, next) || r.HeaderLen != p.HeaderLen || length+int(r.PayloadLen) > 0xFFFF {
		return false
	}
	t, u := q.TCP(before), r.TCP(next)
	if t.Flags()&(TCPFin|TCPPsh) != 0 || q.PayloadLen != p.PayloadLen || r.PayloadLen > p.PayloadLen || u.Seq() != t.Seq()+uint32(q.PayloadLen) {
		return false
	}
	if p.Family == 4 && IPv4(next).ID() != IPv4(before).ID()+1 {
		return false
	}
	return bytes.Equal(p.constant(first), p.constant(next))
}

// constant returns the headers of a packet like the parsed one, with the fields zeroed that differ from segment to
// segment.
func (p *Parsed) constant(b []byte) []byte {
	var room [256]byte
	h := append(room[:0], b[:p.HeaderLen]...)
	if p.Family == 4 {
		clear(h[2:6])   // length, identification
		clear(h[10:12]) // checksum
	} else {
		clear(h[4:6])
	}
	t := TCP(h[p.TCPOff:])
	t.SetSeq(0)
	t.SetFlags(t.Flags() &^ (TCPFin | TCPPsh))
	t.SetChecksum(0)
	return h
}

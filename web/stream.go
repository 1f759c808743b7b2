package web

import (
	"encoding/binary"

	"github.com/opendivert/divert/internal/clienthello"
)

// maxHead is the greatest length of a request's head or a ClientHello, and of the bytes that a client may be ahead.
const maxHead = 16 << 10

// finding is the result of reading a stream so far.
type finding uint8

const (
	more      finding = iota // nothing yet, or only bytes that need no judgement
	named                    // a request or hello is complete and has names
	nameless                 // it is complete and has no name
	other                    // the bytes are of another protocol, or cannot be followed any more
	encrypted                // the handshake's names are known, the rest is encrypted
	ambiguous                // servers may read it in different ways
	tooLong                  // there is no end within maxHead
)

// stream reads the bytes that a client sends, in order. The zero stream is ready.
type stream struct {
	phase   phase
	head    []byte // of the request or ClientHello at hand
	names   []string
	request request // the last one
	body    uint64  // bytes of its body still to come
	chunks  chunks
	left    int  // bytes of the record still to come; negative: of its header
	pending int  // bytes read that wait for a finding
	tunnel  bool // a request has asked for another protocol
	tls     bool
	again   bool // the hello was a second one
	early   bool // the hello offers early data, and the server may still want another hello
}

type phase uint8

const (
	detecting   phase = iota // the protocol is unknown
	inHead                   // of an HTTP request
	inBody                   // of one, with a length
	inChunks                 // of one, chunked
	inHello                  // of TLS
	behindHello              // records that may hold another ClientHello, after HelloRetryRequest
	skipping                 // a record behind a hello, the rest of which does not matter
	ended                    // the rest is not read
)

// opaque returns how many of the next n bytes are accepted with any value, so that a retransmission of them may differ.
func (s *stream) opaque(n int) int {
	switch s.phase {
	case inBody:
		return int(min(s.body, uint64(n)))
	case inChunks:
		return int(min(s.chunks.data(), uint64(n)))
	case skipping:
		return min(s.left, n)
	case ended:
		return n
	}
	return 0
}

// read reads some of the bytes, at least one. It returns their number, whether they are opaque, and the finding.
func (s *stream) read(b []byte) (n int, opaque bool, f finding) {
	if n := s.opaque(len(b)); n > 0 {
		s.skip(n)
		return n, true, more
	}
	for n == 0 && f == more {
		n, f = s.step(b)
	}
	if f == more && s.undecided() {
		s.pending += n
		return n, false, f
	}
	s.pending = 0
	if f != more {
		s.head = nil
	}
	return n, false, f
}

// skip skips opaque bytes.
func (s *stream) skip(n int) {
	switch s.phase {
	case inBody:
		if s.body -= uint64(n); s.body == 0 {
			s.phase = s.afterBody()
		}
	case inChunks:
		s.chunks.skip(uint64(n))
	case skipping:
		if s.left -= n; s.left == 0 {
			s.phase = behindHello
		}
	}
}

// afterBody returns the phase behind a request.
func (s *stream) afterBody() phase {
	s.tunnel = s.tunnel || s.request.tunnel
	return detecting
}

// undecided reports whether the last bytes wait for a finding.
func (s *stream) undecided() bool {
	switch s.phase {
	case inHead, inHello, behindHello:
		return len(s.head) > 0 || s.left != 0
	}
	return false
}

// step reads some bytes that are not opaque, or none if only the phase changes.
func (s *stream) step(b []byte) (int, finding) {
	switch s.phase {
	case detecting:
		switch b[0] {
		case '\r', '\n': // before a request they mean nothing (RFC 9112 section 2.2)
			return 1, more
		case 22:
			s.phase, s.tls = inHello, true
		default:
			s.phase = inHead
		}
		return 0, more
	case inHead:
		return s.readHead(b)
	case inChunks:
		if !s.chunks.next(b[0]) {
			s.phase = ended
			return 1, ambiguous
		}
		if s.chunks.state == chunkEnd {
			s.phase = s.afterBody()
		}
		return 1, more
	case inHello:
		return s.readHello(b)
	}
	return s.readBehind(b)
}

// readHead reads a part of the head of an HTTP request.
func (s *stream) readHead(b []byte) (int, finding) {
	before := len(s.head)
	s.head = append(s.head, b[:min(len(b), maxHead-before)]...)
	if !mayBeHTTP(s.head) {
		s.phase = ended
		return len(b), other
	}
	end := headEnd(s.head, before)
	if end == 0 {
		if len(s.head) == maxHead {
			s.phase = ended
			return len(b), tooLong
		}
		return len(b), more
	}
	r, err := parseHead(s.head[:end])
	s.head = s.head[:0]
	if err != nil {
		s.phase = ended
		if err == errNotHTTP {
			return len(b), other
		}
		return len(b), ambiguous
	}
	s.request, s.names, s.body = r, r.names, r.length
	switch {
	case r.chunked:
		s.phase, s.chunks = inChunks, chunks{}
	case r.length > 0:
		s.phase = inBody
	default:
		s.phase = s.afterBody()
	}
	if len(r.names) == 0 {
		return end - before, nameless
	}
	return end - before, named
}

// A TLS record has a header of 5 bytes: type, version, length (RFC 8446 section 5.1). Until its body begins, the header
// is at the end of head, and left is the number of its bytes less 5: negative.
const recordHeader = 5

// record reads a part of a record's header, and reports whether the header is complete; then left is the length of the
// body.
func (s *stream) record(b []byte, header *[recordHeader]byte) (n int, whole, ok bool) {
	have := 0
	if s.left < 0 {
		have = recordHeader + s.left
	}
	kept := len(s.head) - have
	for n < len(b) && have < recordHeader {
		s.head = append(s.head, b[n])
		n++
		have++
	}
	copy(header[:], s.head[kept:])
	if s.left = have - recordHeader; s.left < 0 {
		return n, false, header[0] >= 20 && header[0] <= 23 && (have < 2 || header[1] == 3)
	}
	s.head = s.head[:kept]
	s.left = int(binary.BigEndian.Uint16(header[3:]))
	return n, true, header[0] >= 20 && header[0] <= 23 && header[1] == 3 && s.left > 0 && s.left <= 1<<14+256
}

// readHello reads a part of the records with a ClientHello.
func (s *stream) readHello(b []byte) (int, finding) {
	if s.left <= 0 {
		var header [recordHeader]byte
		n, whole, ok := s.record(b, &header)
		if !ok || header[0] != 22 {
			begun := len(s.head)
			if !whole {
				begun -= recordHeader + s.left
			}
			s.phase = ended
			if begun > 0 {
				return len(b), ambiguous // another record within a hello
			}
			return len(b), other
		}
		return n, more
	}
	n := min(len(b), s.left)
	s.head = append(s.head, b[:n]...)
	s.left -= n
	h := clienthello.Message(s.head)
	switch {
	case h.State == clienthello.NeedMore:
		if len(s.head) > maxHead {
			s.phase = ended
			return len(b), tooLong
		}
		return n, more
	case h.State == clienthello.NotTLS && s.head[0] != 1: // another message: the beginning of the handshake was missed
		s.phase = ended
		return len(b), other
	case h.State == clienthello.NotTLS, s.left > 0, len(s.head) != helloLength(s.head): // malformed, or with other bytes in its record
		s.phase = ended
		return len(b), ambiguous
	}
	s.phase, s.head = behindHello, s.head[:0]
	s.early, s.again = h.Early && !s.again, true // a second one offers none
	if h.State == clienthello.NoName {
		return n, nameless
	}
	s.names = []string{h.Name}
	return n, named
}

// helloLength returns the length of a whole handshake message, with its header.
func helloLength(b []byte) int { return 4 + (int(b[1])<<16 | int(binary.BigEndian.Uint16(b[2:]))) }

// readBehind reads a part of the record behind a ClientHello. A server that wants another hello sends HelloRetryRequest,
// and the client sends a second one, which is judged like the first (RFC 8446 section 4.1.4). ChangeCipherSpec may come
// before it, and early data, which such a server skips (section 4.2.10).
func (s *stream) readBehind(b []byte) (int, finding) {
	if s.left <= 0 {
		var header [recordHeader]byte
		n, whole, ok := s.record(b, &header)
		switch {
		case !ok || header[0] == 23 && !s.early:
			s.phase = ended
			return len(b), encrypted
		case whole && header[0] != 22: // ChangeCipherSpec, an alert, early data
			s.phase = skipping
		}
		return n, more
	}
	s.head = s.head[:0]
	if b[0] != 1 {
		s.phase = ended
		return len(b), encrypted
	}
	s.phase = inHello
	return 0, more
}

package quicinitial

import "github.com/opendivert/divert/internal/clienthello"

// Reader reads the server's name out of the datagrams with which a QUIC client begins a connection, in any order. The
// zero Reader is ready. It belongs to one goroutine.
type Reader struct {
	keys   *Keys // of the connection; nil until they have opened a packet
	crypto Stream
	frames []byte
	hello  clienthello.Hello // final once State is not NeedMore
}

// Read takes the client's next datagram and returns the result for the connection so far. It keeps no reference to b. The
// state is NotTLS if the first datagram does not begin a readable connection, if the message is not a ClientHello, or if
// its pieces contradict each other. A result other than NeedMore is final.
func (r *Reader) Read(b []byte) clienthello.Hello {
	for r.hello.State == clienthello.NeedMore && len(b) > 0 && b[0]&0x80 != 0 {
		h, rest, err := Parse(b)
		if err != nil {
			break
		}
		if h.Initial() && !r.initial(&h) {
			r.hello.State = clienthello.NotTLS
		}
		b = rest
	}
	switch {
	case r.hello.State != clienthello.NeedMore:
	case r.keys == nil:
		r.hello.State = clienthello.NotTLS
	default:
		r.hello = clienthello.Message(r.crypto.Whole())
	}
	return r.hello
}

// Kept returns the number of bytes of memory that the hello takes so far.
func (r *Reader) Kept() int { return 2*r.crypto.Len() + cap(r.frames) }

// initial takes an Initial packet. It returns false if the connection cannot be read. It ignores packets of other
// connections.
func (r *Reader) initial(h *Header) bool {
	keys := r.keys
	if keys == nil {
		var err error
		if keys, err = NewKeys(h.Version, h.Dst, "client in"); err != nil {
			return false
		}
	}
	frames, ok := keys.Open(r.frames[:0], h)
	if !ok {
		return true
	}
	r.keys, r.frames = keys, frames
	return Crypto(frames, func(offset uint64, data []byte) bool { return r.crypto.Add(offset, data, clienthello.MaxLength) })
}

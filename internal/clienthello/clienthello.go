// Package clienthello reads the server's name out of the ClientHello that begins a TLS connection, from bytes that
// arrive in pieces: a hello with post-quantum keys fills several segments, and may be cut into several records.
//
// It trusts nothing: it checks lengths before it follows them, and refuses a hello that two readers could understand
// differently (two lists of server names, a name with a NUL). It decides only once the hello is complete, because an
// extension behind the name may change the meaning of the name (Hello.ECH).
package clienthello

import "encoding/binary"

// MaxLength is the length of the longest ClientHello accepted, in bytes, with its header of 4 bytes. TLS allows 16 MiB;
// real ones, with post-quantum keys and a ticket, stay under 10 KiB.
const MaxLength = 1 << 16

// A State is the state of reading a hello.
type State uint8

const (
	// NeedMore: the bytes so far may be the beginning of a ClientHello.
	NeedMore State = iota
	// Named: a complete ClientHello with a server name.
	Named
	// NoName: a complete ClientHello without a server name.
	NoName
	// NotTLS: the bytes cannot become an acceptable ClientHello: another protocol, TLS of the server's side, SSL 2, a
	// malformed hello, or one longer than MaxLength.
	NotTLS
)

// String returns the state in words.
func (s State) String() string {
	switch s {
	case NeedMore:
		return "need more"
	case Named:
		return "named"
	case NoName:
		return "no name"
	}
	return "not TLS"
}

// A Hello is the content of the bytes so far.
type Hello struct {
	State State
	// Name is the server's name in lower case, without a final dot; empty unless State is Named. It is 1 to 255 printable
	// ASCII characters, otherwise as the client sent it: it may be an address, which RFC 6066 forbids.
	Name string
	// ECH is set if the hello has the extension encrypted_client_hello (0xfe0d): Name may be the provider's, and the true
	// name encrypted. Clients also send the extension without a meaning (GREASE), which looks the same.
	ECH bool
	// Early is set if the client offers early data (RFC 8446 section 4.2.10), which follows the hello at once, encrypted.
	Early bool
}

// A Reader reads the beginning of a TCP stream from client to server. The zero Reader is ready. A Reader belongs to
// one goroutine.
type Reader struct {
	header  [5]byte // header of the current record
	have    int     // bytes of the header so far
	left    int     // bytes of its body still to come
	message []byte  // the handshake message so far
	hello   Hello   // final once State is not NeedMore
}

// Reset makes r ready for another stream; it reuses r's memory.
func (r *Reader) Reset() { *r = Reader{message: r.message[:0]} }

// Read takes the next bytes of the stream and returns the result for the stream so far. It keeps no reference to b. A
// result other than NeedMore is final.
func (r *Reader) Read(b []byte) Hello {
	for len(b) > 0 && r.hello.State == NeedMore {
		if r.left == 0 {
			r.header[r.have] = b[0]
			r.have++
			b = b[1:]
			if !recordBegins(r.header[:r.have]) {
				r.hello.State = NotTLS
			} else if r.have == len(r.header) {
				r.left, r.have = int(binary.BigEndian.Uint16(r.header[3:])), 0
			}
			continue
		}
		n := min(r.left, len(b), MaxLength-len(r.message))
		r.message = append(r.message, b[:n]...)
		r.left -= n
		b = b[n:]
		r.hello = Message(r.message)
		if r.hello.State == NeedMore && len(r.message) == MaxLength {
			r.hello.State = NotTLS
		}
	}
	return r.hello
}

// recordBegins reports whether b, up to 5 bytes, can begin a TLS record with a handshake (RFC 8446, section 5.1): its
// type is 22, the major version 3, its length 1 to 2^14.
func recordBegins(b []byte) bool {
	switch len(b) {
	case 1:
		return b[0] == 22
	case 2:
		return b[1] == 3
	case 5:
		n := binary.BigEndian.Uint16(b[3:])
		return n > 0 && n <= 1<<14
	}
	return true
}

// Records returns the result for b, the beginning of a TCP stream from client to server.
func Records(b []byte) Hello {
	var r Reader
	return r.Read(b)
}

// Message returns the result for b, the beginning of a handshake message without records around it, as in the CRYPTO
// frames of QUIC. It ignores bytes behind the message.
func Message(b []byte) Hello {
	if len(b) > 0 && b[0] != 1 { // client_hello
		return Hello{State: NotTLS}
	}
	if len(b) < 4 {
		return Hello{}
	}
	n := int(b[1])<<16 | int(binary.BigEndian.Uint16(b[2:]))
	if n > MaxLength-4 {
		return Hello{State: NotTLS}
	}
	if len(b)-4 < n {
		return Hello{}
	}
	if h, ok := body(b[4 : 4+n]); ok {
		return h
	}
	return Hello{State: NotTLS}
}

const (
	extensionServerName = 0
	extensionEarlyData  = 42
	extensionECH        = 0xfe0d
)

// body reads the body of a ClientHello (RFC 8446, section 4.1.2), and reports whether it is well-formed.
func body(b []byte) (h Hello, ok bool) {
	h.State = NoName
	if len(b) < 34 || b[0] != 3 { // legacy_version and random
		return h, false
	}
	b = b[34:]
	session, b, ok := vector(b, 1)
	if !ok || len(session) > 32 {
		return h, false
	}
	suites, b, ok := vector(b, 2)
	if !ok || len(suites) < 2 || len(suites)%2 != 0 {
		return h, false
	}
	compression, b, ok := vector(b, 1)
	if !ok || len(compression) == 0 {
		return h, false
	}
	if len(b) == 0 { // before TLS 1.3 a hello may end here
		return h, true
	}
	extensions, b, ok := vector(b, 2)
	if !ok || len(b) != 0 {
		return h, false
	}
	for len(extensions) > 0 {
		if len(extensions) < 4 {
			return h, false
		}
		kind := binary.BigEndian.Uint16(extensions)
		var data []byte
		if data, extensions, ok = vector(extensions[2:], 2); !ok {
			return h, false
		}
		switch kind {
		case extensionServerName:
			if h.State == Named { // twice: section 4.2 forbids it, and readers differ
				return h, false
			}
			if h.Name, ok = serverName(data); !ok {
				return h, false
			}
			h.State = Named
		case extensionEarlyData:
			h.Early = true
		case extensionECH:
			h.ECH = true
		}
	}
	return h, true
}

// serverName reads the extension server_name of a ClientHello (RFC 6066, section 3): a list, which in practice holds one
// name of type host_name. Any other type is undefined, and makes the extension malformed.
func serverName(b []byte) (string, bool) {
	list, rest, ok := vector(b, 2)
	if !ok || len(rest) != 0 || len(list) == 0 || list[0] != 0 {
		return "", false
	}
	name, rest, ok := vector(list[1:], 2)
	if !ok || len(rest) != 0 {
		return "", false
	}
	if len(name) > 1 && name[len(name)-1] == '.' {
		name = name[:len(name)-1]
	}
	if len(name) == 0 || len(name) > 255 {
		return "", false
	}
	var lower [255]byte
	for i, c := range name {
		if c <= ' ' || c > '~' {
			return "", false
		}
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	return string(lower[:len(name)]), true
}

// vector splits b behind a vector that has its length in front, in size bytes, 1 or 2 (RFC 8446, section 3.4).
func vector(b []byte, size int) (v, rest []byte, ok bool) {
	if len(b) < size {
		return nil, nil, false
	}
	n := int(b[0])
	if size == 2 {
		n = int(binary.BigEndian.Uint16(b))
	}
	if b = b[size:]; len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

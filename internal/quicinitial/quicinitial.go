package quicinitial

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// Version holds the differences between the supported versions of QUIC.
type Version struct {
	number  uint32
	salt    []byte // RFC 9001 section 5.2, RFC 9369 section 3.3.1
	label   string // of keys: RFC 9001 section 5.1, RFC 9369 section 3.3.2
	initial byte   // the type of Initial packets in the first byte: RFC 9000 section 17.2, RFC 9369 section 3.2
	retry   byte
}

// Versions are the supported versions.
var Versions = []Version{
	{
		1, []byte{0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad, 0xcc, 0xbb, 0x7f, 0x0a},
		"quic ", 0 << 4, 3 << 4,
	},
	{
		0x6b3343cf, []byte{0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb, 0xf9, 0xbd, 0x2e, 0xd9},
		"quicv2 ", 1 << 4, 0 << 4,
	},
}

func versionOf(number uint32) *Version {
	for i := range Versions {
		if Versions[i].number == number {
			return &Versions[i]
		}
	}
	return nil
}

// maxConnectionID is the greatest length of a connection id in the supported versions, in bytes (RFC 9000 section 17.2).
const maxConnectionID = 20

// Header is the header of a QUIC packet with a long header. Its slices are parts of the datagram.
type Header struct {
	Version  *Version
	Dst, Src []byte // connection ids
	kind     byte   // bits 0x30 of the first byte
	packet   []byte // from the first byte to the end of the payload; nil unless it has a length
	number   int    // offset of the packet number
}

// ErrNotQUIC means that the bytes do not begin a supported packet.
var ErrNotQUIC = errors.New("no packet of QUIC version 1 or 2 with a long header")

// Initial reports whether the packet is an Initial packet.
func (h *Header) Initial() bool { return h.packet != nil && h.kind == h.Version.initial }

// Parse reads the first packet of a datagram, and returns the bytes behind it (RFC 9000 section 17.2).
func Parse(b []byte) (h Header, rest []byte, err error) {
	if len(b) < 7 || b[0]&0x80 == 0 {
		return h, nil, ErrNotQUIC
	}
	if h.Version = versionOf(binary.BigEndian.Uint32(b[1:])); h.Version == nil {
		return h, nil, ErrNotQUIC
	}
	h.kind = b[0] & 0x30
	r := reader{b: b, at: 5}
	h.Dst = r.take(int(r.byte()))
	h.Src = r.take(int(r.byte()))
	if r.failed || len(h.Dst) > maxConnectionID || len(h.Src) > maxConnectionID {
		return h, nil, ErrNotQUIC
	}
	if h.kind == h.Version.retry {
		return h, nil, nil
	}
	if h.kind == h.Version.initial {
		r.take(r.length()) // the token
	}
	length := r.length()
	h.number = r.at
	r.take(length)
	if r.failed {
		return h, nil, ErrNotQUIC
	}
	h.packet = b[:r.at]
	return h, b[r.at:], nil
}

// reader reads fields one after the other. After a missing one all are 0.
type reader struct {
	b      []byte
	at     int
	failed bool
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

// take returns the next n bytes.
func (r *reader) take(n int) []byte {
	if r.failed || n < 0 || n > len(r.b)-r.at {
		r.failed = true
		return nil
	}
	r.at += n
	return r.b[r.at-n : r.at : r.at]
}

// varint reads an integer of variable length (RFC 9000 section 16).
func (r *reader) varint() uint64 {
	first := r.byte()
	v := uint64(first & 0x3F)
	for _, c := range r.take(1<<(first>>6) - 1) {
		v = v<<8 | uint64(c)
	}
	return v
}

// length reads an integer that is the length of a part of the packet.
func (r *reader) length() int {
	if v := r.varint(); v <= uint64(len(r.b)) {
		return int(v)
	}
	r.failed = true
	return 0
}

// Keys protect the Initial packets of one side.
type Keys struct {
	aead cipher.AEAD
	hp   cipher.Block
	iv   [12]byte
}

// NewKeys derives the keys of a connection from the destination id of the client's first packet (RFC 9001 section 5.2).
// side is "client in" or "server in", the sender of the packets.
func NewKeys(v *Version, id []byte, side string) (*Keys, error) {
	initial, err := hkdf.Extract(sha256.New, id, v.salt)
	if err != nil {
		return nil, err
	}
	secret, err := expandLabel(initial, side, sha256.Size)
	if err != nil {
		return nil, err
	}
	key, err1 := expandLabel(secret, v.label+"key", 16)
	iv, err2 := expandLabel(secret, v.label+"iv", 12)
	hp, err3 := expandLabel(secret, v.label+"hp", 16)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	k := new(Keys)
	copy(k.iv[:], iv)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if k.hp, err = aes.NewCipher(hp); err != nil {
		return nil, err
	}
	k.aead, err = cipher.NewGCM(block)
	return k, err
}

// expandLabel is HKDF-Expand-Label of TLS with an empty context (RFC 8446 section 7.1).
func expandLabel(secret []byte, label string, n int) ([]byte, error) {
	info := make([]byte, 0, 32)
	info = binary.BigEndian.AppendUint16(info, uint16(n))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "...)
	info = append(info, label...)
	return hkdf.Expand(sha256.New, secret, string(append(info, 0)), n)
}

// nonce returns the nonce of a packet (RFC 9001 section 5.3).
func (k *Keys) nonce(number uint64) (n [12]byte) {
	n = k.iv
	binary.BigEndian.PutUint64(n[4:], binary.BigEndian.Uint64(n[4:])^number)
	return n
}

// Open appends the frames of an Initial packet to dst, and reports whether the packet belongs to these keys. It leaves
// the packet unchanged. It takes the packet number as encoded, without restoring upper bits: numbers count from 0,
// clients send few Initial packets, and upper bits only matter beyond the range of the encoding.
func (k *Keys) Open(dst []byte, h *Header) ([]byte, bool) {
	const sample = 16
	if len(h.packet) < h.number+4+sample {
		return dst, false
	}
	var mask [aes.BlockSize]byte
	k.hp.Encrypt(mask[:], h.packet[h.number+4:][:sample])
	first := h.packet[0] ^ mask[0]&0x0F
	size := int(first&3) + 1
	header := make([]byte, 0, 128)
	header = append(header, h.packet[:h.number+size]...)
	header[0] = first
	number := uint64(0)
	for i := range size {
		header[h.number+i] ^= mask[1+i]
		number = number<<8 | uint64(header[h.number+i])
	}
	nonce := k.nonce(number)
	out, err := k.aead.Open(dst, nonce[:], h.packet[h.number+size:], header)
	if err != nil {
		return dst, false
	}
	return out, true
}

// Seal appends an Initial packet with frames to dst. Header protection needs at least 4 bytes of frames.
func (k *Keys) Seal(dst []byte, v *Version, to, from []byte, number uint8, frames []byte) []byte {
	begin := len(dst)
	dst = append(dst, 0xC0|v.initial) // with a packet number of one byte
	dst = binary.BigEndian.AppendUint32(dst, v.number)
	dst = append(append(dst, byte(len(to))), to...)
	dst = append(append(dst, byte(len(from))), from...)
	dst = append(dst, 0) // no token
	dst = binary.BigEndian.AppendUint16(dst, 0x4000|uint16(1+len(frames)+k.aead.Overhead()))
	at := len(dst)
	dst = append(dst, number)
	nonce := k.nonce(uint64(number))
	dst = k.aead.Seal(dst, nonce[:], frames, dst[begin:])
	var mask [aes.BlockSize]byte
	k.hp.Encrypt(mask[:], dst[at+4:][:16])
	dst[begin] ^= mask[0] & 0x0F
	dst[at] ^= mask[1]
	return dst
}

// The frames allowed in Initial packets (RFC 9000 sections 12.4 and 19).
const (
	FramePadding = 0x00
	FramePing    = 0x01
	FrameAck     = 0x02
	FrameAckECN  = 0x03
	FrameCrypto  = 0x06
	FrameClose   = 0x1C
)

// Crypto calls f with each CRYPTO frame of an Initial packet, and reports whether the packet is well-formed and f always
// returned true. data is a part of frames.
func Crypto(frames []byte, f func(offset uint64, data []byte) bool) bool {
	r := reader{b: frames}
	for r.at < len(r.b) && !r.failed {
		switch kind := r.varint(); kind {
		case FramePadding, FramePing:
		case FrameAck, FrameAckECN:
			r.varint() // the greatest acknowledged number
			r.varint() // the delay
			ranges := r.varint()
			r.varint()
			for range ranges {
				r.varint()
				r.varint()
				if r.failed {
					return false
				}
			}
			if kind == FrameAckECN {
				r.varint()
				r.varint()
				r.varint()
			}
		case FrameCrypto:
			offset := r.varint()
			data := r.take(r.length())
			if r.failed || !f(offset, data) {
				return false
			}
		case FrameClose:
			r.varint()
			r.varint()
			r.take(r.length())
		default:
			return false
		}
	}
	return !r.failed
}

// Stream joins the bytes of CRYPTO frames, which come in any order.
type Stream struct {
	data  []byte
	known []bool // for each byte, whether it has come
	first int    // number of known bytes from the beginning on
}

// Add adds bytes. It returns false, and adds nothing, if they lie beyond limit or differ from earlier ones.
func (s *Stream) Add(offset uint64, b []byte, limit int) bool {
	if offset > uint64(limit) || len(b) > limit-int(offset) {
		return false
	}
	at, end := int(offset), int(offset)+len(b)
	for i := at; i < min(end, len(s.data)); i++ {
		if s.known[i] && s.data[i] != b[i-at] {
			return false
		}
	}
	if end > len(s.data) {
		s.data = append(s.data, make([]byte, end-len(s.data))...)
		s.known = append(s.known, make([]bool, end-len(s.known))...)
	}
	copy(s.data[at:end], b)
	for i := at; i < end; i++ {
		s.known[i] = true
	}
	for s.first < len(s.known) && s.known[s.first] {
		s.first++
	}
	return true
}

// Len returns the number of bytes kept, including gaps before the last.
func (s *Stream) Len() int { return len(s.data) }

// Whole returns the bytes from the beginning up to the first gap. They belong to s.
func (s *Stream) Whole() []byte { return s.data[:s.first] }

// Refusal appends a datagram that ends the connection begun by the Initial packet h: an Initial packet of the server with
// the frame CONNECTION_CLOSE and the error CONNECTION_REFUSED (RFC 9000 sections 10.2.3 and 20.1). A browser that gets it
// tries TCP at once. It is protected with the keys that the client expects, and not padded, because nothing in it needs
// an acknowledgment.
func Refusal(dst []byte, h *Header, id []byte) ([]byte, error) {
	keys, err := NewKeys(h.Version, id, "server in")
	if err != nil {
		return dst, err
	}
	const connectionRefused = 0x02
	frames := [...]byte{FrameClose, connectionRefused, 0, 0, FramePadding, FramePadding} // not caused by a frame; no reason phrase
	return keys.Seal(dst, h.Version, h.Src, h.Dst, 0, frames[:]), nil
}

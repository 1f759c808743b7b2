package inject

import "encoding/binary"

const fragmentHeaderLen = 8 // of IPv6 (RFC 8200 section 4.5)

// Fragmenter cuts one packet into fragments. It is a value, made by NewFragmenter; it refers to the
// packet, which must stay unchanged until the last call of Next. Not for use by several goroutines
// at once.
//
// A packet that is itself a fragment is cut into smaller ones of the same datagram.
type Fragmenter struct {
	pkt    []byte
	v6     bool
	hlen   int    // length of the headers that every fragment repeats, in pkt
	nextAt int    // IPv6: position of the next-header byte that becomes protoFragment
	next   byte   // IPv6: protocol of the fragmented part
	data   int    // position of the fragmented part in pkt
	base   int    // offset of the fragmented part in its datagram, in bytes
	more   bool   // pkt is a fragment and not the last
	id     uint32 // identification
	step   int    // payload of each fragment but the last; a multiple of 8
	pos    int
}

// NewFragmenter prepares to cut pkt, a whole IPv4 or IPv6 packet, into fragments of at most mtu bytes.
// IPv4 fragments keep the packet's identification, or take the low 16 bits of id if it is 0 (which
// the kernel would replace, for each fragment anew); id must not have these bits 0. IPv6 fragments
// have a fragment header of their own with id, unless pkt has one: then its identification stays.
//
// The errors are ErrMalformed and ErrNotFragmentable (IPv4's Don't Fragment is set, no room for 8 bytes
// of payload in mtu, or an offset that the field cannot hold).
func NewFragmenter(pkt []byte, mtu int, id uint32) (Fragmenter, error) {
	v, err := version(pkt)
	if err != nil {
		return Fragmenter{}, err
	}
	f := Fragmenter{pkt: pkt, v6: v == 6, id: id}
	mtu = min(mtu, 0xffff) // the length fields must hold the result
	overhead := 0
	if f.v6 {
		if err := f.initIPv6(); err != nil {
			return Fragmenter{}, err
		}
		overhead = fragmentHeaderLen
	} else if err := f.initIPv4(); err != nil {
		return Fragmenter{}, err
	}
	f.step = (mtu - f.hlen - overhead) &^ 7
	if f.step <= 0 || f.base+len(pkt)-f.data > 0xffff || (f.more && (len(pkt)-f.data)%8 != 0) {
		return Fragmenter{}, ErrNotFragmentable
	}
	return f, nil
}

func (f *Fragmenter) initIPv4() error {
	field := binary.BigEndian.Uint16(f.pkt[6:])
	if field&ipv4DontFragment != 0 {
		return ErrNotFragmentable
	}
	f.hlen = int(f.pkt[0]&15) * 4
	f.data = f.hlen
	f.base = int(field&ipv4OffsetMask) * 8
	f.more = field&ipv4MoreFragments != 0
	if id := binary.BigEndian.Uint16(f.pkt[4:]); id != 0 {
		f.id = uint32(id)
	}
	return nil
}

func (f *Fragmenter) initIPv6() error {
	c, err := walk(f.pkt)
	if err != nil {
		return err
	}
	if c.next == protoFragment {
		if c.end+fragmentHeaderLen > len(f.pkt) {
			return ErrMalformed
		}
		h := f.pkt[c.end:]
		field := binary.BigEndian.Uint16(h[2:])
		f.hlen, f.nextAt, f.data, f.next = c.end, c.nextAt, c.end+fragmentHeaderLen, h[0]
		f.base, f.more = int(field&^7), field&1 != 0
		f.id = binary.BigEndian.Uint32(h[4:])
		return nil
	}
	f.hlen, f.nextAt, f.data = c.routingEnd, c.routingAt, c.routingEnd
	f.next = f.pkt[c.routingAt]
	return nil
}

// Next writes the next fragment to dst and returns its length, 0 after the last. dst must hold the
// mtu given to NewFragmenter or MinScratch bytes, and must not overlap the packet; if it is too
// short, Next panics as a slice out of range does.
func (f *Fragmenter) Next(dst []byte) int {
	left := len(f.pkt) - f.data - f.pos
	if left <= 0 && f.pos > 0 || left < 0 {
		return 0
	}
	payload := min(f.step, left)
	more := f.more || payload < left
	offset := f.base + f.pos
	head := f.hlen
	copy(dst[:head], f.pkt)
	if f.v6 {
		head += fragmentHeaderLen
	}
	n := head + payload
	dst = dst[:n]
	copy(dst[head:], f.pkt[f.data+f.pos:])
	if f.v6 {
		f.fixIPv6(dst, offset, more)
	} else {
		f.fixIPv4(dst, offset, more)
	}
	f.pos += max(payload, 1) // an empty payload is one fragment, too
	return n
}

func (f *Fragmenter) fixIPv4(dst []byte, offset int, more bool) {
	if offset > 0 && f.base == 0 {
		dropUncopied(dst[ipv4HeaderLen:f.hlen])
	}
	binary.BigEndian.PutUint16(dst[2:], uint16(len(dst)))
	binary.BigEndian.PutUint16(dst[4:], uint16(f.id))
	field := binary.BigEndian.Uint16(dst[6:])&^(ipv4OffsetMask|ipv4MoreFragments) | uint16(offset/8)
	if more {
		field |= ipv4MoreFragments
	}
	binary.BigEndian.PutUint16(dst[6:], field)
	setIPv4Checksum(dst, f.hlen)
}

// dropUncopied overwrites the options that belong into the first fragment only with no-operations,
// so that the header keeps its length (RFC 791 section 3.1, "copied flag").
func dropUncopied(opts []byte) {
	const end, nop, copied = 0, 1, 0x80
	for i := 0; i < len(opts) && opts[i] != end; {
		if opts[i] == nop {
			i++
			continue
		}
		if i+1 >= len(opts) {
			return
		}
		n := int(opts[i+1])
		if n < 2 || i+n > len(opts) {
			return // not ours to repair
		}
		if opts[i]&copied == 0 {
			for j := i; j < i+n; j++ {
				opts[j] = nop
			}
		}
		i += n
	}
}

func (f *Fragmenter) fixIPv6(dst []byte, offset int, more bool) {
	dst[f.nextAt] = protoFragment
	binary.BigEndian.PutUint16(dst[4:], uint16(len(dst)-ipv6HeaderLen))
	h := dst[f.hlen:]
	field := uint16(offset)
	if more {
		field |= 1
	}
	h[0], h[1] = f.next, 0
	binary.BigEndian.PutUint16(h[2:], field)
	binary.BigEndian.PutUint32(h[4:], f.id)
}

// Fragment cuts pkt as a Fragmenter does and calls emit with each fragment, in order. The fragments
// lie in scratch (mtu or MinScratch bytes) and are valid during the call of emit. It stops at emit's
// first error and returns it; else the errors are those of NewFragmenter.
func Fragment(pkt, scratch []byte, mtu int, id uint32, emit func(fragment []byte) error) error {
	f, err := NewFragmenter(pkt, mtu, id)
	if err != nil {
		return err
	}
	for n := f.Next(scratch); n > 0; n = f.Next(scratch) {
		if err := emit(scratch[:n]); err != nil {
			return err
		}
	}
	return nil
}

package inject

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/opendivert/divert/packet"
)

// extended puts IPv6 extension headers in front of the payload; each is a protocol number, the
// fourth byte of a routing header (segments left) is left.
func extended(p []byte, left byte, headers ...byte) []byte {
	out := bytes.Clone(p[:40])
	at := 6
	last := p[6]
	for _, h := range headers {
		out[at] = h
		at = len(out)
		out = append(out, 0, 0, 0, 0, 0, 0, 0, 0)
		if h == protoRouting {
			out[at+3] = left
		} else {
			out[at+2], out[at+3] = 1, 4 // PadN
		}
	}
	out[at] = last
	out = append(out, p[40:]...)
	binary.BigEndian.PutUint16(out[4:], uint16(len(out)-40))
	return out
}

func TestSegmentEdges(t *testing.T) {
	fragment := tcp("10.0.0.1", "10.0.0.2", 1, 0, nil, pattern(100))
	fragment[6] = 0x20
	longHeader := tcp("10.0.0.1", "10.0.0.2", 1, 0, nil, nil)
	longHeader[32] = 0xf0
	for _, tc := range []struct {
		name string
		pkt  []byte
		mss  int
		n    int
		err  error
	}{
		{"no payload", tcp("10.0.0.1", "10.0.0.2", 1, 2, nil, nil), 100, 1, nil},
		{"exactly one", tcp("10.0.0.1", "10.0.0.2", 1, 2, nil, pattern(100)), 100, 1, nil},
		{"exactly two", tcp("10.0.0.1", "10.0.0.2", 1, 2, nil, pattern(200)), 100, 2, nil},
		{"one byte each", tcp("fd00::1", "fd00::2", 1, 2, nil, pattern(9)), 1, 9, nil},
		{"largest IPv6", tcp("fd00::1", "fd00::2", 1, 2, nil, pattern(0xffff-20)), 60000, 2, nil},
		{"size 0", tcp("10.0.0.1", "10.0.0.2", 1, 2, nil, pattern(9)), 0, 0, ErrNotSegmentable},
		{"fragment", fragment, 10, 0, ErrNotSegmentable},
		{"IPv6 fragment", ip("fd00::1", "fd00::2", protoFragment, pattern(40)), 10, 0, ErrNotSegmentable},
		{"another protocol", ip("10.0.0.1", "10.0.0.2", 1, pattern(40)), 10, 0, ErrNotSegmentable},
		{"segments left in a routing header", extended(tcp("fd00::1", "fd00::2", 1, 2, nil, nil), 1, protoRouting), 10, 0, ErrNotSegmentable},
		{"TCP header cut", ip("10.0.0.1", "10.0.0.2", protoTCP, pattern(19)), 10, 0, ErrMalformed},
		{"TCP header longer than the packet", longHeader, 10, 0, ErrMalformed},
		{"UDP header cut", ip("fd00::1", "fd00::2", protoUDP, pattern(7)), 10, 0, ErrMalformed},
		{"extension header cut", ip("fd00::1", "fd00::2", protoHopByHop, []byte{6, 9, 0, 0, 0, 0, 0, 0}), 10, 0, ErrMalformed},
		{"nothing", nil, 10, 0, ErrMalformed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := 0
			s, err := NewSegmenter(tc.pkt, tc.mss)
			for scratch := make([]byte, MinScratch); err == nil && s.Next(scratch) > 0; {
				n++
			}
			if n != tc.n || !errors.Is(err, tc.err) {
				t.Errorf("%d segments, %v; want %d, %v", n, err, tc.n, tc.err)
			}
		})
	}
}

// reassemble joins fragments that are in order into the datagram they were cut from. It is independent of Fragmenter: it goes by
// the offsets in the packets.
func reassemble(t testing.TB, frags [][]byte) (head, data []byte) {
	t.Helper()
	for i, f := range frags {
		if v, err := version(f); err != nil || v == 0 {
			t.Fatalf("fragment %d: %v", i, err)
		}
		var offset, at int
		var more bool
		if f[0]>>4 == 4 {
			at = int(f[0]&15) * 4
			field := binary.BigEndian.Uint16(f[6:])
			offset, more = int(field&0x1fff)*8, field&0x2000 != 0
		} else {
			next := f[6]
			for at = 40; next != protoFragment; {
				next, at = f[at], at+(int(f[at+1])+1)*8
			}
			field := binary.BigEndian.Uint16(f[at+2:])
			offset, more = int(field)&^7, field&1 != 0
			at += 8
		}
		if offset != len(data) || more != (i < len(frags)-1) {
			t.Fatalf("fragment %d: offset %d, more %v, with %d bytes so far", i, offset, more, len(data))
		}
		if i == 0 {
			head = f[:at]
		}
		data = append(data, f[at:]...)
	}
	return head, data
}

func fragments(t testing.TB, pkt []byte, mtu int) (out [][]byte, err error) {
	t.Helper()
	err = Fragment(pkt, make([]byte, MinScratch), mtu, 0x01020304, func(f []byte) error {
		if len(f) > mtu {
			t.Errorf("fragment of %d bytes with an MTU of %d", len(f), mtu)
		}
		out = append(out, bytes.Clone(f))
		return nil
	})
	return out, err
}

func TestFragment(t *testing.T) {
	v6 := udp("fd00::1", "fd00::2", 1, 2, pattern(3000))
	noID := udp("10.0.0.1", "10.0.0.2", 1, 2, pattern(3000))
	noID[4], noID[5] = 0, 0
	for _, tc := range []struct {
		name   string
		pkt    []byte
		id     uint32
		unfrag int // bytes in front of the fragmentable part
	}{
		{"IPv4", udp("10.0.0.1", "10.0.0.2", 1, 2, pattern(3000)), 0x1234, 20},
		{"IPv4 without identification", noID, 0x0304, 20},
		{"IPv6", v6, 0x01020304, 40},
		{"IPv6, hop-by-hop and routing headers stay in front", extended(v6, 1, protoHopByHop, protoDestOpts, protoRouting), 0x01020304, 64},
		{"IPv6, last destination options are fragmented", extended(v6, 0, protoHopByHop, protoDestOpts), 0x01020304, 48},
	} {
		t.Run(tc.name, func(t *testing.T) {
			frags, err := fragments(t, tc.pkt, 1280)
			if err != nil || len(frags) != 3 {
				t.Fatalf("%d fragments, %v", len(frags), err)
			}
			head, data := reassemble(t, frags)
			if !bytes.Equal(data, tc.pkt[tc.unfrag:]) {
				t.Error("the data differ")
			}
			for _, f := range frags {
				id := uint32(binary.BigEndian.Uint16(f[4:]))
				if f[0]>>4 == 6 {
					id = binary.BigEndian.Uint32(f[len(head)-4:])
				} else if packet.Checksum(f[:len(head)]) != 0 {
					t.Errorf("IPv4 checksum of %x", f[:len(head)])
				}
				if id != tc.id {
					t.Errorf("identification %x, want %x", id, tc.id)
				}
			}
		})
	}
}

// Options without the copied flag are in the first fragment only; the header keeps its length.
func TestFragmentOptions(t *testing.T) {
	p := ip("10.0.0.1", "10.0.0.2", 253, pattern(100))
	opts := []byte{0x07, 3, 4, 0x94, 4, 0, 0, 0} // record route, router alert (copied), end
	p = append(p[:20:20], append(opts, p[20:]...)...)
	p[0] = 0x47
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	frags, err := fragments(t, p, 68)
	if err != nil || len(frags) != 3 {
		t.Fatalf("%d fragments, %v", len(frags), err)
	}
	if !bytes.Equal(frags[0][20:28], opts) {
		t.Errorf("first: %x", frags[0][20:28])
	}
	for _, f := range frags[1:] {
		if !bytes.Equal(f[20:28], []byte{1, 1, 1, 0x94, 4, 0, 0, 0}) {
			t.Errorf("later: %x", f[20:28])
		}
	}
}

// A fragment can be cut again; its parts continue where it did.
func TestFragmentOfFragment(t *testing.T) {
	for _, p := range [][]byte{
		udp("10.0.0.1", "10.0.0.2", 1, 2, pattern(4000)),
		udp("fd00::1", "fd00::2", 1, 2, pattern(4000)),
	} {
		first, err := fragments(t, p, 1500)
		if err != nil {
			t.Fatal(err)
		}
		var all [][]byte
		for _, f := range first {
			smaller, err := fragments(t, f, 600)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, smaller...)
		}
		_, data := reassemble(t, all)
		if want := p[len(p)-4008:]; len(all) < 7 || !bytes.Equal(data, want) {
			t.Errorf("%d fragments, %d bytes", len(all), len(data))
		}
	}
}

func TestFragmentErrors(t *testing.T) {
	df := udp("10.0.0.1", "10.0.0.2", 1, 2, pattern(100))
	df[6] = 0x40
	far := ip("10.0.0.1", "10.0.0.2", 253, pattern(100))
	far[6], far[7] = 0x1f, 0xff
	odd := ip("10.0.0.1", "10.0.0.2", 253, pattern(101))
	odd[6] = 0x20
	for _, tc := range []struct {
		name string
		pkt  []byte
		mtu  int
		err  error
	}{
		{"Don't Fragment", df, 60, ErrNotFragmentable},
		{"no room", ip("10.0.0.1", "10.0.0.2", 253, pattern(100)), 27, ErrNotFragmentable},
		{"no room, IPv6", ip("fd00::1", "fd00::2", 253, pattern(100)), 55, ErrNotFragmentable},
		{"offset past the field", far, 60, ErrNotFragmentable},
		{"first fragment of odd length", odd, 60, ErrNotFragmentable},
		{"IPv6 fragment header cut", ip("fd00::1", "fd00::2", protoFragment, pattern(7)), 60, ErrMalformed},
		{"nothing", nil, 60, ErrMalformed},
		{"negative MTU", ip("10.0.0.1", "10.0.0.2", 253, pattern(100)), -1, ErrNotFragmentable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if out, err := fragments(t, tc.pkt, tc.mtu); !errors.Is(err, tc.err) || len(out) != 0 {
				t.Errorf("%d fragments, %v, want %v", len(out), err, tc.err)
			}
		})
	}
}

// repair makes random bytes more often a packet: version and length field.
func repair(b []byte) {
	if len(b) < 40 || len(b) > 0xffff {
		return
	}
	if b[0]&0x10 == 0 {
		b[0] = 0x40 | max(b[0]&15, 5)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	} else {
		b[0] = 0x60
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)-40))
	}
}

func seed(f *testing.F) {
	v6 := tcp("fd00::1", "fd00::2", 5, 0xff, []byte{1, 1, 1, 1}, pattern(300))
	for _, p := range [][]byte{
		tcp("10.0.0.1", "10.0.0.2", 5, 0xff, nil, pattern(300)), v6,
		udp("10.0.0.1", "10.0.0.2", 1, 2, pattern(300)),
		extended(v6, 0, protoHopByHop, protoRouting, protoDestOpts),
		ip("fd00::1", "fd00::2", protoFragment, append([]byte{17, 0, 0, 9, 1, 2, 3, 4}, pattern(64)...)),
	} {
		f.Add(p, 100, false)
		f.Add(p, 100, true)
	}
}

func FuzzFragment(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, p []byte, mtu int, fix bool) {
		p = bytes.Clone(p)
		if fix {
			repair(p)
		}
		before := bytes.Clone(p)
		frags, err := fragments(t, p, mtu)
		if !bytes.Equal(p, before) {
			t.Fatal("the packet was changed")
		}
		if err != nil {
			return
		}
		fr, err := NewFragmenter(p, mtu, 1)
		if err != nil {
			t.Fatal(err)
		}
		if fr.base > 0 || fr.more {
			return // reassemble knows whole datagrams only
		}
		if _, data := reassemble(t, frags); !bytes.Equal(data, p[fr.data:]) {
			t.Fatalf("%d fragments with %d bytes of %d", len(frags), len(data), len(p)-fr.data)
		}
	})
}

func BenchmarkFragment(b *testing.B) {
	p := udp("10.0.0.1", "10.0.0.2", 1, 2, pattern(65000))
	scratch := make([]byte, MinScratch)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Fragment(p, scratch, 1500, 1, func([]byte) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

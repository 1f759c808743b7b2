package packet

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// pattern returns n bytes that differ from their neighbours.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func mustTCP(t testing.TB, h Header, s Segment, payload []byte) []byte {
	t.Helper()
	b, err := h.AppendTCP(nil, s, payload)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustUDP(t testing.TB, h Header, payload []byte) []byte {
	t.Helper()
	b, err := h.AppendUDP(nil, payload)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// extended puts extension headers of 8 bytes each behind an IPv6 header.
func extended(b []byte, headers ...byte) []byte {
	out, at := slices.Clone(b[:IPv6HeaderLen]), 6
	for _, h := range headers {
		out[at] = h
		at = len(out)
		out = append(out, 0, 0, 1, 0, 0, 0, 0, 0)
		if h != ProtocolRouting {
			out[at+3] = 4 // PadN
		}
	}
	out[at] = b[6]
	out = append(out, b[IPv6HeaderLen:]...)
	IPv6(out).SetLength(uint16(len(out) - IPv6HeaderLen))
	return out
}

// cut returns the segments of a packet.
func cut(t testing.TB, b []byte, size int) (out [][]byte) {
	t.Helper()
	s, err := NewSegmenter(b, size)
	if err != nil {
		t.Fatal(err)
	}
	for dst := make([]byte, s.HeaderLen()+size); ; {
		n := s.Next(dst)
		if n == 0 {
			return out
		}
		out = append(out, slices.Clone(dst[:n]))
	}
}

func TestSegmentTCP(t *testing.T) {
	g := Segment{Seq: 0xFFFFFFF0, Ack: 5, Flags: TCPFin | TCPPsh | TCPCwr | TCPAck, Window: 9, Options: []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}}
	v6 := mustTCP(t, Header{Src: near6, Dst: far6}, g, pattern(2500))
	for name, b := range map[string][]byte{
		"IPv4":                        mustTCP(t, Header{Src: near4, Dst: far4, ID: 0xFFFF}, g, pattern(2500)), // the identification wraps
		"IPv6":                        v6,
		"IPv6 with extension headers": extended(v6, ProtocolHopByHop, ProtocolRouting, ProtocolDestOptions),
	} {
		var data []byte
		flags := []TCPFlags{TCPCwr | TCPAck, TCPAck, TCPFin | TCPPsh | TCPAck}
		for i, s := range cut(t, b, 1000) {
			p := whole(t, s)
			h := p.TCP(s)
			if h.Seq() != g.Seq+uint32(i*1000) || h.Flags() != flags[i] || h.Ack() != 5 || h.Window() != 9 || !bytes.Equal(h.Options(), g.Options) {
				t.Errorf("%s: segment %d is %x", name, i, h)
			}
			if ip := p.IPv4(s); ip != nil && ip.ID() != uint16(0xFFFF+i) {
				t.Errorf("%s: segment %d has the identification %x", name, i, ip.ID())
			}
			data = append(data, p.Payload(s)...)
		}
		if !bytes.Equal(data, pattern(2500)) {
			t.Errorf("%s: the data differ", name)
		}
	}
}

func TestSegmentUDP(t *testing.T) {
	none := mustUDP(t, Header{Src: near4, Dst: far4}, pattern(1500))
	UDP(none[IPv4HeaderLen:]).SetChecksum(0)
	for name, b := range map[string][]byte{
		"IPv4": mustUDP(t, Header{Src: near4, Dst: far4}, pattern(1500)), "IPv4 without checksum": none,
		"IPv6": mustUDP(t, Header{Src: near6, Dst: far6}, pattern(1500)),
	} {
		var data []byte
		for i, s := range cut(t, b, 700) {
			p := whole(t, s)
			u := p.UDP(s)
			if int(u.Length()) != len(s)-int(p.UDPOff) || (u.Checksum() == 0) != (name == "IPv4 without checksum") {
				t.Errorf("%s: datagram %d is %x", name, i, u[:UDPHeaderLen])
			}
			data = append(data, p.Payload(s)...)
		}
		if !bytes.Equal(data, pattern(1500)) {
			t.Errorf("%s: the data differ", name)
		}
	}
}

// The checksums of segments on a source route are those for its final destination.
func TestSegmentOnRoute(t *testing.T) {
	b := extended(mustTCP(t, Header{Src: near6, Dst: far6}, Segment{}, pattern(300)), ProtocolRouting)
	route := append([]byte{ProtocolTCP, 2, 4, 1, 0, 0, 0, 0}, near6.Addr().AsSlice()...)
	b = append(b[:40:40], append(route, b[48:]...)...)
	IPv6(b).SetLength(uint16(len(b) - IPv6HeaderLen))
	for _, s := range cut(t, b, 100) {
		IPv6(s).SetDst(near6.Addr()) // as on arrival
		s[43] = 0
		whole(t, s)
	}
}

func TestSegmentEdges(t *testing.T) {
	h4, h6 := Header{Src: near4, Dst: far4}, Header{Src: near6, Dst: far6}
	tcp := mustTCP(t, h4, Segment{}, pattern(200))
	icmp, _ := h4.AppendICMP(nil, 8, 0, 0, nil)
	for _, row := range []struct {
		name    string
		b       []byte
		size, n int
		err     error
	}{
		{"no payload", mustTCP(t, h4, Segment{}, nil), 100, 1, nil},
		{"exactly one", tcp, 200, 1, nil},
		{"exactly two", tcp, 100, 2, nil},
		{"one byte each", mustTCP(t, h6, Segment{}, pattern(9)), 1, 9, nil},
		{"the largest of IPv6", mustTCP(t, h6, Segment{}, pattern(0xFFFF-20)), 60000, 2, nil},
		{"no bytes each", tcp, 0, 0, ErrNotSegmentable},
		{"a fragment", change(tcp, 6, 0x20), 10, 0, ErrNotSegmentable},
		{"a fragment of IPv6", example(t, "I"), 10, 0, ErrNotSegmentable},
		{"another protocol", icmp, 10, 0, ErrNotSegmentable},
		{"cut short", tcp[:100], 10, 0, ErrMalformed},
		{"options beyond the packet", example(t, "L"), 10, 0, ErrMalformed},
		{"no whole TCP header", example(t, "M"), 10, 0, ErrMalformed},
		{"an extension header cut off", change(extended(mustTCP(t, h6, Segment{}, nil), ProtocolHopByHop), 41, 99), 10, 0, ErrMalformed},
		{"nothing", nil, 10, 0, ErrMalformed},
	} {
		s, err := NewSegmenter(row.b, row.size)
		n := 0
		for dst := make([]byte, 70000); err == nil && s.Next(dst) > 0; n++ {
		}
		if n != row.n || !errors.Is(err, row.err) {
			t.Errorf("%s: %d segments, %v; want %d, %v", row.name, n, err, row.n, row.err)
		}
	}
}

// Joining segments restores the packet from which they were cut.
func TestJoin(t *testing.T) {
	g := Segment{Seq: 0xFFFFFFF0, Ack: 5, Flags: TCPPsh | TCPAck, Options: []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8}}
	for _, h := range []Header{{Src: near4, Dst: far4, ID: 0xFFFF, DF: true}, {Src: near6, Dst: far6}} {
		b := mustTCP(t, h, g, pattern(60000))
		segments := cut(t, b, 1448)
		joined, n := AppendJoined([]byte("before"), segments...)
		if n != len(segments) || string(joined[:6]) != "before" || !bytes.Equal(joined[6:], b) {
			t.Errorf("%d of %d segments joined", n, len(segments))
		}
	}
}

func TestJoinStops(t *testing.T) {
	h := Header{Src: near4, Dst: far4}
	segment := func(i int, s Segment, payload []byte) []byte {
		h := h
		h.ID = uint16(i)
		s.Seq, s.Ack, s.Flags = s.Seq+uint32(i*100), s.Ack+7, s.Flags|TCPAck
		return mustTCP(t, h, s, payload)
	}
	full := func(i int) []byte { return segment(i, Segment{}, pattern(100)) }
	elsewhere := h
	elsewhere.Dst = near4
	for _, row := range []struct {
		name    string
		packets [][]byte
		n       int
	}{
		{"nothing", nil, 0},
		{"no packet", [][]byte{[]byte("no"), full(0)}, 1},
		{"UDP", [][]byte{mustUDP(t, h, pattern(100)), full(0)}, 1},
		{"no payload", [][]byte{segment(0, Segment{}, nil), full(0)}, 1},
		{"a SYN", [][]byte{segment(0, Segment{Flags: TCPSyn}, pattern(100)), full(1)}, 1},
		{"a gap", [][]byte{full(0), full(2)}, 1},
		{"behind PSH", [][]byte{full(0), segment(1, Segment{Flags: TCPPsh}, pattern(100)), full(2)}, 2},
		{"behind a shorter one", [][]byte{full(0), segment(1, Segment{}, pattern(99)), segment(2, Segment{Seq: 0xFFFFFFFF}, pattern(99))}, 2},
		{"a longer one", [][]byte{full(0), segment(1, Segment{}, pattern(101))}, 1},
		{"another acknowledgment", [][]byte{full(0), segment(1, Segment{Ack: 1}, pattern(100))}, 1},
		{"another window", [][]byte{full(0), segment(1, Segment{Window: 1}, pattern(100))}, 1},
		{"other options", [][]byte{full(0), segment(1, Segment{Options: []byte{1, 1, 1, 1}}, pattern(100))}, 1},
		{"a reset", [][]byte{full(0), segment(1, Segment{Flags: TCPRst}, pattern(100))}, 1},
		{"another connection", [][]byte{full(0), mustTCP(t, elsewhere, Segment{Seq: 100, Ack: 7, Flags: TCPAck}, pattern(100))}, 1},
		{"too long together", [][]byte{mustTCP(t, h, Segment{Flags: TCPAck}, pattern(40000)), segment(1, Segment{Seq: 40000 - 100}, pattern(30000))}, 1},
	} {
		joined, n := AppendJoined(nil, row.packets...)
		if n != row.n {
			t.Errorf("%s: %d joined, want %d", row.name, n, row.n)
		}
		if n == 1 && !bytes.Equal(joined, row.packets[0]) {
			t.Errorf("%s: the packet has changed", row.name)
		}
	}
}

func FuzzSegment(f *testing.F) {
	for _, e := range examples {
		f.Add(unhex(f, e.hex), 7)
	}
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		before := slices.Clone(b)
		s, err := NewSegmenter(b, size)
		if err != nil {
			return
		}
		var data []byte
		var all [][]byte
		for dst := make([]byte, len(b)); ; {
			n := s.Next(dst)
			if n == 0 {
				break
			}
			if n > s.HeaderLen()+size {
				t.Fatalf("%d bytes of payload in a segment, want at most %d", n-s.HeaderLen(), size)
			}
			var p Parsed
			if !p.ParseExact(dst[:n]) {
				t.Fatalf("%x", dst[:n])
			}
			data = append(data, dst[s.HeaderLen():n]...)
			all = append(all, slices.Clone(dst[:n]))
		}
		if !bytes.Equal(b, before) || !bytes.Equal(data, b[s.HeaderLen():]) {
			t.Fatalf("%x became %x", b[s.HeaderLen():], data)
		}
		if joined, n := AppendJoined(nil, all...); n == len(all) && n > 1 && !bytes.Equal(joined[s.HeaderLen():], data) {
			t.Fatalf("%x was joined to %x", data, joined)
		}
	})
}

func BenchmarkSegment(b *testing.B) {
	large := mustTCP(b, Header{Src: near4, Dst: far4}, Segment{}, pattern(65000))
	dst := make([]byte, 1500)
	b.SetBytes(int64(len(large)))
	b.ReportAllocs()
	for b.Loop() {
		s, err := NewSegmenter(large, 1448)
		if err != nil {
			b.Fatal(err)
		}
		for s.Next(dst) > 0 {
		}
	}
}

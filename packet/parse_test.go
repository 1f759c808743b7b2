package packet

import (
	"bytes"
	"slices"
	"testing"
)

// TestParseExamples checks the table of packets.md 9.2.
func TestParseExamples(t *testing.T) {
	const none = ""
	tests := []struct {
		id                            string
		family, protocol              uint8
		transport                     string
		at                            int32
		data, size                    int32
		fragment, truncated, extended bool
	}{
		{"A", 4, 6, "tcp", 20, -1, 0, false, false, false},
		{"B", 4, 17, "udp", 20, 28, 5, false, false, false},
		{"C", 4, 1, "icmp", 20, 28, 4, false, false, false},
		{"D", 6, 6, "tcp", 40, 60, 3, false, false, false},
		{"E", 6, 17, "udp", 48, 56, 3, false, false, false},
		{"F", 6, 58, "icmpv6", 40, -1, 0, false, false, false},
		{"G", 4, 17, "udp", 20, 28, 16, true, false, false},
		{"H", 4, 17, none, -1, 20, 16, true, false, false},
		{"I", 6, 58, "icmpv6", 48, 56, 8, true, false, false},
		{"J", 6, 58, none, -1, 48, 8, true, false, false},
		{"K", 4, 17, "udp", 24, -1, 0, false, false, false},
		{"L", 4, 6, "tcp", 20, -1, 0, false, false, false},
		{"M", 4, 6, none, -1, 20, 12, false, false, false},
		{"N", 4, 17, "udp", 20, 28, 5, false, false, true},
		{"O", 4, 6, none, -1, 20, 10, false, true, false},
	}
	for _, tt := range tests {
		t.Run(tt.id, func(t *testing.T) {
			b := example(t, tt.id)
			var p Parsed
			if !p.Parse(b) {
				t.Fatal("not a packet")
			}
			if p.Family != tt.family || p.Protocol != tt.protocol || p.PayloadOff != tt.data || p.PayloadLen != tt.size ||
				p.Fragment != tt.fragment || p.Truncated != tt.truncated || p.Extended != tt.extended {
				t.Errorf("parsed %+v", p)
			}
			for name, off := range map[string]int32{"tcp": p.TCPOff, "udp": p.UDPOff, "icmp": p.ICMPOff, "icmpv6": p.ICMPv6Off} {
				want := int32(-1)
				if name == tt.transport {
					want = tt.at
				}
				if off != want {
					t.Errorf("%s at %d, want %d", name, off, want)
				}
			}
			if ok := p.ParseExact(b); ok == (tt.truncated || tt.extended) {
				t.Errorf("ParseExact: %v", ok)
			}
		})
	}
}

// TestParseDetails checks the rules of packets.md 1 one by one, including the quirks.
func TestParseDetails(t *testing.T) {
	a, b, d, f := example(t, "A"), example(t, "B"), example(t, "D"), example(t, "F")
	v6 := func(next uint8, rest ...byte) []byte {
		p := slices.Concat(d[:40], rest)
		p[4], p[5], p[6] = byte(len(rest)>>8), byte(len(rest)), next
		return p
	}
	udp := []byte{0, 1, 0, 2, 0, 8, 0, 0}
	first := func(next uint8) []byte { return []byte{next, 0, 0, 1, 0, 0, 0, 9} }
	tests := []struct {
		name   string
		packet []byte
		fails  bool
		check  func(p *Parsed) bool
	}{
		{name: "no bytes", fails: true},
		{name: "19 bytes", packet: a[:19], fails: true},
		{name: "IPv4 header length 16", packet: change(a, 0, 0x44), fails: true},
		{name: "IPv4 total length below the header length", packet: change(a, 2, 0, 19), fails: true},
		{name: "IPv4 options beyond the buffer", packet: change(a[:20], 0, 0x46), fails: true},
		{name: "IPv6 with 39 bytes", packet: d[:39], fails: true},
		{name: "version 5", packet: change(a, 0, 0x55), fails: true},
		{name: "version 0", packet: change(a, 0, 0x05), fails: true},

		{name: "IPv4 header alone", packet: change(a[:20], 2, 0, 20), check: func(p *Parsed) bool {
			return p.Protocol == 6 && p.TCPOff == -1 && p.HeaderLen == 20 && p.PayloadOff == -1 && !p.Truncated
		}},
		{name: "IPv4 first fragment", packet: example(t, "G"), check: func(p *Parsed) bool { return p.MF && p.Fragment && p.FragOff == 0 }},
		{name: "IPv4 later fragment", packet: example(t, "H"), check: func(p *Parsed) bool { return !p.MF && p.FragOff == 24 }},
		{name: "IPv4 reserved and DF flags make no fragment", packet: change(a, 6, 0xC0, 0), check: func(p *Parsed) bool {
			return !p.Fragment && !p.MF && p.TCPOff == 20
		}},
		{name: "IPv4 largest offset", packet: change(a, 6, 0x3F, 0xFF), check: func(p *Parsed) bool {
			return p.FragOff == 65528 && p.MF && p.TCPOff == -1 && p.PayloadOff == 20 && p.PayloadLen == 24
		}},
		{name: "TCP data offset 4 is payload", packet: change(a, 32, 0x40), check: func(p *Parsed) bool { return p.TCPOff == -1 && p.PayloadLen == 24 }},
		{name: "Quirk: a TCP data offset beyond the packet is clipped", packet: example(t, "L"), check: func(p *Parsed) bool {
			return p.TCPOff == 20 && p.HeaderLen == 44 && p.PayloadOff == -1 && p.PayloadLen == 0
		}},
		{name: "UDP of 7 bytes is payload", packet: change(b[:27], 2, 0, 27), check: func(p *Parsed) bool { return p.UDPOff == -1 && p.PayloadLen == 7 }},
		{name: "UDP length field is not looked at", packet: change(b, 24, 0xFF, 0xFF), check: func(p *Parsed) bool { return p.PayloadLen == 5 }},
		{name: "ICMPv6 in IPv4 is payload", packet: change(b, 9, 58), check: func(p *Parsed) bool { return p.ICMPv6Off == -1 && p.PayloadLen == 13 }},
		{name: "ICMP in IPv6 is payload", packet: change(f, 6, 1), check: func(p *Parsed) bool { return p.ICMPOff == -1 && p.PayloadLen == 8 }},
		{name: "Quirk: a jumbogram is an empty packet", packet: change(f, 4, 0, 0), check: func(p *Parsed) bool {
			return p.Length == 40 && p.Extended && p.PayloadOff == -1 && p.ICMPv6Off == -1
		}},
		{name: "cut in the transport header", packet: a[:39], check: func(p *Parsed) bool { return p.Truncated && p.TCPOff == -1 && p.PayloadLen == 19 }},
		{name: "cut behind the transport header", packet: a[:40], check: func(p *Parsed) bool { return p.Truncated && p.TCPOff == 20 && p.HeaderLen == 40 }},

		{name: "hop-by-hop, routing, options, mobility", packet: v6(0, slices.Concat(
			[]byte{43, 0, 0, 0, 0, 0, 0, 0}, []byte{60, 1}, make([]byte, 14), []byte{135, 0, 0, 0, 0, 0, 0, 0},
			[]byte{17, 0, 0, 0, 0, 0, 0, 0}, udp)...), check: func(p *Parsed) bool { return p.Protocol == 17 && p.UDPOff == 80 && p.HeaderLen == 88 }},
		{name: "authentication counts words", packet: v6(51, slices.Concat([]byte{17, 1}, make([]byte, 10), udp)...),
			check: func(p *Parsed) bool { return p.UDPOff == 52 && !p.Fragment }},
		{name: "ESP ends the walk", packet: v6(50, udp...), check: func(p *Parsed) bool { return p.Protocol == 50 && p.PayloadOff == 40 }},
		{name: "no next header ends the walk", packet: v6(59, udp...), check: func(p *Parsed) bool { return p.Protocol == 59 && p.PayloadOff == 40 }},
		{name: "one byte of an extension header", packet: v6(60, 17), check: func(p *Parsed) bool { return p.Protocol == 60 && p.PayloadLen == 1 }},
		{name: "an incomplete extension header is payload", packet: v6(60, 17, 1, 0, 0, 0, 0, 0, 0), check: func(p *Parsed) bool {
			return p.Protocol == 60 && p.PayloadOff == 40 && p.PayloadLen == 8
		}},
		{name: "an incomplete fragment header is payload", packet: v6(44, 17, 0, 0, 1, 0, 0, 0), check: func(p *Parsed) bool {
			return p.Protocol == 44 && !p.Fragment && p.PayloadLen == 7
		}},
		{name: "a first fragment is walked on", packet: v6(44, slices.Concat(first(60), []byte{17, 0, 0, 0, 0, 0, 0, 0}, udp)...),
			check: func(p *Parsed) bool { return p.Fragment && p.MF && p.UDPOff == 56 }},
		{name: "an atomic fragment is a fragment", packet: v6(44, slices.Concat([]byte{17, 0, 0, 0, 0, 0, 0, 1}, udp)...),
			check: func(p *Parsed) bool { return p.Fragment && !p.MF && p.FragOff == 0 && p.UDPOff == 48 }},
		{name: "a later fragment ends the walk", packet: v6(44, slices.Concat([]byte{60, 0, 0, 9, 0, 0, 0, 1}, udp, udp)...),
			check: func(p *Parsed) bool { return p.Protocol == 60 && p.MF && p.FragOff == 8 && p.PayloadOff == 48 }},
		{name: "a second fragment header is not consumed", packet: v6(44, slices.Concat(first(44), first(17), udp)...),
			check: func(p *Parsed) bool { return p.Protocol == 44 && p.Fragment && p.PayloadOff == 48 }},
		{name: "Quirk: a large IPv6 offset leaves no transport header", packet: v6(44, slices.Concat([]byte{17, 0, 0x20, 0, 0, 0, 0, 1}, udp)...),
			check: func(p *Parsed) bool { return p.FragOff == 8192 && p.UDPOff == -1 }},
		{name: "reserved bits are no offset", packet: v6(44, slices.Concat([]byte{17, 0, 0, 6, 0, 0, 0, 1}, udp)...),
			check: func(p *Parsed) bool { return p.FragOff == 0 && !p.MF && p.UDPOff == 48 }},
		{name: "the largest IPv6 packet", packet: append(change(f, 4, 0xFF, 0xFF), make([]byte, 65575-48)...),
			check: func(p *Parsed) bool { return p.Length == 65575 && p.PayloadLen == 65527 && !p.Truncated }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var p Parsed
			if ok := p.Parse(tt.packet); ok == tt.fails {
				t.Fatalf("Parse: %v", ok)
			}
			if want := parseModel(tt.packet); p != want {
				t.Errorf("parsed %+v, the model %+v", p, want)
			}
			if !tt.fails && !tt.check(&p) {
				t.Errorf("parsed %+v", p)
			}
		})
	}
}

func TestParseLeavesNothingBehind(t *testing.T) {
	var p Parsed
	for name, parse := range map[string]func() bool{
		"Parse":                            func() bool { return p.Parse(nil) },
		"ParseExact of no packet":          func() bool { return p.ParseExact(nil) },
		"ParseExact of an extended packet": func() bool { return p.ParseExact(example(t, "N")) },
	} {
		p.Parse(example(t, "I"))
		if parse() || p != absent {
			t.Errorf("%s left %+v", name, p)
		}
	}
}

func TestSplit(t *testing.T) {
	b, c, d := example(t, "B"), example(t, "C"), example(t, "D")
	tests := []struct {
		name  string
		batch []byte
		want  [][]byte
		rest  []byte
	}{
		{name: "nothing"},
		{name: "one packet", batch: b, want: [][]byte{b}},
		{name: "N is B and C", batch: example(t, "N"), want: [][]byte{b, c}},
		{name: "both families", batch: slices.Concat(d, b, d), want: [][]byte{d, b, d}},
		{name: "a cut packet in the end", batch: slices.Concat(b, c[:31]), want: [][]byte{b}, rest: c[:31]},
		{name: "no packet in the end", batch: slices.Concat(b, []byte{0}), want: [][]byte{b}, rest: []byte{0}},
		{name: "no packet at all", batch: []byte("GET / HTTP/1.1\r\nHost: a"), rest: []byte("GET / HTTP/1.1\r\nHost: a")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got [][]byte
			var rest []byte
			var p Parsed
			for packet, ok := range p.Split(tt.batch) {
				if !ok {
					rest = packet
					continue
				}
				got = append(got, packet)
				if want := parseModel(packet); p != want {
					t.Errorf("parsed %+v, want %+v", p, want)
				}
			}
			if !slices.EqualFunc(got, tt.want, bytes.Equal) || !bytes.Equal(rest, tt.rest) {
				t.Errorf("got %x and %x", got, rest)
			}
		})
	}
	t.Run("stops when told to", func(t *testing.T) {
		n := 0
		var p Parsed
		for range p.Split(example(t, "N")) {
			n++
			break
		}
		if n != 1 {
			t.Errorf("%d steps", n)
		}
	})
}

func TestNextAndPayload(t *testing.T) {
	n := example(t, "N")
	var p Parsed
	p.Parse(n)
	if next := p.Next(n); !bytes.Equal(next, example(t, "C")) {
		t.Errorf("next is %x", next)
	}
	if payload := p.Payload(n); string(payload) != "hello" || cap(payload) != 5 {
		t.Errorf("payload is %q, capacity %d", payload, cap(payload))
	}
	if p.Payload(n[:30]) != nil || p.Next(n[:30]) != nil {
		t.Error("a shorter buffer than the one that was parsed")
	}
	b := example(t, "A")
	p.Parse(b)
	if p.Next(b) != nil || p.Payload(b) != nil {
		t.Error("A has neither payload nor next packet")
	}
}

// parseModel is a second parser, written for clarity after the tables of packets.md 1: it cuts header after header off
// the front of the rest.
func parseModel(b []byte) Parsed {
	none := Parsed{
		IPv4Off: -1, IPv6Off: -1, ICMPOff: -1, ICMPv6Off: -1, TCPOff: -1, UDPOff: -1, PayloadOff: -1,
	}
	p := none
	word := func(b []byte) int { return int(b[0])*256 + int(b[1]) }
	if len(b) < 20 {
		return none
	}
	var headers int
	switch version := b[0] / 16; {
	case version == 4:
		headers = int(b[0]%16) * 4
		p.IPv4Off, p.Family, p.Protocol = 0, 4, b[9]
		p.Length = int32(word(b[2:]))
		if headers < 20 || int(p.Length) < headers || len(b) < headers {
			return none
		}
		p.FragOff = int32(word(b[6:])%0x2000) * 8
		p.MF = b[6]&0x20 != 0
		p.Fragment = p.MF || p.FragOff != 0
	case version == 6 && len(b) >= 40:
		headers = 40
		p.IPv6Off, p.Family, p.Protocol = 0, 6, b[6]
		p.Length = int32(word(b[4:])) + 40
	default:
		return none
	}
	p.Truncated = int(p.Length) > len(b)
	p.Extended = int(p.Length) < len(b)
	rest := b[headers:min(int(p.Length), len(b))]
	used := headers + len(rest)

	for p.Family == 6 && p.FragOff == 0 && len(rest) >= 2 {
		var size int
		switch p.Protocol {
		case 0, 43, 60, 135:
			size = 8 + 8*int(rest[1])
		case 51:
			size = 8 + 4*int(rest[1])
		case 44:
			size = 8
		}
		if size == 0 || size > len(rest) || p.Protocol == 44 && p.Fragment {
			break
		}
		if p.Protocol == 44 {
			p.Fragment = true
			p.MF = rest[3]%2 == 1
			p.FragOff = int32(word(rest[2:]) / 8 * 8)
		}
		p.Protocol, rest = rest[0], rest[size:]
	}

	if p.FragOff == 0 {
		off := int32(used - len(rest))
		size := 0
		switch [2]uint8{p.Family, p.Protocol} {
		case [2]uint8{4, 6}, [2]uint8{6, 6}:
			if len(rest) >= 20 && rest[12] >= 0x50 {
				p.TCPOff, size = off, min(int(rest[12]/16)*4, len(rest))
			}
		case [2]uint8{4, 17}, [2]uint8{6, 17}:
			if len(rest) >= 8 {
				p.UDPOff, size = off, 8
			}
		case [2]uint8{4, 1}:
			if len(rest) >= 8 {
				p.ICMPOff, size = off, 8
			}
		case [2]uint8{6, 58}:
			if len(rest) >= 8 {
				p.ICMPv6Off, size = off, 8
			}
		}
		rest = rest[size:]
	}
	p.HeaderLen = int32(used - len(rest))
	p.PayloadLen = int32(len(rest))
	if len(rest) > 0 {
		p.PayloadOff = p.HeaderLen
	}
	return p
}

func FuzzParse(f *testing.F) {
	for _, e := range examples {
		f.Add(unhex(f, e.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Parsed
		ok := p.Parse(b)
		if want := parseModel(b); p != want {
			t.Fatalf("parsed %+v, the model %+v", p, want)
		}
		if !ok {
			if p != absent {
				t.Fatalf("left %+v", p)
			}
			return
		}
		used := min(int(p.Length), len(b))
		if int(p.HeaderLen+p.PayloadLen) != used {
			t.Fatalf("%d bytes used of %+v", used, p)
		}
		for _, h := range []struct {
			view []byte
			off  int32
			size int
		}{
			{p.IPv4(b), p.IPv4Off, 20}, {p.IPv6(b), p.IPv6Off, 40}, {p.ICMP(b), p.ICMPOff, 8},
			{p.ICMPv6(b), p.ICMPv6Off, 8}, {p.TCP(b), p.TCPOff, 20}, {p.UDP(b), p.UDPOff, 8},
			{p.Payload(b), p.PayloadOff, 1},
		} {
			if (h.view == nil) != (h.off < 0) {
				t.Fatalf("view of %d bytes at %d", len(h.view), h.off)
			}
			if h.view != nil && (len(h.view) < h.size || int(h.off)+len(h.view) > used || cap(h.view) != len(h.view)) {
				t.Fatalf("view of %d bytes at %d, used %d", len(h.view), h.off, used)
			}
		}
		if exact := p.ParseExact(b); exact != (len(b) == used && int(parseModel(b).Length) == used) {
			t.Fatalf("ParseExact: %v", exact)
		}
		var again []byte
		for packet := range p.Split(b) {
			again = append(again, packet...)
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("the parts are %x", again)
		}
	})
}

package prog_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// words returns terms in the notation of a test's table.
func words(terms []prog.Term) string {
	var all []string
	for _, t := range terms {
		one := []string{"any"}
		if t.Family != 0 {
			one[0] = fmt.Sprint("v", t.Family)
		}
		if t.Extends {
			one = append(one, "extended")
		}
		if t.Pieces != prog.AnyPiece {
			one = append(one, [...]string{prog.WholePiece: "whole", prog.FirstPiece: "first", prog.Fragments: "fragments"}[t.Pieces])
		}
		for _, l := range []struct {
			name string
			list []prog.Range
		}{{"proto", t.Protocol}, {"src", t.Src}, {"dst", t.Dst}, {"sport", t.SrcPort}, {"dport", t.DstPort}} {
			if l.list == nil {
				continue
			}
			var values []string
			for _, r := range l.list {
				text := valueText(r.First)
				if r.Last != r.First {
					text += "-" + valueText(r.Last)
				}
				values = append(values, text)
			}
			one = append(one, l.name+" "+strings.Join(values, ","))
		}
		all = append(all, strings.Join(one, " "))
	}
	return strings.Join(all, " | ")
}

// valueText writes a value as a number, or as an address if it is large.
func valueText(v prog.Value) string {
	if v.Hi == 0 && v.Lo < 1<<16 {
		return fmt.Sprint(v.Lo)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], v.Hi)
	binary.BigEndian.PutUint64(b[8:], v.Lo)
	return netip.AddrFrom16(b).Unmap().String()
}

func TestNecessaryConditions(t *testing.T) {
	const rest6 = " | v6 extended"
	for _, row := range []struct{ text, inbound, outbound string }{
		{"true", "any", "any"},
		{"false", "", ""},
		{"outbound", "", "any"},
		{"inbound or tcp", "any", "v4 proto 6 | v6 proto 6" + rest6},
		{"ip", "v4", "v4"},
		{"ipv6", "v6", "v6"},
		{"tcp", "v4 proto 6 | v6 proto 6" + rest6, "v4 proto 6 | v6 proto 6" + rest6},
		{"ip and udp.DstPort == 53", "v4 whole proto 17 dport 53 | v4 first proto 17", "v4 whole proto 17 dport 53 | v4 first proto 17"},
		{"ip and udp.DstPort != 53", "v4 whole proto 17 dport 0-52,54-65535 | v4 first proto 17", "v4 whole proto 17 dport 0-52,54-65535 | v4 first proto 17"},
		{"ip and tcp.DstPort in {80, 443, 8000-8080}", "v4 whole proto 6 dport 80,443,8000-8080 | v4 first proto 6", "v4 whole proto 6 dport 80,443,8000-8080 | v4 first proto 6"},
		{"ip and (tcp.DstPort == 80 or udp.DstPort == 53)",
			"v4 whole proto 6 dport 80 | v4 whole proto 17 dport 53 | v4 first proto 6,17",
			"v4 whole proto 6 dport 80 | v4 whole proto 17 dport 53 | v4 first proto 6,17"},
		{"ip and remotePort == 53", "v4 whole proto 6,17 sport 53 | v4 proto 1 | v4 first proto 6,17,58", "v4 whole proto 6,17 dport 53 | v4 first proto 1,6,17,58"},
		{"ip and localPort == 0", "v4", "v4"}, // packets without ports have the port 0
		{"ip and localPort == 8", // the type of a request of ping
			"v4 whole proto 6,17 dport 8 | v4 first proto 1,6,17,58", "v4 whole proto 6,17 sport 8 | v4 proto 1 | v4 first proto 6,17,58"},
		{"ip and protocol == 47", "v4 proto 47", "v4 proto 47"},
		{"ipv6 and protocol == 47", "v6 proto 47" + rest6, "v6 proto 47" + rest6},
		{"ipv6.NextHdr == 47", "v6 proto 47", "v6 proto 47"},
		{"ipv6.NextHdr == 44", "v6 extended", "v6 extended"},
		{"ip.DstAddr == 10.0.0.0/8", "v4 dst 10.0.0.0-10.255.255.255", "v4 dst 10.0.0.0-10.255.255.255"},
		{"remoteAddr == 10.0.0.1", "v4 src 10.0.0.1 | v6 src 10.0.0.1", "v4 dst 10.0.0.1 | v6 dst 10.0.0.1"},
		{"tcp and remoteAddr == 2001:db8::1", "v6 proto 6 src 2001:db8::1 | v6 extended src 2001:db8::1", "v6 proto 6 dst 2001:db8::1 | v6 extended dst 2001:db8::1"},
		{"ip and not tcp", "v4", "v4"}, // fragments and truncated packets have no TCP header
		{"ip and tcp.Syn and tcp.DstPort < 1024", "v4 whole proto 6 dport 0-1023 | v4 first proto 6", "v4 whole proto 6 dport 0-1023 | v4 first proto 6"},
		{"ip and udp and random8 < 3", "v4 proto 17", "v4 proto 17"},
		{"ip and tcp and processId == 5", "v4 proto 6", "v4 proto 6"},
		{"ip and tcp and flow.Packets < 5", "v4 proto 6", "v4 proto 6"},
		{"ip and (fragment? udp: tcp)", "v4 proto 6,17", "v4 proto 6,17"},
		{"ip and tcp and udp", "", ""},
		{"icmpv6", "v4 first proto 58 | v6 proto 58 | v6 extended", "v4 first proto 58 | v6 proto 58 | v6 extended"},
	} {
		p, err := progtest.Compile(row.text, packet.LayerNetwork, filter.Extended)
		if err != nil {
			t.Fatalf("%s: %v", row.text, err)
		}
		if got := words(p.Necessary(false)); got != row.inbound {
			t.Errorf("%s, inbound:\ngot  %s\nwant %s", row.text, got, row.inbound)
		}
		if got := words(p.Necessary(true)); got != row.outbound {
			t.Errorf("%s, outbound:\ngot  %s\nwant %s", row.text, got, row.outbound)
		}
	}
}

// TestNecessaryOfLargeFilters: lists too long for exact conditions still allow all matching packets.
func TestNecessaryOfLargeFilters(t *testing.T) {
	var ports, alternatives []string
	for i := range 1000 {
		ports = append(ports, fmt.Sprint(1+i*64))
		alternatives = append(alternatives, fmt.Sprintf("(tcp.DstPort == %d and tcp.SrcPort == %d)", i, i+1))
	}
	p, err := progtest.Compile("ip and udp.DstPort in {"+strings.Join(ports, ", ")+"}", packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	terms := p.Necessary(true)
	if len(terms) != 2 || len(terms[0].DstPort) != 64 {
		t.Fatalf("the conditions of 1000 ports: %s", words(terms))
	}
	b := make([]byte, 28)
	b[0], b[3], b[9] = 0x45, 28, packet.ProtocolUDP
	for i := range 1000 {
		if binary.BigEndian.PutUint16(b[22:], uint16(1+i*64)); !terms[0].Meets(b) {
			t.Errorf("port %d does not meet them", 1+i*64)
		}
	}
	if p, err = progtest.Compile(strings.Join(alternatives, " or "), packet.LayerNetwork, filter.Extended); err != nil {
		t.Fatal(err)
	}
	if terms := p.Necessary(true); words(terms) != "any" {
		t.Errorf("the conditions of %d tests: %s", p.Len(), words(terms))
	}
}

func TestTermsOfFlowsAndOfTwoFilters(t *testing.T) {
	of := func(text string) []prog.Term {
		p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
		if err != nil {
			t.Fatal(err)
		}
		return p.Necessary(true)
	}
	if got := words(prog.WithoutEnds(of("ip and (tcp.DstPort == 80 or udp.DstPort == 53) or icmpv6"))); got != "v4 proto 6,17,58 | v6 proto 58 | v6 extended" {
		t.Errorf("without ends: %s", got)
	}
	for text, want := range map[string]string{
		"ip and (tcp.DstPort == 80 or udp.DstPort == 53) or icmpv6": "v4 proto 6,17,58 | v6 proto 58 | v6 extended",
		"udp.DstPort == 53":      words(of("udp.DstPort == 53")),
		"ip.DstAddr == 10.0.0.1": "v4",
		"ip and (tcp.DstPort == 80 and ip.DstAddr == 10.0.0.1 or udp and ip.DstAddr == 10.0.0.2)": "v4 proto 6 | v4 proto 17 dst 10.0.0.2",
	} {
		if got := words(prog.WithBeginnings(of(text))); got != want {
			t.Errorf("with beginnings, %s: %s, want %s", text, got, want)
		}
	}
	for _, row := range []struct{ a, b, want string }{
		{"ip and tcp.DstPort == 80", "ip and tcp.DstPort == 443", "v4 whole proto 6 dport 80,443 | v4 first proto 6"},
		{"ip and tcp.DstPort == 80", "ip and udp.DstPort == 53", "v4 whole proto 6 dport 80 | v4 first proto 6,17 | v4 whole proto 17 dport 53"},
		{"ip and tcp.DstPort == 80", "false", "v4 whole proto 6 dport 80 | v4 first proto 6"},
		{"ip", "ipv6", "any"},
		{"ip", "ip and not tcp", "v4"},
		{"ipv6", "ipv6 and tcp.DstPort == 80", "v6"},
		{"tcp", "true", "any"},
	} {
		if got := words(prog.JoinTerms(of(row.a), of(row.b))); got != row.want {
			t.Errorf("%s or %s: %s, want %s", row.a, row.b, got, row.want)
		}
		if !prog.SameTerms(of(row.a), of(row.a)) || prog.SameTerms(of(row.a), of(row.b)) != (words(of(row.a)) == words(of(row.b))) {
			t.Errorf("%s and %s: SameTerms is wrong", row.a, row.b)
		}
	}
}

// necessaryTests are the tests in the fuzz test's random filters.
var necessaryTests = []string{
	"tcp", "udp", "ip", "ipv6", "icmp", "icmpv6", "inbound", "outbound", "loopback", "fragment", "true", "false",
	"tcp.DstPort == 80", "tcp.DstPort != 80", "tcp.DstPort < 80", "tcp.SrcPort >= 80", "udp.SrcPort > 53", "udp.DstPort <= 53",
	"udp.DstPort in {53, 80-90}", "udp.DstPort not in {53}", "remotePort == 80", "localPort != 80", "localPort == 0", "localPort in {0-3, 53}", "remotePort < 9",
	"protocol == 6", "protocol != 17", "protocol in {6, 17}", "protocol > 50", "ip.Protocol == 6", "ip.Protocol != 6", "ipv6.NextHdr == 44",
	"ipv6.NextHdr != 6", "ipv6.NextHdr in {0, 6, 17}", "ip.DstAddr == 10.0.0.0/8", "ip.DstAddr != 10.0.0.0/8", "ip.SrcAddr in {10.0.0.1, 192.0.2.0/24}",
	"remoteAddr == 10.0.0.1", "localAddr not in {10.0.0.0/8}", "remoteAddr == 2001:db8::1", "localAddr >= ::1", "ipv6.DstAddr != 2001:db8::1", "ipv6.SrcAddr in {2001:db8::/32}",
	"tcp.Syn", "ip.TTL > 62", "length > 60", "tcp.PayloadLength == 0", "tcp.Payload[0] == 1", "random8 < 0x80", "icmp.Type == 8", "icmpv6.Body != 0", "tcp == 7", "udp != 0",
}

// anyNecessary returns a random filter.
func anyNecessary(r *rand.Rand, depth int) string {
	if depth == 0 || r.IntN(5) == 0 {
		return necessaryTests[r.IntN(len(necessaryTests))]
	}
	sub := func() string { return anyNecessary(r, depth-1) }
	switch r.IntN(5) {
	case 0:
		return "(" + sub() + " or " + sub() + ")"
	case 1:
		return "not (" + sub() + ")"
	case 2:
		return "(" + sub() + "? " + sub() + ": " + sub() + ")"
	}
	return "(" + sub() + " and " + sub() + ")"
}

// anyPacket returns a packet of any kind with correct lengths: with options and extension headers, fragmented, or
// truncated.
func anyPacket(r *rand.Rand) []byte {
	protocols := []byte{6, 6, 17, 17, 1, 58, 47, 51, 135, 60, 44, 0}
	transport := make([]byte, []int{0, 3, 4, 7, 8, 19, 20, 28, 40}[r.IntN(9)])
	if len(transport) >= 4 {
		for i, port := range []uint16{80, 53} {
			binary.BigEndian.PutUint16(transport[2*i:], []uint16{port, uint16(r.IntN(100)), uint16(r.Uint32())}[r.IntN(3)])
		}
	}
	if len(transport) >= 20 {
		transport[12], transport[13] = byte(4+r.IntN(3))<<4, byte(r.IntN(256))
	}
	next := protocols[r.IntN(len(protocols))]
	if r.IntN(2) == 0 {
		b := make([]byte, 20+4*r.IntN(2)*r.IntN(3))
		b[0], b[8], b[9] = 0x40|byte(len(b)/4), byte(60+r.IntN(5)), next
		binary.BigEndian.PutUint16(b[6:], []uint16{0, 0, 0x2000, 0x2003, 0x4000}[r.IntN(5)])
		copy(b[12:], [][]byte{{10, 0, 0, 1, 192, 0, 2, 9}, {192, 0, 2, 1, 10, 1, 2, 3}}[r.IntN(2)])
		b = append(b, transport...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		return b
	}
	for range r.IntN(4) * r.IntN(2) {
		kind := []byte{0, 43, 44, 51, 60, 135}[r.IntN(6)]
		h := make([]byte, 8)
		h[0] = next
		switch kind {
		case 44:
			h[3] = []byte{0, 1, 9}[r.IntN(3)]
		case 51:
			h[1], h = 1, append(h, 0, 0, 0, 0)
		default:
			h[1] = byte(r.IntN(8) / 7)
		}
		next, transport = kind, append(h, transport...)
	}
	b := make([]byte, 40)
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(transport)))
	for i := range 2 {
		copy(b[8+16*i:], netip.MustParseAddr([]string{"2001:db8::1", "2001:db9::2", "::1"}[r.IntN(3)]).AsSlice())
	}
	return append(b, transport...)
}

// FuzzNecessary compares the conditions with the interpreter: a matching packet meets one of them, and no packet meets
// two. The same holds for two filters together, and for flows.
func FuzzNecessary(f *testing.F) {
	for seed := range uint64(400) {
		f.Add(seed, []byte(nil), "")
	}
	f.Add(uint64(1), []byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, "ip.Protocol in {1, 3, 5, 6}")
	f.Fuzz(func(t *testing.T, seed uint64, b []byte, text string) {
		r := rand.New(rand.NewPCG(seed, 9))
		layer := packet.Layer(r.IntN(2))
		dialect := filter.Extended
		if text == "" {
			text = anyNecessary(r, r.IntN(5))
		} else if r.IntN(2) == 0 {
			dialect = filter.Strict
		}
		p, err := progtest.Compile(text, layer, dialect)
		if err != nil {
			return
		}
		other, err := progtest.Compile(anyNecessary(r, 2), layer, filter.Extended)
		if err != nil {
			other = p
		}
		for _, outbound := range []bool{false, true} {
			terms := p.Necessary(outbound)
			joined := prog.JoinTerms(slices.Clone(terms), other.Necessary(outbound))
			a := &packet.Address{Layer: layer, Outbound: outbound, Loopback: r.IntN(2) == 0, Timestamp: int64(r.Uint64())}
			for i := range 30 {
				q := b
				if i > 0 || len(b) == 0 {
					q = anyPacket(r)
				}
				a.IPv6 = len(q) > 0 && q[0]>>4 == 6
				met := meet(terms, q)
				var parsed packet.Parsed
				matches := p.MatchExact(q, a) || parsed.ParseExact(q) && endsEarly(q) && p.MayMatchHeaders(q, &parsed, a)
				if matches && met != 1 {
					t.Fatalf("%s\nconditions %s, outbound %v\npacket %x matches and meets %d", text, words(terms), outbound, q, met)
				}
				if f := prog.WithFragments(slices.Clone(terms)); met == 1 && meet(f, q) != 1 {
					t.Fatalf("%s\npacket %x meets %s, and of fragments %s", text, q, words(terms), words(f))
				}
				if met > 1 || met == 1 && (meet(joined, q) != 1 || meet(prog.WithoutEnds(terms), q) != 1 || meet(prog.WithBeginnings(terms), q) != 1) {
					t.Fatalf("%s\nconditions %s, outbound %v\npacket %x meets %d, of\n%s %d, of\n%s %d", text, words(terms), outbound, q, met,
						words(joined), meet(joined, q), words(prog.WithoutEnds(terms)), meet(prog.WithoutEnds(terms), q))
				}
			}
		}
	})
}

// endsEarly reports whether a packet is the first of several IPv4 fragments and ends before its transport header.
func endsEarly(b []byte) bool {
	shortest := map[byte]int{packet.ProtocolTCP: 20, packet.ProtocolUDP: 8, packet.ProtocolICMP: 8, packet.ProtocolICMPv6: 8}
	return b[0]>>4 == 4 && b[6]&0x20 != 0 && b[6]&0x1F == 0 && b[7] == 0 && len(b) < 4*int(b[0]&15)+shortest[b[9]]
}

// meet returns the number of terms that a packet meets.
func meet(terms []prog.Term, b []byte) (n int) {
	for i := range terms {
		if terms[i].Meets(b) {
			n++
		}
	}
	return n
}

func BenchmarkNecessary(b *testing.B) {
	for _, text := range []string{"outbound and udp.DstPort == 53", "tcp.DstPort in {80, 443} or udp.DstPort == 53 or remoteAddr == 10.0.0.0/8"} {
		p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(text, func(b *testing.B) {
			for b.Loop() {
				p.Necessary(true)
			}
		})
	}
}

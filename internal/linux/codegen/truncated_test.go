//go:build linux

package codegen

import (
	"math/rand/v2"
	"testing"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// firstFragment4 is the first fragment of a packet of IPv4: a protocol, and the bytes behind the header.
func firstFragment4(protocol byte, data ...byte) []byte {
	b := make([]byte, lenIPv4, lenIPv4+len(data))
	b[0], b[3], b[6], b[8], b[9] = 0x45, byte(lenIPv4+len(data)), 0x20, 64, protocol
	copy(b[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	return append(b, data...)
}

// firstFragment6 is one of IPv6.
func firstFragment6(protocol byte, data ...byte) []byte {
	b := make([]byte, lenIPv6, lenIPv6+lenExtension+len(data))
	b[0], b[5], b[6], b[7] = 0x60, byte(lenExtension+len(data)), protoFragment, 64
	b[8], b[24] = 0xfd, 0xfd
	b = append(b, protocol, 0, 0, 1, 0, 0, 0, 1)
	return append(b, data...)
}

// TestTruncatedFirstFragments: programs that doubt leave first fragments without all of their transport header to their caller,
// if the filter depends on that header.
func TestTruncatedFirstFragments(t *testing.T) {
	options := []byte{protoDestination, 0, 1, 4, 0, 0, 0, 0}
	last := func(b []byte) []byte { b[6] &^= 0x20; return b }
	rows := []struct {
		name  string
		b     []byte
		short bool
	}{
		{"eight bytes of TCP", firstFragment4(protoTCP, 0, 1, 0, 80, 0, 0, 0, 0), true},
		{"all of TCP", firstFragment4(protoTCP, 0, 1, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), false},
		{"not a fragment", last(firstFragment4(protoTCP, 0, 1, 0, 80, 0, 0, 0, 0)), false},
		{"all of UDP", firstFragment4(protoUDP, 0, 1, 0, 80, 0, 99, 0, 0), false},
		{"another protocol", firstFragment4(47, 0, 1, 0, 80, 0, 99, 0, 0), false},
		{"options, IPv6", firstFragment6(protoDestination, options...), true},
		{"options cut short, IPv6", firstFragment6(protoDestination, protoUDP, 9, 0, 0, 0, 0, 0, 0), true},
		{"a second fragment header", firstFragment6(protoFragment, protoUDP, 0, 0, 0, 0, 0, 0, 1), true},
		{"eight bytes of TCP, IPv6", firstFragment6(protoTCP, 0, 1, 0, 80, 0, 0, 0, 0), true},
		{"all of UDP, IPv6", firstFragment6(protoUDP, 0, 1, 0, 80, 0, 99, 0, 0), false},
	}
	filters := []struct {
		text           string
		all, tcp4, ip6 bool // matches whatever is short, TCP over IPv4 that is, options of IPv6 that are
	}{
		{"tcp.DstPort == 443 or udp.DstPort == 443", true, false, false},
		{"remotePort == 443", true, false, false},
		{"not tcp and inbound", true, false, false},
		{"ipv6 and udp", false, false, true},
		{"ip and tcp.Syn", false, true, false},
		{"remoteAddr == 10.9.9.9 and tcp", false, false, false},
		{"length == 1000", false, false, false},
	}
	for _, f := range filters {
		p := compile(t, f.text)
		a := packet.Address{Layer: packet.LayerNetwork}
		for _, r := range rows {
			if got := Truncated(r.b); got != r.short {
				t.Errorf("%s: Truncated is %v", r.name, got)
			}
			var parsed packet.Parsed
			if !parsed.ParseExact(r.b) {
				t.Fatalf("%s does not parse", r.name)
			}
			if !r.short {
				continue
			}
			v6 := r.b[0]>>4 == 6
			if want, got := f.all || f.tcp4 && !v6 || f.ip6 && v6 && r.b[lenIPv6] != protoTCP, p.MayMatchHeaders(r.b, &parsed, &a); got != want {
				t.Errorf("%q may match %s: %v, want %v", f.text, r.name, got, want)
			}
		}
		for _, bounded := range []bool{false, true} {
			loaded := load(t, f.text, hookOf(&a), Options{Doubt: true, Bounded: bounded})
			for _, r := range rows {
				var parsed packet.Parsed
				parsed.ParseExact(r.b)
				got, err := run(loaded, r.b)
				if err != nil {
					t.Skip(err)
				}
				switch {
				case !r.short && got != p.MatchExact(r.b, &a):
					t.Errorf("%q on %s: %v", f.text, r.name, got)
				case r.short && !got && p.MayMatchHeaders(r.b, &parsed, &a):
					t.Errorf("%q refuses %s, of which it cannot know", f.text, r.name)
				}
			}
		}
	}
}

// FuzzNecessary compares the conditions of filters with what programs let pass: each packet meets one of them, also a first
// fragment that ends too early.
func FuzzNecessary(f *testing.F) {
	for seed := range uint64(500) {
		f.Add(seed, []byte(nil))
	}
	f.Fuzz(func(t *testing.T, seed uint64, b []byte) {
		r := rand.New(rand.NewPCG(seed, 8))
		samples := append(samplePackets(), firstFragment4(protoTCP, 0, 1, 0, 80, 0, 0, 0, 0), firstFragment4(protoUDP, 0, 1),
			firstFragment4(protoICMPv6, 1), firstFragment6(protoTCP, 0, 1, 0, 80, 0, 0, 0, 0), firstFragment6(protoDestination, protoUDP, 9))
		if len(b) == 0 || len(b) > 3000 {
			b = mutate(r, samples[r.IntN(len(samples))])
		}
		a := packet.Address{Layer: packet.Layer(r.IntN(2)), Outbound: r.IntN(2) == 0, Loopback: r.IntN(2) == 0, Timestamp: int64(r.Uint64())}
		p, text := anyCompiled(r, a.Layer, b)
		if p == nil {
			return
		}
		terms := p.Necessary(a.Outbound)
		for i := range 40 {
			q := b
			if i > 0 {
				q = mutate(r, samples[r.IntN(len(samples))])
			}
			var parsed packet.Parsed
			if !parsed.ParseExact(q) {
				continue
			}
			known := prog.Known{HasProcess: true, HasCounts: true, Counts: firstOf(q, &parsed)}
			if !p.MatchKnown(q, &parsed, &a, known) && !(Truncated(q) && p.MayMatchHeaders(q, &parsed, &a)) {
				continue
			}
			met := 0
			for i := range terms {
				if terms[i].Meets(q) {
					met++
				}
			}
			if met != 1 {
				t.Fatalf("%s\npacket %x\naddress %+v\nmeets %d of %+v", text, q, a, met, terms)
			}
		}
	})
}

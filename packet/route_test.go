package packet

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/opendivert/divert/internal/race"
)

// The ends of the packets below, and the next hop of their routes.
var (
	home6, here6  = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00:9::1")
	final6, next6 = netip.MustParseAddr("fd00:2::2"), netip.MustParseAddr("fd00:5::5")
	here4         = netip.MustParseAddr("10.0.0.1")
	final4, next4 = netip.MustParseAddr("10.2.0.2"), netip.MustParseAddr("10.5.0.5")
)

// header is an extension header: its type, and its bytes behind the first two.
type header struct {
	kind uint8
	body []byte
}

// packet6 returns a UDP datagram from here6 to next6 behind extension headers.
func packet6(headers ...header) []byte {
	b := make([]byte, IPv6HeaderLen)
	b[0], b[6], b[7] = 0x60, ProtocolUDP, 64
	copy(b[8:], here6.AsSlice())
	copy(b[24:], next6.AsSlice())
	at := 6
	for _, h := range headers {
		b[at] = h.kind
		at = len(b)
		b = append(b, ProtocolUDP, byte((len(h.body)+2)/8-1))
		b = append(b, h.body...)
	}
	b = append(b, 0, 1, 0, 2, 0, 12, 0, 0, 'd', 'a', 't', 'a')
	be.PutUint16(b[4:], uint16(len(b)-IPv6HeaderLen))
	return b
}

// packet4 returns a UDP datagram from here4 to next4 with IPv4 options.
func packet4(options ...byte) []byte {
	b := make([]byte, IPv4HeaderLen)
	b[0], b[8], b[9] = 0x40|byte(IPv4HeaderLen+len(options))/4, 64, ProtocolUDP
	copy(b[12:], here4.AsSlice())
	copy(b[16:], next4.AsSlice())
	b = append(append(b, options...), 0, 1, 0, 2, 0, 12, 0, 0, 'd', 'a', 't', 'a')
	be.PutUint16(b[2:], uint16(len(b)))
	return b
}

// join joins bytes and addresses.
func join(parts ...any) (b []byte) {
	for _, p := range parts {
		switch p := p.(type) {
		case netip.Addr:
			b = append(b, p.AsSlice()...)
		case []byte:
			b = append(b, p...)
		case int:
			b = append(b, byte(p))
		}
	}
	return b
}

func TestEnds(t *testing.T) {
	zeros := func(n int) []byte { return make([]byte, n) }
	routing := func(kind, left int, more ...any) header {
		return header{ProtocolRouting, join(append([]any{kind, left}, more...)...)}
	}
	homeOption := header{ProtocolDestOptions, join(1, 2, 0, 0, 0xC9, 16, home6)}
	rows := []struct {
		name     string
		b        []byte
		src, dst netip.Addr // invalid if those of the IP header count
	}{
		{"IPv4", packet4(), netip.Addr{}, netip.Addr{}},
		{"IPv4, other options", packet4(0x94, 4, 0, 0), netip.Addr{}, netip.Addr{}},
		{"IPv4, a loose source route", packet4(join(1, 0x83, 11, 4, next4, final4)...), here4, final4},
		{"IPv4, a strict source route behind another option", packet4(join(0x94, 4, 0, 0, 0x89, 7, 4, final4, 0)...), here4, final4},
		{"IPv4, a source route at its end", packet4(join(1, 0x83, 7, 8, final4)...), netip.Addr{}, netip.Addr{}},
		{"IPv4, a source route of no length", packet4(0x83, 0, 4, 0), netip.Addr{}, netip.Addr{}},
		{"IPv4, a source route that is cut", packet4(0x83, 7, 4, 10), netip.Addr{}, netip.Addr{}},
		{"IPv4, a source route behind the end of the options", packet4(join(0, 0x83, 7, 4, final4)...), netip.Addr{}, netip.Addr{}},
		{"IPv6", packet6(), netip.Addr{}, netip.Addr{}},
		{"IPv6, other options", packet6(header{ProtocolHopByHop, zeros(6)}, header{ProtocolDestOptions, zeros(14)}), netip.Addr{}, netip.Addr{}},
		{"type 0", packet6(routing(0, 1, 0, 0, 0, 0, next6, final6)), here6, final6},
		{"type 0 at its end", packet6(routing(0, 0, 0, 0, 0, 0, next6, final6)), netip.Addr{}, netip.Addr{}},
		{"type 2", packet6(routing(2, 1, 0, 0, 0, 0, final6)), here6, final6},
		{"segment routing", packet6(header{ProtocolHopByHop, zeros(6)}, routing(4, 1, 1, 0, 0, 0, final6, next6)), here6, final6},
		{"segment routing with one segment left out", packet6(routing(4, 1, 0, 0, 0, 0, final6)), here6, final6},
		{"segment routing at its end", packet6(routing(4, 0, 1, 0, 0, 0, final6, next6)), netip.Addr{}, netip.Addr{}},
		{"RPL, six bytes of an address elided", packet6(routing(3, 1, 0x66, 0x40, 0, 0, zeros(10), zeros(4), 0, 2, zeros(4), zeros(4))),
			here6, netip.MustParseAddr("fd00:5::2:0:0")},
		{"an unknown type", packet6(routing(200, 1, 0, 0, 0, 0, final6)), netip.Addr{}, netip.Addr{}},
		{"a routing header without addresses", packet6(routing(4, 1, 0, 0, 0, 0)), netip.Addr{}, netip.Addr{}},
		{"away from home", packet6(homeOption), home6, next6},
		{"away from home and on a route", packet6(homeOption, routing(2, 1, 0, 0, 0, 0, final6)), home6, final6},
		{"options that are cut", packet6(header{ProtocolDestOptions, join(0xC9, 200, 0, 0, 0, 0)}), netip.Addr{}, netip.Addr{}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			var p Parsed
			if !p.ParseExact(row.b) || p.UDPOff < 0 {
				t.Fatalf("not a UDP datagram: %x", row.b)
			}
			src, dst, ok := p.Ends(row.b)
			if ok != row.dst.IsValid() || ok && (src != row.src || dst != row.dst) {
				t.Errorf("%v, %v, %v, want %v, %v", src, dst, ok, row.src, row.dst)
			}
		})
	}
}

func TestEndsAllocateNothing(t *testing.T) {
	race.CannotCount(t)
	b := packet6(header{ProtocolRouting, join(4, 1, 1, 0, 0, 0, final6, next6)})
	var p Parsed
	p.Parse(b)
	if n := testing.AllocsPerRun(100, func() { p.Ends(b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzEnds(f *testing.F) {
	f.Add(packet4(join(1, 0x83, 11, 4, next4, final4)...))
	f.Add(packet6(header{ProtocolRouting, join(4, 1, 1, 0, 0, 0, final6, next6)}))
	f.Add(packet6(header{ProtocolDestOptions, join(1, 2, 0, 0, 0xC9, 16, home6)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		var p Parsed
		if !p.Parse(b) {
			return
		}
		src, dst, ok := p.Ends(b)
		if ok && (src.Is4() != (p.Family == 4) || dst.Is4() != src.Is4()) {
			t.Errorf("%v and %v in a packet of family %d", src, dst, p.Family)
		}
		p.Ends(b[:len(b)/2]) // not the bytes that were parsed: no panic
		if !bytes.Equal(before, b) {
			t.Error("the packet changed")
		}
	})
}

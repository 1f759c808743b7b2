package filter

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/vectors"
	"github.com/opendivert/divert/packet"
)

// largeSet writes a set of n ports, every step-th one.
func largeSet(n, step int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d,", 1+i*step)
	}
	return "{" + b.String() + "}"
}

// repeated joins n tests of consecutive values.
func repeated(n int, test, operator string) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf(test, 3*i)
	}
	return strings.Join(parts, operator)
}

func TestWiden(t *testing.T) {
	for _, row := range []struct {
		name, filter string
		layer        packet.Layer
		exact        bool
		wide         string // formatted; "" if it is too long to tell
	}{
		{"what the driver has", "tcp.DstPort == 80", packet.LayerNetwork, true, "tcp.DstPort = 80"},
		{"a small set", "tcp.DstPort in {80, 443}", packet.LayerNetwork, true, "tcp.DstPort = 80 or tcp.DstPort = 443"},
		{"a set of 254 comparisons", "tcp.DstPort in " + largeSet(254, 2), packet.LayerNetwork, true, ""},
		{"families of events", "ip and tcp", packet.LayerFlow, true, ""},
		{"an unknown test alone", "ipv6.FlowLabel == 5", packet.LayerNetwork, false, "ipv6"},
		{"an unknown test in a conjunction", "ipv6.FlowLabel == 5 and tcp", packet.LayerNetwork, false, "ipv6 and tcp"},
		{"an unknown test last", "udp and ipv6.FlowLabel == 5", packet.LayerNetwork, false, "udp and ipv6"},
		{"an unknown test in a disjunction", "tcp or (udp and ipv6.FlowLabel == 5)", packet.LayerNetwork, false, "tcp or (udp and ipv6)"},
		{"an unknown condition", "(ipv6.FlowLabel == 5? tcp: udp)", packet.LayerNetwork, false, "(ipv6 and tcp) or udp"},
		{"an unknown condition before a common part", "(ipv6.FlowLabel == 5? tcp: udp) and outbound", packet.LayerNetwork, false,
			"((ipv6 and tcp) or udp) and outbound"},
		{"a negated unknown test", "not (ipv6.FlowLabel == 5) and tcp", packet.LayerNetwork, false, "tcp"},
		{"nothing matches after all", "ipv6.FlowLabel == 5 and false", packet.LayerNetwork, false, "false"},
		{"a set that is too large", "outbound and tcp.DstPort in " + largeSet(5000, 2), packet.LayerNetwork, false, ""},
		{"against a set that is too large", "tcp.DstPort not in " + largeSet(5000, 2), packet.LayerNetwork, false, ""},
		{"a long list", repeated(1000, "tcp.DstPort == %d", " or "), packet.LayerNetwork, false, ""},
		{"a long list against", repeated(1000, "tcp.DstPort != %d", " and "), packet.LayerNetwork, false, ""},
		{"too many different tests", repeated(600, "(tcp.DstPort > %[1]d and ip.Length != %[1]d)", " or "), packet.LayerNetwork, false, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := compiled(row.filter, row.layer, Extended)
			if err != nil {
				t.Fatal(err)
			}
			wide, exact := p.Widen()
			if err := wide.DriverCheck(); err != nil {
				t.Errorf("the driver refuses it: %v", err)
			}
			if exact != row.exact {
				t.Errorf("exact = %v", exact)
			}
			if row.wide == "" {
				return
			}
			if text, err := wide.Format(); err != nil || text != row.wide {
				t.Errorf("widened to %q, %v; want %q", text, err, row.wide)
			}
		})
	}
}

// TestWidenStaysClose checks that widening keeps as much as it can.
func TestWidenStaysClose(t *testing.T) {
	p, err := compiled("outbound and tcp.DstPort in "+largeSet(5000, 2), packet.LayerNetwork, Extended)
	if err != nil {
		t.Fatal(err)
	}
	wide, _ := p.Widen()
	if h := wide.Hints(); h != prog.HintOutbound|prog.HintIP|prog.HintIPv6 {
		t.Errorf("hints %#x: the direction is lost", h)
	}
	tcp := func(port uint16) []byte {
		b := []byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
			0, 1, byte(port >> 8), byte(port), 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0}
		return b
	}
	a := &packet.Address{Outbound: true}
	for _, row := range []struct {
		port uint16
		want bool
	}{{1, true}, {4001, true}, {9999, true}, {0, false}, {10001, false}, {65535, false}} {
		if got := wide.Match(tcp(row.port), a); got != row.want {
			t.Errorf("port %d: %v", row.port, got)
		}
	}
}

// widenPieces are the pieces of the filters in TestWidenMissesNothing.
var widenPieces = []string{
	"tcp", "udp", "ip", "ipv6", "outbound", "tcp.DstPort == 80", "udp.SrcPort > 1000", "ipv6.FlowLabel > 4",
	"ipv6.FlowLabel != 0", "length > 100", "ip.TTL < 64", "protocol != 6", "tcp.Syn", "localPort in " + largeSet(300, 100),
	"remotePort not in " + largeSet(300, 7), "ip.SrcAddr in {10.0.0.0/8, 192.168.0.0/16, 172.16.0.0/12}",
	"packet[0] in " + largeSet(120, 2), "length not in " + "{20-40,60-80,100-400}", "ipv6.FlowLabel in {1-5,7}",
	"ip.SrcAddr != 10.0.0.1", "localAddr != ::1",
}

// randomFilter builds a filter of pieces.
func randomFilter(r *rand.Rand, depth int) string {
	if depth == 0 || r.IntN(4) == 0 {
		return widenPieces[r.IntN(len(widenPieces))]
	}
	a, b := randomFilter(r, depth-1), randomFilter(r, depth-1)
	switch r.IntN(6) {
	case 0, 1:
		return "(" + a + " and " + b + ")"
	case 2, 3:
		return "(" + a + " or " + b + ")"
	case 4:
		return "not (" + a + ")"
	}
	return "(" + a + "? " + b + ": " + randomFilter(r, depth-1) + ")"
}

// TestWidenMissesNothing evaluates random filters and their widened forms on the packets of the vectors.
func TestWidenMissesNothing(t *testing.T) {
	type item struct {
		data []byte
		addr packet.Address
	}
	type row struct {
		Layer        string
		Packet, Addr vectors.Bytes
	}
	var items []item
	vectors.Run(t, "eval", func(r row) error {
		var a packet.Address
		if err := a.UnmarshalBinary(r.Addr); err != nil {
			return err
		}
		if a.Layer == packet.LayerNetwork && len(items) < 400 {
			items = append(items, item{r.Packet, a})
		}
		return nil
	})
	r := rand.New(rand.NewPCG(1, 2))
	matches, inexact := 0, 0
	for range 400 {
		text := randomFilter(r, 4)
		p, err := compiled(text, packet.LayerNetwork, Extended)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		wide, exact := p.Widen()
		if err := wide.DriverCheck(); err != nil {
			t.Fatalf("%.300q: %v", text, err)
		}
		if !exact {
			inexact++
		}
		for _, it := range items {
			want, got := p.Match(it.data, &it.addr), wide.Match(it.data, &it.addr)
			if want && !got || exact && want != got {
				t.Fatalf("%.2000q: matches %v, widened (exact %v) %v\npacket %x", text, want, exact, got, it.data)
			}
			if want {
				matches++
			}
		}
	}
	if matches < 1000 || inexact < 50 {
		t.Errorf("too easy: %d matches, %d filters widened", matches, inexact)
	}
}

func FuzzWiden(f *testing.F) {
	f.Add("tcp and ipv6.FlowLabel == 1", uint8(0), []byte{0x45, 0, 0, 20})
	f.Add("not (tcp.DstPort in {1,3,5-9} or ip.SrcAddr == 1.2.3.4)", uint8(0), []byte{})
	f.Add("ip and localPort not in {1,3}", uint8(2), []byte{})
	f.Add("ip.TOS == 300 or priority > 3", uint8(4), []byte{})
	f.Fuzz(func(t *testing.T, text string, layer uint8, data []byte) {
		for _, dialect := range [...]Dialect{Extended, Strict} {
			p, err := compiled(text, packet.Layer(layer), dialect)
			if err != nil {
				continue
			}
			wide, exact := p.Widen()
			if err := wide.DriverCheck(); err != nil {
				t.Fatalf("the driver refuses it: %v", err)
			}
			a := &packet.Address{Layer: packet.Layer(layer)}
			copy(a.Union()[:], data)
			a.IPv6 = !a.Flow().LocalAddr.Is4() // the two never disagree at the layers of events
			want, got := p.Match(data, a), wide.Match(data, a)
			if want && !got || exact && want != got {
				t.Fatalf("matches %v, widened (exact %v) %v", want, exact, got)
			}
		}
	})
}

// TestWithout: the program for a place where some values are still unknown reads none of them, and keeps the rest.
func TestWithout(t *testing.T) {
	lengths := func(f prog.Field) bool {
		return f == prog.FieldUDPPayloadLength || f == prog.FieldLength || f == prog.FieldUDPPayload || f == prog.FieldRandom8
	}
	for _, row := range []struct {
		filter string
		exact  bool
		want   string
	}{
		{"udp.DstPort == 53", true, "udp.DstPort = 53"},
		{"udp.PayloadLength == 1000", false, "udp"},
		{"udp.PayloadLength == 1000 and udp.DstPort == 53", false, "udp and udp.DstPort = 53"},
		{"udp.DstPort == 53 and udp.Payload[0] == 1", false, "udp.DstPort = 53 and udp"},
		{"length > 1000", false, "true"},
		{"not (udp.PayloadLength == 1000)", false, "true"},
		{"tcp or length > 1000 and udp", false, "tcp or udp"},
		{"random8 < 128 and tcp.DstPort == 80", false, "tcp.DstPort = 80"},
		{"(length > 1000? tcp: udp) and outbound", false, "(tcp or udp) and outbound"},
		{"tcp.DstPort in {80, 443} and length > 1000", false, "tcp.DstPort in {80, 443}"},
	} {
		p, err := compiled(row.filter, packet.LayerNetwork, Extended)
		if err != nil {
			t.Fatal(err)
		}
		wide, exact := p.Without(lengths)
		if text, err := wide.Format(); err != nil || text != row.want || exact != row.exact {
			t.Errorf("%s: %q, exact %v, %v; want %q, %v", row.filter, text, exact, err, row.want, row.exact)
		}
	}
}

// TestWithoutMatchesNoLess: any match of a filter is also a match of the filter without lengths, which gives the same
// answer for packets that differ in lengths only.
func TestWithoutMatchesNoLess(t *testing.T) {
	lengths := func(f prog.Field) bool {
		return f == prog.FieldLength || f == prog.FieldIPLength || f == prog.FieldUDPLength || f == prog.FieldUDPPayloadLength || f == prog.FieldUDPPayload
	}
	r := rand.New(rand.NewPCG(1, 2))
	tests := []string{
		"udp.PayloadLength > 10", "length < 40", "udp.DstPort == 53", "udp.SrcPort == 1", "udp.Payload[3] == 7", "ip.TTL > 3",
		"ip.Length == 33", "outbound", "udp", "tcp",
	}
	pick := func() string { return tests[r.IntN(len(tests))] }
	for range 500 {
		text := fmt.Sprintf("(%s and not (%s)) or (%s? %s: not (%s) or %s)", pick(), pick(), pick(), pick(), pick(), pick())
		p, err := compiled(text, packet.LayerNetwork, Extended)
		if err != nil {
			t.Fatal(err)
		}
		wide, _ := p.Without(lengths)
		for _, port := range []byte{53, 54} {
			answers := map[bool]bool{}
			for size := range 24 {
				b := make([]byte, 28+size)
				b[0], b[3], b[8], b[9], b[21], b[23], b[25] = 0x45, byte(len(b)), 64, 17, 1, port, byte(8+size)
				for i := range size {
					b[28+i] = byte(size)
				}
				a := packet.Address{Outbound: true}
				answers[wide.MatchExact(b, &a)] = true
				if p.MatchExact(b, &a) && !wide.MatchExact(b, &a) {
					t.Fatalf("%s matches %d bytes, and without lengths not", text, len(b))
				}
			}
			if len(answers) != 1 {
				t.Fatalf("%s: the answer depends on what is not known", text)
			}
		}
	}
}

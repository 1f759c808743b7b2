package filter

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

func TestEvalErrors(t *testing.T) { // api.md 21
	tcp, udp := mustHex(t, packetHex["A"]), mustHex(t, packetHex["B"])
	v6 := packet.Address{IPv6: true}
	flow := packet.Address{Layer: packet.LayerFlow}
	foreign := "@WinDiv_WY_eXWWLXX_2aWWWAX" // tcp, then layer = 0
	for _, tt := range []struct {
		name   string
		filter string
		layer  packet.Layer
		b      []byte
		a      *packet.Address
		want   error
	}{
		{"no address", "true", packet.LayerNetwork, tcp, nil, prog.ErrNoAddress},
		{"address of another layer", "true", packet.LayerNetwork, tcp, &flow, prog.ErrOtherLayer},
		{"layer that does not exist", "true", 5, nil, &packet.Address{Layer: 5}, prog.ErrOtherLayer},
		{"no packet", "true", packet.LayerNetwork, nil, &packet.Address{}, prog.ErrNotPacket},
		{"short packet", "true", packet.LayerNetwork, tcp[:19], &packet.Address{}, prog.ErrNotPacket},
		{"IPv6 address record with an IPv4 packet", "true", packet.LayerNetwork, tcp, &v6, prog.ErrOtherFamily},
		{"packet at FLOW", "true", packet.LayerFlow, tcp, &flow, prog.ErrHasPacket},
		{"empty packet at FLOW", "true", packet.LayerFlow, []byte{}, &flow, prog.ErrHasPacket},
		{"no packet at FLOW", "true", packet.LayerFlow, nil, &flow, nil},
		{"packet at REFLECT", "true", packet.LayerReflect, tcp, &packet.Address{Layer: packet.LayerReflect}, nil},
		{"foreign field that is reached", foreign, packet.LayerNetwork, tcp, &packet.Address{}, &prog.FieldError{Test: 1, Field: prog.FieldLayer}},
		{"foreign field that is not reached", foreign, packet.LayerNetwork, udp, &packet.Address{}, nil},
		{"foreign field at FLOW", "@WinDiv_WX_1dWW2mAX", packet.LayerFlow, nil, &flow, &prog.FieldError{Field: prog.FieldTCPDstPort, Layer: packet.LayerFlow}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := mustCompile(t, tt.filter, tt.layer, Strict)
			match, err := p.Eval(tt.b, tt.a)
			var got, want *prog.FieldError
			if errors.As(tt.want, &want) {
				if !errors.As(err, &got) || *got != *want || match {
					t.Errorf("Eval = %v, %v, want %v", match, err, want)
				}
				if p.Match(tt.b, tt.a) {
					t.Error("Match: such a packet matches nothing")
				}
				return
			}
			if !errors.Is(err, tt.want) || err != nil && match {
				t.Errorf("Eval = %v, %v, want %v", match, err, tt.want)
			}
			if _, err := p.Explain(tt.b, tt.a); !errors.Is(err, tt.want) {
				t.Errorf("Explain: %v, want %v", err, tt.want)
			}
		})
	}
}

// TestFamilies checks the rules of filter-language.md 6 on ip and ipv6 at FLOW and SOCKET, and their meaning in the
// extended dialect.
func TestFamilies(t *testing.T) {
	for _, layer := range []packet.Layer{packet.LayerFlow, packet.LayerSocket} {
		for _, tt := range []struct {
			filter  string
			dialect Dialect
			v4, v6  bool
		}{
			{"ip", Strict, false, false},
			{"not ip", Strict, true, true},
			{"ipv6", Strict, false, false},
			{"not ipv6", Strict, true, true},
			{"ip", Extended, true, false},
			{"not ip", Extended, false, true},
			{"ipv6", Extended, false, true},
			{"not ipv6", Extended, true, false},
			{"icmp", Strict, true, false},
			{"icmpv6", Strict, false, false},
		} {
			p := mustCompile(t, tt.filter, layer, tt.dialect)
			a := packet.Address{Layer: layer}
			a.SetFlow(packet.FlowData{Protocol: packet.ProtocolICMP})
			v4 := p.Match(nil, &a)
			a.IPv6 = true
			if v6 := p.Match(nil, &a); v4 != tt.v4 || v6 != tt.v6 {
				t.Errorf("%v %v %s: IPv4 %v, IPv6 %v", layer, tt.dialect, tt.filter, v4, v6)
			}
		}
	}
}

// TestScrambledFlowLabel checks the quirk of filter-language.md 6.
func TestScrambledFlowLabel(t *testing.T) {
	d := mustHex(t, packetHex["D"]) // label 0x34567
	a := packet.Address{IPv6: true}
	for _, tt := range []struct {
		object string
		want   bool
	}{
		{"ipv6.FlowLabel = 0x45670300", true},
		{"ipv6.FlowLabel = 0x34567", false},
	} {
		text := strings.Fields(tt.object)
		value := map[string]uint64{"0x45670300": 0x45670300, "0x34567": 0x34567}[text[2]]
		p := prog.New(packet.LayerNetwork, []prog.Test{{
			Field: prog.FieldIPv6FlowLabel, Value: prog.Value{Lo: value}, Succ: prog.Accept, Fail: prog.Reject,
		}}, false)
		if p.Match(d, &a) != tt.want {
			t.Errorf("%s: want %v", tt.object, tt.want)
		}
	}
	if !mustCompile(t, "ipv6.FlowLabel == 0x34567", packet.LayerNetwork, Extended).Match(d, &a) {
		t.Error("the extended dialect does not see the true label")
	}
}

func TestMatchExact(t *testing.T) { // packets.md 1.4
	p := mustCompile(t, "true", packet.LayerNetwork, Strict)
	for name, want := range map[string]bool{"A": true, "D": true, "N": false, "O": false} {
		if got := p.MatchExact(mustHex(t, packetHex[name]), &packet.Address{}); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestMatchKnown(t *testing.T) {
	p := prog.New(packet.LayerNetwork, []prog.Test{
		{Field: prog.FieldUDP, Value: prog.Value{Lo: 1}, Succ: prog.Accept, Fail: 1},
		{Field: prog.FieldProcessID, Value: prog.Value{Lo: 7}, Succ: prog.Accept, Fail: prog.Reject},
	}, false)
	var parsed packet.Parsed
	a := packet.Address{}
	tcp, udp := mustHex(t, packetHex["A"]), mustHex(t, packetHex["B"])
	parsed.Parse(tcp)
	if !p.MatchKnown(tcp, &parsed, &a, prog.Known{Process: 7, HasProcess: true}) || p.MatchKnown(tcp, &parsed, &a, prog.Known{Process: 8, HasProcess: true}) || p.MatchParsed(tcp, &parsed, &a) {
		t.Error("the process is not told apart")
	}
	parsed.Parse(udp)
	if !p.MatchParsed(udp, &parsed, &a) {
		t.Error("the process matters where it is not asked for")
	}
}

// TestMatchStaleParse passes the parse of another packet: there must be no panic.
func TestMatchStaleParse(t *testing.T) {
	for seed := range 500 {
		g := newGenerator(uint64(seed))
		p := g.program(packet.LayerNetwork, true)
		var parsed packet.Parsed
		parsed.Parse(mustHex(t, packetHex["D"]))
		a := g.address(packet.LayerNetwork)
		for n := range 64 {
			p.MatchParsed(make([]byte, n), &parsed, a)
		}
	}
}

// valueSlots is the number of a packet's values that an evaluation remembers.
const valueSlots = 32

// TestManyValues asks for more values than an evaluation remembers, and then for the first again.
func TestManyValues(t *testing.T) {
	for _, n := range []int{1, valueSlots - 1, valueSlots, valueSlots + 1, 3 * valueSlots} {
		var text strings.Builder
		for i := range n {
			fmt.Fprintf(&text, "packet[%d] == 0xEE or ", i%40)
		}
		text.WriteString("packet[0] == 0x45 and packet[1] != 0x45")
		if !mustCompile(t, text.String(), packet.LayerNetwork, Extended).Match(mustHex(t, packetHex["A"]), &packet.Address{}) {
			t.Errorf("%d values: the first is not what it was", n)
		}
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	race.CannotCount(t)
	pkt := mustHex(t, packetHex["A"])
	a := packet.Address{Outbound: true}
	for _, text := range []string{
		chain(100), "random8 < 128 and random16 > 5", "remoteAddr in " + addrSet(100),
		"tcp.DstPort in " + set(100, 1), "timestamp > -5 and packet32[-1] != 0",
	} {
		p := mustCompile(t, text, packet.LayerNetwork, Extended)
		if n := testing.AllocsPerRun(100, func() { p.Match(pkt, &a) }); n != 0 {
			t.Errorf("%.40s: %v allocations", text, n)
		}
	}
}

func TestDriverCheck(t *testing.T) { // windows-driver.md 6, api.md 5.1
	for _, tt := range []struct {
		filter string
		layer  packet.Layer
		reason string // "" if the driver accepts it
	}{
		{"tcp.DstPort == 80", packet.LayerNetwork, ""},
		{"ip.TOS == 255", packet.LayerNetwork, ""},
		{"ip.TOS == 300", packet.LayerNetwork, "a literal outside its range"},
		{"event == PACKET", packet.LayerNetwork, ""},
		{"event == 5", packet.LayerNetwork, "an event of other layers"},
		{"event", packet.LayerFlow, "an event of other layers"},
		{"event != CLOSE", packet.LayerSocket, ""},
		{"event > 2", packet.LayerFlow, ""},
		{"tcp.SeqNum > -1", packet.LayerNetwork, "a literal outside its range"},
		{"icmp.Body == 0x100000000", packet.LayerNetwork, "a literal outside its range"},
		{"loopback == 2", packet.LayerNetwork, ""},
		{"loopback == -1", packet.LayerNetwork, "a literal outside its range"},
		{"loopback == -0", packet.LayerNetwork, "negative zero"},
		{"timestamp > -0", packet.LayerNetwork, "negative zero"},
		{"timestamp > -1", packet.LayerNetwork, ""},
		{"packet32[0] > -1", packet.LayerNetwork, "a negative literal"},
		{"packet32[0] == 0x100000005", packet.LayerNetwork, ""},
		{"packet32[0] == 0x10000000000000000", packet.LayerNetwork, "such a literal"},
		{"@WinDiv_WX_2dWW2b401cAX", packet.LayerNetwork, ""},    // index 65575
		{"@WinDiv_WX_2dWW2b3VVVVUuAX", packet.LayerNetwork, ""}, // index -65575
		{"@WinDiv_WX_2dWW2b401dAX", packet.LayerNetwork, "such an index"},
		{"@WinDiv_WX_2dWW2b3VVVVUtAX", packet.LayerNetwork, "such an index"},
		{"@WinDiv_WX_eXWWAX", packet.LayerReflect, "a field of other layers"},
		{"@WinDiv_WX_eYWYAX", packet.LayerNetwork, "a literal outside its range"},
		{"priority = -30000", packet.LayerReflect, ""},
		{"@WinDiv_WX_2bWXT9nAX", packet.LayerReflect, "a literal outside its range"},
		{"true and (false? ip.TOS == 300: tcp)", packet.LayerNetwork, ""},
		{"ip and (false? ip.TOS == 300: tcp)", packet.LayerNetwork, "a literal outside its range"},
	} {
		t.Run(tt.filter, func(t *testing.T) {
			var refused *prog.DriverError
			err := mustCompile(t, tt.filter, tt.layer, Strict).DriverCheck()
			if errors.As(err, &refused); err == nil != (tt.reason == "") || err != nil && refused.Reason != tt.reason {
				t.Errorf("DriverCheck: %v, want %q", err, tt.reason)
			}
		})
	}
	var refused *prog.DriverError
	all := mustCompile(t, strings.Repeat("tcp and ", 255)+"tcp", packet.LayerNetwork, Strict)
	if err := all.DriverCheck(); !errors.As(err, &refused) || refused.Test != -1 {
		t.Errorf("256 tests: %v", err)
	}
	set := mustCompile(t, "tcp.DstPort in {1, 5-9, 80} and ip.SrcAddr == 10.0.0.0/8", packet.LayerNetwork, Extended)
	if err := set.DriverCheck(); err != nil {
		t.Errorf("sets: %v", err)
	}
}

func TestLowerText(t *testing.T) {
	for _, tt := range []struct {
		filter string
		layer  packet.Layer
		want   string
	}{
		{"tcp.DstPort in {1, 5-9}", packet.LayerNetwork, "tcp.DstPort = 1 or (tcp.DstPort >= 5 and tcp.DstPort <= 9)"},
		{"tcp.DstPort not in {1, 7}", packet.LayerNetwork, "tcp.DstPort != 1 and tcp.DstPort != 7"},
		{"ip.SrcAddr == 10.0.0.0/8", packet.LayerNetwork, "ip.SrcAddr >= 10.0.0.0 and ip.SrcAddr <= 10.255.255.255"},
		{"ip", packet.LayerFlow, "localAddr >= 0.0.0.0 and localAddr <= 255.255.255.255"},
		{"tcp", packet.LayerNetwork, "tcp"},
	} {
		p, err := mustCompile(t, tt.filter, tt.layer, Extended).Lower()
		if err != nil || p.String() != tt.want {
			t.Errorf("%s becomes %v, %v, want %s", tt.filter, p, err, tt.want)
		}
	}
	_, err := mustCompile(t, "ipv6.FlowLabel == 5", packet.LayerNetwork, Extended).Object()
	var lowerError *prog.LowerError
	if !errors.As(err, &lowerError) || lowerError.Field != prog.FieldFlowLabel {
		t.Errorf("the true flow label: %v", err)
	}
}

func TestFormatQuirks(t *testing.T) { // filter-object.md 5
	for _, tt := range []struct {
		name, filter, want string
	}{
		{"the sign of a flag is lost", "loopback == -1", "loopback"},
		{"the sign of an element is lost", "packet32[0] > -1", "packet32[0b] > 0x1"},
		{"element literals have 32 bits", "packet32[0] > 0x1d6ec5ea1", "packet32[0b] > 0xd6ec5ea1"},
		{"other literals have 128", "tcp.SeqNum == 0x100000005", "tcp.SeqNum = 4294967301"},
		{"a sign before an address", "@WinDiv_WX_rWX50000XAX", "ip.SrcAddr = -10.0.0.1"},
		{"unreachable tests hold references", "ip and (false? tcp: udp)", "ip and udp"},
		{"flags that are not compared with 0 or 1", "loopback = 2", "loopback = 2"},
		{"hexadecimal without leading zeros", "ip.Id == 0 and udp.Checksum != 10", "not ip.Id != 0x0 and udp.Checksum != 0xa"},
		{"decimal checks of random numbers", "random8 < 10", "random8 < 10"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := strings.ReplaceAll(tt.want, "not ip.Id != 0x0", "ip.Id = 0x0")
			if got := mustCompile(t, tt.filter, packet.LayerNetwork, Strict).String(); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

// TestFormatExplosion has a program whose text would have 2^99 parts.
func TestFormatExplosion(t *testing.T) {
	const levels = 100
	tests := make([]prog.Test, 0, 2*levels)
	for i := range levels {
		// Both tests of a level lead to both of the next.
		one, other := prog.Target(2*i+2), prog.Target(2*i+3)
		if i == levels-1 {
			one, other = prog.Accept, prog.Reject
		}
		tests = append(tests,
			prog.Test{Field: prog.FieldTCPSrcPort, Value: prog.Value{Lo: uint64(i)}, Succ: one, Fail: other},
			prog.Test{Field: prog.FieldTCPDstPort, Value: prog.Value{Lo: uint64(i)}, Succ: other, Fail: one})
	}
	p := prog.New(packet.LayerNetwork, tests, false)
	started := time.Now()
	text, err := p.Format()
	t.Logf("%d bytes after %v", len(text), time.Since(started))
	if !errors.Is(err, prog.ErrFormatTooLong) || text != "" {
		t.Errorf("Format: %d bytes, %v", len(text), err)
	}
	if s := p.String(); s != "<200 tests, too long to print>" {
		t.Errorf("String = %.100s", s)
	}
}

func TestObjectQuirks(t *testing.T) { // filter-object.md 4.4
	p := mustCompile(t, "@WinDiv_000W0X_0e0XW000000WAX", packet.LayerNetwork, Strict)
	if object, err := p.Object(); object != "@WinDiv_WX_eXWWAX" || err != nil {
		t.Errorf("leading zeros: %s, %v", object, err)
	}
	for _, bad := range []string{
		"@WinDiv_WX_eXWWAX ", "@WinDiv_WX_eXWWA", "@", "@windiv_WX_eXWWAX", "@WinDiv_XX_eXWWAX", "@WinDiv_WW",
		"@WinDiv_0000WX_eXWWAX", "@WinDiv_WX_00eXWWAX", "@WinDiv_WX_eX0WWAX", "@WinDiv_WX_eXWWLWX", "@WinDiv_WX_eXWWLXX",
		"@WinDiv_WX_2sXWWAX", "@WinDiv_WX_ecWWAX", "@WinDiv_WX_eXYWAX", "@WinDiv_WX_eXW4000000WAX", "@WinDiv_WX_eXWG00000WAX",
		"@WinDiv_WX_eXWWAX\x00", "@WinDiv_8XX_eXWWAX",
	} {
		if _, err := parseObject(bad, packet.LayerNetwork); kindOf(err) != ErrBadObject {
			t.Errorf("%s: %v", bad, err)
		}
	}
	// The index is not checked, and wraps in 32 bits.
	p = mustCompile(t, "@WinDiv_WX_2dWW2b3VVVVV=AX", packet.LayerNetwork, Strict)
	if index := p.Tests()[0].Index; index != -65536 {
		t.Errorf("index %d", index)
	}
}

func TestListing(t *testing.T) {
	got := mustCompile(t, "outbound and (tcp.DstPort == 80 or udp)", packet.LayerNetwork, Strict).Listing()
	want := `   0  outbound          yes: 1       no: reject
   1  tcp.DstPort = 80  yes: accept  no: 2
   2  udp               yes: accept  no: reject
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func ExampleProgram_Explain() {
	p, err := compiled("udp or tcp.DstPort == 80 or ip.SrcAddr == 192.0.2.0/24", packet.LayerNetwork, Extended)
	if err != nil {
		panic(err)
	}
	syn := []byte{ // 10.1.2.3:49152 to 192.0.2.7:443
		0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 1, 2, 3, 192, 0, 2, 7,
		0xC0, 0, 1, 187, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 255, 255, 0, 0, 0, 0,
	}
	steps, err := p.Explain(syn, &packet.Address{Outbound: true})
	if err != nil {
		panic(err)
	}
	for _, s := range steps {
		fmt.Println(s)
	}
	// Output:
	//   0  udp  [0]  false → 1
	//   1  tcp.DstPort = 80  [443]  false → 2
	//   2  ip.SrcAddr = 192.0.2.0/24  [10.1.2.3]  false → reject
}

func ExampleExpr() {
	web := TCPDstPort.In(80, 443).And(Outbound)
	fmt.Println(web)
	fmt.Println(web.Or(UDPDstPort.Eq(53)).Not())
	// Output:
	// tcp.DstPort in {80, 443} and outbound
	// not ((tcp.DstPort in {80, 443} and outbound) or udp.DstPort = 53)
}

package filter

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// mustHex returns the bytes of hex digits.
func mustHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compiled is Compile, but returns the internal program.
func compiled(text string, layer packet.Layer, d Dialect) (*prog.Program, error) {
	p, err := Compile(text, layer, d)
	return p.program(), err
}

// parseObject reads an object string as Compile does.
func parseObject(text string, layer packet.Layer) (*prog.Program, error) {
	if strings.HasPrefix(text, "@") {
		return compiled(text, layer, Extended)
	}
	if _, err := prog.ParseObject(text, layer, false); err != nil {
		return nil, &Error{Kind: ErrBadObject}
	}
	return nil, errors.New("an object string without @ was read")
}

// mustCompile compiles a filter.
func mustCompile(t testing.TB, text string, layer packet.Layer, d Dialect) *prog.Program {
	t.Helper()
	p, err := compiled(text, layer, d)
	if err != nil {
		t.Fatalf("%.200s: %v", text, err)
	}
	return p
}

// chain joins n tests; for packet A only the last holds.
func chain(n int) string {
	fields := []string{
		"tcp.SrcPort == 9", "ip.SrcAddr == 10.9.9.9", "ip.TTL == 3", "tcp.Ack", "tcp.Window < 7",
		"ip.DstAddr > 203.0.113.1", "tcp.SeqNum == 5", "udp.DstPort == 53", "ip.Id == 77", "tcp.DstPort > 1024",
	}
	tests := make([]string, n)
	for i := range tests {
		tests[i] = fields[i%len(fields)]
	}
	tests[n-1] = "tcp.DstPort == 80"
	return strings.Join(tests, " or ")
}

// set writes a set of n values, every third number from first on.
func set(n, first int) string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprint(first + 3*i)
	}
	return "{" + strings.Join(values, ", ") + "}"
}

// addrSet writes a set of n IPv4 addresses.
func addrSet(n int) string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprintf("%d.%d.%d.%d", 192+i%8, i/7%256, i/1792, 2*(i%100))
	}
	return "{" + strings.Join(values, ", ") + "}"
}

func BenchmarkMatch(b *testing.B) {
	v4, v6 := packetHex["A"], packetHex["D"]
	for _, bench := range []struct{ name, filter, packet string }{
		{"true", "true", v4},
		{"tests=1", chain(1), v4},
		{"tests=10", chain(10), v4},
		{"tests=100", chain(100), v4},
		{"tests=100/same-field", strings.Repeat("tcp.DstPort == 443 or ", 99) + "tcp.DstPort == 80", v4},
		{"tests=100/computed", strings.Repeat("localPort == 443 or ", 99) + "remotePort == 80", v4},
		{"tests=100/ipv6", strings.Repeat("ipv6.SrcAddr == fe80::1 or ", 99) + "tcp", v6},
		{"tests=100/payload", strings.Repeat("tcp.Payload[0] == 7 or ", 99) + "tcp", v6},
		{"set=10/port", "tcp.DstPort in " + set(10, 53), v4},
		{"set=10000/port", "tcp.DstPort in " + set(10000, 53), v4},
		{"set=10/addr", "ip.DstAddr in " + addrSet(10), v4},
		{"set=10000/addr", "ip.DstAddr in " + addrSet(10000), v4},
		{"set=10000/remoteAddr", "remoteAddr in " + addrSet(10000), v4},
		{"random", "random8 < 128 and random16 > 5", v4},
	} {
		b.Run(bench.name, func(b *testing.B) {
			p := mustCompile(b, bench.filter, packet.LayerNetwork, Extended)
			pkt := mustHex(b, bench.packet)
			a := packet.Address{Outbound: true}
			b.ReportAllocs()
			for b.Loop() {
				p.Match(pkt, &a)
			}
		})
	}
}

func BenchmarkMatchParsed(b *testing.B) {
	p := mustCompile(b, chain(100), packet.LayerNetwork, Extended)
	pkt := mustHex(b, packetHex["A"])
	var parsed packet.Parsed
	parsed.Parse(pkt)
	a := packet.Address{Outbound: true}
	b.ReportAllocs()
	for b.Loop() {
		p.MatchParsed(pkt, &parsed, &a)
	}
}

func BenchmarkMatchFlow(b *testing.B) {
	p := mustCompile(b, "tcp and remotePort == 443 and localAddr == 10.0.0.1", packet.LayerFlow, Extended)
	a := packet.Address{Layer: packet.LayerFlow, Event: packet.EventFlowEstablished}
	a.SetFlow(packet.FlowData{Protocol: packet.ProtocolTCP, RemotePort: 443})
	b.ReportAllocs()
	for b.Loop() {
		p.Match(nil, &a)
	}
}

func BenchmarkObject(b *testing.B) {
	p := mustCompile(b, chain(100), packet.LayerNetwork, Extended)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Object(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseObject(b *testing.B) {
	object, err := mustCompile(b, chain(100), packet.LayerNetwork, Extended).Object()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseObject(object, packet.LayerNetwork); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFormat(b *testing.B) {
	p := mustCompile(b, chain(100), packet.LayerNetwork, Extended)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Format(); err != nil {
			b.Fatal(err)
		}
	}
}

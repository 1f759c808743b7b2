package prog_test

import (
	"math/rand/v2"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

func TestOutcomes(t *testing.T) {
	for _, row := range []struct {
		text             string
		accepts, rejects bool
	}{
		{"true", true, false},
		{"false", false, true},
		{"tcp", true, true},
		{"tcp and udp", false, true},
		{"tcp.Syn and udp.DstPort == 53", false, true},
		{"ip and ipv6", false, true},
		{"icmp and ipv6", false, true},
		{"icmpv6 and ip", false, true},
		{"inbound and outbound", false, true},
		{"inbound or outbound", true, false},
		{"ip or ipv6", true, false},
		{"tcp or not tcp", true, false},
		{"tcp.DstPort == 80 and tcp.DstPort == 81", false, true},
		{"tcp.DstPort == 80 and (tcp.DstPort == 81 or udp)", false, true},
		{"tcp.DstPort > 100 and tcp.DstPort < 100", false, true},
		{"tcp.DstPort > 100 and tcp.DstPort < 102 and tcp.DstPort != 101", false, true},
		{"tcp.DstPort > 100 or tcp.DstPort < 200", true, true}, // udp
		{"tcp and (tcp.DstPort > 100 or tcp.DstPort < 200) or not tcp", true, false},
		{"ip.SrcAddr == 10.0.0.0/8 and ip.SrcAddr == 11.0.0.0/8", false, true},
		{"remoteAddr in {10.0.0.0/8} and remoteAddr == 11.0.0.1", false, true},
		{"packet[0] == 1 and packet[0] == 2", false, true},
		{"packet[0] == 1 and packet[1] == 2", true, true},
		{"tcp.Payload[0] == 1 or tcp.Payload[0] != 1", true, true}, // too short
		{"length > 40 or length <= 40", true, false},
		{"not (tcp and udp)", true, false},
	} {
		p, err := filter.Compile(row.text, packet.LayerNetwork, filter.Extended)
		if err != nil {
			t.Fatalf("%s: %v", row.text, err)
		}
		if accepts, rejects := (*prog.Program)(p).Outcomes(); accepts != row.accepts || rejects != row.rejects {
			t.Errorf("%s: accepts %v, rejects %v", row.text, accepts, rejects)
		}
	}
}

// TestOutcomesAreCertain compares the certain results of Outcomes with the interpreter's decisions.
func TestOutcomesAreCertain(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	tests := []string{
		"tcp", "udp", "ip", "ipv6", "icmp", "icmpv6", "inbound", "outbound", "tcp.DstPort == 80", "tcp.DstPort != 80", "tcp.DstPort < 80",
		"tcp.DstPort >= 80", "tcp.SrcPort > 80", "udp.DstPort <= 53", "udp.DstPort in {53, 80}", "udp.DstPort not in {53}", "ip.TTL < 64", "ip.TTL > 62",
		"tcp.Syn", "not tcp.Syn", "length > 60", "length < 61", "tcp.PayloadLength == 0", "remotePort == 80", "protocol == 6", "fragment",
		"ip.DstAddr == 10.0.0.0/8", "ip.DstAddr != 10.0.0.0/8", "tcp.Payload[0] == 1", "tcp.Payload[0] != 1", "true", "false", "random8 < 0x80",
	}
	var build func(depth int) string
	build = func(depth int) string {
		if depth == 0 || r.IntN(4) == 0 {
			return tests[r.IntN(len(tests))]
		}
		switch r.IntN(4) {
		case 0:
			return "(" + build(depth-1) + " or " + build(depth-1) + ")"
		case 1:
			return "not (" + build(depth-1) + ")"
		case 2:
			return "(" + build(depth-1) + "? " + build(depth-1) + ": " + build(depth-1) + ")"
		}
		return "(" + build(depth-1) + " and " + build(depth-1) + ")"
	}
	packets := outcomePackets(t, r)
	nothing, everything := 0, 0
	for range 3000 {
		text := build(4)
		p, err := filter.Compile(text, packet.LayerNetwork, filter.Extended)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		accepts, rejects := (*prog.Program)(p).Outcomes()
		if accepts && rejects {
			continue
		}
		if !accepts {
			nothing++
		} else {
			everything++
		}
		for i, b := range packets {
			if got := p.Match(b, &packet.Address{Layer: packet.LayerNetwork, Outbound: i%2 == 0}); got != accepts {
				t.Fatalf("%s: accepts %v, rejects %v, but %x: %v", text, accepts, rejects, b, got)
			}
		}
	}
	if nothing < 50 || everything < 50 {
		t.Errorf("%d filters match nothing, %d everything", nothing, everything)
	}
}

// outcomePackets returns packets of all kinds, some truncated.
func outcomePackets(t *testing.T, r *rand.Rand) (list [][]byte) {
	t.Helper()
	for i := range 400 {
		b := make([]byte, 20+r.IntN(80))
		for j := range b {
			b[j] = byte(r.IntN(256))
		}
		b[0], b[6], b[7], b[8], b[9] = 0x45, 0, 0, byte(60+r.IntN(8)), []byte{6, 17, 1, 58, 47}[r.IntN(5)]
		b[2], b[3] = 0, byte(len(b))
		if i%5 == 0 {
			b[7] = byte(r.IntN(3)) // a later fragment
		}
		if i%3 == 0 {
			b = append(make([]byte, 20), b...)
			b[0], b[5], b[6] = 0x60, byte(len(b)-40), []byte{6, 17, 1, 58, 47, 44}[r.IntN(6)]
		}
		ports := len(b) - 20
		if ports > 24 {
			b[22], b[23] = 0, []byte{53, 80, 81}[r.IntN(3)]
		}
		list = append(list, b)
	}
	return list
}

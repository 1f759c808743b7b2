//go:build linux

package review

import (
	"encoding/binary"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/prog/progtest"
	"github.com/opendivert/divert/packet"
)

// longPacket returns a UDP datagram of a length in bytes.
func longPacket(length int) []byte {
	b := make([]byte, length)
	if length > 0xffff {
		b[0], b[6] = 0x60, packet.ProtocolUDP
		binary.BigEndian.PutUint16(b[4:], uint16(length-packet.IPv6HeaderLen))
		binary.BigEndian.PutUint16(b[packet.IPv6HeaderLen+2:], 53)
		return b
	}
	b[0], b[9] = 0x45, packet.ProtocolUDP
	binary.BigEndian.PutUint16(b[2:], uint16(length))
	binary.BigEndian.PutUint16(b[packet.IPv4HeaderLen+2:], 53)
	return b
}

// TestFiltersOfCutPackets: a filter that looks at the missing part of a packet does not refuse it, and other filters
// answer as for the whole packet.
func TestFiltersOfCutPackets(t *testing.T) {
	rows := []struct {
		filter string
		length int
		want   bool
	}{
		{"udp.DstPort == 53", 65535, true},
		{"udp.DstPort == 54", 65535, false},
		{"udp.DstPort == 53", 65575, true},
		{"length == 65535", 65535, true},
		{"length == 65531", 65535, false},
		{"udp.PayloadLength == 65527", 65575, true},
		{"udp.PayloadLength > 65527", 65575, false},
		{"packet[65520] == 1", 65535, false},
		{"packet[65527] == 1", 65535, false},
		{"packet[65531] == 1", 65535, true}, // unknown
		{"packet[65534] == 1", 65535, true},
		{"packet[-4b] == 1", 65535, true},
		{"packet[-40b] == 1", 65535, false},
		{"udp.Payload[65400] == 1", 65535, false},
		{"udp.Payload[65506] == 1", 65535, true},
		{"udp.Payload[-1b] == 1", 65535, true},
		{"udp.Payload32[-2] == 1", 65575, true},
		{"udp.Payload32[-2] == 1 and udp.DstPort == 54", 65575, true}, // matches too often, never too seldom
	}
	for _, row := range rows {
		f := compiled(t, row.filter)
		a := packet.Address{Outbound: true, IPv6: row.length > 0xffff}
		b := longPacket(row.length)
		if got := MayMatch(f, b[:queue.MaxPayload], row.length, &a); got != row.want {
			t.Errorf("%s, %d bytes: %v, want %v", row.filter, row.length, got, row.want)
		}
		if f.MatchExact(b, &a) && !row.want {
			t.Errorf("%s matches a packet of %d bytes", row.filter, row.length)
		}
		if n := Copied(b[:queue.MaxPayload]); n != row.length {
			t.Errorf("a copy of %d bytes seems to have %d", row.length, n)
		}
	}
	f := compiled(t, "true")
	other := longPacket(65535)
	other[3]-- // says another length than the kernel
	if MayMatch(f, other[:queue.MaxPayload], 65535, &packet.Address{}) {
		t.Error("a packet that is longer than it says matches")
	}
}

func compiled(t testing.TB, text string) *prog.Program {
	t.Helper()
	p, err := progtest.Compile(text, packet.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

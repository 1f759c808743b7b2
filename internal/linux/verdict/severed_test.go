//go:build linux

package verdict

import (
	"testing"

	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

func TestSevered(t *testing.T) {
	header := func(next ...byte) []byte {
		b := make([]byte, packet.IPv6HeaderLen, packet.IPv6HeaderLen+16)
		b[0], b[6] = 0x60, next[0]
		for _, n := range next[1:] {
			b = append(b, n, 0, 1, 4, 0, 0, 0, 0)
		}
		return b
	}
	segment := queue.Message{Hook: queue.HookPrerouting, ChecksumNotVerified: true}
	local, out, forward, verified, unfinished := segment, segment, segment, segment, segment
	local.Hook, out.Hook, forward.Hook = queue.HookLocalIn, queue.HookPostrouting, queue.HookForward
	verified.ChecksumNotVerified, unfinished.ChecksumNotReady = false, true
	options := header(packet.ProtocolDestOptions, packet.ProtocolUDP)
	rows := []struct {
		name string
		m    queue.Message
		b    []byte
		want bool
	}{
		{"destination options", segment, options, true},
		{"destination options, at LOCAL_IN", local, options, true},
		{"a route", segment, header(packet.ProtocolRouting, packet.ProtocolTCP), true},
		{"destination options behind hop-by-hop options", segment, header(packet.ProtocolHopByHop, packet.ProtocolDestOptions, packet.ProtocolUDP), true},
		{"hop-by-hop options alone", segment, header(packet.ProtocolHopByHop, packet.ProtocolUDP), false},
		{"hop-by-hop options that are missing", segment, header(packet.ProtocolHopByHop), false},
		{"no extension header", segment, header(packet.ProtocolUDP), false},
		{"on the way out", out, options, false},
		{"forwarded", forward, options, false},
		{"a checksum that was verified", verified, options, false},
		{"a checksum that is to be completed", unfinished, options, false},
		{"IPv4", segment, append([]byte{0x45}, options[1:]...), false},
		{"cut off", segment, options[:packet.IPv6HeaderLen-1], false},
		{"nothing", segment, nil, false},
	}
	for _, row := range rows {
		row.m.Payload = row.b
		if got := severed(&row.m); got != row.want {
			t.Errorf("%s: %v, want %v", row.name, got, row.want)
		}
	}
}

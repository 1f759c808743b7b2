package capfile

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/opendivert/divert/packet"
)

// segment returns the beginning of a TCP packet whose header gives no length.
func segment(t testing.TB, from, to string, jumbo bool) []byte {
	t.Helper()
	h := packet.Header{Src: netip.MustParseAddrPort(from), Dst: netip.MustParseAddrPort(to)}
	b, err := h.AppendTCP(nil, packet.Segment{Flags: packet.TCPAck}, make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	if b[0]>>4 == 4 {
		binary.BigEndian.PutUint16(b[2:], 0)
		return b
	}
	binary.BigEndian.PutUint16(b[4:], 0)
	if !jumbo {
		return b
	}
	const hopByHop = 0
	option := []byte{b[6], 0, 0xC2, 4, 0, 1, 0xD4, 0xC8} // RFC 2675: 120,008 bytes
	b[6] = hopByHop
	return append(append(append([]byte(nil), b[:40]...), option...), b[40:]...)
}

func TestParseLong(t *testing.T) {
	for name, b := range map[string][]byte{
		"IPv4": segment(t, "10.0.0.1:1", "10.0.0.2:2", false), "IPv6": segment(t, "[fd00::1]:1", "[fd00::2]:2", false),
		"IPv6 jumbo": segment(t, "[fd00::1]:1", "[fd00::2]:2", true),
	} {
		var p packet.Parsed
		if !Parse(&p, b, 120_048) || p.TCPOff < 0 || p.Length != 120_048 || !p.Truncated || p.Extended || int(p.PayloadLen) != 100 ||
			int(p.PayloadOff) != len(b)-100 {
			t.Errorf("%s: %+v", name, p)
		}
	}
	// Other packets stay unchanged.
	short := segment(t, "[fd00::1]:1", "[fd00::2]:2", false)
	padded := append(append([]byte(nil), short[:40]...), make([]byte, 6)...)
	padded[6] = 59 // no next header
	for name, b := range map[string][]byte{"IPv6 with padding": padded, "IPv6 that is not long": short, "nothing": nil, "other": make([]byte, 60)} {
		var got, want packet.Parsed
		if ok := Parse(&got, b, len(b)); ok != want.Parse(b) || got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

func FuzzParseLong(f *testing.F) {
	f.Add(segment(f, "10.0.0.1:1", "10.0.0.2:2", false), 120_000)
	f.Add(segment(f, "[fd00::1]:1", "[fd00::2]:2", true), 120_000)
	f.Fuzz(func(t *testing.T, b []byte, length int) {
		if length < len(b) || length > 1<<20 {
			length = len(b)
		}
		var p packet.Parsed
		if !Parse(&p, b, length) {
			return
		}
		if p.HeaderLen > int32(len(b)) || p.PayloadOff >= 0 && int(p.PayloadOff)+int(p.PayloadLen) > len(b) {
			t.Errorf("%x of %d: %+v", b, length, p)
		}
	})
}

package windows

import (
	"errors"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// TestSendRefused sends 300 packets, in two requests; the driver refuses one of the first. No packet goes out twice, and
// those behind it still go out.
func TestSendRefused(t *testing.T) {
	f := load(t)
	const total, slot = 300, 100
	for _, row := range []struct {
		name   string
		how    uint32
		status uint32
		is     error
		sent   int    // result of Send
		out    uint32 // bytes that went out
		text   string
	}{
		{"an invalid packet", slotSoft, statusInvalidParameter, engine.ErrInvalid, total - 1, total - 1, "one or more of 255"},
		{"no memory for a packet", slotSoft, statusInsufficientResources, nil, total - 1, total - 1, "one or more of 255"},
		{"a packet at the end of its hops", slotSoft, statusHopLimit, engine.ErrHopLimit, total - 1, total - 1, "one or more of 255"},
		{"no memory at all", slotHard, statusInsufficientResources, nil, total - batchMax, slot + total - batchMax, "stopped at one of 255"},
		{"a packet that ends the call", slotHard, statusInvalidParameter, engine.ErrInvalid, total - batchMax, slot + total - batchMax, "stopped at one of 255"},
		{"sending is over", instead, statusPipeEmpty, engine.ErrShutdown, 0, 0, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			h := network(t, "false")
			ps := make([]packet.Packet, total)
			for i := range ps {
				ps[i] = numbered(i, 10)
			}
			before := f.census().sends
			f.failAt(row.how, slot, codeSend, row.status, 0, 1)
			n, err := h.Send(ps)
			if n != row.sent || err == nil || row.is != nil && !errors.Is(err, row.is) || !strings.Contains(err.Error(), row.text) {
				t.Errorf("sent %d, want %d; error %v", n, row.sent, err)
			}
			if out := f.census().sends - before; out != row.out {
				t.Errorf("%d packets went out, want %d", out, row.out)
			}
			s, _ := h.Stats()
			if s.Injected != uint64(row.sent) || s.Failed != uint64(total-row.sent) {
				t.Errorf("counted %+v", s)
			}
		})
	}
}

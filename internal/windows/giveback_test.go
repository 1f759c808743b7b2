package windows

import (
	"testing"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// TestReturned gives back packets that were received but not handed out: they go on, even where the program may not send,
// and count as passed.
func TestReturned(t *testing.T) {
	for _, row := range []struct {
		name, filter string
		flags        uint64
		how          engine.How
		passed       int // go on
	}{
		{"the driver decides", "ipv6", 0, 0, 5},
		{"the interpreter decides", "ipv6.FlowLabel == 1", 0, 0, 5},
		{"the driver refuses to send for this handle", "ipv6", engine.FlagRecvOnly, 0, 5},
		{"the same, with the interpreter", "ipv6.FlowLabel == 1", engine.FlagRecvOnly, 0, 5},
		{"shut down both ways", "ipv6", 0, engine.ShutdownBoth, 5},
		{"shut down, with the interpreter", "ipv6.FlowLabel == 1", 0, engine.ShutdownBoth, 5},
		{"copies have gone on already", "ipv6", engine.FlagSniff, 0, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStack(t)
			h := s.handle(row.filter, packet.LayerNetwork, engine.Config{Flags: row.flags})
			for n := range 5 {
				s.capture(labelled(n, 1))
			}
			if row.how != 0 {
				if err := h.Shutdown(row.how); err != nil {
					t.Fatal(err)
				}
			}
			var all []packet.Packet
			for len(all) < 5 {
				ps := make([]packet.Packet, 5)
				n, err := h.Recv(ps)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, ps[:n]...)
			}
			before := s.numPassed()
			h.Return(all)
			if got := s.numPassed() - before; got != row.passed {
				t.Errorf("%d packets went on, want %d", got, row.passed)
			}
			if err := h.Close(); err != nil {
				t.Error(err)
			}
			if st, _ := h.Stats(); st.Received != 0 || st.Passed != 5 || st.Failed != 0 {
				t.Errorf("counted %+v", st)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			for i, d := range s.drivers {
				if !d.closed {
					t.Errorf("handle %d of the driver is open", i)
				}
			}
		})
	}
}

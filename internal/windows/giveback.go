package windows

import (
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Return implements engine.Handle. The driver has forgotten received packets, so they are sent.
func (h *handle) Return(ps []packet.Packet) {
	passed := uint64(len(ps))
	if h.holds() {
		for i := range ps {
			h.received.claim(&ps[i].Addr)
		}
		n, _ := h.sendOn(ps) // only the counters record the error
		passed = uint64(n)
		h.counts.failed.Add(uint64(len(ps)) - passed)
	}
	h.counts.received.Add(-passed)
	h.counts.passed.Add(passed)
}

// sendOn sends packets that the handle has received. If the program may not send on the handle, it uses another handle of
// the driver, made only for that. The priority is the same, so the packets meet the same handles next.
func (h *handle) sendOn(ps []packet.Packet) (int, error) {
	s := h.newest.Load()
	refused := s.plan.flags&engine.FlagRecvOnly != 0 || h.sendDown.Load() && !s.plan.reinjects(&h.cfg)
	if !refused {
		return h.send(ps)
	}
	nothing := prog.Constant(h.layer, false)
	pl, err := planFor(&engine.Config{Program: nothing, Flags: engine.FlagSendOnly}, nothing)
	if err != nil {
		return 0, err
	}
	d, err := h.open(h.cfg.Priority, pl)
	if err != nil {
		return 0, err
	}
	n, err := d.send(ps)
	_ = d.close() // its queue is empty
	return n, err
}

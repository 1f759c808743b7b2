package windows

import (
	"net"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/packet"
)

// The driver knows no verdicts for flows. So captured packets still come here, and go back, or end, before the program
// sees them.

var _ engine.Flows = (*handle)(nil)

// began is the origin of the clock of flows.
var began = time.Now()

// clock is the time of flows, in nanoseconds.
func clock() int64 { return int64(time.Since(began)) }

// DecideFlow implements engine.Flows.
func (h *handle) DecideFlow(one []packet.Packet, v flow.Verdict) error {
	return engine.DecideFlow(h, &h.cfg, h.layer, one, v)
}

// MayDecide implements engine.FlowDecider.
func (h *handle) MayDecide(sends bool) error {
	switch {
	case h.closed.Load():
		return net.ErrClosed
	case sends && h.sendDown.Load():
		return engine.ErrShutdown
	}
	return nil
}

// Captured implements engine.FlowDecider.
func (h *handle) Captured(a *packet.Address) bool {
	_, ok := h.received.id(a)
	return ok
}

// Waits implements engine.FlowDecider.
func (h *handle) Waits(a *packet.Address) bool { return h.received.holds(a) }

// Decide implements engine.FlowDecider.
func (h *handle) Decide(k flow.Key, v flow.Verdict) error {
	h.flows.Make(&h.cfg).Decide(k, v, clock())
	return nil
}

// holds reports whether an address is that of a received packet that was not sent yet.
func (o *outstanding) holds(a *packet.Address) bool {
	id, ok := o.id(a)
	return ok && o.slots[id%remembered].Load() == id
}

// sift sends on, or ends, packets whose flow has a verdict, and moves the others to the front. It returns the number of
// those.
func (h *handle) sift(ps []packet.Packet) (n int) {
	now := clock()
	var back []packet.Packet
	for i := range ps {
		switch h.flows.Pass(ps[i].Data, len(ps[i].Data), now) {
		case flow.Undecided:
			ps[n], ps[i] = ps[i], ps[n]
			n++
		case flow.Accept:
			back = append(back, packet.Packet{Data: ps[i].Data, Addr: ps[i].Addr})
		}
	}
	h.letOn(back)
	return n
}

// letOn sends packets of accepted flows on; copies need no sending.
func (h *handle) letOn(ps []packet.Packet) {
	if len(ps) == 0 || !h.holds() {
		return
	}
	n, _ := h.sendOn(ps) // only the counters record the error
	h.counts.failed.Add(uint64(len(ps) - n))
}

// ForgetFlow implements engine.Flows.
func (h *handle) ForgetFlow(p *packet.Packet) (bool, error) { return h.flows.Forget(p, clock()) }

// ForgetFlows implements engine.Flows.
func (h *handle) ForgetFlows() error {
	h.flows.ForgetAll()
	return nil
}

// Flow implements engine.Flows.
func (h *handle) Flow(p *packet.Packet) (flow.Record, int, bool, error) {
	return h.flows.Get(p, clock())
}

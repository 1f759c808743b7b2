package diverttest

import (
	"net"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/packet"
)

var _ engine.Flows = (*handle)(nil)

// DecideFlow implements engine.Flows.
func (h *handle) DecideFlow(one []packet.Packet, v flow.Verdict) error {
	return engine.DecideFlow(h, &h.cfg, h.layer, one, v)
}

// MayDecide implements engine.FlowDecider.
func (h *handle) MayDecide(sends bool) error {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	switch {
	case h.closed:
		return net.ErrClosed
	case sends && h.sendDown:
		return engine.ErrShutdown
	}
	return nil
}

// Captured implements engine.FlowDecider.
func (h *handle) Captured(a *packet.Address) bool { return h.tokenOf(a) != 0 }

// Waits implements engine.FlowDecider.
func (h *handle) Waits(a *packet.Address) bool {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	_, waits := h.held.packets[h.tokenOf(a)]
	return waits
}

// Decide implements engine.FlowDecider.
func (h *handle) Decide(k flow.Key, v flow.Verdict) error {
	h.flows.Make(&h.cfg).Decide(k, v, nanoseconds(h.net.now()))
	return nil
}

// ForgetFlow implements engine.Flows.
func (h *handle) ForgetFlow(p *packet.Packet) (bool, error) {
	return h.flows.Forget(p, nanoseconds(h.net.now()))
}

// ForgetFlows implements engine.Flows.
func (h *handle) ForgetFlows() error {
	h.flows.ForgetAll()
	return nil
}

// Flow implements engine.Flows.
func (h *handle) Flow(p *packet.Packet) (flow.Record, int, bool, error) {
	return h.flows.Get(p, nanoseconds(h.net.now()))
}

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
	p, sniffs := &one[0], h.cfg.Flags&engine.FlagSniff != 0
	waits, err := h.decideFlow(p, v)
	switch {
	case err != nil || sniffs:
		return err
	case v == flow.Drop:
		return h.Drop(one)
	case waits:
		_, err = h.Accept(one)
	}
	return err
}

// decideFlow makes a verdict hold, and reports whether the packet itself waits for one.
func (h *handle) decideFlow(p *packet.Packet, v flow.Verdict) (waits bool, err error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	sniffs := h.cfg.Flags&engine.FlagSniff != 0
	switch {
	case h.closed:
		return false, net.ErrClosed
	case v == flow.Accept && !sniffs && h.sendDown:
		return false, engine.ErrShutdown
	case sniffs && !(p.Addr.Sniffed && p.Addr.Layer == h.layer), !sniffs && h.tokenOf(&p.Addr) == 0:
		return false, engine.ErrNotReceived
	}
	f, err := engine.FlowOf(p)
	if err != nil {
		return false, err
	}
	h.flows.Make(&h.cfg).Decide(f.Key, v, nanoseconds(h.net.now()))
	_, waits = h.held.packets[h.tokenOf(&p.Addr)]
	return waits, nil
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

//go:build linux

package linux

import (
	"fmt"
	"net"
	"sync/atomic"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/linux/capture"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/flowmap"
	"github.com/opendivert/divert/internal/linux/life"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/packet"
)

// flows are the verdicts of a handle for whole flows. Where the kernel decides they stand in maps that the handle's programs
// ask when the filter has matched; else in a table that its goroutines ask. A handle that decides no flow has neither, and
// its programs ask nothing: they are swapped for others at the first verdict.
type flows struct {
	maps    atomic.Pointer[flowmap.Maps] // nil until the first verdict, or a filter that counts
	table   engine.FlowTable
	follows bool        // verdicts are followed: the programs ask the maps; guarded by handle.mu
	drops   atomic.Bool // a rule drops the flows that the maps name
}

var _ engine.Flows = (*handle)(nil)

// DecideFlow implements engine.Flows.
func (h *handle) DecideFlow(one []packet.Packet, v flow.Verdict) error {
	return engine.DecideFlow(h, &h.cfg, h.layer, one, v)
}

// MayDecide implements engine.FlowDecider.
func (h *handle) MayDecide(sends bool) error {
	if sends {
		return h.maySend()
	}
	if h.life.Is(life.Closed) {
		return net.ErrClosed
	}
	return nil
}

// Captured implements engine.FlowDecider.
func (h *handle) Captured(a *packet.Address) bool { return h.sender.Captured(a) }

// Waits implements engine.FlowDecider.
func (h *handle) Waits(a *packet.Address) bool { return h.sender.Holds(a) }

// Decide implements engine.FlowDecider.
func (h *handle) Decide(k flow.Key, v flow.Verdict) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.entries == nil {
		if h.life.Is(life.Closed) {
			return net.ErrClosed
		}
		if !h.flows.follows {
			h.flows.follows = true
			if err := h.leadBy(h.filter, func() error { return nil }); err != nil {
				h.flows.follows = false
				return err
			}
		}
		h.flows.table.Make(&h.cfg).Decide(k, v, clock.Now())
		return nil
	}
	switch {
	case h.life.Is(life.Closed):
		return net.ErrClosed
	case h.life.Is(life.NoRecv):
		return nil // nothing is captured any more
	case h.life.Is(life.Lost):
		return engine.ErrRulesGone
	}
	if err := h.followFlows(v); err != nil {
		return err
	}
	return h.flows.maps.Load().Decide(&k, v)
}

// flowMaps returns the maps, with a table. It makes them when they are first needed. h.mu is held.
func (h *handle) flowMaps(table string) (*flowmap.Maps, error) {
	m := h.flows.maps.Load()
	if m == nil {
		var err error
		if m, err = flowmap.New(h.cfg.FlowTable, flow.IdleFor(h.cfg.FlowIdle)); err != nil {
			return nil, err
		}
		h.flows.maps.Store(m)
	}
	return m, m.Make(table)
}

// followFlows makes the programs follow verdicts, and the rules verdicts of a kind. h.mu is held.
func (h *handle) followFlows(v flow.Verdict) error {
	drops := v == flow.Drop && !h.flows.drops.Load()
	if h.flows.follows && !drops {
		return nil
	}
	if _, err := h.flowMaps(flowmap.Decided); err != nil {
		return err
	}
	if drops {
		if err := h.ns.Do(h.prepareDrops); err != nil {
			return err
		}
	}
	before := h.flows.follows
	h.flows.follows = true
	h.flows.drops.Store(drops || h.flows.drops.Load())
	err := h.setEntries(h.filter, h.processes)
	if err == nil && drops {
		err = h.ns.Do(func() error { return h.entry.Replace(h.rules()) })
	}
	if err != nil {
		h.flows.follows = before
		h.flows.drops.Store(h.flows.drops.Load() && !drops)
		return fmt.Errorf("programs and rules for the verdicts of flows: %w", err)
	}
	return nil
}

// prepareDrops opens and loads the parts of the first rule, which drops the flows that the maps name.
func (h *handle) prepareDrops() (err error) {
	if err := h.openNowhere(); err != nil {
		return err
	}
	for _, e := range h.entries.at {
		if err := e.Add(codegen.TakeFlow); err != nil {
			return err
		}
	}
	return nil
}

// flowWays are the ways of packets whose flow is dropped: before all others.
func (h *handle) flowWays() []capture.Way {
	if !h.flows.drops.Load() {
		return nil
	}
	return []capture.Way{{Take: codegen.TakeFlow, Action: rules.ToNowhere{Num: h.nowhere.Num()}}}
}

// flowDropped reports, for a packet that the programs could not decide on, whether its flow is dropped.
func (h *handle) flowDropped(p *packet.Packet) bool {
	if !h.flows.drops.Load() || !h.review.BySegment() {
		return false
	}
	f, err := engine.FlowOf(p)
	if err != nil || f.Begins() {
		return false
	}
	r, ok, err := h.flows.maps.Load().Get(&f.Key)
	return err == nil && ok && r.Verdict == flow.Drop
}

// ForgetFlow implements engine.Flows.
func (h *handle) ForgetFlow(p *packet.Packet) (had bool, err error) {
	if h.entries == nil {
		return h.flows.table.Forget(p, clock.Now())
	}
	f, err := engine.FlowOf(p)
	if err != nil {
		return false, err
	}
	err = h.withFlows(func(m *flowmap.Maps) error {
		had, err = m.Forget(&f.Key)
		return err
	})
	return had, err
}

// ForgetFlows implements engine.Flows.
func (h *handle) ForgetFlows() error {
	h.flows.table.ForgetAll()
	return h.withFlows((*flowmap.Maps).ForgetAll)
}

// Flow implements engine.Flows.
func (h *handle) Flow(p *packet.Packet) (r flow.Record, way int, ok bool, err error) {
	if h.entries == nil {
		return h.flows.table.Get(p, clock.Now())
	}
	f, err := engine.FlowOf(p)
	if err != nil {
		return r, 0, false, err
	}
	err = h.withFlows(func(m *flowmap.Maps) error {
		r, ok, err = m.Get(&f.Key)
		return err
	})
	return r, f.Way(), ok, err
}

// withFlows calls a function with the maps, if there are any.
func (h *handle) withFlows(f func(*flowmap.Maps) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.flows.maps.Load()
	switch {
	case h.life.Is(life.Closed):
		return net.ErrClosed
	case m == nil:
		return nil
	}
	return f(m)
}

// revokeFlows ends all verdicts, as another filter is in force. h.mu is held.
func (h *handle) revokeFlows() error {
	h.flows.table.Revoke()
	if m := h.flows.maps.Load(); m != nil {
		return m.Revoke()
	}
	return nil
}

// tallyFlows adds the packets that verdicts of flows have decided, which matched too.
func (h *handle) tallyFlows(s *engine.Stats) error {
	h.flows.table.Tally(s)
	if m := h.flows.maps.Load(); m != nil {
		sum, err := m.Totals()
		if err != nil {
			return err
		}
		s.SetFlows(sum)
	}
	s.Matched += s.FlowAccepted + s.FlowDropped
	s.FlowDropped += h.counts.FlowDropped.Load() // which have matched already
	s.FlowDroppedBytes += h.counts.FlowDroppedBytes.Load()
	return nil
}

// closeFlows lets go of all. No program follows it any more.
func (h *handle) closeFlows() error {
	if m := h.flows.maps.Load(); m != nil {
		return m.Close()
	}
	return nil
}

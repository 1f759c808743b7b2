package engine

import (
	"fmt"
	"sync/atomic"

	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Flows is a Handle that decides flows as a whole.
type Flows interface {
	// DecideFlow gives the flow of one packet that Recv has returned a verdict, Accept or Drop, and also the packet
	// itself if it waits for one. The caller has checked that the handle's flags allow it.
	DecideFlow(one []packet.Packet, v flow.Verdict) error
	// ForgetFlow removes the record of a packet's flow, and reports whether it had a verdict.
	ForgetFlow(p *packet.Packet) (bool, error)
	// ForgetFlows removes the records of all flows.
	ForgetFlows() error
	// Flow returns the record of a packet's flow; ok reports whether it has a verdict. way is the packet's index in
	// Record's arrays.
	Flow(p *packet.Packet) (r flow.Record, way int, ok bool, err error)
}

// ErrNotReceived is for a packet that the handle has not received.
var ErrNotReceived = fmt.Errorf("%w: the packet was not received from this handle; a flow is decided by the handle that receives it", ErrInvalid)

// FlowOf finds the flow of a packet. If there is none it fails with ErrInvalid and the reason.
func FlowOf(p *packet.Packet) (flow.Packet, error) {
	var parsed packet.Parsed
	parsed.Parse(p.Data)
	f, err := flow.Of(p.Data, &parsed)
	if err != nil {
		return f, fmt.Errorf("%w: the packet belongs to no flow: %w", ErrInvalid, err)
	}
	return f, nil
}

// FlowDecider is the part of a handle that DecideFlow needs.
type FlowDecider interface {
	Accept(ps []packet.Packet) (int, error)
	Dropper
	// MayDecide fails on a closed handle, and with ErrShutdown if the decision sends and the sending half is shut down.
	MayDecide(sends bool) error
	// Captured reports whether the packet of an address was diverted by this handle, not copied. Waits reports whether it
	// still waits to be sent or dropped.
	Captured(a *packet.Address) bool
	Waits(a *packet.Address) bool
	// Decide puts a verdict in force.
	Decide(k flow.Key, v flow.Verdict) error
}

// DecideFlow implements Flows.DecideFlow for a handle of a layer.
func DecideFlow(h FlowDecider, cfg *Config, layer packet.Layer, one []packet.Packet, v flow.Verdict) error {
	p, sniffs := &one[0], cfg.Flags&FlagSniff != 0
	if err := h.MayDecide(v == flow.Accept && !sniffs); err != nil {
		return err
	}
	if sniffs && !(p.Addr.Sniffed && p.Addr.Layer == layer) || !sniffs && !h.Captured(&p.Addr) {
		return ErrNotReceived
	}
	f, err := FlowOf(p)
	if err != nil {
		return err
	}
	if err := h.Decide(f.Key, v); err != nil {
		return err
	}
	switch {
	case sniffs:
		return nil // a copy
	case v == flow.Drop:
		return h.Drop(one)
	case h.Waits(&p.Addr):
		_, err = h.Accept(one)
	}
	return err
}

// FlowTable holds the flows of a handle that are decided in user space. Its zero value is empty and costs a packet almost
// nothing. It may be used by several goroutines at once.
type FlowTable struct{ table atomic.Pointer[flow.Table] }

// Make returns the table, and makes it on first use.
func (t *FlowTable) Make(cfg *Config) *flow.Table {
	if table := t.table.Load(); table != nil {
		return table
	}
	t.table.CompareAndSwap(nil, flow.NewTable(cfg.FlowTable, flow.IdleFor(cfg.FlowIdle)))
	return t.table.Load()
}

// Pass returns the verdict for a packet that has matched, and counts the packet if there is one. b needs only the
// beginning of the packet; length is that of the whole packet.
func (t *FlowTable) Pass(b []byte, length int, now int64) flow.Verdict {
	table := t.table.Load()
	if table == nil {
		return flow.Undecided
	}
	var parsed packet.Parsed
	parsed.Parse(b)
	f, ok := flow.Find(b, &parsed)
	if !ok {
		return flow.Undecided
	}
	f.Bytes = length
	return table.Pass(&f, now)
}

// Match is p.MatchExact for the packet in b, which it counts if p needs that.
func (t *FlowTable) Match(cfg *Config, p *prog.Program, b []byte, a *packet.Address, now int64) bool {
	if t.Idle(p) {
		return p.MatchExact(b, a)
	}
	var parsed packet.Parsed
	if !parsed.ParseExact(b) {
		return false
	}
	p, k := t.Known(cfg, p, b, &parsed, len(b), now)
	return p.MatchKnown(b, &parsed, a, k)
}

// Idle reports whether packets that p decides on need no work here: p does not count, and no flow has a verdict.
func (t *FlowTable) Idle(p *prog.Program) bool { return !p.CountsFlows() && t.table.Load() == nil }

// Known takes in a packet of length bytes: the packet may begin a flow, and is counted if the program needs that. It
// returns the values of the packet for the program. Packets of a dropped flow are not counted, and the program then
// decides without the counts.
func (t *FlowTable) Known(cfg *Config, p *prog.Program, b []byte, parsed *packet.Parsed, length int, now int64) (*prog.Program, prog.Known) {
	f, ok := flow.Find(b, parsed)
	if !ok {
		return p, prog.Known{HasCounts: true}
	}
	table := t.Make(cfg)
	table.Begin(&f)
	switch {
	case !p.CountsFlows():
		return p, prog.Known{}
	case table.Dropped(&f, now):
		return p.Uncounted(), prog.Known{}
	}
	f.Bytes = length
	counts := table.Count(&f, now)
	return p, prog.Known{HasCounts: true, Counts: &counts}
}

// Revoke ends all verdicts.
func (t *FlowTable) Revoke() {
	if table := t.table.Load(); table != nil {
		table.Revoke()
	}
}

// Forget is Flows.ForgetFlow.
func (t *FlowTable) Forget(p *packet.Packet, now int64) (bool, error) {
	f, err := FlowOf(p)
	table := t.table.Load()
	if err != nil || table == nil {
		return false, err
	}
	return table.Forget(f.Key, now), nil
}

// ForgetAll is Flows.ForgetFlows.
func (t *FlowTable) ForgetAll() {
	if table := t.table.Load(); table != nil {
		table.ForgetAll()
	}
}

// Get is Flows.Flow.
func (t *FlowTable) Get(p *packet.Packet, now int64) (r flow.Record, way int, ok bool, err error) {
	f, err := FlowOf(p)
	table := t.table.Load()
	if err != nil || table == nil {
		return r, 0, false, err
	}
	r, ok = table.Get(f.Key, now)
	return r, f.Way(), ok, nil
}

// Tally writes the counters into s, except Matched.
func (t *FlowTable) Tally(s *Stats) {
	if table := t.table.Load(); table != nil {
		s.SetFlows(table.Totals())
	}
}

// SetFlows sets the counters of flows.
func (s *Stats) SetFlows(t flow.Totals) {
	s.FlowAccepted, s.FlowAcceptedBytes = t.Accepted, t.AcceptedBytes
	s.FlowDropped, s.FlowDroppedBytes = t.Dropped, t.DroppedBytes
}

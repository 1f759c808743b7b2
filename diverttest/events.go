package diverttest

import (
	"fmt"
	"os"
	"slices"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// raisedAt returns the layer of an event, if a test can raise it.
func raisedAt(e divert.Event) (layer divert.Layer, ok bool) {
	for _, layer := range [...]divert.Layer{divert.LayerFlow, divert.LayerSocket} {
		if prog.EventLayers(e).Has(layer) {
			return layer, true
		}
	}
	return 0, false
}

// Raise raises an event for the handles of LayerFlow or LayerSocket: a.Event, with the data from a.SetFlow. It reports
// whether the operation was allowed: a handle of LayerSocket that matches and does not sniff refuses all but CLOSE, and
// hides them from those below (specification: api.md 13, 16 and 17).
//
// Raise ignores the other fields of a, except Loopback and, for flows, Outbound. A flow is deleted with the same data
// with which it was established. The error is divert.ErrInvalid for an event that cannot be raised, for deleting a flow
// that does not exist, or for establishing one that does. Events of LayerReflect come from opening and closing handles.
func (n *Network) Raise(a divert.Address) (allowed bool, err error) {
	layer, ok := raisedAt(a.Event)
	switch {
	case !ok:
		return false, fmt.Errorf("diverttest: %w: a test cannot raise the event %v", divert.ErrInvalid, a.Event)
	case a.Layer != 0 && a.Layer != layer:
		return false, fmt.Errorf("diverttest: %w: the event %v is one of the layer %v, not of %v", divert.ErrInvalid, a.Event, layer, a.Layer)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	d := a.Flow()
	e := divert.Address{
		Timestamp: n.now(), Layer: layer, Event: a.Event, Loopback: a.Loopback,
		Outbound: a.Event != packet.EventSocketAccept, IPv6: d.LocalAddr.Is6(),
	}
	e.SetFlow(d)
	if layer == divert.LayerSocket {
		return n.socket(e), nil
	}
	e.Outbound = a.Outbound
	err = n.flow(e, d)
	return err == nil, err
}

// socket raises an event of the layer SOCKET and reports whether it was allowed.
func (n *Network) socket(a packet.Address) bool {
	for _, h := range n.handles {
		if h.layer != a.Layer || h.recvDown || !h.program.Match(nil, &a) {
			continue
		}
		sniff := h.cfg.Flags&engine.FlagSniff != 0
		drop := h.cfg.Flags&engine.FlagDrop != 0
		told := a
		told.Sniffed = sniff || a.Event == packet.EventSocketClose
		switch h.stats.Matched++; {
		case drop:
			h.stats.Dropped++
		default:
			h.enqueue(nil, &told)
		}
		if !told.Sniffed {
			return false
		}
	}
	return true
}

// flow raises an event of the layer FLOW. Only handles that were open at the flow's beginning learn of its end.
func (n *Network) flow(a packet.Address, d packet.FlowData) error {
	since, there := n.flows[d]
	switch begins := a.Event == packet.EventFlowEstablished; {
	case begins && there:
		return fmt.Errorf("diverttest: %w: the flow is established already: %+v", divert.ErrInvalid, d)
	case begins:
		n.flows[d] = n.opened
		since = n.opened
	case !there:
		return fmt.Errorf("diverttest: %w: there is no such flow to be deleted: %+v", divert.ErrInvalid, d)
	default:
		delete(n.flows, d)
	}
	a.Sniffed = true
	for _, h := range n.handles {
		if h.layer == a.Layer && !h.recvDown && h.place.opened <= since && h.program.Match(nil, &a) {
			h.stats.Matched++
			h.enqueue(nil, &a)
		}
	}
	return nil
}

// reflect reports a handle to the handles of LayerReflect (api.md 18).
func (n *Network) reflect(e packet.Event, about *handle) {
	if about.layer == packet.LayerReflect {
		return
	}
	for _, h := range n.handles {
		if h.layer == packet.LayerReflect && !h.recvDown {
			h.hear(e, about)
		}
	}
}

// replay reports the open handles to a handle of LayerReflect, the oldest first.
func (n *Network) replay(h *handle) {
	open := slices.Clone(n.handles)
	slices.SortFunc(open, func(a, b *handle) int { return int(a.place.opened) - int(b.place.opened) })
	for _, other := range open {
		if other.layer != packet.LayerReflect {
			h.hear(packet.EventReflectOpen, other)
		}
	}
}

// hear queues an event about another handle if the filter matches it.
func (h *handle) hear(e packet.Event, about *handle) {
	a := packet.Address{Timestamp: h.net.now(), Layer: packet.LayerReflect, Event: e, Sniffed: true}
	a.SetReflect(packet.ReflectData{
		Timestamp: about.born, ProcessID: uint32(os.Getpid()), Layer: about.layer,
		Flags: about.cfg.Flags, Priority: about.cfg.Priority,
	})
	if h.program.Match(nil, &a) {
		h.stats.Matched++
		h.enqueue(append([]byte(engine.FilterData(about.program)), 0), &a)
	}
}

package diverttest

import (
	"math"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/packet"
)

// place is the position of a handle among the others: a higher one meets a packet earlier, and of two with the same
// priority the one opened last is the higher (specification: api.md 13).
type place struct {
	priority int
	opened   uint64
}

// above is the place of packets that no handle has injected.
var above = place{priority: math.MaxInt}

// below reports whether p is lower than q.
func (p place) below(q place) bool {
	return p.priority < q.priority || p.priority == q.priority && p.opened < q.opened
}

// carry takes a packet past the handles below a place. It keeps data. The network is locked.
func (n *Network) carry(data []byte, a packet.Address, from place) {
	a.Timestamp = n.now()
	a.IPv6 = len(data) > 0 && data[0]>>4 == 6
	var parsed packet.Parsed
	whole := parsed.ParseExact(data)
	for _, h := range n.handles {
		if whole && h.place.below(from) && h.sees(data, &parsed, &a) && h.capture(data, a) {
			return
		}
	}
	n.deliver(data, a)
}

// sees reports whether a handle may see a packet (api.md 14.1 and 14.4).
func (h *handle) sees(data []byte, parsed *packet.Parsed, a *packet.Address) bool {
	switch {
	case h.layer != a.Layer || h.recvDown:
		return false
	case a.Layer == packet.LayerNetwork && !a.Outbound && a.Loopback:
		return false
	case a.Layer == packet.LayerNetwork && !a.Outbound && parsed.Fragment && h.cfg.Flags&engine.FlagFragments == 0:
		return false // seen only after reassembly
	}
	return h.flows.Match(&h.cfg, h.program, data, a, nanoseconds(a.Timestamp))
}

// capture treats a matching packet as the handle's flags demand, and reports whether the packet ends here (api.md 14.2).
func (h *handle) capture(data []byte, a packet.Address) bool {
	h.stats.Matched++
	sniff := h.cfg.Flags&engine.FlagSniff != 0
	switch h.flows.Pass(data, len(data), nanoseconds(a.Timestamp)) {
	case flow.Accept:
		return false
	case flow.Drop:
		return true
	}
	switch {
	case h.cfg.Flags&engine.FlagDrop != 0:
		h.stats.Dropped++
		return true
	case h.cfg.FailOpen && !sniff && !h.queue.Room(len(data)):
		h.stats.Passed++
		h.net.deliver(data, a) // past the handles below too, as on Linux
		return true
	}
	if a.Sniffed = sniff; !sniff {
		h.captured++
		token{h.tag, h.captured}.put(&a)
	}
	h.enqueue(data, &a)
	return !sniff
}

// enqueue queues a matching packet.
func (h *handle) enqueue(data []byte, a *packet.Address) {
	if !h.queue.Add(data, a) {
		h.stats.DroppedLong++ // longer than the whole queue
	}
}

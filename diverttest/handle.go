package diverttest

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"sync/atomic"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// handle is an open handle; see engine.Handle. The network's lock guards everything but its queue. The lock's holder may
// take the queue's lock, not the other way round.
type handle struct {
	net   *Network
	cfg   engine.Config
	layer packet.Layer
	place place
	born  int64 // time at which it was opened
	tag   uint32
	queue *backlog.Queue

	full, old atomic.Uint64 // lost by the queue

	program  *prog.Program
	beside   []*prog.Program // programs whose interfaces are also kept current, see Follow
	stats    engine.Stats    // without packets that wait or that the queue has lost
	captured uint64          // packets with a token
	held     held
	flows    engine.FlowTable
	recvDown bool
	sendDown bool
	closed   bool
}

// open is an engine.Opener.
func (n *Network) open(cfg engine.Config) (engine.Handle, error) {
	if cfg.Hang.After != 0 {
		return nil, fmt.Errorf("%w: nothing waits for a program that hangs in a fake network", engine.ErrNotSupported)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.opened++
	h := &handle{
		net: n, cfg: cfg, layer: cfg.Program.Layer(), program: n.known(cfg.Program), born: n.now(),
		place: place{priority: int(cfg.Priority), opened: n.opened}, tag: newTag(),
	}
	h.queue = backlog.New(backlog.Config{Layer: h.layer, Limits: cfg.Limits, Now: n.now, Tick: clock.Tick(), Dropped: h.lost})
	if h.layer == packet.LayerReflect {
		n.replay(h)
	}
	i := slices.IndexFunc(n.handles, func(other *handle) bool { return other.place.below(h.place) })
	if i < 0 {
		i = len(n.handles)
	}
	n.handles = slices.Insert(n.handles, i, h)
	n.reflect(packet.EventReflectOpen, h)
	return h, nil
}

// lost counts an item that the queue has lost. The queue is locked.
func (h *handle) lost(_ *backlog.Item, why backlog.Reason) {
	if why == backlog.Old {
		h.old.Add(1)
	} else {
		h.full.Add(1)
	}
}

// Recv implements engine.Handle.
func (h *handle) Recv(w engine.Wait, ps []packet.Packet) (int, error) {
	n, err := h.queue.Recv(w, ps)
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.stats.Received += uint64(n)
	if packets(h.layer) && h.cfg.Flags&engine.FlagSniff == 0 {
		for i := range ps[:n] {
			h.stats.Abandoned += h.held.put(&ps[i], h.queue.Limits().Length)
		}
	}
	return n, err
}

// Wake implements engine.Handle: no call waits in the system.
func (h *handle) Wake() {}

// release releases an item that was captured and not received, when the handle closes (api.md 10). It keeps data.
func (h *handle) release(data []byte, a packet.Address) {
	if packets(h.layer) && h.cfg.Flags&engine.FlagSniff == 0 {
		if a.Impostor && !packet.DecrementTTL(data) {
			h.stats.Dropped++
			return
		}
		h.net.carry(data, onward(a), h.place)
	}
	h.stats.Passed++
}

// Return implements engine.Handle.
func (h *handle) Return(ps []packet.Packet) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	for i := range ps {
		p := &ps[i]
		if packets(h.layer) && h.cfg.Flags&engine.FlagSniff == 0 {
			c, ok := h.held.claim(h.tokenOf(&p.Addr))
			if !ok {
				continue // the packet has given way to others
			}
			p = &c
		}
		h.stats.Received--
		h.release(p.Data, p.Addr)
	}
}

// change calls f with the network locked, unless the handle is closed.
func (h *handle) change(f func()) error {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if h.closed {
		return net.ErrClosed
	}
	f()
	return nil
}

// SetLimits implements engine.Handle.
func (h *handle) SetLimits(l engine.Limits) error {
	return h.change(func() { h.queue.SetLimits(l) })
}

// SetFilter implements engine.Handle.
func (h *handle) SetFilter(p *prog.Program) error {
	return h.change(func() {
		h.program = h.net.known(p)
		h.flows.Revoke()
	})
}

// Follow implements engine.Follower.
func (h *handle) Follow(p *prog.Program) error {
	return h.change(func() {
		h.net.tellNames(p)
		h.beside = append(h.beside, p)
	})
}

// Shutdown implements engine.Handle.
func (h *handle) Shutdown(how engine.How) error {
	return h.change(func() {
		if how&engine.ShutdownSend != 0 {
			h.sendDown = true
		}
		if how&engine.ShutdownRecv != 0 {
			h.recvDown = true
			h.queue.Drain()
		}
	})
}

// Close implements engine.Handle.
func (h *handle) Close() error {
	return h.change(func() {
		h.closed = true
		h.net.handles = slices.DeleteFunc(h.net.handles, func(other *handle) bool { return other == h })
		var left []packet.Packet
		h.queue.End(func(i *backlog.Item) {
			left = append(left, packet.Packet{Data: bytes.Clone(i.Data), Addr: i.Addr})
		})
		for _, p := range left {
			h.release(p.Data, p.Addr)
		}
		h.held = held{} // received and not sent: gone
		h.net.reflect(packet.EventReflectClose, h)
	})
}

// Stats implements engine.Handle.
func (h *handle) Stats() (engine.Stats, error) {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	s := h.stats
	s.DroppedFull, s.DroppedOld = h.full.Load(), h.old.Load()
	h.flows.Tally(&s)
	// Packets that a receive call has removed and not counted yet count as waiting.
	s.Waiting = s.Matched - (s.Received + s.Dropped + s.DroppedFull + s.DroppedOld + s.DroppedLong + s.Passed + s.FlowAccepted + s.FlowDropped)
	return s, nil
}

// Description implements engine.Handle.
func (h *handle) Description() string { return "the fake network of package diverttest" }

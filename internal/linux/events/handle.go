//go:build linux

package events

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/tally"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// handle is an open handle: a feed raises events, which wait in the backlog.
type handle struct {
	cfg    engine.Config
	layer  packet.Layer
	ns     *netns.Namespace
	entry  *rules.Entry // nil for REFLECT, whose handles no other handle sees
	feed   Feed
	queue  *backlog.Queue
	counts tally.Counts

	mu       sync.Mutex // serialises Shutdown, Close and SetFilter
	recvDown bool
	sendDown atomic.Bool
	closed   atomic.Bool
}

// Env is the part of its handle that a feed needs.
type Env struct {
	engine.Config
	Namespace *netns.Namespace
	Key       cursor.Key // the handle's place among those of the namespace; zero for REFLECT

	// Raise queues an event, with a copy of data. It may be called from several goroutines, from before Open returns until Stop
	// does.
	Raise func(data []byte, a *packet.Address)

	Failed  *atomic.Uint64 // operations that failed: engine.Stats.Failed
	Dropped *atomic.Uint64 // operations refused without an event, as far as the feed counts them: a part of engine.Stats.Dropped
}

// Feed raises the events of a handle, by Env.Raise. The handle calls one method at a time, Describe excepted.
type Feed interface {
	SetFilter(p *prog.Program) error
	// Stop raises the events that happened before, and then none any more.
	Stop() error
	// Close releases everything that the feed holds, after Stop or without.
	Close() error
	// Tally adds the events that were lost or refused before user space knew of them.
	Tally(s *engine.Stats) error
	// Describe says in words how the handle is served and what it cannot see.
	Describe() string
}

// Open opens a handle in the network namespace of the calling thread, with the feed that open opens there.
func Open(cfg engine.Config, open func(Env) (Feed, error)) (engine.Handle, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	h := &handle{cfg: cfg, layer: cfg.Program.Layer(), ns: ns}
	h.queue = backlog.New(backlog.Config{Layer: h.layer, Limits: cfg.Limits, Now: clock.Now, Dropped: h.lost})
	if h.layer == packet.LayerReflect {
		h.feed, err = open(h.env())
	} else {
		err = h.enter(open)
	}
	if err != nil {
		h.release()
		return nil, err
	}
	return h, nil
}

// env returns the part of the handle that the feed needs.
func (h *handle) env() Env {
	e := Env{Config: h.cfg, Namespace: h.ns, Raise: h.raise, Failed: &h.counts.Failed, Dropped: &h.counts.Dropped}
	if h.entry != nil {
		e.Key = h.entry.Key
	}
	return e
}

// enter reserves a place among the handles, opens the feed and then lets REFLECT handles see the handle.
func (h *handle) enter(open func(Env) (Feed, error)) (err error) {
	owner := rules.Owner{
		ID: rand.Uint64(), PID: os.Getpid(), Opened: clock.Now(),
		Priority: h.cfg.Priority, Layer: uint8(h.layer), Flags: h.cfg.Flags, Filter: engine.FilterData(h.cfg.Program),
	}
	if h.entry, err = rules.Open(h.ns, owner); err != nil {
		return err
	}
	if err := h.ns.Do(func() (err error) { h.feed, err = open(h.env()); return err }); err != nil {
		return err
	}
	return h.entry.Install(nil)
}

// raise queues an event.
func (h *handle) raise(data []byte, a *packet.Address) {
	if h.queue.Add(data, a) {
		h.counts.Matched.Add(1)
	}
}

// lost counts an event that had to leave the queue.
func (h *handle) lost(_ *backlog.Item, why backlog.Reason) { h.counts.Lost(why) }

// Recv implements engine.Handle.
func (h *handle) Recv(w engine.Wait, ps []packet.Packet) (int, error) {
	n, err := h.queue.Recv(w, ps)
	h.counts.Received.Add(uint64(n))
	return n, err
}

// Wake implements engine.Handle: nobody waits in a system call.
func (h *handle) Wake() {}

// Return implements engine.Handle.
func (h *handle) Return(ps []packet.Packet) {
	h.counts.Received.Add(-uint64(len(ps)))
	h.counts.Passed.Add(uint64(len(ps)))
}

// Send implements engine.Handle: there is nothing to send at these layers.
func (h *handle) Send([]packet.Packet) (int, error) {
	switch {
	case h.closed.Load():
		return 0, net.ErrClosed
	case h.sendDown.Load():
		return 0, engine.ErrShutdown
	}
	return 0, engine.ErrReceiveOnly
}

// Accept implements engine.Handle.
func (h *handle) Accept(ps []packet.Packet) (int, error) { return h.Send(ps) }

// SetLimits implements engine.Handle.
func (h *handle) SetLimits(l engine.Limits) error {
	if h.closed.Load() {
		return net.ErrClosed
	}
	h.queue.SetLimits(l)
	return nil
}

// SetFilter implements engine.Handle.
func (h *handle) SetFilter(p *prog.Program) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed.Load():
		return net.ErrClosed
	case h.recvDown:
		return nil
	}
	if err := h.feed.SetFilter(p); err != nil || h.entry == nil {
		return err
	}
	return h.entry.SetFilter(engine.FilterData(p))
}

// Shutdown implements engine.Handle.
func (h *handle) Shutdown(how engine.How) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed.Load() {
		return net.ErrClosed
	}
	if how&engine.ShutdownSend != 0 {
		h.sendDown.Store(true)
	}
	if how&engine.ShutdownRecv == 0 || h.recvDown {
		return nil
	}
	h.recvDown = true
	err := h.feed.Stop()
	h.queue.Drain()
	return err
}

// Close implements engine.Handle.
func (h *handle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed.Swap(true) {
		return net.ErrClosed
	}
	return h.release()
}

// release gives back the resources of an opened, or half opened, handle.
func (h *handle) release() error {
	var errs []error
	h.queue.End(func(*backlog.Item) { h.counts.Passed.Add(1) })
	if h.feed != nil {
		errs = append(errs, h.feed.Close())
	}
	if h.entry != nil {
		errs = append(errs, h.entry.Close())
	}
	errs = append(errs, h.ns.Close())
	return errors.Join(errs...)
}

// Stats implements engine.Handle.
func (h *handle) Stats() (engine.Stats, error) {
	c := &h.counts
	s := engine.Stats{
		Matched: c.Matched.Load(), Received: c.Received.Load(),
		DroppedFull: c.Full.Load(), DroppedOld: c.Old.Load(), Passed: c.Passed.Load(),
	}
	s.Waiting = uint64(h.queue.Len())
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed.Load() {
		return s, nil
	}
	return s, h.feed.Tally(&s)
}

// Description implements engine.Handle.
func (h *handle) Description() string { return h.feed.Describe() }

//go:build linux

package linux

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/tally"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// events is an open handle of the layers FLOW, SOCKET and REFLECT: a feed raises events, which wait in
// the backlog.
type events struct {
	cfg    engine.Config
	layer  packet.Layer
	ns     *netns.Namespace
	entry  *rules.Entry // nil for REFLECT: its handles are nobody's to see
	feed   feed
	queue  *backlog.Queue
	counts tally.Counts

	mu       sync.Mutex // serialises Shutdown, Close and SetFilter
	recvDown bool
	sendDown atomic.Bool
	closed   atomic.Bool
}

// feed raises the events of a handle, by events.raise.
type feed interface {
	setFilter(p *prog.Program) error
	// stop raises what happened before, and then no event any more.
	stop() error
	// close gives back what the feed holds, after stop or without.
	close() error
	// tally adds what was lost or refused before user space knew of it.
	tally(s *engine.Stats) error
	describe() string
}

// openEvents opens a handle of one of the layers.
func openEvents(cfg engine.Config) (engine.Handle, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	h := &events{cfg: cfg, layer: cfg.Program.Layer(), ns: ns}
	h.queue = backlog.New(backlog.Config{Layer: h.layer, Limits: cfg.Limits, Now: clock.Now, Dropped: h.lost})
	if h.layer == packet.LayerReflect {
		err = h.follow()
	} else {
		err = h.enter()
	}
	if err != nil {
		h.release()
		return nil, err
	}
	return h, nil
}

// enter opens the feed and enters the handle into the registry.
func (h *events) enter() (err error) {
	owner := rules.Owner{
		ID: rand.Uint64(), PID: os.Getpid(), Opened: clock.Now(),
		Priority: h.cfg.Priority, Layer: uint8(h.layer), Flags: h.cfg.Flags, Filter: engine.FilterData(h.cfg.Program),
	}
	if h.entry, err = rules.Open(h.ns, owner); err != nil {
		return err
	}
	var f *socketFeed
	err = h.ns.Do(func() (err error) { f, err = newSocketFeed(h, h.entry.Key); return err })
	if err != nil {
		return err
	}
	h.feed = f
	return h.entry.Install(nil)
}

// follow opens the feed of a REFLECT handle.
func (h *events) follow() error {
	r, err := newRegistry(h)
	if err == nil {
		h.feed = r
	}
	return err
}

// raise queues an event.
func (h *events) raise(data []byte, a *packet.Address) {
	if h.queue.Add(data, a) {
		h.counts.Matched.Add(1)
	}
}

// lost counts an event that had to leave the queue.
func (h *events) lost(_ *backlog.Item, why backlog.Reason) { h.counts.Lost(why) }

// Recv implements engine.Handle.
func (h *events) Recv(w engine.Wait, ps []packet.Packet) (int, error) {
	n, err := h.queue.Recv(w, ps)
	h.counts.Received.Add(uint64(n))
	return n, err
}

// Wake implements engine.Handle: nobody waits in a system call.
func (h *events) Wake() {}

// Return implements engine.Handle.
func (h *events) Return(ps []packet.Packet) {
	h.counts.Received.Add(-uint64(len(ps)))
	h.counts.Passed.Add(uint64(len(ps)))
}

// Send implements engine.Handle: there is nothing to send at these layers.
func (h *events) Send([]packet.Packet) (int, error) {
	switch {
	case h.closed.Load():
		return 0, net.ErrClosed
	case h.sendDown.Load():
		return 0, engine.ErrShutdown
	}
	return 0, engine.ErrReceiveOnly
}

// Accept implements engine.Handle.
func (h *events) Accept(ps []packet.Packet) (int, error) { return h.Send(ps) }

// SetLimits implements engine.Handle.
func (h *events) SetLimits(l engine.Limits) error {
	if h.closed.Load() {
		return net.ErrClosed
	}
	h.queue.SetLimits(l)
	return nil
}

// SetFilter implements engine.Handle.
func (h *events) SetFilter(p *prog.Program) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.closed.Load():
		return net.ErrClosed
	case h.recvDown:
		return nil
	}
	if err := h.feed.setFilter(p); err != nil || h.entry == nil {
		return err
	}
	return h.entry.SetFilter(engine.FilterData(p))
}

// Shutdown implements engine.Handle.
func (h *events) Shutdown(how engine.How) error {
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
	err := h.feed.stop()
	h.queue.Drain()
	return err
}

// Close implements engine.Handle.
func (h *events) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed.Swap(true) {
		return net.ErrClosed
	}
	return h.release()
}

// release gives back what an opened, or half opened, handle holds.
func (h *events) release() error {
	var errs []error
	h.queue.End(func(*backlog.Item) { h.counts.Passed.Add(1) })
	if h.feed != nil {
		errs = append(errs, h.feed.close())
	}
	if h.entry != nil {
		errs = append(errs, h.entry.Close())
	}
	errs = append(errs, h.ns.Close())
	return errors.Join(errs...)
}

// Stats implements engine.Handle.
func (h *events) Stats() (engine.Stats, error) {
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
	return s, h.feed.tally(&s)
}

// Description implements engine.Handle.
func (h *events) Description() string { return h.feed.describe() }

// eventLayers are the layers that openEvents opens.
var eventLayers = [packet.NumLayers]bool{packet.LayerFlow: true, packet.LayerSocket: true, packet.LayerReflect: true}

// needEBPF says that a layer cannot be served without programs in the kernel.
func needEBPF(layer packet.Layer, err error) error {
	return fmt.Errorf("the layer %v: %w: it needs eBPF programs on cgroups: %w", layer, engine.ErrNotSupported, refusal(err))
}

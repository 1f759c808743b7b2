package windows

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// opener opens a handle of the driver and starts it with a filter.
type opener func(priority int16, p *plan) (driver, error)

// handle is an open handle.
type handle struct {
	cfg   engine.Config
	layer packet.Layer
	open  opener

	oldest   atomic.Pointer[source]        // packets are received from here
	newest   atomic.Pointer[source]        // packets are sent, and limits set, here
	pump     *pump                         // nil if no filter is judged: receive calls then go to the driver directly
	spill    atomic.Pointer[backlog.Queue] // without a pump: packets that SetFilter took from old sources; nil if it never did
	received outstanding
	kept     keeper
	flows    engine.FlowTable

	mu       sync.Mutex // serialises the calls that change the handle
	limits   engine.Limits
	recvDown bool
	sendDown atomic.Bool
	closed   atomic.Bool

	counts counts
}

// source is a driver's handle and its filter. While the filter is exchanged there are two: the old one captures nothing
// any more, and is received from until it is empty.
type source struct {
	driver  driver
	plan    *plan
	program atomic.Pointer[prog.Program] // decides if the plan is judged
	next    atomic.Pointer[source]

	emptying sync.RWMutex // held for reading by receive calls, and for writing while SetFilter empties the source
	retired  int64        // time of its last capture, by clock; guarded by handle.mu
}

// counts are the counters. The driver keeps none.
type counts struct {
	matched, received, reinjected, injected, failed atomic.Uint64
	full, old, long, passed, abandoned              atomic.Uint64
}

// defaults are the initial limits of a driver's handle (specification: api.md 1.1).
var defaults = engine.Limits{Length: 4096, Time: 2 * time.Second, Size: 4 << 20}

// newHandle opens a handle.
func newHandle(cfg engine.Config, open opener) (*handle, error) {
	h := &handle{cfg: cfg, layer: cfg.Program.Layer(), open: open, limits: defaults}
	h.received.tag = rand.Uint32() | 1
	pl, err := planFor(&h.cfg, cfg.Program)
	if err != nil {
		return nil, err
	}
	s, err := h.newSource(pl)
	if err != nil {
		return nil, err
	}
	h.oldest.Store(s)
	h.newest.Store(s)
	if s.plan.judged {
		h.pump = newPump(h)
	}
	if err := h.SetLimits(cfg.Limits); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// newSource opens a handle of the driver for a filter.
func (h *handle) newSource(pl *plan) (*source, error) {
	d, err := h.open(h.cfg.Priority, pl)
	if err != nil {
		return nil, err
	}
	s := &source{driver: d, plan: pl}
	s.program.Store(pl.program)
	return s, nil
}

// Recv implements engine.Handle.
func (h *handle) Recv(w engine.Wait, ps []packet.Packet) (n int, err error) {
	if h.pump != nil {
		n, err = h.pump.inbox.Recv(w, ps)
	} else {
		for n == 0 && err == nil {
			if n, _, err = h.receive(w, ps); n > 0 {
				n = h.sift(ps[:n])
			}
		}
	}
	h.counts.received.Add(uint64(n))
	if h.holds() {
		for i := range ps[:n] {
			h.received.put(&ps[i].Addr)
		}
	}
	return n, err
}

// holds reports whether the handle receives packets that do not go on by themselves.
func (h *handle) holds() bool { return packets(h.layer) && h.cfg.Flags&engine.FlagSniff == 0 }

// receive receives from the oldest source, and returns that source. Once it is empty for good, receive goes on to the
// next.
func (h *handle) receive(w engine.Wait, ps []packet.Packet) (int, *source, error) {
	for {
		s := h.oldest.Load()
		n, err := h.take(s, w, ps)
		switch {
		case n > 0:
			return n, s, nil
		case errors.Is(err, engine.ErrShortBuffer):
			h.counts.matched.Add(1)
			h.counts.long.Add(1) // longer than any packet: the driver has cut it, and it cannot go on
		case err == engine.ErrInterrupted && !w.Ended():
			// The interruption was for another call.
		case err == io.EOF || err == net.ErrClosed || err == engine.ErrInterrupted:
			if h.oldest.Load() == s && !(err == io.EOF && h.advance(s)) {
				return 0, s, err
			}
		default:
			return 0, s, err
		}
	}
}

// take receives from a source; packets taken from older ones come first.
func (h *handle) take(s *source, w engine.Wait, ps []packet.Packet) (int, error) {
	s.emptying.RLock()
	defer s.emptying.RUnlock()
	if spill := h.spill.Load(); spill != nil {
		if w.Ended() {
			return 0, engine.ErrInterrupted
		}
		if n := spill.Poll(ps); n > 0 {
			return n, nil
		}
	}
	n, err := s.driver.receive(w, ps, h.layer)
	if h.pump == nil {
		h.counts.matched.Add(uint64(n))
	}
	return n, err
}

// advance makes the next source the oldest and closes s. It returns false if there is none.
func (h *handle) advance(s *source) bool {
	next := s.next.Load()
	if next == nil {
		return false
	}
	if h.oldest.CompareAndSwap(s, next) {
		h.newest.CompareAndSwap(s, next)
		_ = s.driver.close() // its queue is empty
	}
	return true
}

// Send implements engine.Handle.
func (h *handle) Send(ps []packet.Packet) (int, error) {
	switch {
	case h.closed.Load():
		return 0, net.ErrClosed
	case h.sendDown.Load():
		return 0, engine.ErrShutdown
	case h.cfg.Flags&engine.FlagRecvOnly != 0:
		return 0, engine.ErrReceiveOnly
	}
	claimed := uint64(0)
	for i := range ps {
		if h.received.claim(&ps[i].Addr) {
			claimed++
		}
	}
	n, err := h.send(ps)
	sent := uint64(n)
	h.counts.failed.Add(uint64(len(ps)) - sent)
	h.counts.reinjected.Add(min(claimed, sent))
	h.counts.injected.Add(sent - min(claimed, sent))
	return n, err
}

// send sends with the newest source.
func (h *handle) send(ps []packet.Packet) (int, error) {
	for {
		s := h.newest.Load()
		n, err := s.driver.send(ps)
		if err == net.ErrClosed && h.newest.Load() != s {
			continue // the source was exchanged meanwhile
		}
		return n, err
	}
}

// Accept implements engine.Handle. The driver keeps nothing of a received packet, so it is sent: unchanged if the handle
// kept it, else with the bytes of ps.
func (h *handle) Accept(ps []packet.Packet) (int, error) {
	if h.kept.length() == 0 {
		return h.Send(ps)
	}
	whole := h.kept.restore(&h.received, ps)
	defer h.kept.release(whole)
	return h.Send(whole.packets)
}

// Keep implements engine.Keeper: it copies the packet. The limits are those of the handle's queue; beyond them the oldest
// packets make way, and count as abandoned.
func (h *handle) Keep(p *packet.Packet) {
	id, ok := h.received.id(&p.Addr)
	if !ok || h.closed.Load() {
		return
	}
	h.mu.Lock()
	limits := h.limits
	h.mu.Unlock()
	h.counts.abandoned.Add(uint64(h.kept.put(id, p, limits)))
}

// Drop implements engine.Dropper: it forgets kept packets.
func (h *handle) Drop(ps []packet.Packet) error {
	if h.closed.Load() {
		return net.ErrClosed
	}
	for i := range ps {
		id, _ := h.received.id(&ps[i].Addr)
		if h.received.claim(&ps[i].Addr) {
			h.counts.abandoned.Add(1)
			h.kept.forget(id)
		}
	}
	return nil
}

// Wake implements engine.Handle.
func (h *handle) Wake() {
	if h.pump == nil { // else no call waits in the driver
		h.interrupt()
	}
}

// interrupt wakes calls that wait in the drivers.
func (h *handle) interrupt() {
	for s := h.oldest.Load(); s != nil; s = s.next.Load() {
		s.driver.interrupt()
	}
}

// SetLimits implements engine.Handle.
func (h *handle) SetLimits(l engine.Limits) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed.Load() {
		return net.ErrClosed
	}
	if err := setLimits(h.newest.Load().driver, h.limits, l); err != nil {
		return err
	}
	h.limits = l
	if q := h.queue(); q != nil {
		q.SetLimits(l)
	}
	return nil
}

// setLimits sets the limits of a driver's queue that differ. If that fails half way it restores the old ones.
func setLimits(d driver, is, want engine.Limits) error {
	var done []func() error
	for _, p := range [...]struct {
		param    uint32
		is, want uint64
	}{
		{paramQueueLength, uint64(is.Length), uint64(want.Length)},
		{paramQueueTime, uint64(is.Time.Milliseconds()), uint64(want.Time.Milliseconds())},
		{paramQueueSize, uint64(is.Size), uint64(want.Size)},
	} {
		if p.is == p.want {
			continue
		}
		if err := d.setParam(p.param, p.want); err != nil {
			for _, undo := range done {
				err = errors.Join(err, undo())
			}
			return err
		}
		done = append(done, func() error { return d.setParam(p.param, p.is) })
	}
	return nil
}

// SetFilter implements engine.Handle. A handle of the driver keeps its filter for life, so another takes over: it
// captures before the old one ends, and is received from once the old one is empty. So no packet is missed, and no held
// packet comes twice; but copies of packets, and socket events, may come from both for a moment. The layers FLOW and
// REFLECT take another filter only if the interpreter decides: a new handle of the driver would not know the existing
// flows, and would report the existing handles again. Packets that a handle with SendOnly has held back go on, as when it
// closes.
func (h *handle) SetFilter(p *prog.Program) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed.Load() {
		return net.ErrClosed
	}
	old := h.newest.Load()
	pl, err := planFor(&h.cfg, p)
	if err != nil {
		return err
	}
	switch {
	case h.pump == nil && pl.judged:
		return fmt.Errorf("on a handle whose filter the driver decides, a filter that needs the interpreter: %w on Windows; "+
			"open it with the interpreter", engine.ErrNotSupported)
	case h.pump != nil && !pl.judged:
		if err := pl.judge(&h.cfg, h.layer); err != nil {
			return err
		}
	}
	switch {
	case old.plan.judged && old.plan.open:
		old.program.Store(p)
		h.flows.Revoke()
		return nil
	case h.layer == packet.LayerFlow || h.layer == packet.LayerReflect:
		return fmt.Errorf("another filter at the layer %v: %w on Windows, unless the handle is opened with the interpreter",
			h.layer, engine.ErrNotSupported)
	case h.recvDown:
		return nil // the handle captures nothing any more, whatever the filter
	}
	if err := h.exchange(old, pl); err != nil {
		return err
	}
	h.flows.Revoke()
	return nil
}

// exchange puts a new source in the place of the newest. The order matters: as long as the old one captures, packets are
// sent with it, because the new one counts as the higher and does not see them; the old one would see packets sent with
// the new one.
func (h *handle) exchange(old *source, pl *plan) error {
	if err := h.emptyOld(); err != nil {
		return err
	}
	s, err := h.newSource(pl)
	if err != nil {
		return err
	}
	if err := setLimits(s.driver, defaults, h.limits); err != nil {
		return errors.Join(err, s.driver.close())
	}
	old.next.Store(s)
	if err := old.driver.shutdown(engine.ShutdownRecv); err != nil && h.oldest.Load() != s { // else it was shut down and empty already
		old.next.Store(nil)
		return errors.Join(err, s.driver.close())
	}
	old.retired = clock()
	h.newest.Store(s)
	if h.cfg.Flags&(engine.FlagDrop|engine.FlagSendOnly) != 0 {
		h.advance(old) // no receive call does this
	}
	return nil
}

// Shutdown implements engine.Handle.
func (h *handle) Shutdown(how engine.How) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed.Load() {
		return net.ErrClosed
	}
	newest := h.newest.Load()
	if newest.plan.reinjects(&h.cfg) {
		// Packets that do not match must still go back; only the program's sends fail.
		if how&engine.ShutdownRecv != 0 {
			if err := newest.driver.shutdown(engine.ShutdownRecv); err != nil {
				return err
			}
		}
	} else if err := newest.driver.shutdown(how); err != nil {
		return err
	}
	if how&engine.ShutdownRecv != 0 {
		h.recvDown = true
	}
	if how&engine.ShutdownSend != 0 {
		h.sendDown.Store(true)
	}
	return nil
}

// Close implements engine.Handle.
func (h *handle) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed.Swap(true) {
		return net.ErrClosed
	}
	if h.pump != nil {
		h.pump.close()
	}
	h.kept.clear()
	h.letGo()
	var errs []error
	for s := h.oldest.Load(); s != nil; s = s.next.Load() {
		if err := s.driver.close(); err != nil && err != net.ErrClosed {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Stats implements engine.Handle. The driver keeps no counters, so these are those of user space. Matched counts the
// matching packets that came here. The driver reports neither the packets that it drops, on a handle that drops or
// because its queue is full or a packet too old, nor the number in its queue. Dropped is therefore always 0, and Waiting,
// DroppedFull, DroppedOld and Passed cover only the queue in user space, which the interpreter needs, and SetFilter while
// packets of earlier filters wait. Lost and Foreign are always 0. Abandoned counts packets that were dropped, or that
// were cut and could not be kept; the handle keeps no other received packets. Reinjected counts sent packets that are
// among the 16384 received last; others count as injected. If the driver refuses packets of a batch, Failed counts one;
// if it stops at one, Failed counts the whole batch.
func (h *handle) Stats() (engine.Stats, error) {
	c := &h.counts
	s := engine.Stats{
		Matched: c.matched.Load(), Received: c.received.Load(), Passed: c.passed.Load(),
		DroppedFull: c.full.Load(), DroppedOld: c.old.Load(), DroppedLong: c.long.Load(),
		Reinjected: c.reinjected.Load(), Injected: c.injected.Load(), Failed: c.failed.Load(),
		Abandoned: c.abandoned.Load(),
	}
	h.flows.Tally(&s)
	if q := h.queue(); q != nil {
		s.Waiting = uint64(q.Len())
	}
	return s, nil
}

// Description implements engine.Handle.
func (h *handle) Description() string {
	s := h.newest.Load()
	switch {
	case !s.plan.judged:
		return s.driver.describe() + ", which decides alone"
	case s.plan.open:
		return s.driver.describe() + ", which passes everything to the interpreter"
	}
	return s.driver.describe() + ", with a wider filter, and the interpreter"
}

//go:build linux

package linux

import (
	"errors"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// pump is the source of a handle for which the interpreter decides: every packet of its paths is
// queued; what does not match goes on at once, the rest waits in user space for a reader, or
// is dropped.
type pump struct {
	h       *handle
	lanes   []*lane
	program atomic.Pointer[prog.Program]
	matches *backlog.Queue
	work    sync.WaitGroup // the goroutines that run
	places  atomic.Uint32  // of each lane's packets that wait for a reader or were received and not sent on, less 1
	count   atomic.Uint32  // of packets that matched

	skipped atomic.Uint64 // numbers of packets that did not come, where the handle fails open

	meterMu sync.Mutex
	meter   *queue.Meter
}

func newPump(h *handle) (*pump, error) {
	h.cfg.Snap = 0 // the interpreter may have to look at everything
	lanes, err := openLanes(h.sender, &h.cfg)
	if err != nil {
		return nil, err
	}
	for _, l := range all(lanes) {
		l.waiting = newOutstanding(maxPlaces)
	}
	meter, err := queue.NewMeter()
	if err != nil {
		return nil, errors.Join(err, closeLanes(lanes))
	}
	p := &pump{h: h, lanes: lanes, meter: meter}
	p.program.Store(h.cfg.Program)
	p.matches = backlog.New(backlog.Config{Limits: h.cfg.Limits, Now: now, Dropped: p.lost})
	if err := p.setLimits(h.cfg.Limits); err != nil {
		return nil, errors.Join(err, meter.Close(), closeLanes(lanes))
	}
	for _, l := range lanes {
		r, err := l.reader()
		if err != nil {
			p.end()
			return nil, errors.Join(err, meter.Close(), closeLanes(lanes))
		}
		p.work.Go(func() { p.run(l, r) })
	}
	return p, nil
}

func (p *pump) ways() []way { return toQueues(p.lanes, p.h.cfg.Segments) }

// end ends the goroutines that run.
func (p *pump) end() {
	for _, l := range p.lanes {
		_ = l.q.SetReadDeadline(past)
	}
	p.work.Wait()
}

// run takes packets out of a queue until end.
func (p *pump) run(l *lane, r *reader) {
	ps := make([]packet.Packet, maxBatch)
	matches := make([]match, 0, maxBatch)
	for {
		got, err := r.fill(engine.Wait{}, ps)
		if err != nil {
			return
		}
		at := now()
		matches = matches[:0]
		for i := range ps[:got] {
			if l, id, ok := p.decide(l, r, &ps[i], r.datagram(i, &ps[i]), at); ok {
				matches = append(matches, match{l, id, &ps[i]})
			}
		}
		// Packets that do not match leave the queue before a reader gets one that arrived after them and can send it on:
		// the order of a flow does not change.
		if err := l.flushBoth(r); errors.Is(err, os.ErrClosed) {
			return
		}
		for i := range matches {
			p.keep(r, &matches[i])
		}
		if err := l.flushBoth(r); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// match is a packet that a batch has for the readers.
type match struct {
	lane *lane // its queue's
	id   uint32
	p    *packet.Packet
}

// decide decides on one datagram, and reports whether it is for the readers.
func (p *pump) decide(l *lane, r *reader, pk *packet.Packet, datagram []byte, at int64) (of *lane, id uint32, ok bool) {
	var m queue.Message
	switch m.Parse(datagram) {
	case queue.KindError:
		p.h.counts.refused(m.Tag)
		return nil, 0, false
	case queue.KindOther:
		return nil, 0, false
	}
	l = l.of(&m)
	verdicts := r.dropsOf(l)
	counts := &p.h.counts
	p.number(l, m.ID)
	if p.h.sender.strange(&m) {
		counts.foreign.Add(1)
		p.h.sender.leave(verdicts, &m)
		return nil, 0, false
	}
	p.h.deliver(l, pk, &m, at)
	// After a shutdown the rules are gone, and packets under way to a reader go on (specification: api.md 9). To a handle
	// that drops they are not under way: had a program decided, they would be gone.
	drops := p.h.cfg.Flags&engine.FlagDrop != 0
	if !p.h.mayMatchCounted(p.program.Load(), pk.Data, int(m.Length), &pk.Addr, at) || !drops && p.h.recvDown.Load() {
		verdict, o := p.h.sender.onward(m.Priority)
		_ = verdicts.Add(m.ID, verdict, o)
		return nil, 0, false
	}
	switch p.h.flows.table.Pass(pk.Data, int(m.Length), at) {
	case flow.Accept:
		verdict, o := p.h.sender.onward(m.Priority)
		_ = verdicts.Add(m.ID, verdict, o)
		return nil, 0, false
	case flow.Drop:
		_ = verdicts.Add(m.ID, queue.Drop, queue.Option{})
		return nil, 0, false
	}
	counts.matched.Add(1)
	if drops {
		counts.dropped.Add(1)
		_ = verdicts.Add(m.ID, queue.Drop, queue.Option{})
		return nil, 0, false
	}
	return l, m.ID, true
}

// keep keeps a packet for the readers.
func (p *pump) keep(r *reader, m *match) {
	l, counts := m.lane, &p.h.counts
	verdicts := r.dropsOf(l)
	// Numbers of the queue do not say how many packets are under way: they count all that do not match.
	t := tokenOf(&m.p.Addr)
	t.place = p.count.Add(1) & p.places.Load()
	t.put(&m.p.Addr)
	if gone, gaveWay := l.waiting.putAt(t.place, m.id); gaveWay {
		counts.abandoned.Add(1)
		_ = verdicts.Add(gone, queue.Drop, queue.Option{})
	}
	if p.matches.Add(m.p.Data, &m.p.Addr) {
		return
	}
	l.waiting.claimAt(t.place, m.id)
	if p.h.recvDown.Load() || p.h.closed.Load() {
		counts.passed.Add(1)
		verdict, o := p.h.sender.onward(t.priority)
		o.Tag = passedTag(1)
		_ = verdicts.Add(m.id, verdict, o)
		return
	}
	counts.full.Add(1)
	_ = verdicts.Add(m.id, queue.Drop, queue.Option{})
}

// lost drops a packet that had to leave the backlog.
func (p *pump) lost(w *backlog.Item, why backlog.Reason) {
	p.h.counts.lost(why)
	p.verdict(w, queue.Drop, queue.Option{})
}

// verdict decides on a packet of the backlog, unless it has given way to another since.
func (p *pump) verdict(w *backlog.Item, verdict queue.Verdict, o queue.Option) {
	t := tokenOf(&w.Addr)
	l := p.h.sender.laneOf(&t)
	if l == nil || !l.waiting.claimAt(t.place, t.id) {
		return
	}
	v, err := l.batch()
	if err != nil {
		return
	}
	defer l.batches.Put(v)
	if v.Add(t.id, verdict, o) == nil {
		_, _ = l.flush(v) // what fails is owed, or gone with the queue
	}
}

func (p *pump) recv(w engine.Wait, ps []packet.Packet) (int, error) { return p.matches.Recv(w, ps) }

func (p *pump) setLimits(l engine.Limits) error {
	p.matches.SetLimits(l)
	// As many as wait, and as many again that were received and not sent on, in whichever lane.
	places := 1 << bits.Len(uint(2*l.Length-1))
	p.places.Store(uint32(places - 1))
	// The kernel's queue must never be the narrowest: what does not match goes through it too, and a short queue of the
	// handle's is no reason to lose any of it.
	l.Length = max(places, leastPlaces) * len(p.lanes)
	return configureLanes(p.lanes, &p.h.cfg, l)
}

// leastPlaces is for how many packets, at least, the kernel's queue of a lane has room twice over.
const leastPlaces = 1 << 10

// maxPlaces is how many places the longest queue needs.
const maxPlaces = 1 << 15

func (p *pump) setFilter(f *prog.Program) { p.program.Store(f) }

func (p *pump) drain() { p.matches.Drain() }

func (p *pump) wake() {} // nobody waits in a system call

// yield lets the packets that nobody received go on, as they were.
func (p *pump) yield() error {
	p.matches.End(func(w *backlog.Item) {
		t := tokenOf(&w.Addr)
		verdict, o := p.h.sender.onward(t.priority)
		o.Tag = passedTag(1)
		p.h.counts.passed.Add(1)
		p.verdict(w, verdict, o)
	})
	return nil
}

// finish drops what matches of the packets that a handle with Drop has not looked at yet: they came while its rules stood.
// All others go on anyway, see close.
func (p *pump) finish() (err error) {
	if p.h.cfg.Flags&engine.FlagDrop == 0 {
		return nil
	}
	p.end()
	at := now()
	for _, l := range p.lanes {
		err = errors.Join(err, l.rest(func(r *reader, pk *packet.Packet, datagram []byte) {
			p.decide(l, r, pk, datagram, at)
		}))
	}
	return err
}

// close gives what has come since back to the stack.
func (p *pump) close() error {
	p.end()
	err := errors.Join(p.yield(), release(p.lanes, p.h.sender, false)) // nobody has looked whether the latter match
	p.meterMu.Lock()
	defer p.meterMu.Unlock()
	return errors.Join(err, p.meter.Close(), closeLanes(p.lanes))
}

// number notes the number of a packet. Those of a handle that fails open for which the socket had no room are missing
// between the numbers: the kernel let them go on.
func (p *pump) number(l *lane, id uint32) {
	if p.h.cfg.FailOpen {
		p.skipped.Add(uint64(id - l.last - 1)) // the first number is 1, and they wrap around
	}
	if l.last = id; id%meterInterval == 0 {
		_, _ = p.counters(l) // before its 32 bits wrap around
	}
}

// meterInterval is after how many packets the kernel's counters are read, at the latest. Far fewer than 2^32, and so
// many that the reading costs nothing.
const meterInterval = 1 << 24

// counters reads the counters of a lane's queue.
func (p *pump) counters(l *lane) (queue.Counters, error) {
	p.meterMu.Lock()
	defer p.meterMu.Unlock()
	return p.meter.Read(l.q.Num())
}

// tally adds what waits, and what has not come here: whether that would have matched cannot be told any more.
func (p *pump) tally(st *engine.Stats) error {
	st.Waiting = uint64(p.matches.Len())
	led, err := p.h.entry.Matched()
	if err != nil && !errors.Is(err, rules.ErrGone) {
		return err
	}
	var numbered, full, unread uint64
	for _, l := range all(p.lanes) {
		c, err := p.counters(l)
		if err != nil {
			return err
		}
		numbered, full, unread = numbered+c.Numbered, full+c.DroppedFull, unread+c.DroppedUser
	}
	st.DroppedFull += full + unread
	missing := rest(led+st.Foreign, numbered+full)
	if p.h.cfg.FailOpen {
		missing += p.skipped.Load()
		st.Passed += missing
	} else {
		st.Lost += missing
	}
	st.Matched += full + unread + missing
	return nil
}

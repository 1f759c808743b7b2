//go:build linux

package capture

import (
	"errors"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/linux/life"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// pump is the source of a handle for which the interpreter decides: every packet of its paths is
// queued; packets that do not match go on at once, the rest waits in user space for a reader, or
// is dropped.
type pump struct {
	Env
	oneQueue
	lanes   []*verdict.Lane
	program atomic.Pointer[prog.Program]
	matches *backlog.Queue
	work    sync.WaitGroup // the goroutines that run
	places  atomic.Uint32  // of each lane's packets that wait for a reader or were received and not sent on, less 1
	count   atomic.Uint32  // of packets that matched

	skipped atomic.Uint64 // numbers of packets that did not come, where the handle fails open

	last    [verdict.MaxLanes]uint32        // of each lane: the number of its last packet
	done    [verdict.MaxLanes]atomic.Uint32 // of each lane: up to which number packets are decided and kept
	drained atomic.Bool                     // packets decided from now on go on

	meterMu sync.Mutex
	meter   *queue.Meter
}

func newPump(e Env) (*pump, error) {
	e.Config.Snap = 0 // the interpreter may have to look at everything
	lanes, err := e.Sender.Open(&e.Config, verdict.MaxPlaces)
	if err != nil {
		return nil, err
	}
	meter, err := queue.NewMeter()
	if err != nil {
		return nil, errors.Join(err, verdict.CloseLanes(lanes))
	}
	p := &pump{Env: e, lanes: lanes, meter: meter}
	p.program.Store(e.Config.Program)
	p.matches = backlog.New(backlog.Config{Limits: e.Config.Limits, Now: clock.Now, Dropped: p.lost})
	if err := p.SetLimits(e.Config.Limits); err != nil {
		return nil, errors.Join(err, meter.Close(), verdict.CloseLanes(lanes))
	}
	for _, l := range lanes {
		r, err := l.Reader()
		if err != nil {
			p.end()
			return nil, errors.Join(err, meter.Close(), verdict.CloseLanes(lanes))
		}
		p.work.Go(func() { p.run(l, r) })
	}
	return p, nil
}

func (p *pump) Wants() Wants { return Wants{Ways: toQueues(p.lanes, p.Config.Segments)} }

func (p *pump) RecvQueue(_ int, w engine.Wait, ps []packet.Packet) (int, error) { return p.Recv(w, ps) }

// end ends the goroutines that run.
func (p *pump) end() {
	for _, l := range p.lanes {
		l.Interrupt()
	}
	p.work.Wait()
}

// run takes packets out of a queue until end.
func (p *pump) run(l *verdict.Lane, r *verdict.Reader) {
	ps := make([]packet.Packet, verdict.MaxBatch)
	matches := make([]match, 0, verdict.MaxBatch)
	for {
		got, err := r.Fill(engine.Wait{}, ps)
		if err != nil {
			if !transient(err) {
				return
			}
			p.matches.Fail(err)
			continue
		}
		at := clock.Now()
		matches = matches[:0]
		for i := range ps[:got] {
			if l, id, ok := p.decide(l, r, &ps[i], r.Datagram(i, &ps[i]), at); ok {
				matches = append(matches, match{l, id, &ps[i]})
			}
		}
		// Packets that do not match leave the queue before a reader gets one that arrived after them and can send it on:
		// the order of a flow does not change.
		if err := l.FlushBoth(r); errors.Is(err, os.ErrClosed) {
			return
		}
		for i := range matches {
			p.keep(r, &matches[i])
		}
		for _, h := range l.Halves() {
			p.done[h.Number()].Store(p.last[h.Number()])
		}
		if err := l.FlushBoth(r); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// match is a packet that a batch has for the readers.
type match struct {
	lane *verdict.Lane // its queue's
	id   uint32
	p    *packet.Packet
}

// decide decides on one datagram, and reports whether it is for the readers.
func (p *pump) decide(l *verdict.Lane, r *verdict.Reader, pk *packet.Packet, datagram []byte, at int64) (of *verdict.Lane, id uint32, ok bool) {
	var m queue.Message
	switch m.Parse(datagram) {
	case queue.KindError:
		p.Sender.Refused(m.Tag)
		return nil, 0, false
	case queue.KindOther:
		return nil, 0, false
	}
	l = l.Of(&m)
	verdicts := r.DropsOf(l)
	counts := p.Counts
	p.number(l, m.ID)
	if p.Sender.Strange(&m) {
		counts.Foreign.Add(1)
		p.Sender.Leave(verdicts, &m)
		return nil, 0, false
	}
	p.Sender.Deliver(l, pk, &m, at)
	// After a shutdown the rules are gone, and packets under way to a reader go on (specification: api.md 9). To a handle
	// that drops they are not under way: had a program decided, they would be gone.
	drops := p.Config.Flags&engine.FlagDrop != 0
	if !p.mayMatchCounted(p.program.Load(), pk.Data, int(m.Length), &pk.Addr, at) || !drops && p.drained.Load() {
		p.Sender.PassOn(verdicts, pk.Data, &pk.Addr, 0)
		return nil, 0, false
	}
	switch p.Table.Pass(pk.Data, int(m.Length), at) {
	case flow.Accept:
		p.Sender.PassOn(verdicts, pk.Data, &pk.Addr, 0)
		return nil, 0, false
	case flow.Drop:
		_ = verdicts.Add(m.ID, queue.Drop, queue.Option{})
		return nil, 0, false
	}
	counts.Matched.Add(1)
	if drops {
		counts.Dropped.Add(1)
		_ = verdicts.Add(m.ID, queue.Drop, queue.Option{})
		return nil, 0, false
	}
	return l, m.ID, true
}

// keep keeps a packet for the readers.
func (p *pump) keep(r *verdict.Reader, m *match) {
	l, counts := m.lane, p.Counts
	verdicts := r.DropsOf(l)
	// Numbers of the queue do not say how many packets are under way: they count all that do not match.
	if l.HoldAt(verdicts, &m.p.Addr, p.count.Add(1)&p.places.Load()) {
		counts.Abandoned.Add(1)
	}
	if p.matches.Add(m.p.Data, &m.p.Addr) {
		return
	}
	l.LetGo(&m.p.Addr)
	if p.Life.Is(life.NoRecv) || p.Life.Is(life.Closed) {
		counts.Passed.Add(1)
		p.Sender.PassOn(verdicts, m.p.Data, &m.p.Addr, verdict.PassedTag(1))
		return
	}
	counts.Full.Add(1)
	_ = verdicts.Add(m.id, queue.Drop, queue.Option{})
}

// lost drops a packet that had to leave the backlog.
func (p *pump) lost(w *backlog.Item, why backlog.Reason) {
	p.Counts.Lost(why)
	p.Sender.DropOne(&w.Addr)
}

func (p *pump) Recv(w engine.Wait, ps []packet.Packet) (int, error) { return p.matches.Recv(w, ps) }

func (p *pump) SetLimits(l engine.Limits) error {
	p.matches.SetLimits(l)
	// As many as wait, and as many again that were received and not sent on, in whichever lane.
	places := 1 << bits.Len(uint(2*l.Length-1))
	p.places.Store(uint32(places - 1))
	// The kernel's queue must never be the narrowest: packets that do not match go through it too, and must not be lost because
	// the handle's queue is short.
	l.Length = max(places, leastPlaces) * len(p.lanes)
	return verdict.ConfigureLanes(p.lanes, &p.Config, l)
}

// leastPlaces is the least number of packets for which the kernel's queue of a lane has room twice over.
const leastPlaces = 1 << 10

func (p *pump) SetFilter(f *prog.Program) { p.program.Store(f) }

// Drain lets the readers have the packets captured before the rules went: it waits until all packets in the kernel's queues have
// been decided on, or until catchUpTime has passed, as packets that the kernel has lost never come.
func (p *pump) Drain() {
	for end := time.Now().Add(catchUpTime); !p.caughtUp() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	p.drained.Store(true)
	p.matches.Drain()
}

// catchUpTime is how long Drain waits at most.
const catchUpTime = 500 * time.Millisecond

// caughtUp reports whether every packet that the queues have numbered is decided.
func (p *pump) caughtUp() bool {
	for _, l := range verdict.All(p.lanes) {
		c, err := p.counters(l)
		if err != nil {
			return true // nothing tells how long to wait
		}
		if int32(c.LastID-p.done[l.Number()].Load()) > 0 {
			return false
		}
	}
	return true
}

func (p *pump) Wake() {} // nobody waits in a system call

// Yield lets the packets that nobody received go on, as they were.
func (p *pump) Yield() error {
	p.matches.End(func(w *backlog.Item) {
		p.Counts.Passed.Add(1)
		p.Sender.PassOne(w.Data, &w.Addr)
	})
	return nil
}

// Finish waits for the batch that run has begun: a packet that it has counted as matching counts as passed, too, afterwards. And
// it drops the matching ones of the packets that a handle with Drop has not looked at yet: they came while its rules stood. All
// others go on anyway, see close.
func (p *pump) Finish() (err error) {
	p.end()
	if p.Config.Flags&engine.FlagDrop == 0 {
		return nil
	}
	at := clock.Now()
	for _, l := range p.lanes {
		err = errors.Join(err, l.Rest(func(r *verdict.Reader, pk *packet.Packet, datagram []byte) {
			p.decide(l, r, pk, datagram, at)
		}))
	}
	return err
}

// Close gives packets that have come since back to the stack.
func (p *pump) Close() error {
	p.end()
	err := errors.Join(p.Yield(), verdict.Release(p.lanes, p.Sender, nil))
	p.meterMu.Lock()
	defer p.meterMu.Unlock()
	return errors.Join(err, p.meter.Close(), verdict.CloseLanes(p.lanes))
}

// number notes the number of a packet. If the handle fails open, packets for which the socket had no room are missing between
// the numbers: the kernel let them go on.
func (p *pump) number(l *verdict.Lane, id uint32) {
	if p.Config.FailOpen {
		p.skipped.Add(uint64(id - p.last[l.Number()] - 1)) // the first number is 1, and they wrap around
	}
	if p.last[l.Number()] = id; id%meterInterval == 0 {
		_, _ = p.counters(l) // before its 32 bits wrap around
	}
}

// meterInterval is the most packets between two readings of the kernel's counters: far fewer than 2^32, and so many that the
// reading costs nothing.
const meterInterval = 1 << 24

// counters reads the counters of a lane's queue.
func (p *pump) counters(l *verdict.Lane) (queue.Counters, error) {
	p.meterMu.Lock()
	defer p.meterMu.Unlock()
	return p.meter.Read(l.QueueNumber())
}

// Tally adds the packets that wait, and those that have not come here: whether these would have matched cannot be known.
func (p *pump) Tally(st *engine.Stats) error {
	st.Waiting = uint64(p.matches.Len())
	led, err := p.Matched()
	if err != nil && !errors.Is(err, rules.ErrGone) {
		return err
	}
	var numbered, full, unread uint64
	for _, l := range verdict.All(p.lanes) {
		c, err := p.counters(l)
		if err != nil {
			return err
		}
		numbered, full, unread = numbered+c.Numbered, full+c.DroppedFull, unread+c.DroppedUser
	}
	st.DroppedFull += full + unread
	missing := rest(led+st.Foreign, numbered+full)
	if p.Config.FailOpen {
		missing += p.skipped.Load()
		st.Passed += missing
	} else {
		st.Lost += missing
	}
	st.Matched += full + unread + missing
	return nil
}

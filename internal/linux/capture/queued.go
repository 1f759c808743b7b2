//go:build linux

package capture

import (
	"errors"
	"io"
	"net"
	"os"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// queued is the source of a handle whose packets the kernel has chosen: they are received from its queues
// straight into the caller's memory.
type queued struct {
	Env
	lanes []*verdict.Lane
	any   *selector // waits for any of several lanes; nil if there is one
	ages  *ages
}

func newQueued(e Env) (*queued, error) {
	lanes, err := e.Sender.Open(&e.Config, 0)
	if err != nil {
		return nil, err
	}
	for _, l := range lanes {
		l.SetBusyPoll(e.Config.BusyPoll)
	}
	s := &queued{Env: e, lanes: lanes}
	if len(lanes) > 1 {
		if s.any, err = newSelector(lanes); err != nil {
			return nil, errors.Join(err, verdict.CloseLanes(lanes))
		}
	}
	if s.ages, err = watchAges(lanes, e.Config.Limits.Time); err != nil {
		return nil, errors.Join(err, s.any.close(), verdict.CloseLanes(lanes))
	}
	return s, nil
}

func (s *queued) Wants() Wants {
	return Wants{Ways: toQueues(s.lanes, s.Config.Segments), Queued: true}
}

func (s *queued) Queues() int { return len(s.lanes) }

func (s *queued) RecvQueue(queue int, w engine.Wait, ps []packet.Packet) (int, error) {
	return s.recvLane(s.lanes[queue], w, ps)
}

func (s *queued) QueueOf(p *packet.Packet) int {
	return verdict.LaneNumber(&p.Addr) % len(s.lanes) // the second queues count on behind the first
}

// Recv receives from any lane.
func (s *queued) Recv(w engine.Wait, ps []packet.Packet) (int, error) {
	if s.any == nil {
		return s.recvLane(s.lanes[0], w, ps)
	}
	for {
		drained := s.any.drained.Load() // before the look at the queues
		for range s.lanes {
			n, err := s.poll(s.any.next(), ps)
			if n > 0 || err != nil {
				return n, err
			}
		}
		if drained {
			return 0, io.EOF
		}
		s.ages.wait(s.lanes...)
		err := s.any.wait(w)
		if s.ages.came(s.lanes...); err != nil {
			return 0, verdict.ClosedError(err)
		}
	}
}

// recvLane receives from one lane.
func (s *queued) recvLane(l *verdict.Lane, w engine.Wait, ps []packet.Packet) (int, error) {
	r, err := l.Enter()
	if err != nil {
		return 0, verdict.ClosedError(err)
	}
	defer l.Leave(r)
	for {
		s.ages.wait(l)
		got, err := r.Fill(w, ps)
		if s.ages.came(l); err != nil {
			return 0, verdict.ClosedError(err)
		}
		if n, err := s.accept(l, r, ps[:got]); n > 0 || err != nil {
			return n, err
		}
	}
}

// poll receives the packets in a lane, without waiting.
func (s *queued) poll(l *verdict.Lane, ps []packet.Packet) (int, error) {
	r, err := l.Enter()
	if err != nil {
		return 0, verdict.ClosedError(err)
	}
	defer l.Leave(r)
	got, err := r.Poll(ps)
	if err != nil {
		return 0, verdict.ClosedError(err)
	}
	return s.accept(l, r, ps[:got])
}

// accept moves the packets among the datagrams in ps to the front and returns their number.
func (s *queued) accept(l *verdict.Lane, r *verdict.Reader, ps []packet.Packet) (n int, err error) {
	at := clock.Now()
	var m queue.Message
	var first [2]half
	for i, l := range l.Halves() {
		first[i] = half{lane: l, alone: l.Alone()}
	}
	for i := range ps {
		switch m.Parse(r.Datagram(i, &ps[i])) {
		case queue.KindError:
			s.Sender.Refused(m.Tag)
			continue
		case queue.KindOther:
			continue
		}
		half := &first[0]
		if m.Queue != l.QueueNumber() {
			half = &first[1]
		}
		l, drops := half.lane, r.DropsOf(half.lane)
		if half.alone {
			l.Begin(m.ID)
			half.alone = false
		}
		if s.Sender.Strange(&m) {
			s.Counts.Foreign.Add(1)
			s.Sender.Leave(drops, &m)
			continue
		}
		if s.ages.tooOld(l, m.ID) {
			s.Counts.Old.Add(1)
			_ = drops.Add(m.ID, queue.Drop, queue.Option{})
			continue
		}
		if n != i {
			ps[n], ps[i] = ps[i], ps[n]
		}
		s.Sender.Deliver(l, &ps[n], &m, at)
		single := l.IsSingle()
		if single {
			s.Review.Ascribe(&ps[n], l, m.ID)
		} else {
			s.Review.Retime(&ps[n], l, m.ID)
		}
		if s.Review.Refuses(&ps[n], int(m.Length), single) {
			s.Counts.Denied.Add(1)
			s.Sender.PassOn(drops, ps[n].Data, &ps[n].Addr, 0)
			continue
		}
		if single && s.FlowDropped(&ps[n]) {
			s.Counts.FlowDropped.Add(1)
			s.Counts.FlowDroppedBytes.Add(uint64(m.Length))
			_ = drops.Add(m.ID, queue.Drop, queue.Option{})
			continue
		}
		if l.Hold(drops, m.ID) {
			s.Counts.Abandoned.Add(1)
		}
		half.count++
		n++
	}
	for _, half := range first {
		half.lane.Held(half.count)
	}
	if err := l.FlushBoth(r); errors.Is(err, os.ErrClosed) {
		return n, net.ErrClosed
	}
	return n, nil // a drop that the kernel had no memory for is owed
}

// half is the part of a batch from one of the two queues of a socket.
type half struct {
	lane  *verdict.Lane
	alone bool // the first packet is still to come, and those before it have their verdicts
	count int
}

func (s *queued) SetLimits(l engine.Limits) error {
	s.ages.limit.Store(int64(l.Time))
	return verdict.ConfigureLanes(s.lanes, &s.Config, l)
}

func (s *queued) SetFilter(*prog.Program) {} // the programs of the rules decide

func (s *queued) Drain() {
	for _, l := range s.lanes {
		l.Drain()
	}
	s.any.drain()
}

func (s *queued) Wake() {
	for _, l := range s.lanes {
		l.Wake()
	}
	s.any.wake()
}

// Yield gives the packets that nobody received back to the stack, as they were, unless they are too old (specification: api.md
// 10).
func (s *queued) Yield() error { return verdict.Release(s.lanes, s.Sender, s.ages.tooOld) }

func (s *queued) Finish() error { return nil } // all that waits goes on, see close

// Close does the same with packets that have come since.
func (s *queued) Close() error {
	err := errors.Join(s.ages.close(), s.Yield())
	return errors.Join(err, s.any.close(), verdict.CloseLanes(s.lanes))
}

func (s *queued) LastNumbers() ([]uint32, error) {
	lanes := verdict.All(s.lanes) // in the order of their indexes
	last := make([]uint32, len(lanes))
	for i, l := range lanes {
		c, err := s.ages.counters(l)
		if err != nil {
			return nil, err
		}
		last[i] = c.LastID
	}
	return last, nil
}

// Tally adds the kernel's counts: the rules count the packets that they lead to the queue, the queue numbers those it takes.
func (s *queued) Tally(st *engine.Stats) error {
	var waiting, numbered, full, unread uint64
	for _, l := range verdict.All(s.lanes) {
		c, err := s.ages.counters(l)
		if err != nil {
			return err
		}
		waiting += rest(c.Total, l.Waits())
		numbered, full, unread = numbered+c.Numbered, full+c.DroppedFull, unread+c.DroppedUser
	}
	st.DroppedFull += full + unread
	denied := s.Counts.Denied.Load()
	known := st.Received + st.DroppedOld + st.DroppedLong + st.Passed + denied + s.Counts.FlowDropped.Load()
	// The rules count a superpacket as one, the queue its segments.
	led := max(st.Matched, rest(numbered+full, st.Foreign))
	st.Matched = rest(led, denied)
	if s.Config.FailOpen {
		// A packet for which there is no room in the socket goes on with a number, one for which there is none in the
		// queue without. The kernel counts neither.
		st.Waiting = waiting
		st.Passed += rest(led, known+waiting)
		return nil
	}
	st.Waiting = rest(numbered, unread+known+st.Foreign)
	st.Lost += rest(led+st.Foreign, numbered+full)
	return nil
}

// rest is a-b, or 0 where the counters were read at moments that do not fit.
func rest(a, b uint64) uint64 { return a - min(a, b) }

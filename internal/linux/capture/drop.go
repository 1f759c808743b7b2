//go:build linux

package capture

import (
	"errors"
	"os"
	"sync"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// sink is the source of a handle that drops in the kernel, with a queue that takes no packet for those whose sender
// is on this host, see rules.ToNowhere. The queue ends with the process, as the programs do that the other
// rules ask. Receiving waits until shutdown or close.
//
// Where the filter tests values that differ between the segments of a superpacket, the segments come to a queue of their own,
// and are decided on here.
type sink struct {
	Env
	oneQueue
	q     *queue.Queue
	lane  *verdict.Lane // of the queues of superpackets, of which only the second is used
	work  sync.WaitGroup
	empty *backlog.Queue

	segments *codegen.Outlet // where programs count the packets that they drop
}

func newSink(e Env) (*sink, error) {
	q, err := queue.Open(queue.Options{Discard: true, RcvBuf: 4096})
	if err != nil {
		return nil, err
	}
	one := e.Config
	one.Queues, one.Snap = 1, 0
	lanes, err := e.Sender.Open(&one, 0)
	if err != nil {
		return nil, errors.Join(err, q.Close())
	}
	s := &sink{Env: e, q: q, lane: lanes[0], empty: backlog.New(backlog.Config{Limits: e.Config.Limits, Now: clock.Now})}
	r, err := s.lane.Reader()
	if err == nil {
		s.segments, err = codegen.NewOutlet()
	}
	if err != nil {
		return nil, errors.Join(err, verdict.CloseLanes(lanes), q.Close())
	}
	s.work.Go(func() { s.run(r) })
	return s, nil
}

func (s *sink) Wants() Wants {
	return Wants{Counts: s.segments, Ways: []Way{
		{Take: codegen.TakeSure, Action: rules.ToNowhere{Num: s.q.Num()}},
		{Take: codegen.TakeDoubt, Action: rules.ToQueue{Num: s.lane.Halves()[1].QueueNumber()}},
	}}
}

func (s *sink) RecvQueue(_ int, w engine.Wait, ps []packet.Packet) (int, error) { return s.Recv(w, ps) }

// run decides on segments until the queue ends.
func (s *sink) run(r *verdict.Reader) {
	ps := make([]packet.Packet, verdict.RestBatch)
	for {
		got, err := r.Fill(engine.Wait{}, ps)
		if err != nil {
			if !transient(err) {
				return
			}
			continue
		}
		at := clock.Now()
		for i := range ps[:got] {
			s.decide(r, &ps[i], r.Datagram(i, &ps[i]), at)
		}
		if err := s.lane.FlushBoth(r); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// decide decides on one datagram.
func (s *sink) decide(r *verdict.Reader, p *packet.Packet, datagram []byte, at int64) {
	var m queue.Message
	switch m.Parse(datagram) {
	case queue.KindError:
		s.Sender.Refused(m.Tag)
		return
	case queue.KindOther:
		return
	}
	l := s.lane.Of(&m)
	verdicts := r.DropsOf(l)
	if s.Sender.Strange(&m) {
		s.Counts.Foreign.Add(1)
		s.Sender.Leave(verdicts, &m)
		return
	}
	s.Sender.Deliver(l, p, &m, at)
	if s.Review.Refuses(p, int(m.Length), true) {
		s.Counts.Denied.Add(1)
		s.Sender.PassOn(verdicts, p.Data, &p.Addr, 0)
		return
	}
	s.Counts.Dropped.Add(1)
	_ = verdicts.Add(m.ID, queue.Drop, queue.Option{})
}

func (s *sink) Recv(w engine.Wait, ps []packet.Packet) (int, error) { return s.empty.Recv(w, ps) }

func (s *sink) SetLimits(engine.Limits) error { return nil } // nothing ever waits

func (s *sink) SetFilter(*prog.Program) {}

func (s *sink) Drain() { s.empty.Drain() }

func (s *sink) Wake() {} // nobody waits in a system call

func (s *sink) Yield() error { return nil }

// end ends the goroutine that runs.
func (s *sink) end() {
	s.lane.Interrupt()
	s.work.Wait()
}

// Finish decides on the segments that nobody has looked at yet: they came while the rules stood.
func (s *sink) Finish() error {
	s.end()
	at := clock.Now()
	return s.lane.Rest(func(r *verdict.Reader, p *packet.Packet, datagram []byte) { s.decide(r, p, datagram, at) })
}

func (s *sink) Close() error {
	s.end()
	err := verdict.Release([]*verdict.Lane{s.lane}, s.Sender, nil)
	return errors.Join(err, verdict.CloseLanes([]*verdict.Lane{s.lane}), s.q.Close(), s.segments.Close())
}

// Tally counts the matching packets as dropped: those of the rules, each segment as a packet, and those of run.
func (s *sink) Tally(st *engine.Stats) error {
	c, err := s.segments.Counter()
	if err != nil {
		return err
	}
	st.Matched += c.Matched + st.Dropped
	st.Dropped = st.Matched
	return nil
}

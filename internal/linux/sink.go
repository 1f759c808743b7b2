//go:build linux

package linux

import (
	"errors"
	"os"
	"sync"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// sink is the source of a handle that drops in the kernel, with a queue that takes no packet for those whose sender
// is on this host, see rules.ToNowhere. The queue ends with the process, as the programs do that the other
// rules ask. Receiving waits until shutdown or close.
//
// Where the filter asks for what differs between the segments of a superpacket, these come to a queue of their own, and
// are decided on here.
type sink struct {
	h     *handle
	q     *queue.Queue
	lane  *lane // of the queues of superpackets, of which only the second is used
	work  sync.WaitGroup
	empty *backlog.Queue

	counts *codegen.Outlet
}

func newSink(h *handle) (*sink, error) {
	q, err := queue.Open(queue.Options{Discard: true, RcvBuf: 4096})
	if err != nil {
		return nil, err
	}
	one := h.cfg
	one.Queues, one.Snap = 1, 0
	lanes, err := openLanes(h.sender, &one)
	if err != nil {
		return nil, errors.Join(err, q.Close())
	}
	s := &sink{h: h, q: q, lane: lanes[0], empty: backlog.New(backlog.Config{Limits: h.cfg.Limits, Now: now})}
	r, err := s.lane.reader()
	if err == nil {
		s.counts, err = codegen.NewOutlet()
	}
	if err != nil {
		return nil, errors.Join(err, closeLanes(lanes), q.Close())
	}
	s.work.Go(func() { s.run(r) })
	return s, nil
}

func (s *sink) ways() []way {
	return []way{
		{take: codegen.TakeSure, action: rules.ToNowhere{Num: s.q.Num()}},
		{take: codegen.TakeDoubt, action: rules.ToQueue{Num: s.lane.single.q.Num()}},
	}
}

// run decides on segments until the queue ends.
func (s *sink) run(r *reader) {
	ps := make([]packet.Packet, restBatch)
	for {
		got, err := r.fill(engine.Wait{}, ps)
		if err != nil {
			return
		}
		at := now()
		for i := range ps[:got] {
			s.decide(r, &ps[i], r.datagram(i, &ps[i]), at)
		}
		if err := s.lane.flushBoth(r); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// decide decides on one datagram.
func (s *sink) decide(r *reader, p *packet.Packet, datagram []byte, at int64) {
	var m queue.Message
	switch m.Parse(datagram) {
	case queue.KindError:
		s.h.counts.refused(m.Tag)
		return
	case queue.KindOther:
		return
	}
	l := s.lane.of(&m)
	verdicts := r.dropsOf(l)
	if s.h.sender.strange(&m) {
		s.h.counts.foreign.Add(1)
		s.h.sender.leave(verdicts, &m)
		return
	}
	s.h.deliver(l, p, &m, at)
	if s.h.refuses(p, int(m.Length), true) {
		s.h.counts.denied.Add(1)
		verdict, o := s.h.sender.onward(m.Priority)
		_ = verdicts.Add(m.ID, verdict, o)
		return
	}
	s.h.counts.dropped.Add(1)
	_ = verdicts.Add(m.ID, queue.Drop, queue.Option{})
}

func (s *sink) recv(w engine.Wait, ps []packet.Packet) (int, error) { return s.empty.Recv(w, ps) }

func (s *sink) setLimits(engine.Limits) error { return nil } // nothing ever waits

func (s *sink) setFilter(*prog.Program) {}

func (s *sink) drain() { s.empty.Drain() }

func (s *sink) wake() {} // nobody waits in a system call

func (s *sink) yield() error { return nil }

// end ends the goroutine that runs.
func (s *sink) end() {
	_ = s.lane.q.SetReadDeadline(past)
	s.work.Wait()
}

// finish decides on the segments that nobody has looked at yet: they came while the rules stood.
func (s *sink) finish() error {
	s.end()
	at := now()
	return s.lane.rest(func(r *reader, p *packet.Packet, datagram []byte) { s.decide(r, p, datagram, at) })
}

func (s *sink) close() error {
	s.end()
	err := release([]*lane{s.lane}, s.h.sender, false)
	return errors.Join(err, s.lane.q.Close(), s.q.Close(), s.counts.Close())
}

// tally counts as dropped what matched: what the rules have dropped, each segment as a packet, and what run has.
func (s *sink) tally(st *engine.Stats) error {
	c, err := s.counts.Counter()
	if err != nil {
		return err
	}
	st.Matched += c.Matched + st.Dropped
	st.Dropped = st.Matched
	return nil
}

//go:build linux

package linux

import (
	"errors"
	"fmt"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// sender sends a handle's packets: as a verdict on the queued packet where they are one, else
// as an injection of their own.
type sender struct {
	h     *handle
	key   cursor.Key
	tag   uint32
	lanes []*lane // none for handles without a queue
	fresh injector
	habit habit
	held  *held // nil where nobody is held up by packets that are not sent on
}

func newSender(h *handle, key cursor.Key, tag uint32) *sender {
	return &sender{h: h, key: key, tag: tag, fresh: injector{ns: h.ns}}
}

func (s *sender) close() error {
	s.held.close()
	return s.fresh.close()
}

// verdicts are what a send call does to captured packets.
type verdicts struct {
	lanes [maxLanes]struct { // of each lane that the call has met
		batch  *queue.Verdicts
		claims int    // packets that were taken from those outstanding
		upTo   uint32 // the last packet of a run that goes on with one verdict
		run    bool
	}
	same, changed, unknown int32          // packets that Send found as they had been captured, or not, or cannot tell
	differs                *packet.Packet // the last that was not: run ends there, and one goes on with it
}

// on returns the batch of a lane.
func (v *verdicts) on(l *lane) (*queue.Verdicts, error) {
	if v.lanes[l.index].batch == nil {
		b, err := l.batch()
		if err != nil {
			return nil, err
		}
		v.lanes[l.index].batch = b
	}
	return v.lanes[l.index].batch, nil
}

// claim takes a packet from those outstanding and reports whether it was there.
func (v *verdicts) claim(l *lane, t *token) bool {
	if !l.waiting.claimAt(t.place, t.id) {
		return false
	}
	v.lanes[l.index].claims++
	return true
}

// compare reports whether a packet that is to be sent is as it was captured, and counts what it finds.
func (v *verdicts) compare(p *packet.Packet, t *token) bool {
	switch {
	case t.digest == 0:
		v.unknown++
	case p == v.differs: // no need to digest it again
	case t.same(p):
		v.same++
		return true
	default:
		v.changed++
		v.differs = p
	}
	return false
}

// flush sends the batches and gives them back. It returns how many packets failed, see lane.flush.
func (v *verdicts) flush(lanes []*lane) (failed int, err error) {
	for i, l := range lanes {
		if v.lanes[i].batch == nil {
			continue
		}
		if n, e := l.flush(v.lanes[i].batch); e != nil {
			failed += n
			err = errors.Join(err, e)
		} else if v.lanes[i].run {
			l.runs.end(v.lanes[i].upTo)
		}
		l.batches.Put(v.lanes[i].batch)
		l.runs.settled(v.lanes[i].claims)
	}
	return failed, err
}

// onward is the verdict that lets a packet go on to the handles below this one: through the chain once more, with a
// cursor by which it meets the lower handles only. Whether there are any is the kernel's to find out: what another
// process does, or fails to do, makes no difference.
func (s *sender) onward(priority uint32) (queue.Verdict, queue.Option) {
	if cursors() {
		return queue.Repeat, queue.Option{Priority: s.key.Pack(priority), SetPriority: true}
	}
	// The cursor cannot be set: the packet leaves the chain, and nobody below sees it.
	if _, ok := cursor.Unpack(priority); ok {
		return queue.Accept, queue.Option{Priority: priority & cursor.OldMask, SetPriority: true}
	}
	return queue.Accept, queue.Option{}
}

// strange reports whether another program's rule has led a packet to the handle's queue: at a hook that is none of the
// handle's, or with the cursor of a packet that the handle has served. Its own rules lead no such packet there.
func (s *sender) strange(m *queue.Message) bool {
	forward := m.Hook == queue.HookForward
	if forward != (s.h.layer == packet.LayerForward) || !forward && m.Hook != queue.HookPrerouting && m.Hook != queue.HookLocalIn && m.Hook != queue.HookPostrouting {
		return true
	}
	key, ok := cursor.Unpack(m.Priority)
	return ok && key <= s.key
}

// leave lets a strange packet go on. It must not enter the chain that queued it again: that would queue it for ever.
func (s *sender) leave(v *queue.Verdicts, m *queue.Message) {
	var o queue.Option
	if _, ok := cursor.Unpack(m.Priority); ok {
		o = queue.Option{Priority: m.Priority & cursor.OldMask, SetPriority: true}
	}
	_ = v.Add(m.ID, queue.Accept, o) // fails only for a payload
}

// send sends ps. A packet that fails does not hold up the others; the last error is returned.
func (s *sender) send(ps []packet.Packet, unchanged bool) (sent int, last error) {
	var v verdicts
	var reinjected, injected uint64
	rest := ps
	if len(ps) > 1 {
		n, err := s.run(ps, &v, unchanged)
		if err != nil {
			return 0, closedError(err)
		}
		reinjected, rest = uint64(n), ps[n:]
	}
	for i := range rest {
		again, err := s.one(&rest[i], &v, unchanged)
		switch {
		case err != nil:
			last = err
		case again:
			reinjected++
		default:
			injected++
		}
	}
	s.habit.learn(v.same, v.changed, v.unknown)
	s.h.counts.reinjected.Add(reinjected) // before the kernel can refuse any of them
	failed, err := v.flush(s.lanes)
	if err != nil {
		s.h.counts.reinjected.Add(-uint64(failed))
		reinjected -= uint64(failed)
		last = closedError(err)
	}
	sent = int(reinjected + injected)
	s.h.counts.injected.Add(injected)
	s.h.counts.failed.Add(uint64(len(ps) - sent))
	return sent, last
}

// pass lets captured packets go on as they were, which the caller counts as passed, and returns how many: those that
// still had their place.
func (s *sender) pass(ps []packet.Packet) (passed uint64) {
	var v verdicts
	for i := range ps {
		t := tokenOf(&ps[i].Addr)
		if l := s.laneOf(&t); l != nil && v.claim(l, &t) {
			_ = s.onto(&v, l, &t, nil, passedTag(1)) // fails only if no batch can be made
			passed++
		} else if data, err := engine.Whole(ps[i].Data); err == nil && s.held.late(l, &t) {
			err := engine.Finish(data, &ps[i].Addr, true)
			if err == nil {
				err = s.fresh.inject(s.h.entry, data, &ps[i].Addr, s.h.layer)
			}
			if err == nil {
				passed++
			} else {
				s.h.counts.abandoned.Add(1)
			}
		}
	}
	_, _ = v.flush(s.lanes) // what fails is owed, or gone with the queue
	return passed
}

// drop ends captured packets.
func (s *sender) drop(ps []packet.Packet) error {
	var v verdicts
	dropped := uint64(0)
	for i := range ps {
		t := tokenOf(&ps[i].Addr)
		l := s.laneOf(&t)
		switch {
		case l == nil:
		case v.claim(l, &t):
			_ = v.drop(l, t.id) // fails only if no batch can be made
			dropped++
		default:
			l.waiting.takeGivenUp(t.place, t.id) // it is counted as gone already, and now it stays so
		}
	}
	s.h.counts.abandoned.Add(dropped)
	_, err := v.flush(s.lanes) // what the kernel had no memory for is owed
	return err
}

// laneOf returns the lane of a token of this handle, nil for any other.
func (s *sender) laneOf(t *token) *lane {
	if t.tag != s.tag || int(t.lane) >= len(s.lanes) {
		return nil
	}
	return s.lanes[t.lane]
}

// one sends one packet, and reports whether it went on as the packet it was captured as.
func (s *sender) one(p *packet.Packet, v *verdicts, unchanged bool) (again bool, err error) {
	t := tokenOf(&p.Addr)
	l := s.laneOf(&t)
	if l != nil && p.Addr.Outbound == t.outbound() && !p.Addr.Impostor && (unchanged || v.compare(p, &t)) && v.claim(l, &t) {
		return true, s.onto(v, l, &t, nil, reinjectedTag(1))
	}
	data, err := engine.Whole(p.Data)
	if err == nil {
		err = engine.Finish(data, &p.Addr, l != nil)
	}
	if err != nil {
		if l != nil && t.cut && errors.Is(err, engine.ErrShortBuffer) {
			err = s.beginning(l, &t, err)
		}
		return false, err // the captured packet, if it is one, still waits for a better try
	}
	if l != nil && v.claim(l, &t) {
		if t.holds(data, &p.Addr) && len(data) <= queue.MaxPayload {
			return true, s.onto(v, l, &t, data, reinjectedTag(1))
		}
		// It was turned round or sent elsewhere: the captured packet itself ends here.
		if err := v.drop(l, t.id); err != nil {
			return false, err
		}
	}
	late := s.held.late(l, &t)
	err = s.fresh.inject(s.h.entry, data, &p.Addr, s.h.layer)
	if late && err != nil {
		s.h.counts.abandoned.Add(1) // it stays gone
	}
	return late, err
}

// beginning says why a packet of which only the beginning was received cannot be sent.
func (s *sender) beginning(l *lane, t *token, err error) error {
	if s.held.late(l, t) {
		s.h.counts.abandoned.Add(1) // it is
		return fmt.Errorf("%w: only the beginning of the packet was received, and the rest was held for longer than %v and is gone", err, mostPatience)
	}
	return fmt.Errorf("%w: only the beginning of the packet was received; Accept lets all of it go on", err)
}

// drop adds the end of a packet.
func (v *verdicts) drop(l *lane, id uint32) error {
	b, err := v.on(l)
	if err != nil {
		return err
	}
	return b.Add(id, queue.Drop, queue.Option{})
}

// onto lets a queued packet go on to the handles below, with other bytes unless data is nil. The tag says how it is
// counted.
func (s *sender) onto(v *verdicts, l *lane, t *token, data []byte, tag uint32) error {
	b, err := v.on(l)
	if err != nil {
		return err
	}
	verdict, o := s.onward(t.priority)
	o.Payload, o.Tag = data, tag
	return b.Add(t.id, verdict, o)
}

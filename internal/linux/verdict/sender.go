//go:build linux

package verdict

import (
	"errors"
	"fmt"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/injector"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/tally"
	"github.com/opendivert/divert/packet"
)

// Sender sends a handle's packets: a queued packet by a verdict, any other by an injection.
type Sender struct {
	Config
	lanes []*Lane // none for handles without a queue
	habit habit
	held  *held // nil where nobody is held up by packets that are not sent on
}

// Config is the part of its handle that a sender needs.
type Config struct {
	Layer    packet.Layer
	Flags    uint64
	Counts   *tally.Counts
	Key      cursor.Key
	Tag      uint32 // of the handle's packets, never 0
	Injector *injector.Injector
}

func NewSender(c Config) *Sender { return &Sender{Config: c} }

// Serve begins to give up packets that are received and not sent on.
func (s *Sender) Serve() { s.held = newHeld(s) }

// Received notes packets that a receive call is about to return.
func (s *Sender) Received(ps []packet.Packet) { s.held.received(ps) }

// Stop ends giving up packets: the handle is about to close.
func (s *Sender) Stop() { s.held.close() }

// Close gives back the resources of injections.
func (s *Sender) Close() error {
	s.held.close()
	return s.Injector.Close()
}

// verdicts are the verdicts of a send call on captured packets.
type verdicts struct {
	lanes                  [MaxLanes]laneVerdicts // of each lane that the call has met
	same, changed, unknown int32                  // packets that Send found as they had been captured, or not, or cannot tell
	differs                *packet.Packet         // the last that was not: run ends there, and one goes on with it
	keeps                  bool                   // the memory of the packets is not written to
	redirected             bool                   // a packet that is not flushed yet has another destination
	fresh                  bool                   // the known next hops are up to date
	reinjected, injected   uint64                 // packets that went on, and that were injected
	counted                uint64                 // those that went on before the last flush
	failed                 int                    // of those
	err                    error                  // the last of a flush
}

// laneVerdicts are those on the packets of a lane.
type laneVerdicts struct {
	batch  *queue.Verdicts
	claims int    // packets that were taken from those outstanding
	upTo   uint32 // the last packet of a run that goes on with one verdict
	run    bool
}

// on returns the batch of a lane.
func (v *verdicts) on(l *Lane) (*queue.Verdicts, error) {
	if v.lanes[l.Index].batch == nil {
		b, err := l.batch()
		if err != nil {
			return nil, err
		}
		v.lanes[l.Index].batch = b
	}
	return v.lanes[l.Index].batch, nil
}

// claim takes a packet from those outstanding and reports whether it was there.
func (v *verdicts) claim(l *Lane, t *token) bool {
	if !l.waiting.claimAt(t.place, t.id) {
		return false
	}
	v.lanes[l.Index].claims++
	return true
}

// compare reports whether a packet to be sent is unchanged since its capture, and counts the results.
func (v *verdicts) compare(p *packet.Packet, t *token) bool {
	switch {
	case t.digest == 0:
		v.unknown++
	case p == v.differs: // no need to digest it again
	case t.same(p.Data, &p.Addr):
		v.same++
		return true
	default:
		v.changed++
		v.differs = p
	}
	return false
}

// flush sends the batches and gives them back. It returns how many packets failed, see lane.flush.
func (v *verdicts) flush(lanes []*Lane) (failed int, err error) {
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
		v.lanes[i] = laneVerdicts{}
	}
	return failed, err
}

// onward is the verdict that lets a packet go on to the handles below this one: through the chain once more, with a cursor by
// which it meets the lower handles only. The kernel finds out whether there are any: no other process has a say in it.
func (s *Sender) onward(priority uint32) (queue.Verdict, queue.Option) {
	if kernel.VerdictPriority.Has() {
		return queue.Repeat, queue.Option{Priority: s.Key.Pack(priority), SetPriority: true}
	}
	// The cursor cannot be set: the packet leaves the chain, and nobody below sees it.
	if _, ok := cursor.Unpack(priority); ok {
		return queue.Accept, queue.Option{Priority: priority & cursor.OldMask, SetPriority: true}
	}
	return queue.Accept, queue.Option{}
}

// Strange reports whether another program's rule has led a packet to the handle's queue: at a hook that is not the handle's, or
// with the cursor of a packet that the handle has served. Its own rules lead no such packet there.
func (s *Sender) Strange(m *queue.Message) bool {
	forward := m.Hook == queue.HookForward
	if forward != (s.Layer == packet.LayerForward) || !forward && m.Hook != queue.HookPrerouting && m.Hook != queue.HookLocalIn && m.Hook != queue.HookPostrouting {
		return true
	}
	key, ok := cursor.Unpack(m.Priority)
	return ok && key <= s.Key
}

// Leave lets a strange packet go on. It must not enter the chain that queued it again: that would queue it for ever.
func (s *Sender) Leave(v *queue.Verdicts, m *queue.Message) {
	var o queue.Option
	if _, ok := cursor.Unpack(m.Priority); ok {
		o = queue.Option{Priority: m.Priority & cursor.OldMask, SetPriority: true}
	}
	_ = v.Add(m.ID, queue.Accept, o) // fails only for a payload
}

// PassOn lets a queued packet, with the bytes and the address of Deliver, go on as it was. The tag says how it is counted.
func (s *Sender) PassOn(v *queue.Verdicts, b []byte, a *packet.Address, tag uint32) {
	t := tokenOf(a)
	if t.severed {
		_, _ = s.lanes[t.lane].flush(v) // the packets before it go first; a verdict that fails is owed
	}
	if s.anew(&t, b, a) {
		_ = v.Add(t.id, queue.Drop, queue.Option{}) // fails only for a payload
		return
	}
	verdict, o := s.onward(t.priority)
	o.Tag = tag
	_ = v.Add(t.id, verdict, o)
}

// DropOne drops a packet that waits for its verdict, unless it has given way to another since.
func (s *Sender) DropOne(a *packet.Address) {
	s.settle(a, func(v *queue.Verdicts, t *token) { _ = v.Add(t.id, queue.Drop, queue.Option{}) })
}

// PassOne lets a packet that waits for its verdict go on, unless it has given way to another since. The caller has counted
// it as passed.
func (s *Sender) PassOne(b []byte, a *packet.Address) {
	s.settle(a, func(v *queue.Verdicts, _ *token) { s.PassOn(v, b, a, PassedTag(1)) })
}

// settle sends the verdict on a packet, unless it has none to get any more.
func (s *Sender) settle(a *packet.Address, add func(*queue.Verdicts, *token)) {
	t := tokenOf(a)
	l := s.laneOf(&t)
	if l == nil || !l.waiting.claimAt(t.place, t.id) {
		return
	}
	v, err := l.batch()
	if err != nil {
		return
	}
	defer l.batches.Put(v)
	add(v, &t)
	_, _ = l.flush(v) // what fails is owed, or gone with the queue
}

// Captured reports whether a packet came from a queue of the handle.
func (s *Sender) Captured(a *packet.Address) bool {
	t := tokenOf(a)
	return s.laneOf(&t) != nil
}

// Holds reports whether the program has neither sent nor dropped a captured packet.
func (s *Sender) Holds(a *packet.Address) bool {
	t := tokenOf(a)
	l := s.laneOf(&t)
	return l != nil && l.waiting.holds(t.place, t.id)
}

// LaneNumber returns the number of the lane that a packet came from.
func LaneNumber(a *packet.Address) int { return int(tokenOf(a).lane) }

// Send sends ps. A packet that fails does not hold up the others; the last error is returned.
func (s *Sender) Send(ps []packet.Packet, unchanged bool) (sent int, last error) {
	return s.send(ps, false, unchanged)
}

// SendConst is Send that leaves the memory of the packets' Data alone: a packet that has to be finished is copied into its
// Packet's own memory, and then its Data is that.
func (s *Sender) SendConst(ps []packet.Packet) (sent int, last error) {
	return s.send(ps, true, false)
}

// send sends ps, in parts that keep their order; keeps is that of verdicts.
func (s *Sender) send(ps []packet.Packet, keeps, unchanged bool) (sent int, last error) {
	for len(ps) > 0 {
		v := verdicts{keeps: keeps}
		n := untilSevered(ps)
		done, err := s.part(ps[:n], &v, unchanged)
		if sent += done; err != nil {
			last = err
		}
		ps = ps[n:]
	}
	return sent, last
}

// part sends packets with one flush of verdicts.
func (s *Sender) part(ps []packet.Packet, v *verdicts, unchanged bool) (sent int, last error) {
	rest := ps
	if len(ps) > 1 {
		n, err := s.run(ps, v, unchanged)
		if err != nil {
			return 0, ClosedError(err)
		}
		v.reinjected, rest = uint64(n), ps[n:]
	}
	for i := range rest {
		again, err := s.one(&rest[i], v, unchanged)
		switch {
		case err != nil:
			last = err
		case again:
			v.reinjected++
		default:
			v.injected++
		}
	}
	s.habit.learn(v.same, v.changed, v.unknown)
	s.flush(v)
	if v.err != nil {
		last = ClosedError(v.err)
	}
	sent = int(v.reinjected+v.injected) - v.failed
	s.Counts.Injected.Add(v.injected)
	s.Counts.Failed.Add(uint64(len(ps) - sent))
	return sent, last
}

// flush sends the verdicts of a send call that have gathered, and counts their packets.
func (s *Sender) flush(v *verdicts) {
	s.Counts.Reinjected.Add(v.reinjected - v.counted) // before the kernel can refuse any of them
	v.counted = v.reinjected
	failed, err := v.flush(s.lanes)
	if err != nil {
		s.Counts.Reinjected.Add(-uint64(failed))
		v.failed += failed
		v.err = err
	}
}

// Pass lets captured packets go on as they were, which the caller counts as passed, and returns how many: those that
// still had their place.
func (s *Sender) Pass(ps []packet.Packet) (passed uint64) {
	var v verdicts
	for i := range ps {
		t := tokenOf(&ps[i].Addr)
		if l := s.laneOf(&t); l != nil && v.claim(l, &t) {
			if t.severed {
				_, _ = v.flush(s.lanes) // the packets before it go first
			}
			if s.anew(&t, ps[i].Data, &ps[i].Addr) {
				_ = v.drop(l, t.id) // fails only if no batch can be made
			} else {
				_ = s.onto(&v, l, &t, nil, PassedTag(1))
			}
			passed++
		} else if data, err := engine.Whole(ps[i].Data); err == nil && s.held.late(l, &t) {
			err := engine.Finish(data, &ps[i].Addr, true)
			if err == nil {
				err = s.Injector.Inject(data, &ps[i].Addr)
			}
			if err == nil {
				passed++
			} else {
				s.Counts.Abandoned.Add(1)
			}
		}
	}
	_, _ = v.flush(s.lanes) // what fails is owed, or gone with the queue
	return passed
}

// Again sends the superpackets among captured packets through the chain that queued them once more. They meet this handle as if
// they came now: after Cut in pieces. It moves the other packets to the front of ps, in their order, and returns their number.
func (s *Sender) Again(ps []packet.Packet) (left int) {
	var v verdicts
	for i := range ps {
		t := tokenOf(&ps[i].Addr)
		if l := s.laneOf(&t); l != nil && t.gso && v.claim(l, &t) {
			if b, err := v.on(l); err == nil {
				_ = b.Add(t.id, queue.Repeat, queue.Option{}) // fails only for a payload
			}
			continue
		}
		if left != i {
			ps[left], ps[i] = ps[i], ps[left]
		}
		left++
	}
	_, _ = v.flush(s.lanes) // what fails is owed, or gone with the queue
	return left
}

// Drop ends captured packets.
func (s *Sender) Drop(ps []packet.Packet) error {
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
	s.Counts.Abandoned.Add(dropped)
	_, err := v.flush(s.lanes) // verdicts that the kernel had no memory for are owed
	return err
}

// laneOf returns the lane of a token of this handle, nil for any other.
func (s *Sender) laneOf(t *token) *Lane {
	if t.tag != s.Tag || int(t.lane) >= len(s.lanes) {
		return nil
	}
	return s.lanes[t.lane]
}

// one sends one packet, and reports whether it went on as the packet it was captured as.
func (s *Sender) one(p *packet.Packet, v *verdicts, unchanged bool) (again bool, err error) {
	t := tokenOf(&p.Addr)
	l := s.laneOf(&t)
	if l != nil && p.Addr.Outbound == t.outbound() && !p.Addr.Impostor && (unchanged || v.compare(p, &t)) && v.claim(l, &t) {
		if s.anew(&t, p.Data, &p.Addr) {
			return true, v.drop(l, t.id)
		}
		return true, s.onto(v, l, &t, nil, reinjectedTag(1))
	}
	data, err := engine.Whole(p.Data)
	later := l != nil && err == nil && t.summedLater(data, &p.Addr)
	if err == nil {
		if v.keeps && engine.Unready(&p.Addr) {
			data = append(p.Buffer(len(data))[:0], data...)
			p.Data = data
		}
		a := p.Addr
		a.TCPChecksum = a.TCPChecksum || later
		err = engine.Finish(data, &a, l != nil)
	}
	if err != nil {
		if l != nil && t.cut && errors.Is(err, engine.ErrShortBuffer) {
			err = s.beginning(l, &t, err)
		}
		return false, err // the captured packet, if it is one, still waits for a better try
	}
	if l != nil && v.claim(l, &t) {
		if len(data) <= queue.MaxPayload && (t.holds(data, &p.Addr) || s.redirects(v, &t, data, &p.Addr)) {
			if t.severed && s.Injector.Inject(data, &p.Addr) == nil {
				return true, v.drop(l, t.id)
			}
			if later {
				engine.Unfinish(data)
			}
			return true, s.onto(v, l, &t, data, reinjectedTag(1))
		}
		// It was turned round or sent elsewhere: the captured packet itself ends here.
		if err := v.drop(l, t.id); err != nil {
			return false, err
		}
	}
	if v.redirected {
		s.flush(v) // what goes another way must not overtake what went before it
		v.redirected = false
	}
	if later {
		complete := packet.Address{IPChecksum: true, UDPChecksum: true} // but for that of TCP
		_ = engine.Finish(data, &complete, true)                        // fails only at the end of an impostor's way
	}
	late := s.held.late(l, &t)
	err = s.Injector.Inject(data, &p.Addr)
	if late && err != nil {
		s.Counts.Abandoned.Add(1) // it stays gone
	}
	return late && t.holds(data, &p.Addr), err // turned round or sent elsewhere, it is a new one late, too
}

// beginning says why a packet of which only the beginning was received cannot be sent.
func (s *Sender) beginning(l *Lane, t *token, err error) error {
	if s.held.late(l, t) {
		s.Counts.Abandoned.Add(1) // the packet is gone
		return fmt.Errorf("%w: only the beginning of the packet was received, and the rest was held for longer than %v and is gone", err, mostPatience)
	}
	return fmt.Errorf("%w: only the beginning of the packet was received; Accept lets all of it go on", err)
}

// drop adds the end of a packet.
func (v *verdicts) drop(l *Lane, id uint32) error {
	b, err := v.on(l)
	if err != nil {
		return err
	}
	return b.Add(id, queue.Drop, queue.Option{})
}

// onto lets a queued packet go on to the handles below, with other bytes unless data is nil. The tag says how it is
// counted.
func (s *Sender) onto(v *verdicts, l *Lane, t *token, data []byte, tag uint32) error {
	b, err := v.on(l)
	if err != nil {
		return err
	}
	verdict, o := s.onward(t.priority)
	o.Payload, o.Tag = data, tag
	return b.Add(t.id, verdict, o)
}

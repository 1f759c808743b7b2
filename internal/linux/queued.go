//go:build linux

package linux

import (
	"errors"
	"io"
	"net"
	"os"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// queued is the source of a handle whose packets the kernel has chosen: they are received from its queues
// straight into the caller's memory.
type queued struct {
	h     *handle
	lanes []*lane
	any   *selector // waits for any of several lanes; nil if there is one
	ages  *ages
}

func newQueued(h *handle) (*queued, error) {
	lanes, err := openLanes(h.sender, &h.cfg)
	if err != nil {
		return nil, err
	}
	s := &queued{h: h, lanes: lanes}
	if len(lanes) > 1 {
		if s.any, err = newSelector(lanes); err != nil {
			return nil, errors.Join(err, closeLanes(lanes))
		}
	}
	if s.ages, err = watchAges(all(lanes), h.cfg.Limits.Time); err != nil {
		return nil, errors.Join(err, s.any.close(), closeLanes(lanes))
	}
	return s, nil
}

func (s *queued) ways() []way { return toQueues(s.lanes, s.h.cfg.Segments) }

// recv receives from any lane.
func (s *queued) recv(w engine.Wait, ps []packet.Packet) (int, error) {
	if s.any == nil {
		return s.recvLane(s.lanes[0], w, ps)
	}
	for {
		drained := s.any.drained.Load() // before the look at what is there
		for range s.lanes {
			n, err := s.poll(s.any.next(), ps)
			if n > 0 || err != nil {
				return n, err
			}
		}
		if drained {
			return 0, io.EOF
		}
		if err := s.any.wait(w); err != nil {
			return 0, closedError(err)
		}
	}
}

// recvLane receives from one lane.
func (s *queued) recvLane(l *lane, w engine.Wait, ps []packet.Packet) (int, error) {
	r, err := l.reader()
	if err != nil {
		return 0, closedError(err)
	}
	defer l.readers.Put(r)
	l.enter()
	defer l.leave()
	for {
		got, err := r.fill(w, ps)
		if err != nil {
			return 0, closedError(err)
		}
		if n, err := s.sort(l, r, ps[:got]); n > 0 || err != nil {
			return n, err
		}
	}
}

// poll receives what a lane holds, without waiting.
func (s *queued) poll(l *lane, ps []packet.Packet) (int, error) {
	r, err := l.reader()
	if err != nil {
		return 0, closedError(err)
	}
	defer l.readers.Put(r)
	l.enter()
	defer l.leave()
	got, err := r.poll(ps)
	if err != nil {
		return 0, closedError(err)
	}
	return s.sort(l, r, ps[:got])
}

// sort puts the packets among the datagrams in ps first and returns how many they are.
func (s *queued) sort(l *lane, r *reader, ps []packet.Packet) (n int, err error) {
	at := now()
	var m queue.Message
	first := [2]half{{lane: l}, {lane: l.single}}
	for i := range first {
		half := first[i].lane
		first[i].alone = half.runs.alone() && !half.owed.there.Load()
	}
	for i := range ps {
		switch m.Parse(r.datagram(i, &ps[i])) {
		case queue.KindError:
			s.h.counts.refused(m.Tag)
			continue
		case queue.KindOther:
			continue
		}
		half := &first[0]
		if m.Queue != l.q.Num() {
			half = &first[1]
		}
		l, drops := half.lane, r.dropsOf(half.lane)
		if half.alone {
			l.runs.begin(m.ID)
			half.alone = false
		}
		if s.h.sender.strange(&m) {
			s.h.counts.foreign.Add(1)
			s.h.sender.leave(drops, &m)
			continue
		}
		if s.ages.tooOld(l, m.ID) {
			s.h.counts.old.Add(1)
			_ = drops.Add(m.ID, queue.Drop, queue.Option{})
			continue
		}
		if n != i {
			ps[n], ps[i] = ps[i], ps[n]
		}
		s.h.deliver(l, &ps[n], &m, at)
		single := l.single == nil
		if single {
			s.h.ascribe(&ps[n], l, m.ID)
		} else {
			s.h.retime(&ps[n], l, m.ID)
		}
		if s.h.refuses(&ps[n], int(m.Length), single) {
			s.h.counts.denied.Add(1)
			verdict, o := s.h.sender.onward(m.Priority)
			_ = drops.Add(m.ID, verdict, o)
			continue
		}
		if single && s.h.flows.drops.Load() && s.h.second.Load().segment && s.h.flowDropped(&ps[n]) {
			s.h.counts.flowDropped.Add(1)
			s.h.counts.flowDroppedBytes.Add(uint64(m.Length))
			_ = drops.Add(m.ID, queue.Drop, queue.Option{})
			continue
		}
		if gone, gaveWay := l.waiting.put(m.ID); gaveWay {
			s.h.counts.abandoned.Add(1)
			_ = drops.Add(gone, queue.Drop, queue.Option{})
			l.runs.settled(1)
		}
		half.count++
		n++
	}
	for _, half := range first {
		half.lane.runs.received(half.count)
	}
	if err := l.flushBoth(r); errors.Is(err, os.ErrClosed) {
		return n, net.ErrClosed
	}
	return n, nil // a drop that the kernel had no memory for is owed
}

// half is what a batch has of one of the two queues of a socket.
type half struct {
	lane  *lane
	alone bool // the first packet is still to come, and what came before has its verdicts
	count int
}

// deliver makes a packet of a message whose payload lies in the packet's memory.
func (h *handle) deliver(l *lane, p *packet.Packet, m *queue.Message, at int64) {
	p.Data = m.Payload
	p.Addr = packet.Address{}
	h.describe(&p.Addr, m, at)
	t := token{
		tag: h.sender.tag, id: m.ID, place: m.ID, priority: m.Priority, hook: m.Hook, gso: m.GSO, lane: l.index,
		ifIdx: p.Addr.Network().IfIdx, dst: destination(m.Payload), sums: sumsOf(&p.Addr),
	}
	// Of a packet that is too long for the queue Send can only let go on what was captured, or refuse. So it always
	// has a digest, but not where the program asked for beginnings (WithSnapLength).
	t.cut = int(m.Length) > len(m.Payload)
	if t.cut && len(m.Payload) == queue.MaxPayload || !t.cut && h.sender.habit.wants(m.ID) {
		t.digest = digest(m.Payload)
	}
	t.put(&p.Addr)
}

// loopbackIfIndex is the index of lo in every namespace.
const loopbackIfIndex = 1

// describe fills an address from a message, without the token (specification: api.md 14.3).
func (h *handle) describe(a *packet.Address, m *queue.Message, at int64) {
	a.Timestamp = at
	a.Layer = h.layer
	a.Event = packet.EventPacket
	a.Outbound = outbound(m.Hook)
	a.IPv6 = len(m.Payload) > 0 && m.Payload[0]>>4 == 6
	ifIdx := m.Out
	if !a.Outbound {
		ifIdx = m.In
	}
	a.Loopback = a.Outbound && ifIdx == loopbackIfIndex && m.Hook == queue.HookPostrouting
	a.SetNetwork(packet.NetworkData{IfIdx: ifIdx})
	// The header checksum is always in the packet. Of the transport checksum the kernel says when it left
	// it to the hardware (the field then holds a partial sum), and when the hardware has
	// verified it on the way in.
	trusted := !m.ChecksumNotReady && (a.Outbound || m.ChecksumNotVerified)
	a.IPChecksum, a.TCPChecksum, a.UDPChecksum = true, trusted, trusted
}

func (s *queued) setLimits(l engine.Limits) error {
	s.ages.limit.Store(int64(l.Time))
	return configureLanes(s.lanes, &s.h.cfg, l)
}

func (s *queued) setFilter(*prog.Program) {} // the programs of the rules decide

func (s *queued) drain() {
	for _, l := range s.lanes {
		l.q.Drain()
	}
	s.any.drain()
}

func (s *queued) wake() {
	for _, l := range s.lanes {
		l.q.Wake()
	}
	s.any.wake()
}

func (s *queued) yield() error { return release(s.lanes, s.h.sender, true) }

func (s *queued) finish() error { return nil } // all that waits goes on, see close

// close gives the packets that nobody received back to the stack, as they were.
func (s *queued) close() error {
	err := errors.Join(s.ages.close(), release(s.lanes, s.h.sender, true))
	return errors.Join(err, s.any.close(), closeLanes(s.lanes))
}

// closedError is what a call on a closed handle returns, whatever noticed it.
func closedError(err error) error {
	if errors.Is(err, os.ErrClosed) {
		return net.ErrClosed
	}
	return err
}

// lastNumbers returns the last number that each lane's queue has given a packet.
func (s *queued) lastNumbers() ([]uint32, error) {
	lanes := all(s.lanes) // in the order of their indexes
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

// tally adds what the kernel counts: the rules count what they lead to the queue, the queue numbers what it takes.
func (s *queued) tally(st *engine.Stats) error {
	var waiting, numbered, full, unread uint64
	for _, l := range all(s.lanes) {
		c, err := s.ages.counters(l)
		if err != nil {
			return err
		}
		waiting += rest(c.Total, l.waiting.count())
		numbered, full, unread = numbered+c.Numbered, full+c.DroppedFull, unread+c.DroppedUser
	}
	if s.h.clones != nil {
		left, err := s.h.clones.CloneCount()
		if err != nil {
			return err
		}
		defer func() { st.Matched, st.Passed = st.Matched+left, st.Passed+left }() // which the rules have not counted
	}
	st.DroppedFull += full + unread
	denied := s.h.counts.denied.Load()
	known := st.Received + st.DroppedOld + st.DroppedLong + st.Passed + denied + s.h.counts.flowDropped.Load()
	// The rules count a superpacket as one, the queue its segments.
	led := max(st.Matched, rest(numbered+full, st.Foreign))
	st.Matched = rest(led, denied)
	if s.h.cfg.FailOpen {
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

package impair

import (
	"errors"
	"io"
	"math"
	"net"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// batch is the number of packets received at a time.
const batch = 128

// worker is the private state of one of the run's two goroutines.
type worker struct {
	*Impairer
	parsed  packet.Parsed
	out     []divert.Packet // packets to carry out, in this order
	ways    []way           // way of each
	dropped []divert.Packet // packets that the kernel need not keep; addresses only
	used    []*held         // packets whose bytes out refers to
}

// receive receives packets and decides on them until the handle is shut down.
func (i *Impairer) receive() error {
	w := worker{Impairer: i}
	ps := make([]divert.Packet, batch)
	for {
		n, err := i.handle.RecvBatch(ps)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		w.take(ps[:n])
	}
}

// sendDue sends packets when their time has come, until the run is over and all have gone.
func (i *Impairer) sendDue() {
	w := worker{Impairer: i}
	timer, sleeper := time.NewTimer(time.Hour), newNapper()
	defer timer.Stop()
	defer sleeper.Close()
	for {
		i.mu.Lock()
		w.recycle()
		w.drain(i.now())
		next, over := int64(math.MaxInt64), i.drained
		if len(i.heap) > 0 {
			next = i.heap[0].when
		}
		sent := len(w.out) > 0
		w.send() // unlocks
		switch {
		case sent: // sending has taken time
		case over:
			return
		default:
			i.waitUntil(next, timer, sleeper)
		}
	}
}

// waitUntil waits until a time, or until alarm is called.
func (i *Impairer) waitUntil(when int64, timer *time.Timer, sleeper *napper) {
	d := time.Duration(math.MaxInt64)
	if when != math.MaxInt64 {
		d = time.Duration(when - i.now())
	}
	if d > napTime {
		timer.Reset(d - napTime)
		select {
		case <-i.wake:
			return
		case <-timer.C:
		}
		d = time.Duration(when - i.now())
	}
	for d > 0 && d <= napTime {
		sleeper.nap(min(d, napSlice))
		select {
		case <-i.wake:
			return
		default:
		}
		before := d
		if d = time.Duration(when - i.now()); d >= before {
			break
		}
	}
	// A clock that stands still until all goroutines sleep, as in tests, advances for timers only.
	if d <= 0 {
		return
	}
	timer.Reset(d)
	select {
	case <-i.wake:
	case <-timer.C:
	}
}

// take decides on received packets.
func (w *worker) take(ps []divert.Packet) {
	i := w.Impairer
	i.mu.Lock()
	w.recycle()
	now := i.now()
	w.drain(now)
	first := w.first()
	if now >= i.phaseEnd {
		i.phase, i.phaseEnd, _ = i.plan.at(now)
	}
	for n := range ps {
		w.packet(&ps[n], now)
	}
	sooner, broken := w.first() < first, i.broken != nil && !i.ending
	w.send() // unlocks
	switch {
	case broken:
		i.end() // the packets in the queue are still received, and go on
	case sooner:
		i.alarm()
	}
}

// first returns the time at which the next held packet goes on.
func (i *Impairer) first() int64 {
	if len(i.heap) == 0 {
		return math.MaxInt64
	}
	return i.heap[0].when
}

// packet decides on a packet.
func (w *worker) packet(p *divert.Packet, now int64) {
	i := w.Impairer
	var r *rule
	if !i.ending && i.broken == nil && i.phase < len(i.plan.phases) {
		r, i.broken = i.plan.match(&i.plan.phases[i.phase], p)
	}
	if r == nil || !w.parsed.Parse(p.Data) {
		i.unimpaired++
		w.add(accept, p.Data, &p.Addr)
		return
	}
	r.stats.Packets++
	r.stats.Bytes += uint64(len(p.Data))
	key := keyOf(p.Data, &w.parsed, r.number)
	f := i.flows.find(&key)
	n := f.ordinal
	d := r.decide(f)
	t := transit{packet: p, rule: r, flow: f, ordinal: n, now: now, delay: d.delay, whole: !w.parsed.Truncated}
	switch {
	case d.lost:
		r.stats.Lost++
		w.drop(&p.Addr)
		return
	case d.reset && w.reset(&t):
		r.stats.Reset++
		return
	}
	if d.corrupt && t.whole && corrupt(p, &w.parsed, d.bit) {
		r.stats.Corrupted++
		t.way = send
	}
	if d.reorder {
		r.stats.Reordered++
		t.reorder = true
	}
	w.forward(&t)
	if d.duplicate && t.whole {
		r.stats.Duplicated++
		t.way, t.delay, t.copy, t.reorder = send, d.delayOfDuplicate, true, false
		w.forward(&t)
	}
}

// transit is a packet on its way through a rule.
type transit struct {
	packet  *divert.Packet
	way     way
	rule    *rule
	flow    *flow
	ordinal uint64
	now     int64
	delay   time.Duration
	reorder bool
	copy    bool // the kernel holds no original: it is a duplicate, or made here
	whole   bool // all bytes were received
}

// forward sends a packet on when its time comes, by rate, lag and order.
func (w *worker) forward(t *transit) {
	r, f := t.rule, t.flow
	when := t.now
	if r.Rate != 0 {
		var ok bool
		if when, ok = w.shaperOf(t).add(t.now, len(t.packet.Data)); !ok {
			r.stats.QueueFull++
			w.discard(t)
			return
		}
	}
	when += int64(t.delay)
	if step := int64(r.Throttle); step != 0 {
		when = (when + step - 1) / step * step
	}
	if t.reorder {
		w.letPass(t, when)
		return
	}
	if !r.Unordered {
		when = max(when, f.last)
		f.last = when
	}
	if when <= t.now {
		w.add(t.way, t.packet.Data, &t.packet.Addr)
	} else {
		w.hold(t, when)
	}
	w.passed(f, t.ordinal, when)
}

// shaperOf returns the shaper of the packet's direction, or interface.
func (w *worker) shaperOf(t *transit) *shaper {
	var key uint64
	switch a := &t.packet.Addr; {
	case a.Layer == divert.LayerForward:
		key = uint64(a.Network().IfIdx)
	case a.Outbound:
		key = 1
	}
	s := t.rule.shapers[key]
	if s == nil {
		s = newShaper(&t.rule.Rule)
		t.rule.shapers[key] = s
	}
	return s
}

// letPass holds a packet until later ones have passed.
func (w *worker) letPass(t *transit, when int64) {
	wait := t.rule.ReorderWait
	if wait == 0 {
		wait = defaultReorderWait
	}
	e := w.hold(t, when+int64(wait))
	if e == nil {
		return
	}
	e.flow, e.own = t.flow, when
	e.until = t.ordinal + uint64(max(t.rule.ReorderBy, 1))
	if e.next = t.flow.waiting; e.next != nil {
		e.next.prev = e
	}
	t.flow.waiting = e
}

// passed records that a packet of a flow goes on, so that the packets waiting for it follow.
func (w *worker) passed(f *flow, ordinal uint64, when int64) {
	for e := f.waiting; e != nil; {
		next := e.next
		if e.until <= ordinal {
			e.leave()
			if when = max(when, e.own); when < e.when {
				e.when, e.order = when, w.order
				w.order++
				w.heap.sooner(e)
			}
		}
		e = next
	}
}

// leave removes a packet from those of its flow that let others pass.
func (e *held) leave() {
	if e.prev != nil {
		e.prev.next = e.next
	} else {
		e.flow.waiting = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	}
	e.flow, e.prev, e.next = nil, nil, nil
}

// hold keeps a packet until a time. It returns nil if there is no room for it.
func (w *worker) hold(t *transit, when int64) *held {
	i, p := w.Impairer, t.packet
	if len(i.heap) >= i.config.MaxPackets || i.heldBytes+len(p.Data) > i.config.MaxBytes {
		t.rule.stats.HoldingFull++
		w.discard(t)
		return nil
	}
	var e *held
	if n := len(i.free); n > 0 {
		e, i.free = i.free[n-1], i.free[:n-1]
	} else {
		e = new(held)
	}
	e.when, e.order, e.rule, e.way = when, i.order, t.rule, t.way
	i.order++
	e.packet.Data = append(e.packet.Buffer(len(p.Data))[:0], p.Data...)
	e.packet.Addr = p.Addr
	if p.Addr.Outbound && t.whole {
		// The original must not count against its sender's socket buffer, which would hold the sender up.
		e.way = send
		if !t.copy {
			w.drop(&p.Addr)
		}
	}
	i.heap.push(e)
	i.heldBytes += len(p.Data)
	if !t.copy {
		t.rule.stats.Delayed++
	}
	return e
}

// discard ends a packet for which there is no room.
func (w *worker) discard(t *transit) {
	if !t.copy {
		w.drop(&t.packet.Addr)
	}
}

// add makes a packet go on.
func (w *worker) add(y way, data []byte, a *divert.Address) {
	w.out = append(w.out, divert.Packet{Data: data, Addr: *a})
	w.ways = append(w.ways, y)
}

// drop tells the kernel that a packet is finished.
func (w *worker) drop(a *divert.Address) { w.dropped = append(w.dropped, divert.Packet{Addr: *a}) }

// drain removes the held packets whose time has come; at the end all of them.
func (w *worker) drain(now int64) {
	i := w.Impairer
	for len(i.heap) > 0 && (i.heap[0].when <= now || i.ending) {
		e := i.heap.pop()
		if e.flow != nil {
			e.leave()
		}
		i.heldBytes -= len(e.packet.Data)
		w.used = append(w.used, e)
		if i.ending && i.config.DropHeld {
			e.rule.stats.Ended++
			w.drop(&e.packet.Addr)
			continue
		}
		w.add(e.way, e.packet.Data, &e.packet.Addr)
	}
}

// Limits of memory kept for reuse.
const (
	maxFree    = 4096 // packets
	maxFreeLen = 4096 // bytes of each
)

// recycle makes the memory of packets that have gone on available for reuse.
func (w *worker) recycle() {
	i := w.Impairer
	for n, e := range w.used {
		w.used[n] = nil
		if len(i.free) < maxFree {
			if len(e.packet.Data) > maxFreeLen {
				e.packet = divert.Packet{}
			}
			i.free = append(i.free, e)
		}
	}
	w.used = w.used[:0]
}

// send carries out the decisions. It is called with mu locked, and unlocks it.
func (w *worker) send() {
	i := w.Impairer
	i.sending.Lock()
	defer i.sending.Unlock()
	i.mu.Unlock()
	for ps := w.dropped; len(ps) > 0; {
		n := min(len(ps), divert.MaxBatch)
		w.check(n, n, i.handle.DropBatch(ps[:n]))
		ps = ps[n:]
	}
	for begin := 0; begin < len(w.out); {
		end := begin + 1
		for end < len(w.out) && w.ways[end] == w.ways[begin] && end-begin < divert.MaxBatch {
			end++
		}
		f := i.handle.AcceptBatch
		if w.ways[begin] == send {
			f = i.handle.SendBatch
		}
		n, err := f(w.out[begin:end])
		w.check(n, end-begin, err)
		begin = end
	}
	clear(w.out)
	w.out, w.ways, w.dropped = w.out[:0], w.ways[:0], w.dropped[:0]
}

// check counts and reports packets that could not be sent.
func (w *worker) check(n, of int, err error) {
	if err == nil {
		return
	}
	w.failed.Add(uint64(of - n))
	if w.config.Report != nil && !errors.Is(err, net.ErrClosed) {
		w.config.Report(err)
	}
}

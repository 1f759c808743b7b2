package windows

import (
	"io"
	"sync"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/packet"
)

// pumpBatch is how many packets the pump takes from the driver at a time.
const pumpBatch = 64

// pump takes the packets of a wider filter from the driver, all the time, so that packets that do not match
// do not wait for the program: they go back at once, and those that match go to the inbox.
type pump struct {
	h     *handle
	inbox *inbox
	stop  chan struct{} // closed to stop it
	done  chan struct{}

	back []packet.Packet // of the batch at hand, to be sent back; memory for the next batch
	mine []int           // of the batch at hand, for the program
}

func newPump(h *handle) *pump {
	p := &pump{h: h, inbox: newInbox(h.limits, h.layer, &h.counts), stop: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p
}

// run pumps until receiving ends.
func (p *pump) run() {
	defer close(p.done)
	ps := make([]packet.Packet, pumpBatch)
	for {
		n, s, err := p.h.receive(engine.Wait{Handle: p.stop}, ps)
		if err != nil {
			p.inbox.end(err)
			return
		}
		p.sort(ps[:n], s)
	}
}

// sort decides about received packets.
func (p *pump) sort(ps []packet.Packet, s *source) {
	program := s.program.Load()
	now := time.Now()
	p.back, p.mine = p.back[:0], p.mine[:0]
	for i := range ps {
		switch {
		case p.h.flows.Match(&p.h.cfg, program, ps[i].Data, &ps[i].Addr, clock()):
			p.h.counts.matched.Add(1)
			switch p.h.flows.Pass(ps[i].Data, len(ps[i].Data), clock()) {
			case flow.Undecided:
				p.mine = append(p.mine, i)
			case flow.Accept:
				if p.h.holds() {
					p.back = append(p.back, packet.Packet{Data: ps[i].Data, Addr: ps[i].Addr})
				}
			}
		case s.plan.reinjects(&p.h.cfg):
			p.back = append(p.back, packet.Packet{Data: ps[i].Data, Addr: ps[i].Addr})
		}
	}
	// Packets of others go on before the program gets one that came after them and can send it on: the order of a flow
	// does not change.
	p.sendBack(p.back)
	clear(p.back)
	for _, i := range p.mine {
		p.inbox.put(&ps[i], now)
	}
}

// sendBack lets packets go on.
func (p *pump) sendBack(ps []packet.Packet) {
	if len(ps) == 0 {
		return
	}
	n, _ := p.h.send(ps) // the counter is the only one to tell
	p.h.counts.failed.Add(uint64(len(ps) - n))
}

// close stops the pump and lets packets that nobody received go on, as the driver does with its own.
func (p *pump) close() {
	close(p.stop)
	p.h.interrupt()
	<-p.done
	left := p.inbox.close()
	p.h.counts.passed.Add(uint64(len(left)))
	if p.h.newest.Load().plan.reinjects(&p.h.cfg) {
		p.sendBack(left)
	}
}

// inbox is a queue of packets in user space with the limits of a handle's queue (specification: api.md 12):
// an item that does not fit pushes out the oldest, and items that are too old are not handed out.
type inbox struct {
	counts   *counts
	overhead int // bytes that an item counts beyond its own

	mu     sync.Mutex
	filled *sync.Cond // an item, the end, or the end of somebody's wait
	limits engine.Limits
	ring   []waiting
	head   int
	n      int
	bytes  int
	err    error // why there will be no more; nil if there may be
}

// waiting is an item in the inbox. Its packet's memory is used again for a later one.
type waiting struct {
	packet  packet.Packet
	arrived time.Time
}

func newInbox(l engine.Limits, layer packet.Layer, c *counts) *inbox {
	q := &inbox{counts: c, overhead: engine.Overheads[layer], limits: l, ring: make([]waiting, pumpBatch)}
	q.filled = sync.NewCond(&q.mu)
	return q
}

// put appends a copy of a packet.
func (q *inbox) put(p *packet.Packet, now time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	size := len(p.Data) + q.overhead
	if size > q.limits.Size {
		q.counts.long.Add(1)
		return
	}
	for q.n > 0 && (q.n >= q.limits.Length || q.bytes+size > q.limits.Size) {
		q.pop()
		q.counts.full.Add(1)
	}
	if q.n == len(q.ring) {
		q.grow()
	}
	w := &q.ring[(q.head+q.n)%len(q.ring)]
	w.arrived = now
	w.packet.Addr = p.Addr
	w.packet.Data = w.packet.Buffer(len(p.Data))[:len(p.Data)]
	copy(w.packet.Data, p.Data)
	q.n++
	q.bytes += size
	q.filled.Signal()
}

// grow doubles the ring.
func (q *inbox) grow() {
	ring := make([]waiting, 2*len(q.ring))
	k := copy(ring, q.ring[q.head:])
	copy(ring[k:], q.ring[:q.head])
	q.ring, q.head = ring, 0
}

// pop takes the oldest item out. It stays valid until the next put.
func (q *inbox) pop() *waiting {
	w := &q.ring[q.head]
	q.head = (q.head + 1) % len(q.ring)
	q.n--
	q.bytes -= len(w.packet.Data) + q.overhead
	return w
}

// take waits for items and moves up to len(ps) of them to ps; see engine.Handle. The packets
// change places, so that no byte is copied.
func (q *inbox) take(w engine.Wait, ps []packet.Packet) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if w.Ended() {
			q.signal() // the one that woke this call may have been for an item
			return 0, engine.ErrInterrupted
		}
		n = q.move(ps)
		switch {
		case n > 0:
			q.signal() // another reader's turn: one signal may stand for several items
			return n, nil
		case q.err != nil:
			return 0, q.err
		}
		q.filled.Wait()
	}
}

// takeReady is take without waiting.
func (q *inbox) takeReady(ps []packet.Packet) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.move(ps)
}

// move moves items to ps, and returns how many. The caller holds the lock.
func (q *inbox) move(ps []packet.Packet) (n int) {
	now := time.Now()
	for n < len(ps) && q.n > 0 {
		w := q.pop()
		if now.Sub(w.arrived) > q.limits.Time {
			q.counts.old.Add(1)
			continue
		}
		ps[n], w.packet = w.packet, ps[n]
		n++
	}
	return n
}

// signal wakes a reader if there is something for it. The caller holds the lock.
func (q *inbox) signal() {
	if q.n > 0 {
		q.filled.Signal()
	}
}

// wake makes all who wait look whether their wait has ended.
func (q *inbox) wake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.filled.Broadcast()
}

// end says that no more items come: io.EOF, or what went wrong.
func (q *inbox) end(err error) {
	if err == engine.ErrInterrupted {
		err = io.EOF
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.err = err
	q.filled.Broadcast()
}

func (q *inbox) setLimits(l engine.Limits) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limits = l
}

// length returns how many items wait.
func (q *inbox) length() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}

// close empties the inbox and returns the items that are not too old.
func (q *inbox) close() []packet.Packet {
	q.mu.Lock()
	defer q.mu.Unlock()
	var left []packet.Packet
	now := time.Now()
	for q.n > 0 {
		if w := q.pop(); now.Sub(w.arrived) > q.limits.Time {
			q.counts.old.Add(1)
		} else {
			left = append(left, packet.Packet{Data: w.packet.Data, Addr: w.packet.Addr})
		}
	}
	return left
}

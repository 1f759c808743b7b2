package backlog

import (
	"io"
	"net"
	"sync"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// Queue is a backlog. Its methods may be called from several goroutines.
type Queue struct {
	now      func() int64              // the clock of the timestamps
	tick     float64                   // tick of that clock, in ns
	dropped  func(i *Item, why Reason) // called with each item pushed out, with the lock held
	overhead int                       // bytes that an item counts beyond its own

	mu      sync.Mutex
	limits  engine.Limits
	items   []Item // a ring
	head, n int
	bytes   int
	ended   error // if set, nothing more is added; Recv returns it when the queue is empty
	closed  bool
	failed  error         // error for the next waiting reader
	changed chan struct{} // closed and replaced when readers should look again
	watched bool          // a reader waits for changed
}

// Item is a waiting packet or event.
type Item struct {
	Data []byte // its own memory, kept for the next item in the same place
	Addr packet.Address
	at   int64 // time of arrival, by the queue's clock
}

// Reason is the reason why an item was lost.
type Reason uint8

// The reasons.
const (
	Full Reason = iota // it was the oldest, and a new one needed its room
	Old                // it had waited longer than the queue time
)

// Config has the settings of a queue.
type Config struct {
	Layer   packet.Layer        // layer of the items; it determines their overhead
	Limits  engine.Limits       // initial limits
	Now     func() int64        // the clock of the timestamps
	Tick    float64             // tick of that clock, in ns; 0 stands for 1
	Dropped func(*Item, Reason) // called with each lost item, which is valid during the call; it must not call the queue
}

// New returns an empty queue.
func New(c Config) *Queue {
	tick := c.Tick
	if tick == 0 {
		tick = 1
	}
	return &Queue{
		tick: tick, now: c.Now, dropped: c.Dropped, overhead: engine.Overheads[c.Layer], limits: c.Limits,
		items: make([]Item, 64), changed: make(chan struct{}),
	}
}

// Add appends a copy of an item. It returns false if the item is larger than the whole queue, or nothing more is to be
// added. The item's time of arrival is its timestamp.
func (q *Queue) Add(data []byte, addr *packet.Address) bool {
	return q.AddAt(addr.Timestamp, data, addr)
}

// AddAt is Add for an item with another time of arrival, by the queue's clock.
func (q *Queue) AddAt(at int64, data []byte, addr *packet.Address) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	size := len(data) + q.overhead
	if q.closed || q.ended != nil || size > q.limits.Size {
		return false
	}
	for q.n > 0 && (q.n+1 > q.limits.Length || q.bytes+size > q.limits.Size) {
		q.dropped(q.pop(), Full)
	}
	if q.n == len(q.items) {
		q.grow()
	}
	i := &q.items[(q.head+q.n)%len(q.items)]
	i.Data = append(i.Data[:0], data...)
	i.Addr, i.at = *addr, at
	q.n++
	q.bytes += size
	if q.n == 1 {
		q.signal()
	}
	return true
}

// Room reports whether an item with that many bytes of data would push out no other.
func (q *Queue) Room(data int) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n < q.limits.Length && q.bytes+data+q.overhead <= q.limits.Size
}

// grow doubles the ring.
func (q *Queue) grow() {
	items := make([]Item, 2*len(q.items))
	for i := range q.n {
		items[i] = q.items[(q.head+i)%len(q.items)]
	}
	q.items, q.head = items, 0
}

// pop removes the oldest item, which stays valid until the next Add.
func (q *Queue) pop() *Item {
	i := &q.items[q.head]
	q.head = (q.head + 1) % len(q.items)
	q.n--
	q.bytes -= len(i.Data) + q.overhead
	return i
}

// signal makes waiting readers look again.
func (q *Queue) signal() {
	if q.watched {
		close(q.changed)
		q.changed, q.watched = make(chan struct{}), false
	}
}

// set changes the state and wakes the readers.
func (q *Queue) set(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
	q.signal()
}

// SetLimits changes the limits. Items above them stay until the next Add.
func (q *Queue) SetLimits(l engine.Limits) { q.set(func() { q.limits = l }) }

// Limits returns the limits.
func (q *Queue) Limits() engine.Limits {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.limits
}

// Len returns the number of waiting items.
func (q *Queue) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}

// Drain ends adding: Recv returns the waiting items and then io.EOF.
func (q *Queue) Drain() { q.Stop(io.EOF) }

// Stop is Drain with another error for the end.
func (q *Queue) Stop(err error) { q.set(func() { q.ended = err }) }

// Fail makes the next Recv return an error, once.
func (q *Queue) Fail(err error) { q.set(func() { q.failed = err }) }

// Recv waits for items and fills 1 to len(ps) of ps with them; see engine.Handle. It fails with net.ErrClosed after End.
func (q *Queue) Recv(w engine.Wait, ps []packet.Packet) (int, error) {
	for {
		n, changed, err := q.take(ps, true)
		if n > 0 || err != nil {
			return n, err
		}
		select {
		case <-changed:
		case <-w.Context:
			return 0, engine.ErrInterrupted
		case <-w.Handle:
			return 0, engine.ErrInterrupted
		}
	}
}

// Poll is Recv without waiting: it returns 0 if no item waits.
func (q *Queue) Poll(ps []packet.Packet) int {
	n, _, _ := q.take(ps, false)
	return n
}

// take takes waiting items; if there are none, it returns the channel for a caller that waits.
func (q *Queue) take(ps []packet.Packet, waits bool) (n int, changed <-chan struct{}, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0, nil, net.ErrClosed
	}
	if err := q.failed; err != nil && waits {
		q.failed = nil
		return 0, nil, err
	}
	oldest := q.oldest()
	for n < len(ps) && q.n > 0 {
		i := q.pop()
		if i.at < oldest {
			q.dropped(i, Old)
			continue
		}
		p := &ps[n]
		p.Data = append(p.Buffer(len(i.Data))[:0], i.Data...)
		p.Addr = i.Addr
		n++
	}
	if n == 0 && q.ended != nil {
		return 0, nil, q.ended
	}
	if n == 0 && waits {
		q.watched = true
	}
	return n, q.changed, nil
}

// oldest returns the earliest time of arrival of an item that is not too old. q.mu is held.
func (q *Queue) oldest() int64 {
	return q.now() - int64(float64(q.limits.Time)/q.tick)
}

// End closes the queue and empties it, in one step: items that are too old are dropped, the rest go to f, each valid
// until f returns. Both happen with the lock held.
func (q *Queue) End(f func(*Item)) {
	q.set(func() {
		q.closed = true
		oldest := q.oldest()
		for q.n > 0 {
			if i := q.pop(); i.at < oldest {
				q.dropped(i, Old)
			} else {
				f(i)
			}
		}
	})
}

//go:build linux

package linux

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// backlog is a queue of packets in user space, bounded as the specification bounds a handle's packet queue
// (api.md 12): what does not fit pushes out the oldest, what is too old is not returned.
type backlog struct {
	dropped  func(p *waiting, why dropReason) // told of each packet that is pushed out, with the lock held
	overhead int                              // what an item counts beyond its bytes

	mu       sync.Mutex
	limits   engine.Limits
	items    []waiting // a ring
	head, n  int
	bytes    int
	draining bool // nothing is added any more; empty means the end
	closing  bool // as closed for who receives; packets are still added
	closed   bool
	changed  chan struct{} // closed and replaced when a reader may have reason to look again
	watched  bool          // somebody waits for changed
	deadline time.Time
}

// waiting is a packet in the backlog.
type waiting struct {
	data []byte // its own memory, kept for the next packet in the same place
	len  int
	addr packet.Address
}

// dropReason says why a packet was lost.
type dropReason uint8

const (
	dropFull dropReason = iota
	dropOld
)

// perItem is what a packet counts beyond its bytes (api.md 12).
const perItem = 63

func newBacklog(l engine.Limits, dropped func(*waiting, dropReason)) *backlog {
	return &backlog{dropped: dropped, overhead: perItem, limits: l, items: make([]waiting, 64), changed: make(chan struct{})}
}

// add appends a packet and reports false if it is larger than the whole queue may be.
func (q *backlog) add(data []byte, addr *packet.Address) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	size := len(data) + q.overhead
	if q.closed || q.draining || size > q.limits.Size {
		return false
	}
	for q.n > 0 && (q.n+1 > q.limits.Length || q.bytes+size > q.limits.Size) {
		q.dropped(q.pop(), dropFull)
	}
	if q.n == len(q.items) {
		q.grow()
	}
	w := &q.items[(q.head+q.n)%len(q.items)]
	w.data = append(w.data[:0], data...)
	w.len, w.addr = len(data), *addr
	q.n++
	q.bytes += size
	if q.n == 1 {
		q.signal()
	}
	return true
}

// grow doubles the ring.
func (q *backlog) grow() {
	items := make([]waiting, 2*len(q.items))
	for i := range q.n {
		items[i] = q.items[(q.head+i)%len(q.items)]
	}
	q.items, q.head = items, 0
}

// pop takes the oldest packet out; it stays valid until the next add.
func (q *backlog) pop() *waiting {
	w := &q.items[q.head]
	q.head = (q.head + 1) % len(q.items)
	q.n--
	q.bytes -= w.len + q.overhead
	return w
}

// signal makes waiting readers look again.
func (q *backlog) signal() {
	if q.watched {
		close(q.changed)
		q.changed, q.watched = make(chan struct{}), false
	}
}

// set changes the state and wakes the readers.
func (q *backlog) set(f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	f()
	q.signal()
}

// recv waits for packets; see engine.Handle.
func (q *backlog) recv(ps []packet.Packet) (int, error) {
	for {
		n, wait, deadline, err := q.take(ps)
		if n > 0 || err != nil {
			return n, err
		}
		if deadline.IsZero() {
			<-wait
			continue
		}
		timer := time.NewTimer(time.Until(deadline))
		select {
		case <-wait:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// take takes what is there; if nothing is, it says what to wait for.
func (q *backlog) take(ps []packet.Packet) (n int, wait <-chan struct{}, deadline time.Time, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closing || q.closed {
		return 0, nil, deadline, net.ErrClosed
	}
	if !q.deadline.IsZero() && !time.Now().Before(q.deadline) {
		return 0, nil, deadline, os.ErrDeadlineExceeded
	}
	oldest := now() - int64(q.limits.Time)
	for n < len(ps) && q.n > 0 {
		w := q.pop()
		if w.addr.Timestamp < oldest {
			q.dropped(w, dropOld)
			continue
		}
		p := &ps[n]
		p.Data = append(p.Buffer(w.len)[:0], w.data...)
		p.Addr = w.addr
		n++
	}
	if n == 0 && q.draining {
		return 0, nil, deadline, io.EOF
	}
	if n == 0 {
		q.watched = true
	}
	return n, q.changed, q.deadline, nil
}

// discard empties the backlog, giving each packet to f.
func (q *backlog) discard(f func(*waiting)) {
	q.set(func() { q.empty(f) })
}

func (q *backlog) empty(f func(*waiting)) {
	for q.n > 0 {
		f(q.pop())
	}
}

// end closes the backlog and empties it, in one step, giving each packet to f.
func (q *backlog) end(f func(*waiting)) {
	q.set(func() { q.closed = true; q.empty(f) })
}

// lost counts a packet that had to leave a backlog.
func (c *counts) lost(why dropReason) {
	if why == dropOld {
		c.old.Add(1)
	} else {
		c.full.Add(1)
	}
}

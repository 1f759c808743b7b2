//go:build !windows

package main

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
)

// descriptor lets the program wait with poll instead of a receive call: an eventfd that is readable while a receive call
// has a packet or an error to return. Packets are therefore received ahead: by a receive call that would leave none for
// the next one and finds more, or else by a goroutine that waits for them.
//
// Only one of them receives at a time: the holder of the token, or the goroutine, from the start of its turn until it
// gives the token back.
type descriptor struct {
	fd      int
	token   chan struct{} // holds the token while a packet or error waits and no call receives
	turn    chan struct{} // tells the goroutine to wait for packets; closed to end it
	wake    chan struct{} // makes the call that waits for the token check whether it was cancelled
	told    chan struct{} // closed once the descriptor shows the handle's state
	ended   chan struct{} // closed when the goroutine has ended
	telling sync.Once
	giving  sync.Mutex // see give

	// Only the holder of the token uses these.
	set  bool  // the descriptor is readable
	next error // error for the next receive call if no packet is held
}

// aheadMost is the most packets received ahead: as many as one call takes out of the kernel cheaply, not the whole queue.
const aheadMost = 64

// describe gives the handle a descriptor, unless it is closing. When it returns, the descriptor shows whether packets
// wait.
func (h *handle) describe(d *descriptor) bool {
	c := &turn{ready: make(chan struct{}, 1)}
	t := &h.turns
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return false
	}
	h.descriptor.Store(d)
	if t.current != nil { // it may wait for a packet: now it waits for the token instead
		t.interrupted = true
		_ = h.divert.SetReadDeadline(past)
	}
	t.mu.Unlock()
	go h.watch(d)
	immediate, ok := t.enter(c)
	switch {
	case !ok:
		return true // close has come between, and makes it readable
	case !immediate:
		select {
		case <-d.told: // closed by the call whose turn it is
			if t.abandon(c) {
				return true
			}
			<-c.ready
		case <-c.ready:
		}
		if !t.has(c) {
			return true // close
		}
	}
	defer t.leave(c)
	select {
	case <-d.token:
		h.tell(d)
	default: // already closed
	}
	return true
}

// watch waits for packets and events whenever it is its turn, until close.
func (h *handle) watch(d *descriptor) {
	defer close(d.ended)
	held := &h.held
	for range d.turn {
		n, err := h.divert.RecvBatch(held.packets[:aheadMost])
		if interrupted(err) {
			return // close has ended the wait, and no call receives any more
		}
		if err != nil {
			d.next = err
		} else {
			held.first, held.last, held.since = 0, n, time.Now()
		}
		d.give()
	}
}

// tell gives the token back if the next receive call has a packet or an error to return; otherwise it gives the turn to
// the goroutine, which waits for one. The caller has the token.
func (h *handle) tell(d *descriptor) {
	defer d.telling.Do(func() { close(d.told) })
	held := &h.held
	if held.first == held.last && d.next == nil {
		n, err := engine.Poll(h.divert, held.packets[:aheadMost])
		if err == engine.ErrInterrupted { // nothing
			d.clear()
			d.turn <- struct{}{}
			return
		}
		if d.next = err; err == nil {
			held.first, held.last, held.since = 0, n, time.Now()
		}
	}
	d.give()
}

// give makes the descriptor readable and gives the token back, in one step for take.
func (d *descriptor) give() {
	d.giving.Lock()
	defer d.giving.Unlock()
	d.mark()
	d.token <- struct{}{}
}

// there reports whether the token is available.
func (d *descriptor) there() bool {
	d.giving.Lock()
	defer d.giving.Unlock()
	return len(d.token) > 0
}

// take takes the token if it is available, as it always is once the descriptor has become readable.
func (d *descriptor) take() bool {
	d.giving.Lock()
	defer d.giving.Unlock()
	select {
	case <-d.token:
		return true
	default:
		return false
	}
}

// one is the count that makes an eventfd readable.
var one = [8]byte{1} // little-endian, as all supported machines are

// mark makes the descriptor readable.
func (d *descriptor) mark() {
	if !d.set {
		d.set = true
		_, _ = unix.Write(d.fd, one[:]) // fails only when the descriptor is readable
	}
}

// clear makes the descriptor unreadable.
func (d *descriptor) clear() {
	if d.set {
		d.set = false
		var count [8]byte
		_, _ = unix.Read(d.fd, count[:]) // does not block; fails if the program has read the descriptor
	}
}

// interrupt makes the call that waits for the token check whether it was cancelled.
func (d *descriptor) interrupt() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// resume undoes interrupt.
func (d *descriptor) resume() {
	select {
	case <-d.wake:
	default:
	}
}

// close makes the descriptor readable for good and ends the goroutine. No receive call is under way, and none follows.
func (d *descriptor) close(h *handle) {
	_ = h.divert.SetReadDeadline(past)
	close(d.turn)
	<-d.ended
	d.mark()
	_ = unix.Close(d.fd) // the program's own descriptors stay
}

// receiveDescribed is receive of a handle with a descriptor.
func (h *handle) receiveDescribed(c *turn, to *delivery, d *descriptor) code {
	for {
		if to.atOnce && !d.take() {
			return timedOut
		}
		if !to.atOnce {
			select {
			case <-d.token:
			case <-d.wake:
				if !h.turns.goOn(c) {
					return operationAborted
				}
				continue
			}
		}
		goesOn := h.turns.goOn(c) // also keeps the goroutine's wait from interruption
		if h.expired() {
			h.held.first, h.held.last = 0, 0
		}
		h.again()
		switch {
		case h.held.first < h.held.last:
			result := h.deliver(to)
			h.tell(d)
			return result
		case d.next != nil:
			result := receiveCode(d.next)
			d.next = nil
			h.tell(d)
			return result
		}
		if h.tell(d); !goesOn {
			return operationAborted
		}
	}
}

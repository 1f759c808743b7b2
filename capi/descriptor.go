//go:build !windows

package main

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
)

// descriptor lets the program wait with poll instead of with a receive call: an eventfd that is readable while a
// receive call has something to return, a packet or an error. Packets are therefore received ahead: by a receive call that leaves
// none for the next one and finds more, or else by a goroutine that waits for them.
//
// Only one of them receives at a time: the holder of the token, or the goroutine, from the moment it gets its
// turn until it gives the token back.
type descriptor struct {
	fd      int
	token   chan struct{} // in it while there is something to receive and no call does
	turn    chan struct{} // tells the goroutine to wait for what comes; closed to end it
	wake    chan struct{} // tells the call that waits for the token to look whether it was cancelled
	told    chan struct{} // closed when the descriptor tells what the handle has
	ended   chan struct{} // closed when the goroutine has ended
	telling sync.Once
	giving  sync.Mutex // see give

	// Only the holder of the token uses these.
	set  bool  // the descriptor is readable
	next error // what the next receive call returns if no packet is held
}

// aheadMost is how many packets are received ahead: as many as one call takes out of the kernel cheaply, not the whole queue.
const aheadMost = 64

// describe makes the handle have a descriptor, unless it is closing. When it returns, the descriptor shows whether packets wait.
func (h *handle) describe(d *descriptor) bool {
	c := &turn{ready: make(chan struct{}, 1)}
	t := &h.turns
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return false
	}
	h.descriptor.Store(d)
	if t.current != nil { // which may wait for a packet: it goes on to wait for the token
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
		case <-d.told: // by the call whose turn it is
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
	default: // it is told already
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
			return // close has ended the wait, and nobody receives any more
		}
		if err != nil {
			d.next = err
		} else {
			held.first, held.last, held.since = 0, n, time.Now()
		}
		d.give()
	}
}

// tell gives the token back: with what the next receive call is to return, or to the goroutine, which waits for it. The caller
// has the token.
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

// there reports whether the token is.
func (d *descriptor) there() bool {
	d.giving.Lock()
	defer d.giving.Unlock()
	return len(d.token) > 0
}

// take takes the token if it is there, as it is whenever the descriptor has become readable.
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

// one is what an eventfd is told.
var one = [8]byte{1} // the layouts are those of little-endian machines

// mark makes the descriptor readable.
func (d *descriptor) mark() {
	if !d.set {
		d.set = true
		_, _ = unix.Write(d.fd, one[:]) // fails only when it is readable
	}
}

// clear ends that.
func (d *descriptor) clear() {
	if d.set {
		d.set = false
		var count [8]byte
		_, _ = unix.Read(d.fd, count[:]) // it does not block, and fails if the program has read it
	}
}

// interrupt makes the call that waits for the token look whether it was cancelled.
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

// close makes the descriptor readable for good and ends the goroutine. No receive call is under way, and none comes.
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
		goesOn := h.turns.goOn(c) // and the goroutine's wait is not interrupted
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

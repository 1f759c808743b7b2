//go:build !windows

package main

import (
	"slices"
	"sync"
)

// turns admits the receive calls of a handle one at a time, in the order in which they came, those of threads and
// overlapped ones alike (specification: api.md 12).
type turns struct {
	interrupt func() // wakes the call whose turn it is
	resume    func() // lets a call wait again after an interruption

	mu          sync.Mutex
	current     *turn
	waiting     []*turn
	interrupted bool
	closed      bool
	overlapped  sync.WaitGroup // overlapped requests that are not complete
}

// turn is one receive call's place in the line.
type turn struct {
	request   uintptr       // address of the OVERLAPPED, 0 for a call that waits in its thread
	ready     chan struct{} // signals its turn, or its cancellation; nil: gate does
	gate      gate          // for calls that wait in their threads
	cancelled bool          // guarded by turns.mu
	expired   bool          // cancelled because its time was over; guarded by turns.mu
}

// places are turns for calls that wait in their threads, so that a receive call allocates nothing.
var places = sync.Pool{New: func() any { return new(turn) }}

// tell signals a waiting call its turn, or its cancellation.
func (c *turn) tell() {
	if c.ready == nil {
		c.gate.open()
	} else {
		c.ready <- struct{}{}
	}
}

// enter takes a place in the line. immediate means that the call has its turn already; otherwise wait waits for it. ok is
// false if the line is closed, and the call has no place then.
func (t *turns) enter(c *turn) (immediate, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false, false
	}
	if c.request != 0 {
		t.overlapped.Add(1)
	}
	if t.current == nil {
		t.current = c
		return true, true
	}
	t.waiting = append(t.waiting, c)
	return false, true
}

// wait waits for the call's turn. It returns false if the call was cancelled, and so has lost its place.
func (t *turns) wait(c *turn) bool {
	if c.ready == nil {
		c.gate.pass()
	} else {
		<-c.ready
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.current == c
}

// has reports whether a call has its turn.
func (t *turns) has(c *turn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.current == c
}

// abandon removes a call from the line if it would have to wait. It returns false if the call has its turn, or was
// cancelled: c.ready signals that then.
func (t *turns) abandon(c *turn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.waiting, c)
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	return i >= 0
}

// expire cancels a call whose time is over, unless it has already ended or was cancelled.
func (t *turns) expire(c *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.expired = t.cancelIf(func(other *turn) bool { return other == c })
}

// hasExpired reports whether expire has cancelled a call.
func (t *turns) hasExpired(c *turn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return c.expired
}

// goOn reports whether a call woken by an interruption may wait again, because the interruption was for another call.
func (t *turns) goOn(c *turn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.quiet()
	return !c.cancelled
}

// quiet ends an interruption. The caller holds t.mu.
func (t *turns) quiet() {
	if t.interrupted {
		t.interrupted = false
		t.resume()
	}
}

// leave ends the call's turn.
func (t *turns) leave(*turn) {
	t.mu.Lock()
	t.quiet()
	var next *turn
	if len(t.waiting) > 0 {
		next = t.waiting[0]
		n := copy(t.waiting, t.waiting[1:])
		t.waiting[n] = nil
		t.waiting = t.waiting[:n]
	}
	t.current = next
	t.mu.Unlock()
	if next != nil { // next stays until it has been told
		next.tell()
	}
}

// cancel cancels the overlapped request at an address, or all for 0, and reports whether there was one.
func (t *turns) cancel(request uintptr) (found bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cancelIf(func(c *turn) bool { return c.request != 0 && (request == 0 || c.request == request) })
}

// cancelIf cancels the calls that match. The caller holds t.mu.
func (t *turns) cancelIf(match func(*turn) bool) (found bool) {
	kept := t.waiting[:0]
	for _, c := range t.waiting {
		if !match(c) {
			kept = append(kept, c)
			continue
		}
		found, c.cancelled = true, true
		c.tell()
	}
	clear(t.waiting[len(kept):])
	t.waiting = kept
	if c := t.current; c != nil && !c.cancelled && match(c) {
		found, c.cancelled = true, true
		t.interrupted = true
		t.interrupt()
	}
	return found
}

// close cancels all calls, admits no more, and returns when the last has left.
func (t *turns) close() {
	last := new(turn)
	t.mu.Lock()
	t.closed = true
	t.cancelIf(func(*turn) bool { return true })
	if t.current == nil {
		t.current = last
	} else {
		t.waiting = append(t.waiting, last)
		t.mu.Unlock()
		last.gate.pass()
		t.mu.Lock()
	}
	t.mu.Unlock()
	t.overlapped.Wait()
}

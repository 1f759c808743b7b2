package engine

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Deadline is the read deadline of a handle. Receive calls wait for a channel, which is closed when the time is over. A
// deadline set after a call began still ends it, because it closes the same channel.
type Deadline struct {
	wake func() // called after a channel is closed, for receivers that wait in a system call

	channel atomic.Pointer[chan struct{}] // never nil; closed while the time is over

	mu     sync.Mutex
	timer  *time.Timer // nil if none runs
	turn   int         // counts the settings: a timer of an earlier one does nothing
	closed bool
}

// Init prepares a deadline that is not set. wake is called after a channel is closed; see Handle.Wake.
func (d *Deadline) Init(wake func()) {
	d.wake = wake
	d.renew()
}

// Passed returns a channel that is closed from the deadline on.
func (d *Deadline) Passed() <-chan struct{} { return *d.channel.Load() }

// renew replaces the channel by an open one.
func (d *Deadline) renew() {
	c := make(chan struct{})
	d.channel.Store(&c)
}

// over reports whether the channel is closed.
func (d *Deadline) over() bool {
	select {
	case <-d.Passed():
		return true
	default:
		return false
	}
}

// end closes the channel. The caller holds the lock.
func (d *Deadline) end() {
	if !d.over() {
		close(*d.channel.Load())
	}
	d.wake()
}

// Set changes the deadline; the zero time removes it. It fails with net.ErrClosed after Close.
func (d *Deadline) Set(t time.Time) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return net.ErrClosed
	}
	d.stop()
	left := time.Until(t)
	if !t.IsZero() && left <= 0 {
		d.end()
		return nil
	}
	if d.over() {
		d.renew()
	}
	if !t.IsZero() {
		turn := d.turn
		d.timer = time.AfterFunc(left, func() { d.expire(turn) })
	}
	return nil
}

// stop removes the timer.
func (d *Deadline) stop() {
	d.turn++
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// expire ends the deadline of a setting, unless a later one has replaced it.
func (d *Deadline) expire(turn int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turn == turn {
		d.end()
	}
}

// Close ends all waits for good.
func (d *Deadline) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop()
	d.closed = true
	d.end()
}

package engine

import (
	"errors"
	"sync/atomic"
)

// Wait ends the wait of one receive call without a packet when either channel is closed. A nil channel ends nothing.
// After closing one, call Handle.Wake, for receivers that wait in a system call.
type Wait struct {
	Context <-chan struct{} // closed when the context of this call ends
	Handle  <-chan struct{} // closed when the handle's read deadline passes, or before the handle closes
}

// ErrInterrupted is the error of a receive call whose Wait has ended. The caller replaces it by the reason, so users
// never see it.
var ErrInterrupted = errors.New("interrupted")

// Ended reports whether the wait is over.
func (w Wait) Ended() bool {
	// Two selects of one channel each: together they cost a fraction of one select of two.
	select {
	case <-w.Context:
		return true
	default:
	}
	select {
	case <-w.Handle:
		return true
	default:
	}
	return false
}

// Turn is a mutex for the one of several receivers that waits in a system call. The others wait for the mutex; the end of
// their Wait ends that, too. The zero Turn does not work; see NewTurn.
type Turn struct {
	state atomic.Int32  // free, held, or contended
	freed chan struct{} // holds a token after a contended Turn was released
}

// The states of a Turn. A contended one is held, and others may wait for it.
const (
	turnFree = iota
	turnHeld
	turnContended
)

// NewTurn returns a Turn that is free.
func NewTurn() *Turn { return &Turn{freed: make(chan struct{}, 1)} }

// Take waits for the turn and reports whether the caller has it; otherwise w has ended. It takes a free Turn without
// checking w.
func (t *Turn) Take(w Wait) bool {
	if t.state.CompareAndSwap(turnFree, turnHeld) {
		return true
	}
	for t.state.Swap(turnContended) != turnFree {
		select {
		case <-t.freed:
		case <-w.Context:
			return false
		case <-w.Handle:
			return false
		}
	}
	return true
}

// Release ends the caller's turn.
func (t *Turn) Release() {
	if t.state.Swap(turnFree) != turnContended {
		return
	}
	select {
	case t.freed <- struct{}{}:
	default: // a token still there will wake a waiter
	}
}

package engine

import (
	"errors"
	"sync/atomic"
)

// Wait ends the wait of one receive call without a packet: by the closing of either channel. A nil channel ends
// nothing. Whoever closes one calls Handle.Wake next, for receivers that wait in a system call.
type Wait struct {
	Context <-chan struct{} // the context of this call has ended
	Handle  <-chan struct{} // the read deadline of the handle is over, or the handle is about to close
}

// ErrInterrupted is the error of a receive call whose Wait has ended. Users never see it: the caller knows why.
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

// Turn is a mutex for the one of several receivers that waits in a system call. The others wait for the mutex, and
// what ends their call ends that wait too. The zero Turn does not work; see NewTurn.
type Turn struct {
	state atomic.Int32  // free, held, or contended
	freed chan struct{} // holds a token after a contended Turn was released
}

// The states of a Turn. A contended one is held, and somebody may wait for it.
const (
	turnFree = iota
	turnHeld
	turnContended
)

// NewTurn returns a Turn that is free.
func NewTurn() *Turn { return &Turn{freed: make(chan struct{}, 1)} }

// Take waits for the turn and reports whether the caller has it; else w has ended. It takes a free Turn
// without a look at w.
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
	default: // a token that nobody has taken yet wakes whoever waits
	}
}

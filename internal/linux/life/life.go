//go:build linux

// Package life tracks the state of a handle from Open to Close.
package life

import "sync/atomic"

// State is a step of a handle's life. A new handle has taken no step. It takes each at most once, in any order, but none after
// Closed:
//
//	step      taken by                              from then on
//	Lost      another program removes the rules     nothing is captured; receivers get the waiting packets, then ErrRulesGone
//	NoSend    Shutdown of sending                   Send and Accept fail
//	NoRecv    Shutdown of receiving                 nothing is captured; receivers get the waiting packets, then the end
//	Closed    Close                                 every call fails
type State uint32

// The steps.
const (
	Lost State = 1 << iota
	NoSend
	NoRecv
	Closed
)

// Life is the life of a handle. It is ready to use, by several goroutines.
type Life struct{ taken atomic.Uint32 }

// Is reports whether a step was taken.
func (l *Life) Is(s State) bool { return State(l.taken.Load())&s != 0 }

// Enter takes a step, and reports whether it was this call that took it: false if it was taken before, or the handle is
// closed.
func (l *Life) Enter(s State) bool {
	for {
		was := l.taken.Load()
		if State(was)&(s|Closed) != 0 {
			return false
		}
		if l.taken.CompareAndSwap(was, was|uint32(s)) {
			return true
		}
	}
}

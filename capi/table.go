//go:build !windows

package main

import "sync"

// Handles of C programs are numbers, not pointers: a closed or invalid one is refused instead of followed. They lie above
// every file descriptor (fs.nr_open is at most 2^30) and below the bit that marks events (see overlapped.c). Like those
// of Windows they are multiples of 4. A number is reused only after 2^28 others.
const (
	firstHandle uintptr = 0x40000000
	lastHandle  uintptr = 0x7ffffffc
	handleStep  uintptr = 4
)

// table has the open handles by their numbers.
type table struct {
	mu      sync.RWMutex
	handles map[uintptr]*handle
	last    uintptr // last number given
}

var handles = table{handles: make(map[uintptr]*handle)}

// add gives a handle a number.
func (t *table) add(h *handle) uintptr {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		if t.last += handleStep; t.last < firstHandle || t.last > lastHandle {
			t.last = firstHandle
		}
		if t.handles[t.last] == nil {
			t.handles[t.last] = h
			return t.last
		}
	}
}

// get returns the handle with a number, nil if none is open.
func (t *table) get(number uintptr) *handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.handles[number]
}

// remove removes a handle and returns it, nil if none is open. Only one caller gets it.
func (t *table) remove(number uintptr) *handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[number]
	delete(t.handles, number)
	return h
}

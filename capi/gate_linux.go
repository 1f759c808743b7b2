package main

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// gate makes one thread wait in the kernel until it is opened. It replaces a channel: waking a goroutine that waits for a
// channel and is bound to a thread of the C program takes three thread switches. The zero gate is closed.
type gate struct{ opened atomic.Uint32 }

// The operations of futex(2), between threads of one process (linux/futex.h).
const (
	futexPrivate = 128
	futexWait    = 0 | futexPrivate
	futexWake    = 1 | futexPrivate
)

// open lets the waiting goroutine, or the next one to wait, pass once.
func (g *gate) open() {
	g.opened.Store(1)
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&g.opened)), futexWake, 1, 0, 0, 0)
}

// pass waits until the gate is open, and closes it.
func (g *gate) pass() {
	for !g.opened.CompareAndSwap(1, 0) {
		_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&g.opened)), futexWait, 0, 0, 0, 0)
	}
}

package main

// room makes the goroutine's stack grow, so that a signal handler that runs on it finds 64 KiB below it. Handlers do so
// if they were installed too late to get a stack of their own (see signals.c).
//
//go:noinline
func room() {
	if needed {
		var space [64 << 10]byte
		touch(&space)
	}
}

// needed is false: the frame of room is enough.
var needed bool

//go:noinline
func touch(space *[64 << 10]byte) { clear(space[:]) }

package main

import "golang.org/x/sys/unix"

// ticks returns the present time on the clock of the timestamps: CLOCK_MONOTONIC, in nanoseconds.
func ticks() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}

// tickLength is the length of a tick in nanoseconds.
func tickLength() float64 { return 1 }

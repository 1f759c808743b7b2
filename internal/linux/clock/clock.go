//go:build linux

// Package clock reads the clock of timestamps.
package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// The clock of timestamps is CLOCK_MONOTONIC in nanoseconds, the same as bpf_ktime_get_ns. Go's own
// monotonic readings are of that clock and cost no system call; they only lack its origin.
var clockStart, clockOrigin = readClocks()

// readClocks reads both clocks at one moment: of several tries the one that was interrupted the least.
func readClocks() (start time.Time, origin int64) {
	best := time.Duration(1<<63 - 1)
	for range 10 {
		before := time.Now()
		at := monotonicNow()
		if took := time.Since(before); took < best {
			start, origin, best = before, at, took // so never behind the clock, and ahead by less than took
		}
	}
	return start, origin
}

func monotonicNow() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}

// Now returns the time in ticks of the timestamps.
func Now() int64 { return clockOrigin + int64(time.Since(clockStart)) }

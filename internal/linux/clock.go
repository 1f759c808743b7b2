//go:build linux

package linux

import (
	"time"

	"golang.org/x/sys/unix"
)

// The clock of timestamps is CLOCK_MONOTONIC in nanoseconds, the same as bpf_ktime_get_ns. Go's own
// monotonic readings are of that clock and cost no system call; they only lack its origin.
var (
	clockStart  = time.Now()
	clockOrigin = monotonicNow()
)

func monotonicNow() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail for this clock
	return ts.Nano()
}

// now returns the time in ticks of the timestamps.
func now() int64 { return clockOrigin + int64(time.Since(clockStart)) }

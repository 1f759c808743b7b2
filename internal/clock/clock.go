// Package clock is the clock of packets' timestamps: CLOCK_MONOTONIC in nanoseconds on Linux, the performance counter on
// Windows (specification: api.md 2.1).
package clock

import "time"

// At returns the time that a timestamp stands for. It looks at the wall clock now and goes back by the timestamp's age, so a
// clock that was set meanwhile counts as it is now; the age does not hold time that the system slept in between. The
// result has a reading of Go's monotonic clock. It allocates nothing and makes no system call on Linux.
func At(timestamp int64) time.Time {
	t, ticks := both()
	return t.Add(time.Duration(float64(timestamp-ticks) * Tick()))
}

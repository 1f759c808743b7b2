//go:build !linux && !windows

package clock

import "time"

var start = time.Now()

// Now returns the nanoseconds since the start of the program: no engine for this system makes timestamps.
func Now() int64 { return int64(time.Since(start)) }

// Tick returns the length of a tick in nanoseconds.
func Tick() float64 { return 1 }

func both() (time.Time, int64) {
	t := time.Now()
	return t, int64(t.Sub(start))
}

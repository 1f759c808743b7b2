package main

import (
	"time"

	"github.com/opendivert/divert/internal/clock"
)

// wallClock converts a packet's timestamp to the time of day.
type wallClock struct {
	length  float64 // of one tick, in nanoseconds
	origin  int64   // a timestamp, taken at when
	when    int64   // time since 1970 in nanoseconds
	expires int64   // the timestamp from which the clocks are compared again
}

// clockPeriod is how long a comparison of the clocks stays valid: the wall clock is adjusted and set.
const clockPeriod = time.Second

func newWallClock() *wallClock {
	c := &wallClock{length: clock.Tick()}
	c.compare()
	return c
}

func (c *wallClock) compare() {
	c.origin, c.when = clock.Now(), time.Now().UnixNano()
	c.expires = c.origin + int64(float64(clockPeriod)/c.length)
}

// time returns the time of a timestamp. It reads the clocks at most once a second.
func (c *wallClock) time(timestamp int64) time.Time {
	if timestamp > c.expires {
		c.compare()
	}
	return time.Unix(0, c.when+int64(float64(timestamp-c.origin)*c.length))
}

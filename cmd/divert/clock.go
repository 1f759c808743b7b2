package main

import (
	"time"

	"github.com/opendivert/divert/internal/clock"
)

// wallClock tells what time it was at a timestamp of a packet.
type wallClock struct {
	length  float64 // of a tick, in nanoseconds
	origin  int64   // timestamp of when
	when    int64   // time since 1970 in nanoseconds
	expires int64   // timestamp from which on the clocks are compared anew
}

// clockPeriod is how long a comparison of the clocks is good for: the wall clock is adjusted and set.
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

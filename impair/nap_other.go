//go:build !linux

package impair

import "time"

// napTime is the longest nap: timers are precise here.
const (
	napTime  = 0
	napSlice = 0
)

func nap(time.Duration) {}

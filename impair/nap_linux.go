package impair

import (
	"syscall"
	"time"
)

// napTime is the longest nap: about what Go's timers may be late on an idle system, whose poller waits in whole milliseconds.
const napTime = 1200 * time.Microsecond

// napSlice is how long it may take to notice an alarm during a nap.
const napSlice = 300 * time.Microsecond

// nap sleeps for a short time, more precisely than timers do.
func nap(d time.Duration) {
	t := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&t, nil) // whoever is woken early looks at the clock again
}

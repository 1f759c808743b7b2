package impair

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// napTime is the longest nap: about the lateness of Go's timers on an idle system, whose poller waits in whole
// milliseconds.
const napTime = 1200 * time.Microsecond

// napSlice is the longest time until a nap notices an alarm.
const napSlice = 300 * time.Microsecond

// napper sleeps for short times, more precisely than timers do: a timer of the kernel (timerfd_create(2)) wakes Go's
// poller. Unlike a sleep in a system call, a nap takes neither a thread nor one of Go's processors. A napper belongs to
// one goroutine.
type napper struct {
	file *os.File // nil without a kernel timer: then naps are as precise as Go's timers
	fd   int
}

func newNapper() *napper {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return &napper{}
	}
	return &napper{file: os.NewFile(uintptr(fd), "timer"), fd: fd}
}

// nap sleeps for d, which is greater than 0. After an early end the caller looks at the clock again.
func (n *napper) nap(d time.Duration) {
	var b [8]byte
	if n.file == nil || unix.TimerfdSettime(n.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil) != nil {
		time.Sleep(d)
		return
	}
	_, _ = n.file.Read(b[:])
}

func (n *napper) Close() {
	if n.file != nil {
		n.file.Close()
	}
}

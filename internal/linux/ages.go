//go:build linux

package linux

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/linux/queue"
)

// ages tells which packets of a kernel queue have waited longer than the queue time. The kernel does not say when
// it queued a packet, but it numbers them and tells the last number: noted from time to time, that
// says of each packet a time before which it came. So a packet may live an eighth of the queue time longer
// than that; the specification only promises the queue time (api.md 12).
type ages struct {
	num     uint16
	limit   atomic.Int64  // the queue time, in ns
	expired atomic.Uint64 // 1<<32 | the last number that is too old; 0: none
	stop    chan struct{}
	done    chan struct{}

	mu    sync.Mutex
	meter *queue.Meter
}

// agesPerLimit is how many notes are taken during the queue time.
const agesPerLimit = 8

// watchAges begins to watch a queue of the calling thread's namespace.
func watchAges(num uint16, limit time.Duration) (*ages, error) {
	meter, err := queue.NewMeter()
	if err != nil {
		return nil, err
	}
	a := &ages{num: num, meter: meter, stop: make(chan struct{}), done: make(chan struct{})}
	a.limit.Store(int64(limit))
	go a.run()
	return a, nil
}

// note is the last number at a time.
type note struct {
	at   time.Time
	last uint32
}

// run takes notes until close.
func (a *ages) run() {
	defer close(a.done)
	var notes []note
	for {
		limit := time.Duration(a.limit.Load())
		select {
		case <-a.stop:
			return
		case <-time.After(limit / agesPerLimit):
		}
		c, err := a.counters()
		if err != nil {
			continue // the next note may succeed; until then packets live longer
		}
		now := time.Now()
		notes = append(notes, note{now, c.LastID})
		for len(notes) > 0 && now.Sub(notes[0].at) >= limit {
			a.expired.Store(1<<32 | uint64(notes[0].last))
			notes = append(notes[:0], notes[1:]...)
		}
	}
}

// tooOld reports whether the packet with the number has waited too long.
func (a *ages) tooOld(id uint32) bool {
	e := a.expired.Load()
	return e != 0 && int32(uint32(e)-id) >= 0 // numbers wrap around
}

// counters reads the queue's counters.
func (a *ages) counters() (queue.Counters, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.meter.Read(a.num)
}

// close ends the watch.
func (a *ages) close() {
	close(a.stop)
	<-a.done
	a.mu.Lock()
	defer a.mu.Unlock()
	a.meter.Close()
}

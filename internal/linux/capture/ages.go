//go:build linux

package capture

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/verdict"
)

// ages tells which packets of a kernel queue have waited longer than the queue time. The kernel does not say when
// it queued a packet, but it numbers them and tells the last number: noted from time to time, that
// says of each packet a time before which it came. So a packet may live an eighth of the queue time longer
// than that; the specification only promises the queue time (api.md 12).
type ages struct {
	lanes   []*verdict.Lane
	limit   atomic.Int64                    // the queue time, in ns
	expired [verdict.MaxLanes]atomic.Uint64 // of each lane: 1<<32 | the last number that is too old; 0: none
	stop    chan struct{}
	done    chan struct{}

	mu    sync.Mutex
	meter *queue.Meter
}

// agesPerLimit is how many notes are taken during the queue time.
const agesPerLimit = 8

// watchAges begins to watch queues of the calling thread's namespace.
func watchAges(lanes []*verdict.Lane, limit time.Duration) (*ages, error) {
	meter, err := queue.NewMeter()
	if err != nil {
		return nil, err
	}
	a := &ages{lanes: lanes, meter: meter, stop: make(chan struct{}), done: make(chan struct{})}
	a.limit.Store(int64(limit))
	go a.run()
	return a, nil
}

// note is the last number of each lane at a time.
type note struct {
	at   time.Time
	last [verdict.MaxLanes]uint32
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
		notes = append(notes, a.note())
		for now := time.Now(); len(notes) > 0 && now.Sub(notes[0].at) >= limit; {
			for i := range a.lanes {
				if last := notes[0].last[i]; last != 0 {
					a.expired[i].Store(1<<32 | uint64(last))
				}
			}
			notes = append(notes[:0], notes[1:]...)
		}
	}
}

// note takes a note. A number that cannot be read is 0: nothing is too old by it.
func (a *ages) note() (n note) {
	for i, l := range a.lanes {
		if c, err := a.counters(l); err == nil {
			n.last[i] = c.LastID
		}
	}
	n.at = time.Now()
	return n
}

// tooOld reports whether the packet of a lane with the number has waited too long.
func (a *ages) tooOld(l *verdict.Lane, id uint32) bool {
	e := a.expired[l.Number()].Load()
	return e != 0 && int32(uint32(e)-id) >= 0 // numbers wrap around
}

// counters reads the counters of a lane's queue.
func (a *ages) counters(l *verdict.Lane) (queue.Counters, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.meter.Read(l.QueueNumber())
}

// close ends the watch.
func (a *ages) close() error {
	close(a.stop)
	<-a.done
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.meter.Close()
}

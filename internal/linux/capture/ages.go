//go:build linux

package capture

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/linux/verdict"
)

// ages tells which packets of a kernel queue have waited longer than the queue time. The kernel does not say when it queued a
// packet, but it numbers packets and tells the last number: noted from time to time, this gives an upper bound for each packet's
// arrival time. So a packet may live an eighth of the queue time longer; the specification only promises the queue time (api.md
// 12).
type ages struct {
	heads   []*verdict.Lane                 // those that receivers wait for
	lanes   []*verdict.Lane                 // and their other halves
	limit   atomic.Int64                    // the queue time, in ns
	expired [verdict.MaxLanes]atomic.Uint64 // of each lane: 1<<32 | the last number that is too old; 0: none
	stop    chan struct{}
	done    chan struct{}

	receivers [verdict.MaxLanes]receivers // of each lane, by its number
	asleep    atomic.Bool                 // run sleeps until it is rung
	bell      chan struct{}

	mu    sync.Mutex
	meter *queue.Meter
}

// agesPerLimit is how many notes are taken during the queue time.
const agesPerLimit = 8

// watchAges begins to watch queues of the calling thread's namespace.
func watchAges(heads []*verdict.Lane, limit time.Duration) (*ages, error) {
	meter, err := queue.NewMeter()
	if err != nil {
		return nil, err
	}
	a := &ages{heads: heads, lanes: verdict.All(heads), meter: meter, stop: make(chan struct{}), done: make(chan struct{}), bell: make(chan struct{}, 1)}
	a.limit.Store(int64(limit))
	go a.run()
	return a, nil
}

// receivers counts the goroutines that wait for packets of a lane: those that wait now, and 1<<32 for each that has waited
// before. While one waits the lane is empty, so no packet grows old in it.
type receivers struct {
	n atomic.Uint64
	_ [7]uint64 // each lane has its own goroutine
}

// wait notes that a receiver begins to wait for packets of a lane, or of all.
func (a *ages) wait(lanes ...*verdict.Lane) {
	for _, l := range lanes {
		a.receivers[l.Number()].n.Add(1)
	}
}

// came notes that a receiver waits no more.
func (a *ages) came(lanes ...*verdict.Lane) {
	for _, l := range lanes {
		a.receivers[l.Number()].n.Add(1<<32 - 1)
	}
	if a.asleep.Load() {
		select {
		case a.bell <- struct{}{}:
		default: // it has been rung
		}
	}
}

// quiet reports whether each lane that receivers wait for has one that waits, and returns a sum that changes with every wait.
func (a *ages) quiet() (sum uint64, yes bool) {
	yes = true
	for _, l := range a.heads {
		n := a.receivers[l.Number()].n.Load()
		sum += n >> 32
		yes = yes && uint32(n) > 0
	}
	return sum, yes
}

// rest sleeps while receivers wait for packets all the time. It returns false when the watch is to end.
func (a *ages) rest(before uint64) bool {
	a.asleep.Store(true)
	defer a.asleep.Store(false)
	if sum, quiet := a.quiet(); !quiet || sum != before {
		return true // since the watch fell asleep, or before: nobody has rung
	}
	select {
	case <-a.stop:
		return false
	case <-a.bell:
		return true
	}
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
		before, quiet := a.quiet()
		select {
		case <-a.stop:
			return
		case <-time.After(limit / agesPerLimit):
		}
		if quiet && !a.rest(before) {
			return
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

// note takes a note. A number that cannot be read is 0, by which no packet is too old.
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

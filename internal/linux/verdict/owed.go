//go:build linux

package verdict

import (
	"sync"
	"sync/atomic"

	"github.com/opendivert/divert/internal/linux/queue"
)

// A verdict's tag says how its packets were counted, so that the count can be corrected when the kernel refuses the
// verdict or does not get it: the number of packets and, in the lowest bit, the counter. A tag of 0 corrects nothing.
func reinjectedTag(n int) uint32 { return uint32(n) << 1 }
func PassedTag(n int) uint32     { return uint32(n)<<1 | 1 }

// Refused corrects the counters for a verdict on packets that the kernel did not have any more: it drops waiting packets when
// their network device goes down.
func (s *Sender) Refused(tag uint32) {
	c := s.Counts
	n := uint64(tag >> 1)
	if tag&1 == 0 {
		c.Reinjected.Add(-n)
		c.Failed.Add(n)
	} else {
		c.Passed.Add(-n)
		c.Missing.Add(n)
	}
}

// owed are the verdicts of a lane that the kernel had no memory for. They go with the next ones: a packet must not
// stay in the kernel's queue because nobody can name it any more.
type owed struct {
	there atomic.Bool // the list has any
	mu    sync.Mutex
	list  []queue.Unsent
}

// flush sends a batch, after the verdicts that are owed. It returns how many packets were to be re-injected and are
// not: they will be dropped, because their new bytes belong to the caller, who may send them again.
func (l *Lane) flush(v *queue.Verdicts) (failed int, err error) {
	if l.owed.there.Load() {
		l.owed.mu.Lock()
		for _, u := range l.owed.list {
			u.Add(v)
		}
		l.owed.list = nil
		l.owed.there.Store(false)
		l.owed.mu.Unlock()
	}
	if err = v.Flush(); err == nil {
		return 0, nil
	}
	l.owed.mu.Lock()
	defer l.owed.mu.Unlock()
	for _, u := range v.Unsent() {
		if n, passed := int(u.Option.Tag>>1), u.Option.Tag&1 != 0; n > 0 && !passed {
			failed += n
			u.Verdict, u.Option = queue.Drop, queue.Option{}
		}
		l.owed.list = append(l.owed.list, u)
		l.owed.there.Store(true)
	}
	return failed, err
}

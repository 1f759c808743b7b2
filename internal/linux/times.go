//go:build linux

package linux

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/linux/codegen"
)

// times are what filter programs told of queued packets, which do not carry it themselves. A filter that asks for
// the time, or for a random number, which depends on it, has decided with a time of its own; the packet's
// address must carry that one, so that the decision can be repeated (specification: filter-language.md 6). And what
// process the program has found may be found no more later. Programs tell it with the packet's hash, in the
// order of their packets.
type times struct {
	clock bool // the time is asked for

	mu      sync.Mutex
	rings   []*ringbuf.Reader
	record  ringbuf.Record
	waiting map[uint64][]codegen.Time // by hash, the oldest first
	count   int
}

func newTimes(clock bool) *times {
	return &times{clock: clock, waiting: map[uint64][]codegen.Time{}}
}

// maxTimes is how many are kept for packets that have not come: most of those never will,
// because they matched and were then none of the handle's, or lost.
const maxTimes = 1 << 16

// asksForTime reports whether a filter's answer depends on the timestamp.
func asksForTime(p *filter.Program) bool {
	return slices.ContainsFunc(p.Tests(), func(t filter.Test) bool {
		switch t.Field {
		case filter.FieldTimestamp, filter.FieldRandom8, filter.FieldRandom16, filter.FieldRandom32:
			return true
		}
		return false
	})
}

// add listens to a program.
func (t *times) add(ring *ebpf.Map) error {
	r, err := ringbuf.NewReader(ring)
	if err != nil {
		return err
	}
	r.SetDeadline(past) // reads what is there and does not wait
	t.rings = append(t.rings, r)
	return nil
}

// take returns what was told of a packet, by its hash with seed 0.
func (t *times) take(hash uint64) (told codegen.Time, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.waiting[hash]
	if len(list) == 0 {
		// A program tells of a packet before that reaches the queue, so it is there by now.
		for _, r := range t.rings {
			t.drain(r)
		}
		if list = t.waiting[hash]; len(list) == 0 {
			return told, false
		}
	}
	t.count--
	if told = list[0]; len(list) == 1 {
		delete(t.waiting, hash)
	} else {
		t.waiting[hash] = list[1:]
	}
	return told, true
}

// drain reads what a ring holds.
func (t *times) drain(r *ringbuf.Reader) {
	for r.ReadInto(&t.record) == nil {
		told, err := codegen.DecodeTime(t.record.RawSample)
		if err != nil {
			continue
		}
		if t.count >= maxTimes {
			clear(t.waiting)
			t.count = 0
		}
		t.waiting[told.Hash] = append(t.waiting[told.Hash], told)
		t.count++
	}
}

// close lets go of the rings.
func (t *times) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, r := range t.rings {
		errs = append(errs, r.Close())
	}
	t.rings = nil
	return errors.Join(errs...)
}

// past is a deadline that wakes whoever waits, and lets nobody wait.
var past = time.Unix(1, 0)

//go:build linux

package review

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf/ringbuf"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/internal/prog"
)

// times hold the records of filter programs about queued packets, which do not carry them themselves. A filter that asks for the
// time, or for a random number, which depends on it, has decided with a time of its own; the packet's address must carry that
// one, so that the decision can be repeated (specification: filter-language.md 6). And the process that the program has found
// may be unknown later. Programs report both with the packet's hash, in the order of their packets.
//
// All filters of a handle have one ring, so that packets that wait while the filter is replaced find the record of the program
// that chose them.
type times struct {
	Outlet  *codegen.Outlet
	telling atomic.Bool                     // the programs of the filter in force tell
	until   [verdict.MaxLanes]atomic.Uint64 // of each lane, if they do not: 1<<32 | the last number of a packet of those before; 0: unknown

	mu     sync.Mutex
	ring   *ringbuf.Reader
	record ringbuf.Record
	told   [2]map[uint64][]codegen.Time // by hash, the oldest first; those of the second are newer
	count  int                          // in the second

	flows map[uint64]codegen.Time // the last record of single packets, by flow
	sizes map[sizeKey]int         // of the segments of superpackets, in bytes
}

// sizeKey tells the superpackets of a flow apart.
type sizeKey struct {
	flow   uint64
	length uint32
}

// timesSize is the size of the ring in bytes: room for twice as many as the longest queue has, of each direction.
const timesSize = 2 << 20

// newTimes makes the ring of a handle.
func newTimes() (*times, error) {
	outlet, err := codegen.NewTimes(timesSize)
	if err != nil {
		return nil, err
	}
	ring, err := ringbuf.NewReader(outlet.Times)
	if err != nil {
		return nil, errors.Join(err, outlet.Close())
	}
	ring.SetDeadline(time.Unix(1, 0)) // reads the records that are there and does not wait
	return &times{Outlet: outlet, ring: ring, told: [2]map[uint64][]codegen.Time{{}, {}},
		flows: map[uint64]codegen.Time{}, sizes: map[sizeKey]int{}}, nil
}

// maxTimes is how many are kept at least for packets that have not come, twice as many at most: most of those never will,
// because they matched and then did not come to the handle, or were lost.
const maxTimes = 1 << 15

// AsksForTime reports whether a filter's answer depends on the timestamp.
func AsksForTime(p *prog.Program) bool {
	return p.Asks(func(f prog.Field) bool {
		switch f {
		case prog.FieldTimestamp, prog.FieldRandom8, prog.FieldRandom16, prog.FieldRandom32:
			return true
		}
		return false
	})
}

// asked reports whether a program may have reported a packet, by its lane and number; without a lane it may.
func (t *times) asked(l *verdict.Lane, id uint32) bool {
	if t.telling.Load() || l == nil {
		return true
	}
	last := t.until[l.Number()].Load()
	return last == 0 || int32(uint32(last)-id) >= 0 // numbers wrap around
}

// Begin is called before programs that tell are set.
func (t *times) Begin() { t.telling.Store(true) }

// end notes that the programs do not report any more packets with higher numbers than those of the lanes.
func (t *times) end(last []uint32) {
	for i, id := range last {
		t.until[i].Store(1<<32 | uint64(id))
	}
	t.telling.Store(false)
}

// take returns the record of a packet, by its hash with seed 0.
func (t *times) take(hash uint64) (codegen.Time, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if told, ok := t.find(hash); ok {
		return told, true
	}
	t.drain()
	return t.find(hash)
}

// drain reads the programs' records. They write one before the packet reaches the queue, so it is there by now.
func (t *times) drain() {
	for t.ring != nil && t.ring.ReadInto(&t.record) == nil {
		switch told, err := codegen.DecodeTime(t.record.RawSample); {
		case err != nil:
		case told.Length > 0:
			if t.keepFlow(told); told.SegmentSize == 0 {
				t.keep(told)
			}
		default:
			t.keep(told)
		}
	}
}

// keepFlow keeps the record of a single packet or a superpacket.
func (t *times) keepFlow(told codegen.Time) {
	if len(t.flows) >= maxTimes {
		clear(t.flows)
	}
	t.flows[told.Flow] = told
	if told.SegmentSize == 0 {
		return
	}
	if len(t.sizes) >= maxTimes {
		clear(t.sizes)
	}
	t.sizes[sizeKey{told.Flow, told.Length}] = int(told.SegmentSize)
}

// flow returns the last record of a flow, by packet.Parsed.FlowHash.
func (t *times) flow(hash uint64) (told codegen.Time, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drain()
	told, ok = t.flows[hash]
	return told, ok
}

// segmentSize returns the size of the segments of a superpacket of a flow, 0 if none of that length has matched.
func (t *times) segmentSize(flow uint64, length int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.drain()
	return t.sizes[sizeKey{flow, uint32(length)}]
}

// find takes the oldest with a hash.
func (t *times) find(hash uint64) (codegen.Time, bool) {
	for i, m := range t.told {
		list := m[hash]
		if len(list) == 0 {
			continue
		}
		if len(list) == 1 {
			delete(m, hash)
		} else {
			m[hash] = list[1:]
		}
		t.count -= i
		return list[0], true
	}
	return codegen.Time{}, false
}

// keep adds one, and forgets the older half when there are too many.
func (t *times) keep(told codegen.Time) {
	if t.count >= maxTimes {
		clear(t.told[0])
		t.told[0], t.told[1], t.count = t.told[1], t.told[0], 0
	}
	t.told[1][told.Hash] = append(t.told[1][told.Hash], told)
	t.count++
}

// close lets go of the ring.
func (t *times) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ring == nil {
		return nil
	}
	err := errors.Join(t.ring.Close(), t.Outlet.Close())
	t.ring = nil
	return err
}

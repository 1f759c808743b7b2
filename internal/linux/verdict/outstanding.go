//go:build linux

package verdict

import (
	"math/bits"
	"sync/atomic"
)

// outstanding keeps the ids of packets that were received and not sent on yet. A packet that is never sent
// would stay in the kernel's queue for good, so there is room for a fixed number of them: a new one
// pushes out the one that has had its place the longest. Lock-free, for any number of goroutines.
type outstanding struct {
	mask  uint32
	slots []atomic.Uint64 // id<<2 and a state; 0: empty
}

// The states of a slot.
const (
	slotWaits   = 1 // the packet waits in the kernel's queue
	slotGivenUp = 2 // the kernel has dropped it; it can still be injected anew, see held
	slotState   = 3
)

// newOutstanding returns room for n packets or a few more.
func newOutstanding(n int) *outstanding {
	size := 1 << bits.Len(uint(max(n, 2)-1))
	return &outstanding{mask: uint32(size - 1), slots: make([]atomic.Uint64, size)}
}

// put adds an id. If another packet had to give way, its id is returned; the caller drops that packet.
// Ids of a queue count up, so the one that shares a slot is the oldest.
func (o *outstanding) put(id uint32) (gone uint32, gaveWay bool) { return o.putAt(id, id) }

// putAt is put where not every packet of the queue is put: place counts those that are.
func (o *outstanding) putAt(place, id uint32) (gone uint32, gaveWay bool) {
	old := o.slots[place&o.mask].Swap(uint64(id)<<2 | slotWaits)
	return uint32(old >> 2), old&slotState == slotWaits
}

// claim takes an id out and reports whether it was there: only one sender of a packet gets it.
func (o *outstanding) claim(id uint32) bool { return o.claimAt(id, id) }

// claimAt is claim of an id that has its place by putAt.
func (o *outstanding) claimAt(place, id uint32) bool {
	return o.slots[place&o.mask].CompareAndSwap(uint64(id)<<2|slotWaits, 0)
}

// giveUp notes that the caller drops a packet, and reports whether it was there.
func (o *outstanding) giveUp(place, id uint32) bool {
	return o.slots[place&o.mask].CompareAndSwap(uint64(id)<<2|slotWaits, uint64(id)<<2|slotGivenUp)
}

// takeGivenUp takes out a packet that was given up, and reports whether it was: only the first sender after that gets it.
func (o *outstanding) takeGivenUp(place, id uint32) bool {
	return o.slots[place&o.mask].CompareAndSwap(uint64(id)<<2|slotGivenUp, 0)
}

// holds reports whether a packet was neither sent nor dropped by the program: it waits, or was given up.
func (o *outstanding) holds(place, id uint32) bool {
	v := o.slots[place&o.mask].Load()
	return uint32(v>>2) == id && v&slotState != 0
}

// takeAll takes out all packets that wait.
func (o *outstanding) takeAll(each func(id uint32)) {
	for i := range o.slots {
		if old := o.slots[i].Swap(0); old&slotState == slotWaits {
			each(uint32(old >> 2))
		}
	}
}

// count returns how many packets wait.
func (o *outstanding) count() (n uint64) {
	for i := range o.slots {
		if o.slots[i].Load()&slotState == slotWaits {
			n++
		}
	}
	return n
}

package windows

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/opendivert/divert/packet"
)

// tokenOffset is the offset in the layer data of the NETWORK layers at which an address keeps the number of its packet:
// behind interface and sub-interface, where the C layout is unused.
const tokenOffset = 8

// remembered is the number of the last received packets that are recognised when they are sent.
const remembered = 1 << 14

// outstanding distinguishes received packets that are sent on from injected ones, for the counters; the driver does not.
// Lock-free, for any number of goroutines.
type outstanding struct {
	tag   uint32 // of the handle, never 0
	last  atomic.Uint64
	slots [remembered]atomic.Uint64
}

// put numbers a received packet and writes the number into its address.
func (o *outstanding) put(a *packet.Address) {
	id := o.last.Add(1)
	o.slots[id%remembered].Store(id)
	b := a.Union()[tokenOffset:]
	binary.LittleEndian.PutUint32(b[0:], o.tag)
	binary.LittleEndian.PutUint64(b[4:], id)
}

// id returns the number of an address's received packet, and whether there is one.
func (o *outstanding) id(a *packet.Address) (uint64, bool) {
	b := a.Union()[tokenOffset:]
	id := binary.LittleEndian.Uint64(b[4:])
	return id, binary.LittleEndian.Uint32(b[0:]) == o.tag && id != 0
}

// claim reports whether an address is that of a received packet that was not sent yet. It returns true once for each.
func (o *outstanding) claim(a *packet.Address) bool {
	id, ok := o.id(a)
	return ok && o.slots[id%remembered].CompareAndSwap(id, 0)
}

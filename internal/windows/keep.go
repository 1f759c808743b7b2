package windows

import (
	"sync"
	"sync/atomic"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// keeper holds received packets that the program got only in part, by their numbers, until they are accepted. Its zero
// value is empty. It may be used from several goroutines.
type keeper struct {
	count atomic.Int32 // number of kept packets

	mu    sync.Mutex
	byID  map[uint64]*keptPacket
	ends  keptPacket // next: the oldest, prev: the newest; itself if empty
	bytes int
	free  *keptPacket // memory for reuse, linked by next
	pool  sync.Pool   // of *restored
}

type keptPacket struct {
	id         uint64
	packet     packet.Packet
	prev, next *keptPacket
}

// length returns the number of kept packets.
func (k *keeper) length() int { return int(k.count.Load()) }

// put keeps a copy of a packet, unless it has one already, and returns the number of others that made way.
func (k *keeper) put(id uint64, p *packet.Packet, l engine.Limits) (gone int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.byID == nil {
		k.byID = make(map[uint64]*keptPacket)
		k.ends.next, k.ends.prev = &k.ends, &k.ends
	}
	if k.byID[id] != nil {
		return 0
	}
	for k.ends.next != &k.ends && (len(k.byID) >= l.Length || k.bytes+len(p.Data) > l.Size) {
		k.recycle(k.remove(k.ends.next))
		gone++
	}
	e := k.free
	if e == nil {
		e = new(keptPacket)
	} else {
		k.free = e.next
	}
	e.id, e.packet.Addr = id, p.Addr
	e.packet.Data = e.packet.Buffer(len(p.Data))[:len(p.Data)]
	copy(e.packet.Data, p.Data)
	e.prev, e.next = k.ends.prev, &k.ends
	e.prev.next, e.next.prev = e, e
	k.byID[id] = e
	k.bytes += len(p.Data)
	k.count.Store(int32(len(k.byID)))
	return gone
}

// remove removes a packet. The caller holds the lock.
func (k *keeper) remove(e *keptPacket) *keptPacket {
	delete(k.byID, e.id)
	e.prev.next, e.next.prev = e.next, e.prev
	k.bytes -= len(e.packet.Data)
	k.count.Store(int32(len(k.byID)))
	return e
}

// recycle makes the memory of a packet available for reuse. The caller holds the lock.
func (k *keeper) recycle(e *keptPacket) {
	e.prev, e.next = nil, k.free
	k.free = e
}

// restored is a batch to send, with kept packets in place of the cut ones.
type restored struct {
	packets []packet.Packet
	taken   []*keptPacket
}

// restore returns a batch with the kept packets in their places, and keeps them no longer. It is for one call, which ends
// with release.
func (k *keeper) restore(o *outstanding, ps []packet.Packet) *restored {
	r, ok := k.pool.Get().(*restored)
	if !ok {
		r = new(restored)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range ps {
		p := packet.Packet{Data: ps[i].Data, Addr: ps[i].Addr}
		if id, ok := o.id(&p.Addr); ok && k.byID[id] != nil {
			e := k.remove(k.byID[id])
			p.Data, p.Addr = e.packet.Data, e.packet.Addr
			r.taken = append(r.taken, e)
		}
		r.packets = append(r.packets, p)
	}
	return r
}

// release ends the use of a batch.
func (k *keeper) release(r *restored) {
	k.mu.Lock()
	for _, e := range r.taken {
		k.recycle(e)
	}
	k.mu.Unlock()
	clear(r.packets)
	clear(r.taken)
	r.packets, r.taken = r.packets[:0], r.taken[:0]
	k.pool.Put(r)
}

// forget forgets a packet.
func (k *keeper) forget(id uint64) {
	if k.length() == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if e := k.byID[id]; e != nil {
		k.recycle(k.remove(e))
	}
}

// clear forgets all packets.
func (k *keeper) clear() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for k.byID != nil && k.ends.next != &k.ends {
		k.remove(k.ends.next)
	}
	k.free = nil
}

//go:build linux

package processes

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/linux/processmap"
	"github.com/opendivert/divert/packet"
)

// Names gives the addresses of packets the names of their processes. The zero Names knows none. Its methods may be called from
// several goroutines.
type Names struct{ known atomic.Pointer[known] }

// known are the names of one Processes.
type known struct {
	maps   *processmap.Maps
	mu     sync.Mutex
	recent map[uint32]recent
}

// recent is a name that was looked up.
type recent struct {
	name [packet.ProcessNameSize]byte // zeros: there is none
	at   int64                        // the timestamp of the packet that it was looked up for
}

// freshness is how long a name counts as that of its process without another look-up: ids are used again, and processes change
// their names when they start another program.
const freshness = int64(time.Second)

// maxRecent is how many names are remembered.
const maxRecent = 4096

// Use makes ps the source of names, or nothing if it is nil.
func (n *Names) Use(ps *Processes) {
	if ps == nil {
		n.known.Store(nil)
		return
	}
	n.known.Store(&known{maps: ps.maps, recent: map[uint32]recent{}})
}

// Ascribe sets the names of the processes of packets that have one. Most packets take one look-up in memory. After the Close of
// the Processes in use, only remembered names are known.
func (n *Names) Ascribe(ps []packet.Packet) {
	k := n.known.Load()
	if k == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range ps {
		a := &ps[i].Addr
		if id := a.Network().ProcessID; id != 0 {
			a.SetProcessName(k.name(id, a.Timestamp))
		}
	}
}

// AscribeOne is Ascribe for one packet.
func (n *Names) AscribeOne(p *packet.Packet) {
	k := n.known.Load()
	if k == nil || p.Addr.Network().ProcessID == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	p.Addr.SetProcessName(k.name(p.Addr.Network().ProcessID, p.Addr.Timestamp))
}

// name returns the name of a process at a time.
func (k *known) name(id uint32, at int64) [packet.ProcessNameSize]byte {
	if r, ok := k.recent[id]; ok && at-r.at <= freshness {
		return r.name
	}
	r := recent{at: at}
	if k.maps.Names.Lookup(id, &r.name) != nil {
		r.name = [packet.ProcessNameSize]byte{} // not known, or it has given way
	}
	if len(k.recent) >= maxRecent {
		clear(k.recent)
	}
	k.recent[id] = r
	return r.name
}

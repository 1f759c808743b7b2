package redirect

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/process"
)

// ends are the two ends of a connection as the application sees them.
type ends struct{ client, dst netip.AddrPort }

// flow is a redirected connection or exchange.
//
// The listener does not see the client's port: it sees the destination's address with a port of the table's choice, the
// alias, which no other flow to that destination has. So two connections from one port of a client stay apart. The alias
// takes no port of this host: packets to it are those of the listener's own port, and arrive nowhere.
type flow struct {
	ends
	alias  netip.AddrPort // of TCP only
	toward divert.Address // address for injecting packets, both ways

	ifIdx   uint32 // outgoing interface of the first packet
	process uint32
	who     process.Process
	whoErr  error

	seq  uint32       // of the SYN
	last atomic.Int64 // time of the last packet, Unix seconds

	// The rest is guarded by the table's mutex.
	syn       []byte // held until the other half stands; nil once it goes on
	held      bool   // the other half is being dialled
	upstream  net.Conn
	accepted  bool // the program has the connection
	clientFIN bool
	localFIN  bool
	ended     bool
	exchange  *exchange
}

// network returns "tcp" or "udp".
func (f *flow) network() string {
	if f.exchange != nil {
		return "udp"
	}
	return "tcp"
}

// table holds the flows. Its methods may be called from several goroutines.
type table struct {
	mu       sync.RWMutex
	max      int                      // greatest number of live flows
	live     int                      // number of flows that have not ended
	tcp      map[ends]*flow           // the newest between two ends
	aliases  map[netip.AddrPort]*flow // all, also recently ended ones
	next     uint16                   // alias port to try first
	reserved uint16                   // the listener's own port, which no alias has
	udp      map[ends]*flow
}

func newTable(limit int, port uint16) *table {
	return &table{max: limit, reserved: port, next: firstAlias, tcp: map[ends]*flow{}, aliases: map[netip.AddrPort]*flow{}, udp: map[ends]*flow{}}
}

// firstAlias is the lowest port of an alias.
const firstAlias = 1024

// linger is the time for which an alias is kept after its connection has ended: the listener's socket may be in TIME_WAIT
// for as long (60 s on Linux), and would take a new connection for the old one.
const linger = 60 * time.Second

// silence is the time for which a silent connection is kept that the program has not accepted.
const silence = 2 * time.Minute

// find returns the newest flow of TCP between two ends.
func (t *table) find(e ends) *flow {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.tcp[e]
}

// findAlias returns the flow of an alias.
func (t *table) findAlias(a netip.AddrPort) *flow {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.aliases[a]
}

// add enters a flow of TCP and gives it an alias. It fails if the table is full, or all aliases of the destination are taken.
func (t *table) add(f *flow) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live >= t.max {
		return false
	}
	for range 1<<16 - firstAlias {
		port := t.next
		if t.next++; t.next == 0 {
			t.next = firstAlias
		}
		a := netip.AddrPortFrom(f.dst.Addr(), port)
		if port == t.reserved || t.aliases[a] != nil {
			continue
		}
		f.alias = a
		t.tcp[f.ends], t.aliases[a] = f, f
		t.live++
		return true
	}
	return false
}

// addUDP enters an exchange. If there already is one between its ends, it returns that one. It returns nil if the table
// is full.
func (t *table) addUDP(f *flow) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.udp[f.ends]; old != nil {
		return old
	}
	if t.live >= t.max {
		return nil
	}
	t.udp[f.ends] = f
	t.live++
	return f
}

func (t *table) findUDP(e ends) *flow {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.udp[e]
}

// removeUDP removes an exchange.
func (t *table) removeUDP(f *flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.udp[f.ends] == f {
		delete(t.udp, f.ends)
		t.live--
	}
}

// remove forgets a flow of TCP that never went on.
func (t *table) remove(f *flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forget(f)
}

func (t *table) forget(f *flow) {
	t.end(f)
	if t.tcp[f.ends] == f {
		delete(t.tcp, f.ends)
	}
	delete(t.aliases, f.alias)
}

// note records the FIN or RST of a segment.
func (t *table) note(f *flow, fromClient, fin, rst bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if fin {
		f.clientFIN = f.clientFIN || fromClient
		f.localFIN = f.localFIN || !fromClient
	}
	if rst || f.clientFIN && f.localFIN {
		t.end(f)
	}
}

// end counts a flow of TCP as ended, once.
func (t *table) end(f *flow) {
	if !f.ended {
		f.ended = true
		t.live--
	}
}

// holds reports whether a flow's SYN waits for the other half.
func (t *table) holds(f *flow) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return f.held
}

// release lets a held flow go on with its other half, and returns the SYN.
func (t *table) release(f *flow, upstream net.Conn) (syn []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	syn, f.syn, f.held, f.upstream = f.syn, nil, false, upstream
	return syn
}

// takeUpstream returns the other half dialled for a flow, once.
func (t *table) takeUpstream(f *flow) net.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := f.upstream
	f.upstream = nil
	return c
}

// own records whether the program has a flow's connection.
func (t *table) own(f *flow, yes bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.accepted = yes
}

// sweep removes ended and silent flows, and returns dialled connections that were never taken.
func (t *table) sweep(now time.Time) (orphans []net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.aliases {
		age := now.Sub(time.Unix(f.last.Load(), 0))
		if f.held || age <= linger || !f.ended && (f.accepted || age <= silence) {
			continue
		}
		t.forget(f)
		if f.upstream != nil {
			orphans = append(orphans, f.upstream)
			f.upstream = nil
		}
	}
	return orphans
}

// open returns the number of connections that have begun and not ended.
func (t *table) open() (n int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, f := range t.aliases {
		if !f.ended {
			n++
		}
	}
	return n
}

//go:build linux

package flowtable

import (
	"time"

	"github.com/opendivert/divert/internal/linux/eventmap"
	"github.com/opendivert/divert/internal/linux/sockdiag"
	"github.com/opendivert/divert/packet"
)

// Table has the flows that a handle knows and that have not ended.
type Table struct {
	flows     map[packet.FlowData]*Flow // by flowKey
	endpoints map[uint64]*Flow          // the first flow of each endpoint that has one
}

// Flow is a flow.
type Flow struct {
	Addr   packet.Address // of its ESTABLISHED
	record eventmap.Record
	seen   int64 // when the kernel last saw a packet, as far as is known

	next, last *Flow // of the same endpoint, in the order in which they began; last is the first one's
	before     *Flow
}

// idleTimes are how long flows without a connection live without packets: what connection tracking of
// Linux takes for UDP streams and for ICMP (net/netfilter, nf_conntrack_proto_udp.c and _icmp.c).
var idleTimes = map[uint8]time.Duration{
	protoUDP:    120 * time.Second,
	protoICMP:   30 * time.Second,
	protoICMPv6: 30 * time.Second,
}

// defaultIdle is for other protocols (nf_conntrack_proto_generic.c).
const defaultIdle = 600 * time.Second

// Protocol numbers (IANA).
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

// New returns a table without flows.
func New() *Table {
	return &Table{flows: map[packet.FlowData]*Flow{}, endpoints: map[uint64]*Flow{}}
}

// Begin enters a flow and reports false if it is there already.
func (t *Table) Begin(r *eventmap.Record, a packet.Address) bool {
	key := flowKey(&r.Data)
	if f := t.flows[key]; f != nil {
		f.seen = r.Time
		return false
	}
	f := &Flow{record: *r, Addr: a, seen: r.Time}
	t.flows[key] = f
	first := t.endpoints[r.Data.EndpointID]
	if first == nil {
		f.last = f
		t.endpoints[r.Data.EndpointID] = f
		return true
	}
	first.last.next, f.before, first.last = f, first.last, f
	return true
}

// flowKey identifies a flow: its whole description except its owner, which may change.
func flowKey(d *packet.FlowData) packet.FlowData {
	key := *d
	key.ProcessID, key.ParentEndpointID = 0, 0
	return key
}

// End takes the flows of an endpoint out.
func (t *Table) End(endpoint uint64) (ended []*Flow) {
	for f := t.endpoints[endpoint]; f != nil; f = f.next {
		delete(t.flows, flowKey(&f.record.Data))
		ended = append(ended, f)
	}
	delete(t.endpoints, endpoint)
	return ended
}

// remove takes a flow out.
func (t *Table) remove(f *Flow) {
	delete(t.flows, flowKey(&f.record.Data))
	id := f.record.Data.EndpointID
	first := t.endpoints[id]
	switch {
	case first != f:
		f.before.next = f.next
	case f.next == nil:
		delete(t.endpoints, id)
		return
	default:
		first = f.next
		first.last = f.last
		t.endpoints[id] = first
	}
	if f.next != nil {
		f.next.before = f.before
	} else {
		first.last = f.before
	}
}

// Gone takes out the flows that had begun before a time and whose sockets are gone.
func (t *Table) Gone(at int64, live *sockdiag.Live) (ended []*Flow) {
	for id, f := range t.endpoints {
		if f.record.Time < at && live.Gone(&f.record.Data) {
			ended = append(ended, t.End(id)...)
		}
	}
	return ended
}

// Kernel answers the table's questions about the kernel.
type Kernel interface {
	LastSeen(r *eventmap.Record) (at int64, ok bool)
	Forget(r *eventmap.Record)
}

// Idle takes out the flows that have been idle for too long at a time.
func (t *Table) Idle(at int64, kernel Kernel) (ended []*Flow) {
	for _, f := range t.flows {
		if f.expired(at, kernel) {
			kernel.Forget(&f.record)
			t.remove(f)
			ended = append(ended, f)
		}
	}
	return ended
}

// expired reports whether a flow has been idle for too long. A connection never has: it has an end of its own.
func (f *Flow) expired(at int64, kernel Kernel) bool {
	protocol := f.record.Data.Protocol
	if protocol == protoTCP {
		return false
	}
	limit, ok := idleTimes[protocol]
	if !ok {
		limit = defaultIdle
	}
	if at-f.seen <= int64(limit) {
		return false
	}
	if seen, ok := kernel.LastSeen(&f.record); ok {
		f.seen = max(f.seen, seen)
	}
	return at-f.seen > int64(limit)
}

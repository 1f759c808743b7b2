//go:build linux

package linux

import (
	"time"

	"github.com/opendivert/divert/internal/linux/sockets"
	"github.com/opendivert/divert/packet"
)

// flowTable are the flows that a handle has been told of and that have not ended. The kernel only finds
// them: what it remembers may be lost there, and then it tells of a flow a second time.
type flowTable struct {
	flows     map[packet.FlowData]*flowState // by what makes a flow, see flowKey
	endpoints map[uint64]*flowState          // the first flow of each endpoint that has one
}

// flowState is a flow.
type flowState struct {
	record sockets.Record
	addr   packet.Address // of its ESTABLISHED
	seen   int64          // when the kernel last saw a packet, as far as is known

	next, last *flowState // of the same endpoint, in the order in which they began; last is the first one's
	before     *flowState
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

// sweepInterval is how often idle flows are looked for.
const sweepInterval = time.Second

func newFlowTable() *flowTable {
	return &flowTable{flows: map[packet.FlowData]*flowState{}, endpoints: map[uint64]*flowState{}}
}

// begin enters a flow and reports false if it is there already.
func (t *flowTable) begin(r *sockets.Record, a packet.Address) bool {
	key := flowKey(&r.Data)
	if f := t.flows[key]; f != nil {
		f.seen = r.Time
		return false
	}
	f := &flowState{record: *r, addr: a, seen: r.Time}
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

// flowKey is what makes a flow: all of its description but whose it is, which may change.
func flowKey(d *packet.FlowData) packet.FlowData {
	key := *d
	key.ProcessID, key.ParentEndpointID = 0, 0
	return key
}

// end takes the flows of an endpoint out.
func (t *flowTable) end(endpoint uint64) (ended []*flowState) {
	for f := t.endpoints[endpoint]; f != nil; f = f.next {
		delete(t.flows, flowKey(&f.record.Data))
		ended = append(ended, f)
	}
	delete(t.endpoints, endpoint)
	return ended
}

// remove takes a flow out.
func (t *flowTable) remove(f *flowState) {
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

// gone takes out the flows of endpoints that are not there any more, of those that had begun at a time.
func (t *flowTable) gone(at int64, live *sockets.Live) (ended []*flowState) {
	for id, f := range t.endpoints {
		if f.record.Time < at && live.Gone(&f.record.Data) {
			ended = append(ended, t.end(id)...)
		}
	}
	return ended
}

// lastSeen is what the table asks of the kernel.
type lastSeen interface {
	LastSeen(r *sockets.Record) (at int64, ok bool)
	Forget(r *sockets.Record)
}

// idle takes out the flows of which nothing was seen for too long at a time.
func (t *flowTable) idle(at int64, kernel lastSeen) (ended []*flowState) {
	for _, f := range t.flows {
		if f.expired(at, kernel) {
			kernel.Forget(&f.record)
			t.remove(f)
			ended = append(ended, f)
		}
	}
	return ended
}

// expired reports whether nothing of a flow was seen for too long. A connection has an end of its own.
func (f *flowState) expired(at int64, kernel lastSeen) bool {
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

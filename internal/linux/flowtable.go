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
	byEndpoint map[uint64][]*flowState
}

// flowState is a flow.
type flowState struct {
	record sockets.Record
	addr   packet.Address // of its ESTABLISHED
	seen   int64          // when the kernel last saw a packet, as far as is known
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

func newFlowTable() *flowTable { return &flowTable{byEndpoint: map[uint64][]*flowState{}} }

// begin enters a flow and reports false if it is there already.
func (t *flowTable) begin(r *sockets.Record, a packet.Address) bool {
	id := r.Data.EndpointID
	for _, f := range t.byEndpoint[id] {
		if f.record.Data == r.Data || sameFlow(&f.record.Data, &r.Data) {
			f.seen = r.Time
			return false
		}
	}
	t.byEndpoint[id] = append(t.byEndpoint[id], &flowState{record: *r, addr: a, seen: r.Time})
	return true
}

// sameFlow reports whether two descriptions differ in nothing that makes a flow.
func sameFlow(a, b *packet.FlowData) bool {
	x, y := *a, *b
	x.ProcessID, y.ProcessID = 0, 0
	x.ParentEndpointID, y.ParentEndpointID = 0, 0
	return x == y
}

// end takes the flows of an endpoint out.
func (t *flowTable) end(endpoint uint64) []*flowState {
	flows := t.byEndpoint[endpoint]
	delete(t.byEndpoint, endpoint)
	return flows
}

// lastSeen is what the table asks of the kernel.
type lastSeen interface {
	LastSeen(r *sockets.Record) (at int64, ok bool)
	Forget(r *sockets.Record)
}

// idle takes out the flows of which nothing was seen for too long at a time.
func (t *flowTable) idle(at int64, kernel lastSeen) (ended []*flowState) {
	for id, flows := range t.byEndpoint {
		rest := flows[:0]
		for _, f := range flows {
			if f.expired(at, kernel) {
				kernel.Forget(&f.record)
				ended = append(ended, f)
			} else {
				rest = append(rest, f)
			}
		}
		clear(flows[len(rest):])
		if t.byEndpoint[id] = rest; len(rest) == 0 {
			delete(t.byEndpoint, id)
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

//go:build linux

package flowtable

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/linux/eventmap"
	"github.com/opendivert/divert/packet"
)

// fakeKernel is what the kernel remembers of flows, by remote port.
type fakeKernel struct {
	seen      map[uint16]int64
	forgotten []uint16
}

func (k *fakeKernel) LastSeen(r *eventmap.Record) (int64, bool) {
	at, ok := k.seen[r.Data.RemotePort]
	return at, ok
}

func (k *fakeKernel) Forget(r *eventmap.Record) {
	k.forgotten = append(k.forgotten, r.Data.RemotePort)
}

// flowRecord is a record of a flow that begins at second at.
func flowRecord(endpoint uint64, protocol uint8, port uint16, at int64) *eventmap.Record {
	return &eventmap.Record{Time: at * int64(time.Second), Data: packet.FlowData{
		EndpointID: endpoint, Protocol: protocol, RemotePort: port, RemoteAddr: netip.MustParseAddr("::ffff:10.0.0.1"),
	}}
}

// TestIdleFlows ends idle flows: the kernel knows better than the table when the last packet came, unless it has forgotten.
func TestIdleFlows(t *testing.T) {
	const second = int64(time.Second)
	for _, tt := range []struct {
		name     string
		protocol uint8
		seen     int64 // by the kernel, in seconds; 0: forgotten
		at       int64
		ended    bool
	}{
		{"UDP, young", protoUDP, 0, 119, false},
		{"UDP, old and forgotten", protoUDP, 0, 122, true},
		{"UDP, old and in use", protoUDP, 100, 122, false},
		{"UDP, used and old", protoUDP, 100, 222, true},
		{"ICMP, young", protoICMP, 0, 30, false},
		{"ICMP, old", protoICMP, 0, 32, true},
		{"ICMPv6, old", protoICMPv6, 0, 32, true},
		{"SCTP, young", 132, 0, 600, false},
		{"SCTP, old", 132, 0, 602, true},
		{"TCP ends with its connection", protoTCP, 0, 1 << 30, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			table := New()
			r := flowRecord(7, tt.protocol, 53, 1)
			if !table.Begin(r, packet.Address{Timestamp: r.Time}) {
				t.Fatal("the flow is not new")
			}
			kernel := &fakeKernel{seen: map[uint16]int64{}}
			if tt.seen != 0 {
				kernel.seen[53] = tt.seen * second
			}
			ended := table.Idle(tt.at*second, kernel)
			if (len(ended) == 1) != tt.ended || len(kernel.forgotten) != len(ended) {
				t.Errorf("ended %d, forgotten %d", len(ended), len(kernel.forgotten))
			}
			if left := len(table.End(7)); (left == 0) != tt.ended {
				t.Errorf("%d are left", left)
			}
		})
	}
}

// TestFlowTwiceTold: a flow that the kernel has forgotten and reports again is not a new one.
func TestFlowTwiceTold(t *testing.T) {
	table := New()
	if !table.Begin(flowRecord(7, protoUDP, 53, 1), packet.Address{}) || !table.Begin(flowRecord(7, protoUDP, 54, 1), packet.Address{}) {
		t.Fatal("the flows are not new")
	}
	again := flowRecord(7, protoUDP, 53, 100)
	again.Data.ProcessID = 12 // the socket has another owner now
	if table.Begin(again, packet.Address{}) {
		t.Error("a known flow is new")
	}
	ended := table.Idle(200*int64(time.Second), &fakeKernel{})
	if len(ended) != 1 || ended[0].record.Data.RemotePort != 54 {
		t.Errorf("ended: %+v", ended)
	}
	if flows := table.End(7); len(flows) != 1 || flows[0].record.Data.RemotePort != 53 {
		t.Errorf("left: %+v", flows)
	}
}

// TestManyFlowsOfOneSocket enters, recognises and ends more flows of one socket than a table could that compares each with each.
func TestManyFlowsOfOneSocket(t *testing.T) {
	const n = 200_000
	table := New()
	flow := func(i int) *eventmap.Record {
		r := flowRecord(7, protoUDP, uint16(i), int64(1+i))
		r.Data.RemoteAddr = netip.AddrFrom4([4]byte{10, byte(i >> 16), 0, 1})
		return r
	}
	for i := range n {
		if !table.Begin(flow(i), packet.Address{}) || table.Begin(flow(i), packet.Address{}) {
			t.Fatalf("flow %d", i)
		}
	}
	ended := table.End(7)
	if len(ended) != n || len(table.flows)+len(table.endpoints) != 0 {
		t.Fatalf("%d ended, %d left", len(ended), len(table.flows))
	}
	for i, f := range ended {
		if f.record.Time != flow(i).Time {
			t.Fatalf("flow %d ended out of its turn", i)
		}
	}
}

// TestFlowsLeaveInAnyOrder takes flows of a socket out one by one.
func TestFlowsLeaveInAnyOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		table := New()
		var left []*Flow
		for port := range uint16(6) {
			table.Begin(flowRecord(7, protoUDP, port, 1), packet.Address{})
			left = append(left, table.flows[flowKey(&flowRecord(7, protoUDP, port, 1).Data)])
		}
		for range r.IntN(7) {
			i := r.IntN(len(left))
			table.remove(left[i])
			left = slices.Delete(left, i, i+1)
		}
		if got := table.End(7); !slices.Equal(got, left) || len(table.flows) != 0 {
			t.Fatalf("got %v, want %v", got, left)
		}
	}
}

func BenchmarkFlows(b *testing.B) {
	for _, peers := range []int{1, 1000, 32000} {
		b.Run(fmt.Sprint(peers), func(b *testing.B) {
			table := New()
			records := make([]*eventmap.Record, peers)
			for i := range records {
				records[i] = flowRecord(7, protoUDP, uint16(i), 1)
			}
			b.ReportAllocs()
			for b.Loop() {
				for _, r := range records {
					table.Begin(r, packet.Address{})
				}
				table.End(7)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*peers), "ns/flow")
		})
	}
}

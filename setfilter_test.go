//go:build linux

package divert_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// TestSetFilterUnderLoad changes a handle's filter all the time, with handles above and below it: these see every
// packet once, and the handle itself each that either filter matches.
func TestSetFilterUnderLoad(t *testing.T) {
	notInShort(t)
	t.Parallel()
	rows := []struct {
		name    string
		filters [2]string // with the port of the traffic
		all     bool      // both match all of it
		bad     bool      // a filter that does not compile is tried in between
	}{
		{"both match", [2]string{"outbound and udp.DstPort == %d", "udp and remotePort == %d"}, true, false},
		{"the second never matches", [2]string{"outbound and udp.DstPort == %d", "outbound and tcp.DstPort == %d"}, false, false},
		{"a bad one leaves the old one", [2]string{"outbound and udp.DstPort == %d", "outbound and udp.DstPort == %d and ip"}, true, true},
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, row := range rows {
			t.Run(row.name, func(t *testing.T) {
				f := startFlood(t, pair.A, pair.B, pair.B.Addr4(), 2, 10000, 250)
				all := fmt.Sprintf("outbound and udp.DstPort == %d", f.port())
				low := startWitness(t, pair.A, all, e)
				mid := startWitness(t, pair.A, fmt.Sprintf(row.filters[0], f.port()), e, divert.WithPriority(0))
				high := startWitness(t, pair.A, all, e, divert.WithPriority(divert.HighestPriority))
				from := high.surely(f)
				swaps := 0
				for end := time.Now().Add(lasting(2 * time.Second)); time.Now().Before(end); swaps++ {
					time.Sleep(10 * time.Millisecond)
					if row.bad {
						badFilter.check(t, "set filter", mid.d.SetFilter("udp.DstPort =="))
					}
					if err := mid.d.SetFilter(fmt.Sprintf(row.filters[swaps%2], f.port())); err != nil {
						t.Fatal(err)
					}
				}
				s := f.finish()
				t.Logf("%d datagrams, %d changes, %d overtaken", s.sent, swaps, s.late)
				if s.lost != 0 || s.double != 0 {
					t.Errorf("%d lost, %d doubled", s.lost, s.double)
				}
				if s.late != 0 && row.all {
					t.Errorf("%d out of order", s.late)
				}
				must := func(flow, n int) bool { return uint64(n) >= from[flow] }
				for _, x := range []*witness{low, mid, high} {
					finish(t, x.d, x.w)
					x.check(t, f, func(flow, n int) bool { return must(flow, n) && (x != mid || row.all) })
					balanced(t, stats(t, x.d))
				}
				if seen := len(mid.seen[0]); seen == 0 || !row.all && seen > len(f.flows[0].arrived)*95/100 {
					t.Errorf("the handle in the middle saw %d of %d", seen, len(f.flows[0].arrived))
				}
			})
		}
	})
}

//go:build linux

package e2e_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// TestSetFilterUnderLoad changes a handle's filter all the time, with handles above and below: these see every packet
// once, and the handle itself sees each packet that both filters match.
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
				from := high.surely(t, f)
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

// TestSetFilterKeepsTheTimesOfPacketsThatWait: packets that wait while the filter is replaced keep the timestamp that
// their filter used and the process that it found, whether or not the new filter tests either.
func TestSetFilterKeepsTheTimesOfPacketsThatWait(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	conn, _ := receiver(t, pair.B, pair.B.Addr4())
	c := dialUDP(t, pair.A, conn.LocalAddr())
	const times, random, plain = "outbound and udp and timestamp > 0", "outbound and udp and random32 > 0", "outbound and udp"
	for _, row := range []struct {
		name    string
		filters []string
		process bool
	}{
		{"to another that asks", []string{times, random}, false},
		{"to one that does not", []string{times, plain}, false},
		{"there and back", []string{random, plain, times}, false},
		{"several that ask", []string{random, times, random, times}, false},
		{"the process", []string{fmt.Sprintf("outbound and udp and processId == %d", os.Getpid()), plain}, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.process {
				needProcesses(t, pair.A)
			}
			d := openAt(t, pair.A, row.filters[0], divert.WithEngine(divert.EngineKernel))
			process := uint32(0)
			if row.process {
				process = uint32(os.Getpid())
				c = dialUDP(t, pair.A, conn.LocalAddr()) // its process is known
			}
			send(t, c, 5, 64)
			asks, last := true, monotonic(t)
			var bounds []int64 // latest possible time of each packet, 0: none
			for range 5 {
				bounds = append(bounds, last)
			}
			for _, text := range row.filters[1:] {
				if err := d.SetFilter(text); err != nil {
					t.Fatal(err)
				}
				asks = text != plain
				send(t, c, 3, 64)
				last = monotonic(t)
				for range 3 {
					if !asks {
						last = 0
					}
					bounds = append(bounds, last)
				}
			}
			for i, p := range taken(t, d, len(bounds)) {
				if bounds[i] != 0 && p.Addr.Timestamp > bounds[i] {
					t.Errorf("packet %d has the time %d, %v after it was sent", i, p.Addr.Timestamp, time.Duration(p.Addr.Timestamp-bounds[i]))
				}
				if got := p.Addr.Network().ProcessID; i < 5 && got != process {
					t.Errorf("packet %d is of process %d, want %d", i, got, process)
				}
			}
		})
	}
}

// monotonic returns the current timestamp.
func monotonic(t testing.TB) int64 {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return ts.Nano()
}

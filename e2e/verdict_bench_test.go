//go:build linux

package e2e_test

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// BenchmarkFirstVerdict measures a handle's first and second verdict on a flow: processor time of the process and
// duration of the call, in microseconds. It also measures Open, which may do preparations for verdicts.
func BenchmarkFirstVerdict(b *testing.B) {
	for _, tt := range []struct {
		name   string
		filter string
		decide func(*divert.Handle, *divert.Packet) error
	}{
		{"accept", "outbound and udp", (*divert.Handle).AcceptFlow},
		{"accept-port", "udp.DstPort >= 1024", (*divert.Handle).AcceptFlow},
		{"drop", "outbound and udp", (*divert.Handle).DropFlow},
	} {
		b.Run(tt.name, func(b *testing.B) {
			pair := lab.TwoHostsT(b, lab.LinkOptions{})
			needEngine(b, pair.A, divert.EngineKernel)
			conn, err := pair.B.ListenPacket("udp", "10.77.0.2:0")
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			var spent [3]struct{ processor, time time.Duration }
			measure := func(i int, f func()) {
				begin, before := time.Now(), processorTime(b)
				f()
				spent[i].time += time.Since(begin)
				spent[i].processor += processorTime(b) - before
			}
			for b.Loop() {
				var d *divert.Handle
				measure(0, func() { d = openAt(b, pair.A, tt.filter, divert.WithEngine(divert.EngineKernel)) })
				for i := range 2 {
					c := dialUDP(b, pair.A, conn.LocalAddr())
					if _, err := c.Write([]byte("datagram")); err != nil {
						b.Fatal(err)
					}
					ps := make([]divert.Packet, 1)
					if _, err := d.RecvBatch(ps); err != nil {
						b.Fatal(err)
					}
					measure(1+i, func() {
						if err := tt.decide(d, &ps[0]); err != nil {
							b.Fatal(err)
						}
					})
				}
				if err := d.Close(); err != nil {
					b.Fatal(err)
				}
			}
			for i, name := range []string{"open", "first", "second"} {
				per := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(b.N) }
				b.ReportMetric(per(spent[i].processor), name+"-cpu-µs")
				b.ReportMetric(per(spent[i].time), name+"-µs")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// processorTime returns the processor time of the process so far.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

//go:build linux

package e2e_test

import (
	"slices"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// BenchmarkSniffWaiting measures how long after the sending of a datagram a waiting receiver has its copy: the median
// and the ninth decile, in microseconds. The receiver has time to fall asleep between datagrams.
func BenchmarkSniffWaiting(b *testing.B) {
	for _, tt := range []struct {
		name   string
		engine divert.Engine
	}{{"kernel", divert.EngineKernel}, {"interpreter", divert.EngineInterpreter}} {
		b.Run(tt.name, func(b *testing.B) {
			pair := lab.TwoHostsT(b, lab.LinkOptions{})
			needEngine(b, pair.A, tt.engine)
			conn, err := pair.B.ListenPacket("udp", "10.77.0.2:0")
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			d := openAt(b, pair.A, "outbound and udp", divert.WithFlags(divert.Sniff), divert.WithEngine(tt.engine))
			if err := d.SetReadDeadline(time.Now().Add(5 * time.Minute)); err != nil {
				b.Fatal(err)
			}
			c := dialUDP(b, pair.A, conn.LocalAddr())
			came := make(chan time.Time, 1)
			go func() {
				defer close(came)
				buf := make([]byte, 1500)
				for {
					if _, _, err := d.Recv(buf); err != nil {
						return
					}
					came <- time.Now()
				}
			}()
			var took []time.Duration
			for b.Loop() {
				time.Sleep(3 * time.Millisecond)
				sent := time.Now()
				if _, err := c.Write([]byte("datagram")); err != nil {
					b.Fatal(err)
				}
				at, ok := <-came
				if !ok {
					b.Fatal("no copy came")
				}
				took = append(took, at.Sub(sent))
			}
			slices.Sort(took)
			micros := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
			b.ReportMetric(micros(took[len(took)/2]), "median-µs")
			b.ReportMetric(micros(took[len(took)*9/10]), "p90-µs")
			b.ReportMetric(0, "ns/op")
			d.Close()
			for range came {
			}
		})
	}
}

package impair_test

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/opendivert/divert/impair"
	"github.com/opendivert/divert/internal/lab"
)

// pace is the time between two datagrams of BenchmarkLag.
const pace = time.Millisecond

// BenchmarkLag sends datagrams from one host to another, one each millisecond, and measures how much later than the lag
// they arrive. The rows without an impairment show the machine's share: that of the way, and that of sleeping for a
// millisecond.
func BenchmarkLag(b *testing.B) {
	b.Run("sleep", func(b *testing.B) {
		var late []time.Duration
		for b.Loop() {
			begun := time.Now()
			time.Sleep(pace)
			late = append(late, time.Since(begun)-pace)
		}
		reportLate(b, late)
	})
	b.Run("unimpaired", func(b *testing.B) { benchmarkLag(b, -1) })
	for _, lag := range []time.Duration{0, 10 * time.Millisecond, 100 * time.Millisecond} {
		b.Run(lag.String(), func(b *testing.B) { benchmarkLag(b, lag) })
	}
}

// benchmarkLag measures one lag, without an impairment if it is negative.
func benchmarkLag(b *testing.B, lag time.Duration) {
	pair := lab.TwoHostsT(b, lab.LinkOptions{})
	server, err := pair.B.ListenPacket("udp", ":9")
	if err != nil {
		b.Fatal(err)
	}
	defer server.Close()
	c, err := pair.A.Dial(b.Context(), "udp", net.JoinHostPort(pair.B.Addr4().String(), "9"))
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	begun := time.Now()
	send := func() {
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, uint64(time.Since(begun)))); err != nil {
			b.Fatal(err)
		}
	}
	send() // so that the neighbour's address is known
	if _, _, err := server.ReadFrom(make([]byte, 8)); err != nil {
		b.Fatal(err)
	}
	if lag >= 0 {
		var i *impair.Impairer
		if err := pair.A.Do(func() (err error) {
			i, err = impair.Open(impair.Config{Rules: []impair.Rule{{Filter: "udp.DstPort == 9", Lag: lag}}})
			return err
		}); err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error)
		go func() { done <- i.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
			i.Close()
		}()
	}
	lag = max(lag, 0)
	arrived := make(chan []time.Duration)
	const last = ^uint64(0)
	go func() {
		var late []time.Duration
		d := make([]byte, 8)
		for {
			_, _, err := server.ReadFrom(d)
			sent := binary.BigEndian.Uint64(d)
			if err != nil || sent == last {
				arrived <- late
				return
			}
			late = append(late, time.Since(begun)-time.Duration(sent)-lag)
		}
	}()
	n := 0
	for ; b.Loop(); n++ {
		send()
		time.Sleep(pace)
	}
	time.Sleep(lag + 100*time.Millisecond)
	_ = server.SetReadDeadline(time.Now().Add(lag + 10*time.Second))
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, last)); err != nil {
		b.Fatal(err)
	}
	late := <-arrived
	if len(late) != n {
		b.Fatalf("%d datagrams of %d have arrived", len(late), n)
	}
	reportLate(b, late)
}

// reportLate reports the median, the 99th percentile and the greatest of the times.
func reportLate(b *testing.B, late []time.Duration) {
	slices.Sort(late)
	for name, share := range map[string]float64{"p50-late-µs": 0.5, "p99-late-µs": 0.99, "max-late-µs": 1} {
		at := min(int(share*float64(len(late))), len(late)-1)
		b.ReportMetric(float64(late[at].Nanoseconds())/1000, name)
	}
	b.ReportMetric(0, "ns/op") // it would only show the pace
}

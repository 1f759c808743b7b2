package firewall

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// BenchmarkVerdict connects one host of a lab network with another through a firewall, and reports how long the verdict
// on the first packet takes, from its capture on, and the connect as a whole. The run without a firewall shows the
// connect time of the machine itself.
func BenchmarkVerdict(b *testing.B) {
	folder := b.TempDir()
	var list strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&list, "198.%d.%d.0/24\n", 18+i>>8, i&0xFF)
	}
	if err := os.WriteFile(filepath.Join(folder, "list.txt"), []byte(list.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	many := "default: reject\nsets: {list: {file: list.txt}}\nrules:\n  - {action: deny, address: \"@list\"}\n"
	for i := range 1000 {
		many += fmt.Sprintf("  - {action: deny, port: %d, program: /usr/bin/program%d}\n", 10000+i, i)
	}
	many += "  - {action: allow, port: 7}\n"
	for _, row := range []struct{ name, rules string }{
		{"without", ""},
		{"one-rule", "default: reject\nrules: [{action: allow, port: 7}]"},
		{"1000-rules-10000-prefixes", many},
	} {
		b.Run(row.name, func(b *testing.B) { benchmarkVerdict(b, row.rules, folder) })
	}
}

func benchmarkVerdict(b *testing.B, text, folder string) {
	pair := lab.TwoHostsT(b, lab.LinkOptions{})
	to := netip.AddrPortFrom(pair.B.Addr4(), 7)
	l, err := pair.B.Listen("tcp", to.String())
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			c.Close()
		}
	}()
	var f *Firewall
	if text != "" {
		rules, err := Parse([]byte(text), folder)
		if err != nil {
			b.Fatal(err)
		}
		if err := pair.A.Do(func() (err error) {
			f, err = Open(rules, Config{Warn: func(err error) { b.Error(err) }})
			return err
		}); err != nil {
			b.Fatal(err)
		}
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error)
		go func() { done <- f.Run(ctx) }()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				b.Error(err)
			}
			f.Close()
		}()
	}
	var verdicts, connects []time.Duration
	for b.Loop() {
		begun := time.Now()
		c, err := pair.A.Dial(b.Context(), "tcp", to.String())
		if err != nil {
			b.Fatal(err)
		}
		connects = append(connects, time.Since(begun))
		_ = c.(*net.TCPConn).SetLinger(0) // so that its port is free at once
		c.Close()
		if f != nil {
			f.mu.Lock()
			verdicts = append(verdicts, f.stats.Slowest)
			f.stats.Slowest = 0
			f.mu.Unlock()
		}
	}
	for what, times := range map[string][]time.Duration{"verdict": verdicts, "connect": connects} {
		slices.Sort(times)
		for name, share := range map[string]float64{"p50": 0.5, "p99": 0.99} {
			if len(times) > 0 {
				b.ReportMetric(float64(times[min(int(share*float64(len(times))), len(times)-1)].Nanoseconds())/1000, name+"-"+what+"-µs")
			}
		}
	}
	if f != nil {
		if s := f.Stats(); s.Allowed < uint64(len(verdicts)) {
			b.Errorf("%d verdicts for %d connections", s.Allowed, len(verdicts))
		}
	}
}

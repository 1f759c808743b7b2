package redirect_test

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/detour"
	"github.com/opendivert/divert/process"
	"github.com/opendivert/divert/redirect"
)

// TestNoRoad: where the road of sockets is demanded and cannot be, Listen says why; where it is not demanded, packets are rewritten,
// and the description says why.
func TestNoRoad(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, row := range []struct {
		filter string
		o      redirect.Options
		want   string
	}{
		{"tcp.SrcPort == 5", redirect.Options{}, "tests tcp.SrcPort, which is not known before the first packet"},
		{"tcp and loopback", redirect.Options{}, "tests loopback"},
		{"tcp and ifIdx == 2", redirect.Options{}, "tests ifIdx"},
		{"tcp", redirect.Options{Hold: true}, "Options.Hold"},
		{"tcp", redirect.Options{Exclude: func(process.Process) bool { return false }}, "Options.Exclude"},
		{"tcp", redirect.Options{Open: divert.OpenProgram}, "Options.Open"},
		{"tcp", redirect.Options{Engine: divert.EngineInterpreter}, "Options.Engine"},
	} {
		row.o.OwnByDial, row.o.Road = true, redirect.RoadSockets
		err := pair.A.Do(func() error {
			l, err := redirect.Listen(t.Context(), row.filter, row.o)
			if err == nil {
				l.Close()
			}
			return err
		})
		if !errors.Is(err, divert.ErrNotSupported) || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %s", row.filter, err, row.want)
		}
		if row.o.Open != nil {
			continue
		}
		row.o.Road = redirect.RoadAuto
		l := listen(t, pair.A, row.filter, row.o)
		if l.Road() != redirect.RoadPackets || !strings.Contains(l.Description(), row.want) {
			t.Errorf("%s: road %d, %s", row.filter, l.Road(), l.Description())
		}
		l.Close() // it would redirect the connections by which the next tries the other road
	}
	if err := detour.Connects.Err(); err != nil {
		t.Skip(err)
	}
	err := pair.A.Do(func() error {
		_, err := redirect.Listen(t.Context(), "remotePort == 5", redirect.Options{OwnByDial: true, Road: redirect.RoadSockets})
		return err
	})
	if !errors.Is(err, divert.ErrNotSupported) || !strings.Contains(err.Error(), "matches UDP") {
		t.Error(err)
	}
}

// TestBothRoads: connections go by sockets, and exchanges of UDP by packets; what cannot be UDP needs no packets.
func TestBothRoads(t *testing.T) {
	if err := detour.Connects.Err(); err != nil {
		t.Skip(err)
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	l := listen(t, pair.A, "remotePort == 7", redirect.Options{})
	n := relay(t, l)
	if d := l.Description(); l.Road() != redirect.RoadSockets || !strings.Contains(d, "connects rewritten") || !strings.Contains(d, "packets rewritten") {
		t.Errorf("road %d, %s", l.Road(), d)
	}
	for i, network := range []string{"tcp", "udp"} {
		to := netip.AddrPortFrom(pair.B.Addr6(), 7)
		echo(t, pair.B, network, to)
		c, err := dial(pair.A, nil, network, to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := ask(c, "hello"); err != nil {
			t.Error(network, err)
		}
		if n.Load() != int64(i+1) || c.RemoteAddr().String() != to.String() {
			t.Errorf("%s: %d redirected, connected to %v", network, n.Load(), c.RemoteAddr())
		}
	}
	alone := listen(t, pair.A, "ip and tcp.DstPort == 9", redirect.Options{})
	if d := alone.Description(); strings.Contains(d, "packets") || alone.Road() != redirect.RoadSockets {
		t.Errorf("road %d, %s", alone.Road(), d)
	}
}

// bulkSize is how much one operation of BenchmarkBulk carries.
const bulkSize = 256 << 20

// BenchmarkBulk carries bytes over one connection between two hosts: directly, and redirected by each road, through Relay.
func BenchmarkBulk(b *testing.B) {
	for _, row := range []struct {
		name string
		road redirect.Road
	}{{"direct", redirect.RoadAuto}, {"sockets", redirect.RoadSockets}, {"packets", redirect.RoadPackets}} {
		b.Run(row.name, func(b *testing.B) {
			pair := lab.TwoHostsT(b, lab.LinkOptions{})
			s, err := pair.B.Listen("tcp", ":4000")
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			got := make(chan error)
			go func() {
				for {
					c, err := s.Accept()
					if err != nil {
						return
					}
					n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 1<<18))
					if c.Close(); n != bulkSize {
						err = fmt.Errorf("%d bytes have come: %v", n, err)
					}
					got <- err
				}
			}()
			if row.road != redirect.RoadAuto {
				relay(b, listen(b, pair.A, "tcp.DstPort == 4000", redirect.Options{Road: row.road}))
			}
			block := make([]byte, 1<<18)
			b.SetBytes(bulkSize)
			before, n := processorTime(b), 0
			for ; b.Loop(); n++ {
				c, err := pair.A.Dial(b.Context(), "tcp", netip.AddrPortFrom(pair.B.Addr4(), 4000).String())
				if err != nil {
					b.Fatal(err)
				}
				for sent := 0; sent < bulkSize; sent += len(block) {
					if _, err := c.Write(block); err != nil {
						b.Fatal(err)
					}
				}
				if err := errors.Join(c.Close(), <-got); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(n*bulkSize>>20), "cpu-µs/MiB")
		})
	}
}

// processorTime returns how long processors have worked for this process, which has all ends.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

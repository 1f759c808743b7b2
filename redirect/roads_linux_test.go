package redirect_test

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/detour"
	"github.com/opendivert/divert/process"
	"github.com/opendivert/divert/redirect"
)

// TestNoRoad: where the road of sockets is impossible, Listen gives the reason if the road was demanded; otherwise
// packets are rewritten, and the description gives the reason.
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
		l.Close() // it would redirect the trial connections of the next Listener
	}
	if err := detour.Connects.Err(); err != nil {
		t.Skip(err)
	}
	for text, want := range map[string]string{
		"tcp.DstPort == 5 or udp.SrcPort == 5": "for UDP: the filter tests udp.SrcPort",
		"tcp.SrcPort == 5 or udp.DstPort == 5": "for TCP: the filter tests tcp.SrcPort",
	} {
		err := pair.A.Do(func() error {
			_, err := redirect.Listen(t.Context(), text, redirect.Options{OwnByDial: true, Road: redirect.RoadSockets})
			return err
		})
		if !errors.Is(err, divert.ErrNotSupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// TestBothRoads: one road carries the rest of the other, and the description names that rest; an impossible rest needs no
// packets.
func TestBothRoads(t *testing.T) {
	if err := detour.Connects.Err(); err != nil {
		t.Skip(err)
	}
	for _, row := range []struct {
		filter string
		hold   bool
		road   redirect.Road // of TCP
		said   []string
		silent string
	}{
		{"remotePort == 7", false, redirect.RoadSockets, []string{"connects and datagrams rewritten", "the rest: packets rewritten"}, "not rewritten"},
		{"remotePort == 7", true, redirect.RoadPackets, []string{"datagrams rewritten", "the rest: packets rewritten", "connects are not rewritten: Options.Hold"}, "connects and"},
		{"tcp.DstPort == 7 or udp.DstPort == 7 and udp.SrcPort > 0", false, redirect.RoadSockets, []string{"connects rewritten", "the rest: packets rewritten", "datagrams are not rewritten: the filter tests udp.SrcPort"}, "connects and"},
	} {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		l := listen(t, pair.A, row.filter, redirect.Options{Hold: row.hold})
		n := relay(t, l)
		d := l.Description()
		for _, want := range row.said {
			if !strings.Contains(d, want) {
				t.Errorf("%s: %q, want %q", row.filter, d, want)
			}
		}
		if l.Road() != row.road || strings.Contains(d, row.silent) {
			t.Errorf("%s: road %d, %q", row.filter, l.Road(), d)
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
				t.Error(row.filter, network, err)
			}
			if n.Load() != int64(i+1) {
				t.Errorf("%s: %s: %d redirected", row.filter, network, n.Load())
			}
		}
		l.Close()
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, row := range []struct {
		filter string
		road   redirect.Road
	}{{"ip and tcp.DstPort == 9", redirect.RoadAuto}, {"udp.DstPort == 9", redirect.RoadSockets}} {
		alone := listen(t, pair.A, row.filter, redirect.Options{Road: row.road})
		if d := alone.Description(); strings.Contains(d, "packets") || alone.Road() != redirect.RoadSockets {
			t.Errorf("%s: road %d, %s", row.filter, alone.Road(), d)
		}
		alone.Close()
	}
}

// TestBesideSockets: packets carry the datagrams that the road of sockets does not: those of sockets that were connected
// before, or that have named an interface. Where the road of sockets is demanded, the latter are refused.
func TestBesideSockets(t *testing.T) {
	if err := detour.Connects.Err(); err != nil {
		t.Skip(err)
	}
	const unicastIf6 = 76 // IPV6_UNICAST_IF (linux/in6.h)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	index := pair.A.Links()[0].Index()
	for _, addr := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6()} {
		to := netip.AddrPortFrom(addr, 7)
		named := func() *speaker {
			family, level, option := unix.AF_INET6, unix.IPPROTO_IPV6, unicastIf6
			if addr.Is4() {
				family, level, option = unix.AF_INET, unix.IPPROTO_IP, unix.IP_UNICAST_IF
			}
			s := speak(t, pair.A, family, netip.Addr{})
			if err := unix.SetsockoptInt(s.fd, level, option, int(bits.ReverseBytes32(uint32(index)))); err != nil { // in network byte order
				t.Fatal(err)
			}
			return s
		}
		device := speak(t, pair.A, unix.AF_INET6, netip.Addr{})
		if addr.Is4() {
			device = speak(t, pair.A, unix.AF_INET, netip.Addr{})
		}
		if err := unix.BindToDevice(device.fd, pair.A.Links()[0].Name()); err != nil {
			t.Fatal(err)
		}
		older := speak(t, pair.A, unix.AF_INET6, netip.Addr{})
		if addr.Is4() {
			older = speak(t, pair.A, unix.AF_INET, netip.Addr{})
		}
		if err := unix.Connect(older.fd, older.sockaddr(to)); err != nil {
			t.Fatal(err)
		}
		strict := listen(t, pair.A, "udp.DstPort == 7", redirect.Options{Road: redirect.RoadSockets})
		for name, s := range map[string]*speaker{"an interface is named": named(), "bound to a device": device} {
			if err := s.send("hello", to); !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("%v: %s: %v", to, name, err)
			}
		}
		strict.Close()
		l := listen(t, pair.A, "udp.DstPort == 7", redirect.Options{})
		for name, s := range map[string]*speaker{"an interface is named": named(), "connected before": older} {
			at := to
			if s == older {
				at = netip.AddrPort{}
			}
			if err := s.send("hello", at); err != nil {
				t.Errorf("%v: %s: %v", to, name, err)
				continue
			}
			in, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if in.OriginalDst() != to || in.Source().Addr().IsLoopback() {
				t.Errorf("%v: %s: from %v to %v", to, name, in.Source(), in.OriginalDst())
			}
			in.Close()
		}
		l.Close()
	}
}

// bulkSize is the number of bytes in one operation of BenchmarkBulk.
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

// BenchmarkDatagrams sends datagrams to an echo server and waits for each answer, directly, and redirected by each road, through Relay.
func BenchmarkDatagrams(b *testing.B) {
	for _, row := range []struct {
		name string
		road redirect.Road
	}{{"direct", redirect.RoadAuto}, {"sockets", redirect.RoadSockets}, {"packets", redirect.RoadPackets}} {
		b.Run(row.name, func(b *testing.B) {
			pair := lab.TwoHostsT(b, lab.LinkOptions{})
			to := netip.AddrPortFrom(pair.B.Addr4(), 7)
			e, err := pair.B.Echo("udp", to.String())
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			if row.road != redirect.RoadAuto {
				relay(b, listen(b, pair.A, "udp.DstPort == 7", redirect.Options{Road: row.road}))
			}
			c, err := dial(pair.A, nil, "udp", to)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			payload, answer := make([]byte, 1200), make([]byte, 1500)
			b.ReportAllocs()
			before, n := processorTime(b), 0
			for ; b.Loop(); n++ {
				if n%1000 == 0 {
					_ = c.SetDeadline(time.Now().Add(patience))
				}
				if _, err := c.Write(payload); err != nil {
					b.Fatal(err)
				}
				if k, err := c.Read(answer); err != nil || k != len(payload) {
					b.Fatal(k, err)
				}
			}
			b.ReportMetric(float64((processorTime(b)-before).Nanoseconds())/float64(n), "cpu-ns/op")
		})
	}
}

// processorTime returns the processor time of this process, which has all ends.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

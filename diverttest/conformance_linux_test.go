package diverttest_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// TestLinuxDoesWhatIsExpected runs the table against the Linux engine, in both its modes, with traffic of real sockets.
func TestLinuxDoesWhatIsExpected(t *testing.T) {
	for _, way := range []struct {
		name   string
		engine divert.Engine
	}{{"kernel", divert.EngineKernel}, {"interpreter", divert.EngineInterpreter}} {
		t.Run(way.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			l := &live{pair: pair, engine: way.engine}
			l.host, l.peer = l.socket(t, pair.A), l.socket(t, pair.B)
			if h, err := l.open("false"); errors.Is(err, os.ErrPermission) && way.engine == divert.EngineKernel {
				t.Skipf("no eBPF here: %v", err)
			} else if err != nil {
				t.Fatal(err)
			} else if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			for _, row := range expectations {
				t.Run(row.name, func(t *testing.T) {
					l.T = t
					row.run(&player{t, l})
					l.T = t
				})
			}
		})
	}
}

// live is a world of two namespaces.
type live struct {
	*testing.T // of the row
	pair       *lab.Pair
	engine     divert.Engine
	host, peer net.PacketConn
}

func (l *live) socket(t *testing.T, h *lab.Host) net.PacketConn {
	t.Helper()
	c, err := h.ListenPacket("udp", netip.AddrPortFrom(h.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (l *live) open(filter string, opts ...divert.Option) (h *divert.Handle, err error) {
	err = l.pair.A.Do(func() (err error) {
		h, err = divert.Open(filter, append(opts, divert.WithEngine(l.engine))...)
		return err
	})
	return h, err
}

func (l *live) addrs() (host, peer netip.AddrPort) {
	return l.host.LocalAddr().(*net.UDPAddr).AddrPort(), l.peer.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (l *live) link() uint32     { return uint32(l.pair.LinkA.Index()) }
func (l *live) linkName() string { return l.pair.LinkA.Name() }
func (l *live) settle()          { time.Sleep(30 * time.Millisecond) }

func (l *live) out(payload string) { l.write(l.host, l.peer, payload) }
func (l *live) in(payload string)  { l.write(l.peer, l.host, payload) }

func (l *live) write(from, to net.PacketConn, payload string) {
	l.Helper()
	if _, err := from.WriteTo([]byte(payload), to.LocalAddr()); err != nil {
		l.Fatal(err)
	}
}

func (l *live) bind(port uint16) bool {
	l.Helper()
	c, err := l.pair.A.ListenPacket("udp", netip.AddrPortFrom(l.pair.A.Addr4(), port).String())
	if err == nil {
		err = c.Close()
	} else if errors.Is(err, os.ErrPermission) {
		return false
	}
	if err != nil {
		l.Fatal(err)
	}
	return true
}

func (l *live) expectOut(want ...string) {
	l.Helper()
	compare(l.T, "left the host", l.read(l.peer, len(want)), want)
}

func (l *live) forget() {
	l.Helper()
	l.read(l.peer, 0)
}

func (l *live) expectIn(want ...string) {
	l.Helper()
	compare(l.T, "reached the host", l.read(l.host, len(want)), want)
}

// read reads datagrams, including any beyond count.
func (l *live) read(c net.PacketConn, count int) (got []string) {
	l.Helper()
	b := make([]byte, 2000)
	for {
		wait := patience
		if len(got) >= count {
			wait = 50 * time.Millisecond // nothing more may come
		}
		_ = c.SetReadDeadline(time.Now().Add(wait))
		n, _, err := c.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return got
		}
		if err != nil {
			l.Fatal(err)
		}
		got = append(got, string(b[:n]))
	}
}

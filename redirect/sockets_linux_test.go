package redirect

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/detour"
	"github.com/opendivert/divert/internal/linux/netns"
)

// TestForgetEnded: the record of a connection is forgotten when the application has closed its socket and the connection
// was accepted, or after a while if it was not accepted, or if only the program has closed it.
func TestForgetEnded(t *testing.T) {
	if err := detour.Connects.Err(); err != nil {
		t.Skip(err)
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	to := netip.AddrPortFrom(pair.B.Addr4(), 7)
	var l *Listener
	if err := pair.A.Do(func() (err error) {
		l, err = Listen(t.Context(), "tcp.DstPort == 7", Options{Road: RoadSockets, OwnByDial: true})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := l.sockets
	known := func(n int) {
		t.Helper()
		released, err := s.detour.Released()
		s.mu.Lock()
		defer s.mu.Unlock()
		if err != nil || len(s.claims) != n {
			t.Errorf("%d connections are known, want %d; released %v, %v", len(s.claims), n, released, err)
		}
	}
	dial := func() (c net.Conn, in *Conn) {
		c, err := pair.A.Dial(t.Context(), "tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		if in, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		return c, in
	}
	c, in := dial()
	defer in.Close()
	c.Close()
	s.forgetEnded(time.Now(), 0) // long before it was closed
	known(1)
	s.forgetEnded(time.Now(), math.MaxInt64)
	known(0)
	if released, err := s.detour.Released(); err != nil || len(released) > 0 {
		t.Errorf("not forgotten: %v, %v", released, err)
	}

	c, in = dial()
	defer c.Close()
	in.Close()
	known(1)
	s.forgetEnded(time.Now(), math.MaxInt64) // the application has its socket
	known(1)
	if c.RemoteAddr().String() != to.String() {
		t.Errorf("connected to %v", c.RemoteAddr())
	}
	s.forgetEnded(time.Now().Add(2*aimEnded), math.MaxInt64)
	known(0)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the application reads %v", err)
	}
}

// TestForgetTalks: the record of a socket and a destination is forgotten when the application has closed the socket, and
// the exchange ends. While the socket is open, the record is forgotten only if the socket is not connected, and a while
// after the exchange has ended.
func TestForgetTalks(t *testing.T) {
	if err := detour.Connects.Err(); err != nil {
		t.Skip(err)
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	var l *Listener
	if err := pair.A.Do(func() (err error) {
		l, err = Listen(t.Context(), "udp.DstPort == 7", Options{Road: RoadSockets, OwnByDial: true})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := l.sockets.datagrams
	known := func(what string, n int) {
		t.Helper()
		talks, _, err := l.sockets.detour.Talks()
		g.mu.Lock()
		defer g.mu.Unlock()
		if err != nil || len(talks) != n || len(g.spoken) != n {
			t.Errorf("%s: %d talks, %d are known, want %d; %v", what, len(talks), len(g.spoken), n, err)
		}
	}
	for _, addr := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6()} {
		to := netip.AddrPortFrom(addr, 7)
		for _, connected := range []bool{true, false} {
			var say func() error
			var c interface {
				Close() error
			}
			if connected {
				u, err := pair.A.Dial(t.Context(), "udp", to.String())
				if err != nil {
					t.Fatal(err)
				}
				c, say = u, func() error { _, err := u.Write([]byte("hello")); return err }
			} else {
				u, err := pair.A.ListenPacket("udp", ":0")
				if err != nil {
					t.Fatal(err)
				}
				c, say = u, func() error { _, err := u.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(to)); return err }
			}
			accept := func() *Conn {
				t.Helper()
				if err := say(); err != nil {
					t.Fatal(err)
				}
				in, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				if n, err := in.Read(make([]byte, 10)); n != 5 || err != nil {
					t.Errorf("read %d, %v", n, err)
				}
				return in
			}
			in := accept()
			known("open", 1)
			in.Close()
			g.forgetEnded(time.Now(), math.MaxInt64)
			known("ended", 1)
			g.forgetEnded(time.Now().Add(2*aimEnded), math.MaxInt64)
			left := 0
			if connected {
				left = 1
			}
			known("ended long ago", left)
			in = accept()
			known("open again", 1)
			if err := say(); err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(tryWait); waitingIn(in.flow.exchange) == 0 && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			c.Close()
			g.forgetEnded(time.Now(), 0) // long before it was closed
			known("closed just now", 1)
			g.forgetEnded(time.Now(), math.MaxInt64)
			known("closed", 0)
			if n, err := in.Read(make([]byte, 10)); n != 5 || err != nil {
				t.Errorf("what waits: read %d, %v", n, err)
			}
			if _, err := in.Read(make([]byte, 10)); !errors.Is(err, io.EOF) {
				t.Errorf("then: %v", err)
			}
			in.Close()
			g.mu.Lock()
			if g.live != 0 {
				t.Errorf("%d exchanges are counted", g.live)
			}
			g.mu.Unlock()
			if l.sockets.detour.Speaks(uint64(0)) {
				t.Error("nobody speaks")
			}
		}
	}
	if s := l.Stats(); s.Redirected != 8 || s.Strangers != 0 || s.Full != 0 {
		t.Errorf("%+v", s)
	}
}

// FuzzControl: no control message makes the reading of aliases panic, and those of other interfaces do not count.
func FuzzControl(f *testing.F) {
	ip := netip.MustParseAddr("100::1234:5678:0:0").As16()
	g := &datagrams{led: detour.Datagrams{Prefix: netip.PrefixFrom(netip.AddrFrom16(ip), 96)}, device: &detour.Device{Index: 7}}
	four := unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: netns.LoopbackIndex, Addr: [4]byte{127, 1, 2, 3}})
	ip[15] = 9
	six := unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: 7, Addr: ip})
	for _, seed := range []struct {
		control []byte
		alias   uint32
	}{{four, 0x010203}, {six, 9}} {
		if alias, ok := g.aliasOf(seed.control); !ok || alias != seed.alias {
			f.Errorf("alias %#x, %t, want %#x", alias, ok, seed.alias)
		}
		f.Add(seed.control)
	}
	if _, ok := g.aliasOf(unix.PktInfo4(&unix.Inet4Pktinfo{Ifindex: 3, Addr: [4]byte{127, 1, 2, 3}})); ok {
		f.Error("from another interface")
	}
	if _, ok := g.aliasOf(unix.PktInfo6(&unix.Inet6Pktinfo{Ifindex: 1, Addr: ip})); ok {
		f.Error("from another interface")
	}
	f.Fuzz(func(t *testing.T, b []byte) { g.aliasOf(b) })
}

// TestTooManyExchanges: beyond MaxConns, further datagrams are dropped, and one that finds no alias is refused.
func TestTooManyExchanges(t *testing.T) {
	if err := detour.Connects.Err(); err != nil {
		t.Skip(err)
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	var l *Listener
	if err := pair.A.Do(func() (err error) {
		l, err = Listen(t.Context(), "udp.DstPort == 7", Options{Road: RoadSockets, OwnByDial: true, MaxConns: 1})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := pair.A.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const over = 5
	refused := 0
	for i := range aimsEnded + 1 + over {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 7)
		switch _, err := c.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(to)); {
		case errors.Is(err, unix.ENOBUFS):
			refused++
		case err != nil:
			t.Fatalf("%v: %v", to, err)
		}
	}
	if refused != over {
		t.Errorf("%d are refused, want %d", refused, over)
	}
	if s := l.Stats(); s.Redirected > 1 || s.Full < over {
		t.Errorf("%+v", s)
	}
	if in, err := l.Accept(); err != nil || in.OriginalDst().Port() != 7 {
		t.Error(err)
	}
}

// TestListenEnds: a Listener whose context ends lets connects go directly.
func TestListenEnds(t *testing.T) {
	if err := detour.Connects.Err(); err != nil {
		t.Skip(err)
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	var l *Listener
	if err := pair.A.Do(func() (err error) {
		l, err = Listen(ctx, "tcp.DstPort == 7", Options{Road: RoadSockets, OwnByDial: true})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if s := l.Stats(); s != (Stats{}) {
		t.Errorf("%+v", s)
	}
	if c, err := pair.A.Dial(t.Context(), "tcp", netip.AddrPortFrom(pair.B.Addr4(), 7).String()); err == nil {
		t.Errorf("connected from %v, and nobody listens", c.LocalAddr())
		c.Close()
	}
}

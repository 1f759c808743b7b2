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

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/detour"
)

// TestForgetEnded: what is known of a connection is forgotten when the application has closed its socket and the connection was
// accepted, or after a while if it was not, or if only the program has closed it.
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

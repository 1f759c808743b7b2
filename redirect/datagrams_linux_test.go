package redirect_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/redirect"
)

// speaker is a UDP socket without a library that remembers addresses: its names are those that the kernel reports.
type speaker struct{ fd int }

// speak makes a socket on a host, bound to an address if that is valid. Its calls wait no longer than patience.
func speak(t *testing.T, h *lab.Host, family int, bind netip.Addr) *speaker {
	t.Helper()
	s := &speaker{fd: -1}
	if err := h.Do(func() (err error) {
		s.fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		t.Fatal(err)
	}
	if bind.IsValid() {
		if err := unix.Bind(s.fd, s.sockaddr(netip.AddrPortFrom(bind, 0))); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *speaker) close() {
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
	}
	s.fd = -1
}

// sockaddr returns an address unchanged: a mapped one stays mapped.
func (s *speaker) sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// send sends to an address, or to the socket's peer if the address is invalid.
func (s *speaker) send(text string, to netip.AddrPort) error {
	if !to.IsValid() {
		_, err := unix.Write(s.fd, []byte(text))
		return err
	}
	return unix.Sendto(s.fd, []byte(text), 0, s.sockaddr(to))
}

// receive returns a datagram and its source address.
func (s *speaker) receive() (text string, from netip.AddrPort, err error) {
	b := make([]byte, 1<<16)
	n, sa, err := unix.Recvfrom(s.fd, b, 0)
	if err != nil {
		return "", from, err
	}
	return string(b[:n]), addrPort(sa), nil
}

func (s *speaker) peer() (netip.AddrPort, error) {
	sa, err := unix.Getpeername(s.fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return addrPort(sa), nil
}

// mapped returns an IPv4 address in the form of an IPv6 socket.
func mapped(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }

// eachRoad runs a test for each road.
func eachRoad(t *testing.T, f func(t *testing.T, pair *lab.Pair, o redirect.Options)) {
	for name, road := range roads {
		t.Run(name, func(t *testing.T) {
			f(t, lab.TwoHostsT(t, lab.LinkOptions{}), redirect.Options{Road: road})
		})
	}
}

// TestOneSocket: one socket speaks to many destinations. Each answer comes from the destination of its datagram, and each
// exchange knows that destination.
func TestOneSocket(t *testing.T) {
	eachRoad(t, func(t *testing.T, pair *lab.Pair, o redirect.Options) {
		const ports = 20
		for i := range uint16(ports) {
			echo(t, pair.B, "udp", netip.AddrPortFrom(netip.IPv6Unspecified(), 7000+i))
			echo(t, pair.A, "udp", netip.AddrPortFrom(netip.IPv6Unspecified(), 7000+i))
		}
		l := listen(t, pair.A, "udp.DstPort in {7000-7019}", o)
		n := relay(t, l)
		four, six := []netip.Addr{pair.B.Addr4(), netip.MustParseAddr("127.0.0.1"), pair.A.Addr4()}, []netip.Addr{pair.B.Addr6(), netip.IPv6Loopback(), pair.A.Addr6()}
		var mappedFour []netip.Addr
		for _, a := range four {
			mappedFour = append(mappedFour, mapped(a))
		}
		began := int64(0)
		for _, row := range []struct {
			name   string
			family int
			bind   netip.Addr
			to     []netip.Addr
		}{
			{"IPv4", unix.AF_INET, netip.Addr{}, four},
			{"IPv6", unix.AF_INET6, netip.Addr{}, six},
			{"mapped", unix.AF_INET6, netip.Addr{}, append(mappedFour, six...)},
			{"bound, IPv4", unix.AF_INET, pair.A.Addr4(), []netip.Addr{pair.B.Addr4(), pair.A.Addr4()}},
			{"bound, IPv6", unix.AF_INET6, pair.A.Addr6(), []netip.Addr{pair.B.Addr6(), pair.A.Addr6()}},
			{"bound, mapped", unix.AF_INET6, mapped(pair.A.Addr4()), []netip.Addr{mapped(pair.B.Addr4())}},
		} {
			s := speak(t, pair.A, row.family, row.bind)
			for range 2 { // the second time over the same aliases
				want := map[string]netip.AddrPort{}
				for _, a := range row.to {
					for i := range uint16(ports) {
						to := netip.AddrPortFrom(a, 7000+i)
						want[to.String()] = to
						if err := s.send(to.String(), to); err != nil {
							t.Fatalf("%s: to %v: %v", row.name, to, err)
						}
					}
				}
				for len(want) > 0 {
					text, from, err := s.receive()
					if err != nil {
						t.Fatalf("%s: %v; no answer from %v", row.name, err, want)
					}
					if want[text] != from {
						t.Errorf("%s: the answer of %s comes from %v", row.name, text, from)
					}
					delete(want, text)
				}
			}
			began += int64(len(row.to) * ports)
			if n.Load() != began {
				t.Errorf("%s: %d exchanges, want %d", row.name, n.Load(), began)
			}
			s.close()
		}
	})
}

// TestConnectedSocket: a connected socket gets true answers about its peer, with and without an address to send to;
// connected again, it speaks to the new peer.
func TestConnectedSocket(t *testing.T) {
	eachRoad(t, func(t *testing.T, pair *lab.Pair, o redirect.Options) {
		for _, port := range []uint16{7, 8} {
			echo(t, pair.B, "udp", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
		}
		l := listen(t, pair.A, "udp.DstPort in {7, 8}", o)
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				go func() {
					b := make([]byte, 100)
					for n, err := c.Read(b); err == nil; n, err = c.Read(b) {
						_, _ = fmt.Fprintf(c, "%s for %v", b[:n], c.OriginalDst())
					}
				}()
			}
		}()
		for _, a := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6(), mapped(pair.B.Addr4())} {
			family := unix.AF_INET6
			if a.Is4() {
				family = unix.AF_INET
			}
			s := speak(t, pair.A, family, netip.Addr{})
			for _, port := range []uint16{7, 8, 7} {
				to := netip.AddrPortFrom(a, port)
				want := fmt.Sprintf("hello for %v", netip.AddrPortFrom(a.Unmap(), port))
				if err := unix.Connect(s.fd, s.sockaddr(to)); err != nil {
					t.Fatalf("%v: %v", to, err)
				}
				if peer, err := s.peer(); err != nil || peer != to {
					t.Errorf("%v: getpeername says %v, %v", to, peer, err)
				}
				for _, at := range []netip.AddrPort{{}, to} {
					if err := s.send("hello", at); err != nil {
						t.Fatalf("%v: %v", to, err)
					}
					if text, from, err := s.receive(); err != nil || text != want || from != to {
						t.Errorf("%v: %q from %v, %v", to, text, from, err)
					}
				}
			}
		}
	})
}

// TestExchangeRefused: an exchange that is reset is "connection refused" to a connected socket.
func TestExchangeRefused(t *testing.T) {
	eachWay(t, func(t *testing.T, pair *lab.Pair, _ *lab.Host, addr netip.Addr, o redirect.Options) {
		l := listen(t, pair.A, "udp.DstPort == 7", o)
		c, err := dial(pair.A, nil, "udp", netip.AddrPortFrom(addr, 7))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		in.Reset()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the application reads %v", err)
		}
		if _, err := in.Write([]byte("late")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("the program writes, %v", err)
		}
	})
}

// TestLastWords: datagrams sent just before a socket closes are redirected too, even by a process that does nothing else.
func TestLastWords(t *testing.T) {
	eachWay(t, func(t *testing.T, pair *lab.Pair, _ *lab.Host, addr netip.Addr, o redirect.Options) {
		l := listen(t, pair.A, "udp.DstPort == 514", o)
		to := netip.AddrPortFrom(addr, 514)
		for i := range 50 {
			text := fmt.Sprint("line ", i)
			c, err := dial(pair.A, nil, "udp", to)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			c.Close()
			in, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_ = in.SetReadDeadline(time.Now().Add(patience))
			b := make([]byte, 100)
			if n, err := in.Read(b); err != nil || string(b[:n]) != text || in.OriginalDst() != to {
				t.Errorf("%q for %v, %v", b[:n], in.OriginalDst(), err)
			}
			if who, err := in.Process(); o.Road == redirect.RoadSockets && (err != nil || who.ID != uint32(os.Getpid())) {
				t.Errorf("process %d, %v", who.ID, err)
			}
			in.Close()
		}
	})
}

// TestDatagramStrangers: only redirected datagrams reach the listener.
func TestDatagramStrangers(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	l := listen(t, pair.A, "udp.DstPort == 7", redirect.Options{Road: redirect.RoadSockets})
	at, err := netip.ParseAddrPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s := speak(t, pair.A, unix.AF_INET, netip.Addr{})
	for _, alias := range []string{"127.0.1.0", "127.0.0.1", "127.200.1.1"} {
		if err := s.send("hello", netip.AddrPortFrom(netip.MustParseAddr(alias), at.Port())); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v", alias, err)
		}
	}
	for _, a := range []netip.Addr{pair.A.Addr4(), pair.A.Addr6()} {
		c, err := dial(pair.B, nil, "udp", netip.AddrPortFrom(a, at.Port()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(patience); l.Stats().Strangers < 2 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if s := l.Stats(); s.Strangers != 2 || s.Redirected != 0 {
		t.Errorf("%+v", s)
	}
}

// TestTwoListeners: each listener leaves alone the datagrams that the other has redirected, and answers come from the
// datagram's destination.
func TestTwoListeners(t *testing.T) {
	for name, filters := range map[string][2]string{"narrow, wide": {"udp.DstPort == 7", "udp"}, "both wide": {"udp and remotePort != 8", "udp"}} {
		t.Run(name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			first := listen(t, pair.A, filters[0], redirect.Options{Road: redirect.RoadSockets})
			twoListeners(t, pair, first, listen(t, pair.A, filters[1], redirect.Options{Road: redirect.RoadSockets}))
		})
	}
	t.Run("beside packets", func(t *testing.T) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		first := listen(t, pair.A, "udp.DstPort == 7", redirect.Options{Road: redirect.RoadSockets})
		twoListeners(t, pair, first, listen(t, pair.A, "udp", redirect.Options{}))
	})
}

func twoListeners(t *testing.T, pair *lab.Pair, first, second *redirect.Listener) {
	for _, a := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6(), netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		family := unix.AF_INET6
		if a.Is4() {
			family = unix.AF_INET
		}
		s := speak(t, pair.A, family, netip.Addr{})
		for port, l := range map[uint16]*redirect.Listener{7: first, 8: second} {
			to := netip.AddrPortFrom(a, port)
			if err := s.send("hello", to); err != nil {
				t.Fatal(err)
			}
			in, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			if in.OriginalDst() != to {
				t.Errorf("%v: to %v", to, in.OriginalDst())
			}
			if _, err := in.Write([]byte("answer")); err != nil {
				t.Error(err)
			}
			if text, from, err := s.receive(); err != nil || text != "answer" || from != to {
				t.Errorf("%v: %q from %v, %v", to, text, from, err)
			}
			in.Close()
		}
	}
	for i, l := range []*redirect.Listener{first, second} {
		if s := l.Stats(); s.Redirected != 4 || s.Strangers != 0 {
			t.Errorf("listener %d: %+v", i, s)
		}
	}
}

// TestDatagramsAfterwards: after Close, sockets that send to an address reach it directly, and the host keeps no trace.
func TestDatagramsAfterwards(t *testing.T) {
	eachRoad(t, func(t *testing.T, pair *lab.Pair, o redirect.Options) {
		links := func() (names []string) {
			if err := pair.A.Do(func() error {
				all, err := net.Interfaces()
				for _, i := range all {
					names = append(names, i.Name)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return names
		}
		before := links()
		for _, a := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6()} {
			to := netip.AddrPortFrom(a, 7)
			e := echo(t, pair.B, "udp", to)
			l := listen(t, pair.A, "udp.DstPort == 7", o)
			n := relay(t, l)
			family := unix.AF_INET6
			if a.Is4() {
				family = unix.AF_INET
			}
			s := speak(t, pair.A, family, netip.Addr{})
			for _, text := range []string{"redirected", "direct"} {
				if err := s.send(text, to); err != nil {
					t.Fatal(err)
				}
				if got, from, err := s.receive(); err != nil || got != text || from != to {
					t.Errorf("%q from %v, %v", got, from, err)
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
			if n.Load() != 1 || e.Served() != 2 {
				t.Errorf("%v: %d redirected, %d served", to, n.Load(), e.Served())
			}
		}
		if after := links(); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("interfaces %v, before %v", after, before)
		}
	})
}

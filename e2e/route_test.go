//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// shout sends every packet on with its payload in upper case; Send computes the checksums.
func shout(t testing.TB, d *divert.Handle) *worker {
	return each(t, d, func(p *divert.Packet) {
		var parsed packet.Parsed
		parsed.Parse(p.Data)
		if upper(parsed.Payload(p.Data)) {
			p.Addr.TCPChecksum, p.Addr.UDPChecksum = false, false
		}
		if err := d.Send(p); err != nil {
			t.Errorf("send %d bytes: %v", len(p.Data), err)
		}
	})
}

// sourceRoute is a way to send packets from r.A to r.B by a source route through r.R.
type sourceRoute struct {
	name string
	addr func(*lab.Host) netip.Addr
	set  func(t *testing.T, r *lab.Routed)
	// socket, if not nil, makes a socket of A use the route.
	socket func(r *lab.Routed) func(fd int) error
}

var sourceRoutes = []sourceRoute{
	{"segment routing", (*lab.Host).Addr6, segmentRoute, nil},
	{"IPv4 loose source route", (*lab.Host).Addr4, allowSourceRoutes, looseRoute},
}

// segmentRoute makes A insert a segment routing header, through an address of the router.
func segmentRoute(t *testing.T, r *lab.Routed) {
	t.Helper()
	for host, links := range map[*lab.Host][]string{r.A: {"all", "eth0"}, r.R: {"all", "eth0", "eth1"}, r.B: {"all", "eth0"}} {
		for _, link := range links {
			if err := host.Sysctl("net.ipv6.conf."+link+".seg6_enabled", "1"); err != nil {
				t.Skipf("no segment routing here: %v", err)
			}
		}
	}
	link, err := r.LinkA.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	nlh, err := r.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nlh.Close()
	dst, segment, router := r.B.Addr6(), netip.MustParseAddr("fd77:9::1"), r.LinkRA.Addrs()[1].Addr()
	if err := r.R.Loopback().AddAddr(netip.PrefixFrom(segment, 128)); err != nil {
		t.Fatal(err)
	}
	if err := r.A.AddRoute(netip.PrefixFrom(segment, 64).Masked(), router); err != nil {
		t.Fatal(err)
	}
	err = nlh.RouteAdd(&netlink.Route{
		LinkIndex: link.Attrs().Index,
		Dst:       &net.IPNet{IP: dst.AsSlice(), Mask: net.CIDRMask(128, 128)},
		Gw:        router.AsSlice(),
		// The kernel writes the destination into the first segment in memory, which is the last of the route.
		Encap: &netlink.SEG6Encap{Mode: nl.SEG6_IPTUN_MODE_INLINE, Segments: []net.IP{net.IPv6zero, segment.AsSlice()}},
	})
	if err != nil {
		t.Skipf("no segment routing here: %v", err)
	}
}

// allowSourceRoutes makes the hosts accept IPv4 packets with source routes.
func allowSourceRoutes(t *testing.T, r *lab.Routed) {
	t.Helper()
	for _, h := range []*lab.Host{r.A, r.R, r.B} {
		for _, link := range []string{"all", "eth0"} {
			if err := h.Sysctl("net.ipv4.conf."+link+".accept_source_route", "1"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.R.Sysctl("net.ipv4.conf.eth1.accept_source_route", "1"); err != nil {
		t.Fatal(err)
	}
}

// looseRoute sets the option LSRR of a socket: the router, then the packet's destination.
func looseRoute(r *lab.Routed) func(fd int) error {
	hop := r.LinkRA.Addrs()[0].Addr().As4()
	options := append([]byte{1, 0x83, 7, 4}, hop[:]...)
	return func(fd int) error { return unix.SetsockoptString(fd, unix.SOL_IP, unix.IP_OPTIONS, string(options)) }
}

// dial connects from A to B along the route.
func (s *sourceRoute) dial(t *testing.T, r *lab.Routed, network, addr string) (c net.Conn) {
	t.Helper()
	d := net.Dialer{Timeout: 10 * time.Second}
	d.SetMultipathTCP(false)
	if s.socket != nil {
		set := s.socket(r)
		d.Control = func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) { failed = set(int(fd)) })
			if err == nil {
				err = failed
			}
			return err
		}
	}
	if err := r.A.Do(func() (err error) {
		c, err = d.DialContext(t.Context(), network, addr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestRewrittenOnASourceRoute: changes of packets on a source route arrive, because the checksum is computed for the
// final destination.
func TestRewrittenOnASourceRoute(t *testing.T) {
	t.Parallel()
	places := []struct {
		name, filter string
		layer        divert.Layer
		on           func(*lab.Routed) *lab.Host
		options      []divert.Option
	}{
		{"outbound", "outbound", divert.LayerNetwork, onA, nil},
		{"inbound on the way", "inbound", divert.LayerNetwork, onR, nil},
		{"inbound on the way, in segments", "inbound", divert.LayerNetwork, onR, []divert.Option{divert.WithSegments()}},
	}
	for _, e := range engines {
		for i := range sourceRoutes {
			s := &sourceRoutes[i]
			t.Run(e.name+"/"+s.name, func(t *testing.T) {
				r := lab.HostRouterPeerT(t, lab.LinkOptions{})
				needEngine(t, r.A, e.engine)
				s.set(t, r)
				for _, p := range places {
					t.Run(p.name, func(t *testing.T) {
						if p.options != nil {
							needInbound(t, r.R)
						}
						bad := headerErrors(t, r.R)
						d := openAt(t, p.on(r), p.filter+" and (tcp or udp)", append(p.options, divert.WithLayer(p.layer), divert.WithEngine(e.engine))...)
						w := shout(t, d)
						s.checkUDP(t, r)
						s.checkTCP(t, r)
						if finish(t, d, w); w.count == 0 {
							t.Error("the handle saw nothing")
						}
						// Came from a bug: the router lost all segmented packets, and TCP recovered by retransmitting them.
						if n := headerErrors(t, r.R); n != bad {
							t.Errorf("the router has dropped %d packets as malformed", n-bad)
						}
					})
				}
			})
		}
	}
}

// headerErrors returns the number of IPv6 packets that a host has dropped for invalid headers.
func headerErrors(t *testing.T, h *lab.Host) (n int) {
	t.Helper()
	if err := h.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "Ip6InHdrErrors" {
				n, err = strconv.Atoi(f[1])
				return err
			}
		}
		return errors.New("the kernel does not count Ip6InHdrErrors")
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// checkUDP sends datagrams along the route and expects them in upper case.
func (s *sourceRoute) checkUDP(t *testing.T, r *lab.Routed) {
	t.Helper()
	l, err := r.B.ListenPacket("udp", netip.AddrPortFrom(s.addr(r.B), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := s.dial(t, r, "udp", l.LocalAddr().String())
	buf := make([]byte, 2000)
	for _, size := range []int{1, 2, 777, 1200} {
		sent := bytes.Repeat([]byte("divert "), size)[:size]
		if _, err := c.Write(sent); err != nil {
			t.Fatal(err)
		}
		l.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, _, err := l.ReadFrom(buf)
		if err != nil {
			t.Fatalf("a datagram of %d bytes does not arrive: %v", size, err)
		}
		if !bytes.Equal(buf[:n], bytes.ToUpper(sent)) {
			t.Errorf("arrived %.100q", buf[:n])
		}
	}
}

// checkTCP sends a stream along the route, in packets of many segments, and expects it in upper case.
func (s *sourceRoute) checkTCP(t *testing.T, r *lab.Routed) {
	t.Helper()
	l, err := r.B.Listen("tcp", netip.AddrPortFrom(s.addr(r.B), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	text := bytes.Repeat([]byte("the quick brown fox "), 10000)
	c := s.dial(t, r, "tcp", l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	context.AfterFunc(ctx, func() { c.Close(); l.Close() })
	go func() {
		c.Write(text)
		c.(*net.TCPConn).CloseWrite()
	}()
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	peer.SetDeadline(time.Now().Add(20 * time.Second))
	if got, err := io.ReadAll(peer); err != nil || !bytes.Equal(got, bytes.ToUpper(text)) {
		t.Errorf("%d of %d bytes arrived, or not those sent: %v", len(got), len(text), err)
	}
}

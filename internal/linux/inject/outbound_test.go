//go:build linux

package inject

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

func TestOutboundArrives(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	o := newOutbound(t, net.A, testCursor)
	eth0 := uint32(net.LinkA.Index())
	localA, localB := linkLocal(t, net.LinkA), linkLocal(t, net.LinkB)
	for _, tc := range []struct {
		name     string
		listen   string
		host     *lab.Host
		src, dst string
		ifIdx    uint32
	}{
		{"own source, IPv4", "10.77.0.2:53", net.B, "10.77.0.1", "10.77.0.2", 0},
		{"own source, IPv6", "[fd77::2]:53", net.B, "fd77::1", "fd77::2", 0},
		{"foreign source, IPv4", "10.77.0.2:53", net.B, "198.51.100.7", "10.77.0.2", 0},
		{"foreign source, IPv6", "[fd77::2]:53", net.B, "2001:db8::7", "fd77::2", 0},
		{"local destination, IPv4", "10.77.0.1:53", net.A, "10.77.0.1", "10.77.0.1", 0},
		{"local destination, foreign source, IPv4", "10.77.0.1:53", net.A, "198.51.100.7", "10.77.0.1", 0},
		{"local destination, foreign source, IPv6", "[fd77::1]:53", net.A, "2001:db8::7", "fd77::1", 0},
		{"loopback, IPv4", "127.0.0.1:53", net.A, "127.0.0.1", "127.0.0.1", 1},
		{"loopback, other address", "127.0.0.9:53", net.A, "127.1.2.3", "127.0.0.9", 1},
		{"loopback, IPv6", "[::1]:53", net.A, "::1", "::1", 1},
		{"an interface that does not matter", "10.77.0.2:53", net.B, "10.77.0.1", "10.77.0.2", 4242},
		{"link-local IPv6", "[" + localB + "%eth0]:53", net.B, localA, localB, eth0},
		{"link-local IPv6 from a foreign source", "[" + localB + "%eth0]:53", net.B, "fe80::77", localB, eth0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			receive := receiveUDP(t, tc.host, tc.listen)
			count := countPriority(t, net.A, nftables.ChainHookPostrouting, testCursor)
			before := count.packets(t)
			if err := o.Send(udp(tc.src, tc.dst, 1000, 53, []byte(tc.name)), tc.ifIdx); err != nil {
				t.Fatal(err)
			}
			if got := receive(arrival); string(got) != tc.name {
				t.Fatalf("received %q", got)
			}
			if n := count.packets(t) - before; n != 1 {
				t.Errorf("%d packets with the cursor at POST_ROUTING, want 1", n)
			}
		})
	}
}

// linkLocal waits for the link-local IPv6 address of a link, which it has after a while.
func linkLocal(t testing.TB, l *lab.Link) string {
	t.Helper()
	nl, err := l.Host().Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	link, err := l.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		addrs, err := nl.AddrList(link, unix.AF_INET6)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 {
				return a.IP.String()
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("no link-local address")
	return ""
}

func TestOutboundBytes(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	o := newOutbound(t, net.A, testCursor)
	wire := capture(t, net.LinkB)
	const src4, src6 = "198.51.100.7", "2001:db8::7"
	v4 := func(change func(p []byte)) []byte {
		p := udp(src4, "10.77.0.2", 1000, 53, []byte("hello"))
		change(p)
		return p
	}
	v6 := func(change func(p []byte)) []byte {
		p := udp(src6, "fd77::2", 1000, 53, []byte("hello"))
		change(p)
		return p
	}
	same := func(p []byte) {}
	ipSum := func(p []byte) { setIPv4Checksum(p, int(p[0]&15)*4) }
	for _, tc := range []struct {
		name string
		pkt  []byte
		want func(p []byte) // changes a copy of pkt to what arrives
	}{
		{"right checksums, IPv4", v4(same), same},
		{"right checksums, IPv6", v6(same), same},
		{"wrong UDP checksum stays, IPv4", v4(func(p []byte) { p[26] ^= 0x55 }), same},
		{"wrong UDP checksum stays, IPv6", v6(func(p []byte) { p[46] ^= 0x55 }), same},
		{"no UDP checksum stays", v4(func(p []byte) { p[26], p[27] = 0, 0 }), same},
		{"wrong IPv4 header checksum is made right", v4(func(p []byte) { p[10] ^= 0x55 }), ipSum},
		{"identification 0 with DF stays", v4(func(p []byte) { p[4], p[5], p[6] = 0, 0, 0x40; ipSum(p) }), same},
		{"TTL 1, TOS, reserved flag", v4(func(p []byte) { p[1], p[6], p[8] = 0xb9, 0x80, 1; ipSum(p) }), same},
		{"fragment, first, IPv4", v4(func(p []byte) { p[6] = 0x20; ipSum(p) }), same},
		{"fragment, later, IPv4", v4(func(p []byte) { p[7] = 100; ipSum(p) }), same},
		{"unknown protocol", summed(ip(src4, "10.77.0.2", 253, []byte("x"))), same},
		{"protocol 255", summed(ip(src4, "10.77.0.2", 255, []byte("x"))), same},
		{"no payload, IPv4", summed(ip(src4, "10.77.0.2", 59, nil)), same},
		{"no payload, IPv6", ip(src6, "fd77::2", 59, nil), same},
		{"fragment, IPv6", ip(src6, "fd77::2", protoFragment, append([]byte{17, 0, 0, 1, 1, 2, 3, 4}, pattern(64)...)), same},
		{"traffic class and flow label, hop limit 1", v6(func(p []byte) { p[0], p[1], p[7] = 0x6b, 0x91, 1 }), same},
		{"IPv4 options", options(src4, "10.77.0.2"), same},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := bytes.Clone(tc.pkt)
			tc.want(want)
			given := bytes.Clone(tc.pkt)
			if err := o.Send(tc.pkt, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(given, tc.pkt) {
				t.Error("Send changed the caller's bytes")
			}
			src := src4
			if tc.pkt[0]>>4 == 6 {
				src = src6
			}
			if got := next(t, wire, arrival, from(src)); !bytes.Equal(got, want) {
				t.Errorf("on the wire\n%x\nwant\n%x", got, want)
			}
		})
	}
	t.Run("identification 0 without DF is replaced", func(t *testing.T) {
		if err := o.Send(v4(func(p []byte) { p[4], p[5] = 0, 0 }), 0); err != nil {
			t.Fatal(err)
		}
		if got := next(t, wire, arrival, from(src4)); got == nil || got[4] == 0 && got[5] == 0 {
			t.Errorf("on the wire %x", got)
		}
	})
}

// options returns a packet with a record-route option (not copied) and a no-operation.
func options(src, dst string) []byte {
	p := ip(src, dst, 253, pattern(20))
	opts := []byte{7, 7, 8, 0, 0, 0, 0, 1}
	p = append(p[:20:20], append(opts, p[20:]...)...)
	p[0] = 0x47
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	setIPv4Checksum(p, 28)
	return p
}

// A receiver drops packets with a wrong transport checksum, so injection must neither correct it nor
// mark it as verified.
func TestOutboundWrongChecksumIsDropped(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	o := newOutbound(t, net.A, testCursor)
	for _, tc := range []struct{ name, src, dst, listen string }{
		{"IPv4", "10.77.0.1", "10.77.0.2", "10.77.0.2:53"},
		{"IPv6", "fd77::1", "fd77::2", "[fd77::2]:53"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			receive := receiveUDP(t, net.B, tc.listen)
			wrong := udp(tc.src, tc.dst, 1000, 53, []byte("wrong"))
			wrong[len(wrong)-5] ^= 1
			if _, err := o.SendBatch([][]byte{wrong, udp(tc.src, tc.dst, 1000, 53, []byte("right"))}, nil); err != nil {
				t.Fatal(err)
			}
			if got := receive(arrival); string(got) != "right" {
				t.Fatalf("received %q first", got)
			}
		})
	}
}

func TestOutboundMulticast(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	o := newOutbound(t, net.A, testCursor)
	wire := capture(t, net.LinkB)
	eth0 := uint32(net.LinkA.Index())
	for _, tc := range []struct{ name, src, dst string }{
		{"IPv4 multicast", "198.51.100.7", "224.0.0.251"},
		{"limited broadcast", "198.51.100.7", "255.255.255.255"},
		{"subnet broadcast", "198.51.100.7", "10.77.0.255"},
		{"IPv6 link-local multicast", "2001:db8::7", "ff02::fb"},
		{"IPv6 link-local multicast, unspecified source", "::", "ff02::fb"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := udp(tc.src, tc.dst, 1000, 5353, []byte("hello"))
			if err := o.Send(p, eth0); err != nil {
				t.Fatal(err)
			}
			if got := next(t, wire, arrival, func(q []byte) bool { return bytes.Equal(p, q) }); got == nil {
				t.Error("not on the wire")
			}
		})
	}
}

func TestOutboundErrors(t *testing.T) {
	n := lab.TwoHostsT(t, lab.LinkOptions{})
	o := newOutbound(t, n.A, testCursor)
	tooLong := udp("10.77.0.1", "10.77.0.2", 1, 2, nil)
	tooLong = append(tooLong, 0)
	short6 := ip("fd77::1", "fd77::2", 17, nil)
	short6[5] = 1
	df := udp("10.77.0.1", "10.77.0.2", 1, 2, pattern(2000))
	df[6] = 0x40
	for _, tc := range []struct {
		name  string
		pkt   []byte
		ifIdx uint32
		want  error
	}{
		{"nothing", nil, 0, ErrMalformed},
		{"one byte", []byte{0x45}, 0, ErrMalformed},
		{"version 5", append([]byte{0x55}, tooLong[1:29]...), 0, ErrMalformed},
		{"longer than its length field, IPv4", tooLong, 0, ErrMalformed},
		{"shorter than its length field, IPv6", short6, 0, ErrMalformed},
		{"IPv4 header length 16", append([]byte{0x44}, tooLong[1:29]...), 0, ErrMalformed},
		{"no source", udp("0.0.0.0", "10.77.0.2", 1, 2, nil), 0, ErrNoSource},
		{"Don't Fragment above the MTU", df, 0, ErrTooBig},
		{"no such interface for link-local", udp("fe80::1", "fe80::2", 1, 2, nil), 4242, ErrNoInterface},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := o.Send(tc.pkt, tc.ifIdx); !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
		})
	}
	t.Run("the MTU is named", func(t *testing.T) {
		var e *TooBigError
		if err := o.Send(df, 0); !errors.As(err, &e) || e.MTU != 1500 || e.Size != len(df) {
			t.Errorf("%v", err)
		}
	})
	t.Run("batch stops at the error and goes on behind it", func(t *testing.T) {
		good := udp("10.77.0.1", "10.77.0.2", 1, 2, nil)
		six := udp("fd77::1", "fd77::2", 1, 2, nil)
		n, err := o.SendBatch([][]byte{good, six, good, nil, good}, nil)
		if n != 3 || !errors.Is(err, ErrMalformed) {
			t.Fatalf("%d, %v", n, err)
		}
		n, err = o.SendBatch([][]byte{good, df, good}, []uint32{0, 0, 0})
		if n != 1 || !errors.Is(err, ErrTooBig) {
			t.Fatalf("%d, %v", n, err)
		}
		if n, err := o.SendBatch([][]byte{good}, []uint32{0, 0}); n != 0 || err == nil {
			t.Fatalf("lengths differ: %d, %v", n, err)
		}
	})
	t.Run("closed", func(t *testing.T) {
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		good := udp("10.77.0.1", "10.77.0.2", 1, 2, nil)
		for _, err := range []error{o.Send(good, 0), o.SendSegmented(good, 0, 100), o.Close()} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v", err)
			}
		}
	})
}

func TestOutboundAboveMTU(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	o := newOutbound(t, net.A, testCursor)
	count := countPriority(t, net.A, nftables.ChainHookPostrouting, testCursor)
	for _, tc := range []struct{ name, src, dst, listen string }{
		{"IPv4", "10.77.0.1", "10.77.0.2", "10.77.0.2:53"},
		{"IPv6", "fd77::1", "fd77::2", "[fd77::2]:53"},
		{"foreign IPv4", "198.51.100.7", "10.77.0.2", "10.77.0.2:54"},
		{"foreign IPv6", "2001:db8::7", "fd77::2", "[fd77::2]:54"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			receive := receiveUDP(t, net.B, tc.listen)
			_, port, _ := cutPort(tc.listen)
			for _, size := range []int{1500, 4000, 60000} {
				before := count.packets(t)
				p := udp(tc.src, tc.dst, 1000, port, pattern(size))
				if tc.src[0] != 'f' && tc.src[0] != '2' {
					p[4], p[5] = 0, 0
				}
				if err := o.Send(p, 0); err != nil {
					t.Fatal(err)
				}
				if got := receive(arrival); !bytes.Equal(got, pattern(size)) {
					t.Fatalf("%d bytes received of %d", len(got), size)
				}
				if n := count.packets(t) - before; int(n) < (size+1479)/1480 {
					t.Errorf("%d fragments with the cursor for %d bytes", n, size)
				}
			}
		})
	}
}

func cutPort(addr string) (host string, port uint16, err error) {
	h, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	n, err := net.LookupPort("udp", p)
	return h, uint16(n), err
}

// A GSO packet that is sent late arrives in segments, whole and with right checksums.
func TestOutboundSegmented(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	o := newOutbound(t, net.A, testCursor)
	wire := capture(t, net.LinkB)
	data := pattern(20000)
	for _, tc := range []struct {
		name, src, dst string
		mss, largest   int
	}{
		{"IPv4, given size", "198.51.100.7", "10.77.0.2", 1000, 1040},
		{"IPv4, by the path", "198.51.100.7", "10.77.0.2", 0, 1500},
		{"IPv6, given size", "2001:db8::7", "fd77::2", 1000, 1060},
		{"IPv6, by the path", "2001:db8::7", "fd77::2", 0, 1500},
		{"many small ones", "198.51.100.7", "10.77.0.2", 100, 140},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := tcp(tc.src, tc.dst, 1, byte(packet.TCPPsh), nil, data)
			if err := o.SendSegmented(p, 0, tc.mss); err != nil {
				t.Fatal(err)
			}
			var got []byte
			largest := 0
			for len(got) < len(data) {
				q := next(t, wire, arrival, from(tc.src))
				if q == nil {
					t.Fatalf("%d bytes arrived", len(got))
				}
				var parsed packet.Parsed
				parsed.Parse(q)
				if !parsed.VerifyTransportChecksum(q) {
					t.Fatalf("checksum of %x", q)
				}
				got = append(got, q[len(ip(tc.src, tc.dst, 0, nil))+20:]...)
				largest = max(largest, len(q))
			}
			if !bytes.Equal(got, data) || largest != tc.largest {
				t.Errorf("%d bytes, largest packet %d, want %d", len(got), largest, tc.largest)
			}
		})
	}
	if err := o.SendSegmented(udp("10.77.0.1", "10.77.0.2", 1, 2, data), 0, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("UDP without size: %v", err)
	}
	if err := o.SendSegmented(tcp("10.77.0.1", "10.77.0.2", 1, 0, nil, data), 0, 9000); !errors.Is(err, ErrTooBig) {
		t.Errorf("segments above the MTU: %v", err)
	}
}

func BenchmarkOutbound(b *testing.B) {
	net, err := lab.TwoHosts(lab.LinkOptions{})
	if err != nil {
		b.Skip(err)
	}
	defer net.Close()
	o := newOutbound(b, net.A, testCursor)
	for _, family := range []struct{ name, src, dst string }{
		{"IPv4", "10.77.0.1", "10.77.0.2"}, {"IPv6", "fd77::1", "fd77::2"},
	} {
		p := udp(family.src, family.dst, 1, 9, pattern(1000))
		b.Run(family.name+"/Send", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := o.Send(p, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(family.name+"/SendBatch", func(b *testing.B) {
			b.ReportAllocs()
			pkts := make([][]byte, batchSize)
			for i := range pkts {
				pkts[i] = p
			}
			for i := 0; i < b.N; i += len(pkts) {
				if _, err := o.SendBatch(pkts, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
		big := tcp(family.src, family.dst, 1, 0, nil, pattern(60000))
		b.Run(family.name+"/SendSegmented", func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(big)))
			for b.Loop() {
				if err := o.SendSegmented(big, 0, 1400); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// Where the path carries less than the first interface, the kernel fragments IPv4 packets that may be fragmented; for others it
// sends the source an ICMP error, and Send fails or cuts.
func TestOutboundPathMTU(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	o := newOutbound(t, net.A, testCursor)
	nl, err := net.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	for _, dst := range []string{"10.77.0.2/32", "fd77::2/128"} {
		prefix, err := netlink.ParseIPNet(dst)
		if err != nil {
			t.Fatal(err)
		}
		if err := nl.RouteAdd(&netlink.Route{LinkIndex: net.LinkA.Index(), Dst: prefix, MTU: 1300}); err != nil {
			t.Fatal(err)
		}
	}
	df := udp("10.77.0.1", "10.77.0.2", 1000, 53, pattern(1400))
	df[6] = 0x40
	for _, tc := range []struct {
		name, listen string
		pkt          []byte
	}{
		{"IPv4", "10.77.0.2:53", udp("10.77.0.1", "10.77.0.2", 1000, 53, pattern(1400))},
		{"IPv4 above the interface's MTU", "10.77.0.2:53", udp("10.77.0.1", "10.77.0.2", 1000, 53, pattern(4000))},
		{"IPv6", "[fd77::2]:53", udp("fd77::1", "fd77::2", 1000, 53, pattern(1400))},
		{"IPv6 above the interface's MTU", "[fd77::2]:53", udp("fd77::1", "fd77::2", 1000, 53, pattern(4000))},
		{"Don't Fragment", "", df},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.listen == "" {
				var e *TooBigError
				if err := o.Send(tc.pkt, 0); !errors.As(err, &e) || e.MTU != 1300 {
					t.Errorf("%v", err)
				}
				return
			}
			receive, wire := receiveUDP(t, net.B, tc.listen), capture(t, net.LinkB)
			if err := o.Send(tc.pkt, 0); err != nil {
				t.Fatal(err)
			}
			if got := receive(arrival); len(got) == 0 || !bytes.HasSuffix(tc.pkt, got) {
				t.Fatalf("received %d bytes", len(got))
			}
			f := next(t, wire, arrival, func(q []byte) bool { return len(q) > 1000 })
			if len(f) > 1300 {
				t.Errorf("%d bytes on the wire", len(f))
			}
		})
	}
}

// A Send that waits for room in the socket's buffer ends when the Outbound is closed.
func TestOutboundCloseEndsWaiting(t *testing.T) {
	n := lab.TwoHostsT(t, lab.LinkOptions{LearnNeighbours: true})
	o := newOutbound(t, n.A, testCursor)
	if err := unix.SetsockoptInt(o.socks[sockIPv4].fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 4096); err != nil {
		t.Fatal(err)
	}
	// Nobody has this address: the packets stay in the socket's account until ARP gives up.
	p := udp("10.77.0.1", "10.77.0.99", 1, 2, pattern(1000))
	done := make(chan error, 1)
	go func() {
		for {
			if err := o.Send(p, 0); err != nil {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		t.Fatalf("ended early: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(arrival):
		t.Error("still waiting")
	}
}

func TestOutboundRefused(t *testing.T) {
	n, err := lab.New()
	if err != nil {
		t.Skip(err)
	}
	defer n.Close()
	a, err := n.AddHost("a")
	if err != nil {
		t.Fatal(err)
	}
	o := newOutbound(t, a, testCursor)
	for _, dst := range []string{"10.77.0.2", "fd77::2"} {
		src := map[bool]string{true: "10.77.0.1", false: "fd77::1"}[dst[0] == '1']
		if err := o.Send(udp(src, dst, 1, 2, nil), 0); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("no route to %s: %v", dst, err)
		}
	}
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	countPriority(t, a, nftables.ChainHookPostrouting, testCursor, drop)
	for _, addr := range []string{"127.0.0.1", "::1"} {
		if err := o.Send(udp(addr, addr, 1, 2, nil), 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("dropped by a rule, %s: %v", addr, err)
		}
	}
}

//go:build linux

package inject

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
)

const servedCursor = 0xd0000010

var testSeal = NewSeal()

// sealed is SealRule without its end: packets go on to the test's next rule.
func sealed() []expr.Any {
	e := SealRule(testSeal, testCursor)
	return e[:len(e)-1]
}

// inboundOf skips the test where the device cannot be made at all, and says why.
func inboundOf(t testing.TB, h *lab.Host) *Inbound {
	t.Helper()
	if fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		t.Skipf("/dev/net/tun: %v", err)
	} else {
		unix.Close(fd)
	}
	var in *Inbound
	do(t, h, func() (err error) { in, err = NewInbound(testSeal, Password{Priority: servedCursor}); return err })
	t.Cleanup(func() { in.Close() })
	return in
}

func TestInboundArrives(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	in := inboundOf(t, net.A)
	tun, err := net.A.AddTUN("tun0", netip.MustParsePrefix("10.88.0.1/24"), netip.MustParsePrefix("fd88::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	defer tun.Close()
	eth0, tun0, lo := uint32(net.LinkA.Index()), uint32(tun.Index()), uint32(1)
	localA, localB := linkLocal(t, net.LinkA), linkLocal(t, net.LinkB)
	for _, tc := range []struct {
		name     string
		listen   string
		src, dst string
		ifIdx    uint32
		cursor   uint32
	}{
		{"neighbour, IPv4", "10.77.0.1:53", "10.77.0.2", "10.77.0.1", eth0, testCursor},
		{"neighbour, IPv6", "[fd77::1]:53", "fd77::2", "fd77::1", eth0, testCursor},
		{"far source, IPv4", "10.77.0.1:53", "198.51.100.7", "10.77.0.1", eth0, testCursor},
		{"far source, IPv6", "[fd77::1]:53", "2001:db8::7", "fd77::1", eth0, testCursor},
		{"link-local IPv6", "[" + localA + "%eth0]:53", localB, localA, eth0, testCursor},
		{"interface without Ethernet, IPv4", "10.88.0.1:53", "10.88.0.9", "10.88.0.1", tun0, testCursor},
		{"interface without Ethernet, IPv6", "[fd88::1]:53", "fd88::9", "fd88::1", tun0, testCursor},
		{"address of another interface", "10.88.0.1:53", "10.77.0.2", "10.88.0.1", eth0, testCursor},
		{"from this host, IPv4", "10.77.0.1:53", "10.88.0.1", "10.77.0.1", eth0, servedCursor},
		{"from this host, IPv6", "[fd77::1]:53", "fd77::1", "fd77::1", eth0, servedCursor},
		{"loopback, IPv4", "127.0.0.1:53", "127.0.0.1", "127.0.0.1", lo, servedCursor},
		{"loopback, IPv6", "[::1]:53", "::1", "::1", lo, servedCursor},
		{"loopback interface, far source", "10.77.0.1:53", "198.51.100.7", "10.77.0.1", lo, servedCursor},
	} {
		t.Run(tc.name, func(t *testing.T) {
			receive := receiveUDP(t, net.A, tc.listen)
			hook, first := nftables.ChainHookPrerouting, sealed()
			if tc.cursor == servedCursor {
				// It is sent, over the loopback interface.
				hook, first = nftables.ChainHookPostrouting, []expr.Any{&expr.Counter{}}
			}
			count := countPriority(t, net.A, hook, tc.cursor, first)
			if err := in.Send(udp(tc.src, tc.dst, 1000, 53, []byte(tc.name)), tc.ifIdx); err != nil {
				t.Fatal(err)
			}
			if got := receive(arrival); string(got) != tc.name {
				t.Fatalf("received %q", got)
			}
			if n := count.packets(t); n != 1 {
				t.Errorf("%d packets with the cursor, want 1", n)
			}
		})
	}
}

// The packet is the interface's own at PRE_ROUTING, with no mark, and a capture there sees it as given.
func TestInboundIsOfItsInterface(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	in := inboundOf(t, net.A)
	wire := capture(t, net.LinkA)
	marked := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
	other := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0}},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
	count := countPriority(t, net.A, nftables.ChainHookPrerouting, testCursor,
		notOn(net.LinkA.Name()), marked, other, sealed())
	p := udp("10.77.0.2", "10.77.0.1", 1000, 53, pattern(100))
	if err := in.Send(p, uint32(net.LinkA.Index())); err != nil {
		t.Fatal(err)
	}
	if got := next(t, wire, arrival, from("10.77.0.2")); !bytes.Equal(got, p) {
		t.Errorf("captured %x, want %x", got, p)
	}
	if n := count.packets(t); n != 1 {
		t.Errorf("%d packets with the cursor, want 1", n)
	}
}

// notOn is a rule that drops packets that come in on another interface.
func notOn(name string) []expr.Any {
	padded := make([]byte, 16)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: padded},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// Only the frames of an Inbound with the seal get the cursor.
func TestSealRule(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	in := inboundOf(t, net.A)
	set := func(v uint32) []expr.Any {
		return []expr.Any{
			&expr.Immediate{Register: 1, Data: native(v)},
			&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1},
		}
	}
	t.Run("other packets", func(t *testing.T) {
		count := countPriority(t, net.A, nftables.ChainHookPrerouting, 7, set(7), sealed())
		receive := receiveUDP(t, net.A, "10.77.0.1:53")
		o := newOutbound(t, net.B, testCursor)
		if err := o.Send(udp("10.77.0.2", "10.77.0.1", 1, 53, nil), 0); err != nil || receive(arrival) == nil {
			t.Fatal(err)
		}
		if count.packets(t) == 0 {
			t.Error("the priority was changed")
		}
	})
	for _, tc := range []struct {
		name         string
		before, want uint32
	}{
		{"no priority", 0, testCursor},
		{"another's priority", 6, testCursor},
		{"a forged cursor", 0xd1111110, testCursor},
	} {
		t.Run(tc.name, func(t *testing.T) {
			count := countPriority(t, net.A, nftables.ChainHookPrerouting, tc.want, set(tc.before), sealed())
			if err := in.Send(udp("10.77.0.2", "10.77.0.1", 1, 53, nil), uint32(net.LinkA.Index())); err != nil {
				t.Fatal(err)
			}
			if n := count.packets(t); n != 1 {
				t.Errorf("%d packets, want 1", n)
			}
		})
	}
	t.Run("another's seal", func(t *testing.T) {
		// The peer's own packets, such as multicast reports of IPv6, do not count.
		onlyUDP := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		}
		for i := 3; i < len(testSeal); i++ {
			other := testSeal
			other[i] ^= 0x10
			rule := SealRule(other, testCursor)
			count := countPriority(t, net.A, nftables.ChainHookPrerouting, 7, slices.Concat(onlyUDP, set(7)), rule)
			if err := in.Send(udp("10.77.0.2", "10.77.0.1", 1, 53, nil), uint32(net.LinkA.Index())); err != nil {
				t.Fatal(err)
			}
			if n := count.packets(t); n != 1 {
				t.Errorf("byte %d of the seal differs: %d packets go on as they were, want 1", i, n)
			}
		}
	})
}

func TestInboundBytes(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	in := inboundOf(t, net.A)
	eth0 := uint32(net.LinkA.Index())
	receive := receiveUDP(t, net.A, "10.77.0.1:53")
	send := func(p []byte) {
		t.Helper()
		if err := in.Send(p, eth0); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("a wrong checksum is the receiver's to find", func(t *testing.T) {
		wrong := udp("10.77.0.2", "10.77.0.1", 1, 53, []byte("wrong"))
		wrong[len(wrong)-1] ^= 1
		send(wrong)
		send(udp("10.77.0.2", "10.77.0.1", 1, 53, []byte("right")))
		if got := receive(arrival); string(got) != "right" {
			t.Errorf("received %q", got)
		}
	})
	t.Run("longer than any MTU", func(t *testing.T) {
		send(udp("10.77.0.2", "10.77.0.1", 1, 53, pattern(65000)))
		if got := receive(arrival); !bytes.Equal(got, pattern(65000)) {
			t.Errorf("received %d bytes", len(got))
		}
	})
	t.Run("fragments", func(t *testing.T) {
		p := udp("10.77.0.2", "10.77.0.1", 1, 53, pattern(4000))
		err := Fragment(p, make([]byte, MinScratch), 1500, 1, func(f []byte) error { send(f); return nil })
		if got := receive(arrival); err != nil || !bytes.Equal(got, pattern(4000)) {
			t.Errorf("received %d bytes, %v", len(got), err)
		}
	})
	t.Run("broadcast", func(t *testing.T) {
		all := receiveUDP(t, net.A, "0.0.0.0:54")
		send(udp("10.77.0.2", "10.77.0.255", 1, 54, []byte("all")))
		if got := all(arrival); string(got) != "all" {
			t.Errorf("received %q", got)
		}
	})
	t.Run("TCP handshake", func(t *testing.T) {
		// A listener answers an injected SYN to the peer, over the wire.
		l, err := net.A.Listen("tcp", "10.77.0.1:2000")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		wire := capture(t, net.LinkB)
		send(tcp("10.77.0.2", "10.77.0.1", 77, 2, nil, nil))
		if got := next(t, wire, arrival, from("10.77.0.1")); len(got) < 40 || got[33] != 0x12 {
			t.Errorf("answer %x", got)
		}
	})
}

// The target's rp_filter applies, as to any packet, and finds what it would find for any packet.
func TestInboundReversePath(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	if _, _, err := net.Connect(net.A, net.B, lab.LinkOptions{
		AddrsA: []netip.Prefix{netip.MustParsePrefix("10.99.0.1/24")},
	}); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, value, src string
		arrives          bool
	}{
		{"0, any source", "0", "10.99.0.7", true},
		{"1, source behind the target", "1", "10.77.0.2", true},
		{"1, source behind another interface", "1", "10.99.0.7", false},
		{"2, source behind another interface", "2", "10.99.0.7", true},
		{"1, from this host", "1", "10.99.0.1", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, name := range []string{"all", "eth0"} {
				if err := net.A.Sysctl("net.ipv4.conf."+name+".rp_filter", tc.value); err != nil {
					t.Fatal(err)
				}
			}
			in := inboundOf(t, net.A)
			receive := receiveUDP(t, net.A, "10.77.0.1:53")
			if err := in.Send(udp(tc.src, "10.77.0.1", 1, 53, []byte("x")), uint32(net.LinkA.Index())); err != nil {
				t.Fatal(err)
			}
			wait := arrival
			if !tc.arrives {
				// The path is synchronous up to the socket, so a packet that arrives has arrived by now.
				wait = 200 * time.Millisecond
			}
			if got := receive(wait) != nil; got != tc.arrives {
				t.Errorf("arrives: %v", got)
			}
		})
	}
}

func TestInboundForwards(t *testing.T) {
	net := lab.HostRouterPeerT(t, lab.LinkOptions{})
	in := inboundOf(t, net.R)
	receive := receiveUDP(t, net.B, "10.77.2.2:53")
	if err := in.Send(udp("10.77.1.2", "10.77.2.2", 1, 53, []byte("on")), uint32(net.LinkRA.Index())); err != nil {
		t.Fatal(err)
	}
	if got := receive(arrival); string(got) != "on" {
		t.Errorf("received %q", got)
	}
}

// A packet for a port of a bridge comes in on the bridge, and does not go out of its other ports.
func TestInboundBridge(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	nl, err := net.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "port0"}, PeerName: "far0"}
	for _, step := range []func() error{
		func() error { return nl.LinkAdd(bridge) },
		func() error { return nl.LinkAdd(port) },
		func() error {
			addr, _ := netlink.ParseAddr("10.66.0.1/24")
			return nl.AddrAdd(bridge, addr)
		},
		func() error { return nl.LinkSetUp(bridge) },
		func() error { return nl.LinkSetMaster(port, bridge) },
		func() error { return nl.LinkSetUp(port) },
		func() error {
			far, err := nl.LinkByName("far0")
			if err != nil {
				return err
			}
			return nl.LinkSetUp(far)
		},
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	waitCarrier(t, nl, "br0")
	in := inboundOf(t, net.A)
	receive := receiveUDP(t, net.A, "10.66.0.1:53")
	if err := in.Send(udp("10.66.0.9", "10.66.0.1", 1, 53, []byte("bridge")), uint32(port.Index)); err != nil {
		t.Fatal(err)
	}
	if got := receive(arrival); string(got) != "bridge" {
		t.Errorf("received %q", got)
	}
}

func waitCarrier(t testing.TB, nl *netlink.Handle, name string) {
	t.Helper()
	for range 500 {
		link, err := nl.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s has no carrier", name)
}

// The device comes with the first packet, carries nothing of the kernel's and goes with its owner.
func TestInboundDevice(t *testing.T) {
	n := lab.TwoHostsT(t, lab.LinkOptions{})
	nl, err := n.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	names := func() (names []string) {
		links, err := nl.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if l.Type() == "tuntap" {
				names = append(names, l.Attrs().Name)
			}
		}
		return names
	}
	in := inboundOf(t, n.A)
	p := udp("10.77.0.2", "10.77.0.1", 1, 53, nil)
	if err := in.Send(udp("127.0.0.1", "127.0.0.1", 1, 53, nil), 1); err != nil || len(names()) != 0 {
		t.Fatalf("loopback: %v, devices %v", err, names())
	}
	if err := in.Send(p, uint32(n.LinkA.Index())); err != nil {
		t.Fatal(err)
	}
	if got := names(); len(got) != 1 || got[0] != "divert0" {
		t.Fatalf("devices %v", got)
	}
	second := inboundOf(t, n.A)
	if err := second.Send(p, uint32(n.LinkA.Index())); err != nil {
		t.Fatal(err)
	}
	if got := names(); len(got) != 2 {
		t.Fatalf("devices %v", got)
	}
	second.Close()

	link, err := nl.LinkByName("divert0")
	if err != nil {
		t.Fatal(err)
	}
	if a := link.Attrs(); a.RawFlags&(unix.IFF_UP|unix.IFF_NOARP|unix.IFF_MULTICAST) != unix.IFF_UP|unix.IFF_NOARP || a.MTU >= 1280 {
		t.Errorf("flags %v, MTU %d", a.Flags, a.MTU)
	}
	if addrs, err := nl.AddrList(link, netlink.FAMILY_ALL); err != nil || len(addrs) != 0 {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	if routes, err := nl.RouteList(link, netlink.FAMILY_ALL); err != nil || len(routes) != 0 {
		t.Errorf("routes %v, %v", routes, err)
	}
	// Router solicitations and multicast reports would be sent within seconds of the device's start.
	time.Sleep(2 * time.Second)
	if link, err = nl.LinkByName("divert0"); err != nil || link.Attrs().Statistics.TxPackets+link.Attrs().Statistics.TxDropped != 0 {
		t.Errorf("the kernel sent: %+v, %v", link.Attrs().Statistics, err)
	}
	if err := nl.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if err := in.Send(p, uint32(n.LinkA.Index())); err != nil || len(names()) != 1 {
		t.Errorf("after someone removed the device: %v, %v", err, names())
	}
	in.Close()
	if got := names(); len(got) != 0 {
		t.Errorf("devices after Close: %v", got)
	}
}

func TestInboundErrors(t *testing.T) {
	n := lab.TwoHostsT(t, lab.LinkOptions{})
	in := inboundOf(t, n.A)
	eth0 := uint32(n.LinkA.Index())
	p := udp("10.77.0.2", "10.77.0.1", 1, 53, nil)
	check := func(name string, err, want error, index uint32) {
		t.Helper()
		var e *InterfaceError
		if !errors.Is(err, want) || errors.As(err, &e) && e.Index != index {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	check("interface 0", in.Send(p, 0), ErrNoInterface, 0)
	check("no such interface", in.Send(p, 4242), ErrNoInterface, 4242)
	check("index beyond int32", in.Send(p, 1<<31), ErrNoInterface, 1<<31)
	check("no packet", in.Send(nil, eth0), ErrMalformed, 0)

	nl, err := n.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	gone := addVeth(t, nl, "gone0", 0)
	check("before it goes", in.Send(p, gone), nil, 0)
	if err := nl.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Index: int(gone)}}); err != nil {
		t.Fatal(err)
	}
	check("after it has gone", in.Send(p, gone), ErrNoInterface, gone)
	// Another interface takes the index, and must get its own packets.
	addVeth(t, nl, "again0", int(gone))
	count := countPriority(t, n.A, nftables.ChainHookPrerouting, testCursor, notOn("again0"), sealed())
	check("when its index is taken again", in.Send(p, gone), nil, 0)
	if n := count.packets(t); n != 1 {
		t.Errorf("%d packets on the new interface", n)
	}
	again, err := nl.LinkByName("again0")
	if err != nil {
		t.Fatal(err)
	}
	if err := nl.LinkSetDown(again); err != nil {
		t.Fatal(err)
	}
	check("while it is down", in.Send(p, gone), ErrInterfaceDown, gone)
	batch := [][]byte{p, p, nil, p}
	if k, err := in.SendBatch(batch, []uint32{eth0, eth0, eth0, eth0}); k != 2 || !errors.Is(err, ErrMalformed) {
		t.Errorf("batch: %d, %v", k, err)
	}
	if k, err := in.SendBatch(batch, nil); k != 0 || err == nil {
		t.Errorf("batch without interfaces: %d, %v", k, err)
	}
	in.Close()
	check("closed", in.Send(p, eth0), net.ErrClosed, 0)
	check("closed twice", in.Close(), net.ErrClosed, 0)
}

// addVeth adds an interface that is up and returns its index.
func addVeth(t testing.TB, nl *netlink.Handle, name string, index int) uint32 {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}, PeerName: name + "p"}
	if err := nl.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, end := range []string{name, name + "p"} {
		link, err := nl.LinkByName(end)
		if err != nil {
			t.Fatal(err)
		}
		if err := nl.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
	waitCarrier(t, nl, name)
	link, err := nl.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(link.Attrs().Index)
}

func TestInboundConcurrent(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	in := inboundOf(t, net.A)
	count, err := net.A.CountUDP("10.77.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	defer count.Close()
	const rounds, senders, each = 16, 4, 50 // the counter's buffer has room for all packets of a round
	for round := range rounds {
		var wg sync.WaitGroup
		for range senders {
			wg.Go(func() {
				p := udp("10.77.0.2", "10.77.0.1", 1, 53, pattern(100))
				for range each {
					if err := in.Send(p, uint32(net.LinkA.Index())); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), arrival)
		err := count.Wait(ctx, int64(round+1)*senders*each)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkInbound(b *testing.B) {
	net, err := lab.TwoHosts(lab.LinkOptions{})
	if err != nil {
		b.Skip(err)
	}
	defer net.Close()
	in := inboundOf(b, net.A)
	p := udp("10.77.0.2", "10.77.0.1", 1, 9, pattern(1000))
	eth0 := uint32(net.LinkA.Index())
	b.Run("Send", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := in.Send(p, eth0); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("SendBatch", func(b *testing.B) {
		b.ReportAllocs()
		pkts, idx := make([][]byte, 64), make([]uint32, 64)
		for i := range pkts {
			pkts[i], idx[i] = p, eth0
		}
		for i := 0; i < b.N; i += len(pkts) {
			if _, err := in.SendBatch(pkts, idx); err != nil {
				b.Fatal(err)
			}
		}
	})
}

const holdVariable = "DIVERT_TEST_HOLD_DEVICE"

// TestHoldDevice is the process that TestInboundKilled kills: it makes a device and waits.
func TestHoldDevice(t *testing.T) {
	index, err := strconv.ParseUint(os.Getenv(holdVariable), 10, 32)
	if err != nil {
		t.Skip("only of use to TestInboundKilled")
	}
	in, err := NewInbound(testSeal, Password{Priority: servedCursor})
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Send(udp("10.77.0.2", "10.77.0.1", 1, 53, nil), uint32(index)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Minute)
}

// Nothing stays behind a process that is killed.
func TestInboundKilled(t *testing.T) {
	n := lab.TwoHostsT(t, lab.LinkOptions{})
	inboundOf(t, n.A) // skips where there can be no device
	nl, err := n.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	waitDevice := func(want bool) {
		t.Helper()
		for range 1000 {
			if _, err := nl.LinkByName("divert0"); (err == nil) == want {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("device there: %v", !want)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHoldDevice$")
	cmd.Env = append(os.Environ(), holdVariable+"="+strconv.Itoa(n.LinkA.Index()))
	if err := n.A.Start(cmd); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	waitDevice(true)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitDevice(false)
}

// Reassembly keeps the cursor that the fragments were given before, so it reaches the chain behind, once.
func TestInboundReassembledCursor(t *testing.T) {
	net := lab.TwoHostsT(t, lab.LinkOptions{})
	in := inboundOf(t, net.A)
	defragment := []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}} // turns conntrack on, and so reassembly
	for _, tc := range []struct{ name, src, dst, listen string }{
		{"IPv4", "10.77.0.2", "10.77.0.1", "10.77.0.1:53"},
		{"IPv6", "fd77::2", "fd77::1", "[fd77::1]:53"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			receive := receiveUDP(t, net.A, tc.listen)
			countAt(t, net.A, nftables.ChainHookPrerouting, -451, testCursor, sealed())
			count := countPriority(t, net.A, nftables.ChainHookPrerouting, testCursor, defragment)
			p := udp(tc.src, tc.dst, 1, 53, pattern(4000))
			err := Fragment(p, make([]byte, MinScratch), 1500, 1, func(f []byte) error {
				return in.Send(f, uint32(net.LinkA.Index()))
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := receive(arrival); !bytes.Equal(got, pattern(4000)) {
				t.Errorf("received %d bytes", len(got))
			}
			if n := count.packets(t); n != 1 {
				t.Errorf("%d packets with the cursor, want 1 reassembled", n)
			}
		})
	}
}

// One device serves many interfaces, and makes room when it has no place for one more.
func TestInboundManyTargets(t *testing.T) {
	n := lab.TwoHostsT(t, lab.LinkOptions{})
	in := inboundOf(t, n.A)
	nl, err := n.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	names := []string{"many0", "many1", "many2"}
	var indexes []uint32
	for _, name := range names {
		indexes = append(indexes, addVeth(t, nl, name, 0))
	}
	p := udp("10.77.0.2", "10.77.0.1", 1, 53, nil)
	for _, full := range []bool{false, true} {
		if full {
			in.mu.Lock()
			delete(in.targets, indexes[0])
			in.device.used = maxTargets
			in.mu.Unlock()
		}
		for i, name := range names {
			count := countPriority(t, n.A, nftables.ChainHookPrerouting, testCursor, notOn(name), sealed())
			if err := in.Send(p, indexes[i]); err != nil {
				t.Fatal(err)
			}
			if got := count.packets(t); got != 1 {
				t.Errorf("%s: %d packets", name, got)
			}
		}
	}
}

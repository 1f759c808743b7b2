//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(childVariable); mode != "" {
		os.Exit(children4test[mode]())
	}
	Main(m)
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// talk has two hosts exchange datagrams and a stream, and reports errors.
func talk(ctx context.Context, from, to *Host, dst netip.Addr) error {
	e, err := to.Echo("udp", netip.AddrPortFrom(dst, 0).String())
	if err != nil {
		return err
	}
	defer e.Close()
	x := Exchange{Count: 20, Size: 1000, Wait: 5 * time.Second, Seed: 1}
	r, err := ExchangeUDP(ctx, from, e.Addr(), x)
	if err != nil {
		return err
	}
	if want := (Exchanged{Sent: 20, Echoed: 20}); r != want {
		return fmt.Errorf("UDP exchange with %s: %+v, want %+v", e.Addr(), r, want)
	}
	if e.Served() != 20 {
		return fmt.Errorf("the server echoed %d datagrams of 20", e.Served())
	}
	_, err = TransferTCP(ctx, from, to, netip.AddrPortFrom(dst, 0), 1<<20, 7)
	return err
}

func TestTopologiesCarryUDPAndTCP(t *testing.T) {
	pair := TwoHostsT(t, LinkOptions{})
	learning := TwoHostsT(t, LinkOptions{LearnNeighbours: true})
	bare := TwoHostsT(t, LinkOptions{MTU: 1300, Without: OffloadAll})
	routed := HostRouterPeerT(t, LinkOptions{})
	rows := []struct {
		name     string
		from, to *Host
	}{
		{"two hosts", pair.A, pair.B},
		{"two hosts, back", pair.B, pair.A},
		{"host to itself", pair.A, pair.A},
		{"neighbours learnt", learning.A, learning.B},
		{"small MTU, no offloads", bare.A, bare.B},
		{"over a router", routed.A, routed.B},
		{"over a router, back", routed.B, routed.A},
		{"to the router", routed.A, routed.R},
	}
	for _, row := range rows {
		for _, dst := range []netip.Addr{row.to.Addr4(), row.to.Addr6()} {
			t.Run(row.name+" "+dst.String(), func(t *testing.T) {
				if err := talk(testContext(t), row.from, row.to, dst); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestRouterForwardsOnlyWhileToldTo(t *testing.T) {
	r := HostRouterPeerT(t, LinkOptions{})
	for _, row := range []struct {
		sysctl string
		addr   netip.Addr
	}{
		{"net.ipv4.ip_forward", r.B.Addr4()},
		{"net/ipv6/conf/all/forwarding", r.B.Addr6()},
	} {
		t.Run(row.sysctl, func(t *testing.T) {
			e, err := r.B.Echo("udp", netip.AddrPortFrom(row.addr, 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			for _, forward := range []string{"0", "1"} {
				if err := r.R.Sysctl(row.sysctl, forward); err != nil {
					t.Fatal(err)
				}
				if got, err := r.R.SysctlValue(row.sysctl); err != nil || got != forward {
					t.Fatalf("read back %q, %v, want %s", got, err, forward)
				}
				wait := 100 * time.Millisecond
				if forward == "1" {
					wait = 5 * time.Second
				}
				got, err := ExchangeUDP(testContext(t), r.A, e.Addr(), Exchange{Wait: wait})
				if err != nil {
					t.Fatal(err)
				}
				if came := fmt.Sprint(got.Echoed); came != forward {
					t.Errorf("forwarding %s: %+v", forward, got)
				}
			}
		})
	}
}

func TestSysctlRefusesWhatIsNotTheHosts(t *testing.T) {
	h, err := NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kernel.hostname", "net/../kernel/hostname", ""} {
		if err := h.Sysctl(name, "x"); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := h.Sysctl("net.ipv4.no_such_thing", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("unknown setting: %v", err)
	}
}

func TestOnlyOwnInterfacesInTheNamespace(t *testing.T) {
	p := TwoHostsT(t, LinkOptions{})
	for _, extra := range prefixes("192.0.2.1/32", "2001:db8::1/128") {
		if err := p.A.Loopback().AddAddr(extra); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := p.Connect(p.A, p.A, LinkOptions{}); err != nil {
		t.Fatal(err)
	}
	var names []string
	if err := p.A.Do(func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			names = append(names, i.Name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "eth0 eth1 eth2 lo" {
		t.Errorf("interfaces of A: %s, want eth0 eth1 eth2 lo", got)
	}
	if p.A.Loopback().Peer() != nil || p.A.Link("eth1").Peer() != p.A.Link("eth2") {
		t.Error("wrong peers")
	}
	c, err := p.A.ListenPacket("udp", "[2001:db8::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestSocketsAreTheHosts(t *testing.T) {
	p := TwoHostsT(t, LinkOptions{})
	ctx := testContext(t)
	if _, err := net.Listen("tcp", "10.77.0.1:0"); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("the process itself has the host's address: %v", err)
	}
	for _, host := range []*Host{p.A, p.B} { // the same abstract address in both
		l, err := host.Listen("unix", "@lab-test")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	if _, err := p.A.Dial(ctx, "tcp", p.B.Addr4().String()+":1"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	for _, addr := range []string{"localhost:80", "example.com:80", "10.77.0.2", "10.77.0.2:http", ""} {
		if _, err := p.A.Dial(ctx, "tcp", addr); !errors.Is(err, os.ErrInvalid) {
			t.Errorf("dial %q: %v", addr, err)
		}
	}
	icmp, err := p.A.ListenPacket("ip4:icmp", "10.77.0.1")
	if err != nil {
		t.Fatal(err)
	}
	icmp.Close()
	from := &net.TCPAddr{IP: p.A.Addr4().AsSlice(), Port: 4321}
	e, err := p.B.Echo("tcp", "10.77.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	c, err := p.A.DialFrom(ctx, from, "tcp", e.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.LocalAddr().String() != "10.77.0.1:4321" {
		t.Errorf("dialled from %s", c.LocalAddr())
	}
}

// netnsHere names the namespace of the calling thread.
func netnsHere(t *testing.T) string {
	t.Helper()
	ns, err := os.Readlink(threadNetNS)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func TestDo(t *testing.T) {
	CheckLeaks(t)
	p := TwoHostsT(t, LinkOptions{})
	home := netnsHere(t)
	mistake := errors.New("mistake")
	inA := ""
	if err := p.A.Do(func() error { inA = netnsHere(t); return mistake }); err != mistake {
		t.Errorf("Do returned %v", err)
	}
	if inA == home {
		t.Error("Do ran outside")
	}
	if err := <-p.A.Go(func() error {
		if in := netnsHere(t); in != inA {
			return fmt.Errorf("Go ran in %s, not %s", in, inA)
		}
		return p.B.Do(func() error {
			if netnsHere(t) == inA {
				return errors.New("nested Do stayed")
			}
			return nil
		})
	}); err != nil {
		t.Error(err)
	}
	t.Run("panic", func(t *testing.T) {
		defer func() {
			if r := recover(); !strings.Contains(fmt.Sprint(r), "expected") {
				t.Errorf("recovered %v", r)
			}
		}()
		_ = p.A.Do(func() error { panic("expected") })
		t.Error("the panic was lost")
	})
	t.Run("goexit", func(t *testing.T) {
		ended := make(chan bool, 1)
		go func() {
			returned := false
			defer func() { ended <- !returned }()
			_ = p.A.Do(func() error { runtime.Goexit(); return nil })
			returned = true
		}()
		if !<-ended {
			t.Error("the caller went on after Goexit")
		}
	})
	var all sync.WaitGroup
	for range 64 {
		all.Go(func() { _ = p.A.Do(func() error { time.Sleep(time.Millisecond); return nil }) })
	}
	all.Wait()
	for range 64 {
		all.Go(func() {
			if in := netnsHere(t); in != home {
				t.Errorf("a goroutine woke up in %s", in)
			}
		})
	}
	all.Wait()
}

// A thread that cannot return to its own namespace ends, rather than serve other goroutines.
func TestThreadThatCannotReturnEnds(t *testing.T) {
	CheckLeaks(t)
	p := TwoHostsT(t, LinkOptions{})
	if err := p.A.Do(func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		return unix.Capset(&header, &none[0]) // only this thread
	}); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := p.B.Do(func() error { return nil }); err != nil {
			t.Fatalf("the thread is still in use: %v", err)
		}
	}
}

func TestExec(t *testing.T) {
	p := TwoHostsT(t, LinkOptions{})
	cmd := exec.Command("/bin/sh", "-c", "readlink /proc/self/ns/net; exit 3")
	out := new(strings.Builder)
	cmd.Stdout = out
	var exit *exec.ExitError
	if err := p.A.Exec(cmd); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("Exec: %v, want exit status 3", err)
	}
	_ = p.A.Do(func() error {
		if in := netnsHere(t); strings.TrimSpace(out.String()) != in {
			t.Errorf("child in %q, host is %s", out, in)
		}
		return nil
	})
}

func TestNetNSAndNetlink(t *testing.T) {
	p := TwoHostsT(t, LinkOptions{})
	f, err := p.A.NetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	nl, err := p.A.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	l, err := nl.LinkByName("eth0")
	if err != nil || l.Attrs().Index != p.LinkA.Index() || l.Attrs().HardwareAddr.String() != p.LinkA.MAC().String() {
		t.Errorf("eth0 of A: %+v, %v", l, err)
	}
}

func TestClosedNetwork(t *testing.T) {
	p := TwoHostsT(t, LinkOptions{})
	if err := errors.Join(p.Close(), p.Close()); err != nil {
		t.Fatal(err)
	}
	_, hostErr := p.AddHost("late")
	_, netlinkErr := p.A.Netlink()
	_, linkErr := p.LinkA.Netlink()
	for what, err := range map[string]error{
		"AddHost": hostErr, "Netlink": netlinkErr, "Link.Netlink": linkErr,
		"Do": p.A.Do(func() error { return nil }), "Sysctl": p.A.Sysctl("net.ipv4.ip_forward", "1"),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
}

func TestFailedTopologyLeavesNothing(t *testing.T) {
	Need(t)
	CheckLeaks(t)
	if _, err := TwoHosts(LinkOptions{NameA: "a-name-longer-than-15-bytes"}); err == nil {
		t.Error("no error")
	}
	if _, err := TwoHosts(LinkOptions{AddrsA: prefixes("10.0.0.1/24"), AddrsB: prefixes("10.0.0.1/24", "10.0.0.1/24")}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("double address: %v", err)
	}
}

func TestOffloads(t *testing.T) {
	p := TwoHostsT(t, LinkOptions{Without: OffloadTSO | OffloadGRO})
	if on, err := p.LinkB.Offloads(); err != nil || on&(OffloadTSO|OffloadGRO) != 0 || on&OffloadTxChecksum == 0 {
		t.Errorf("offloads of B: %v, %v", on, err)
	}
	if err := p.LinkB.SetOffload(OffloadAll, true); err != nil {
		t.Fatal(err)
	}
	if on, err := p.LinkB.Offloads(); err != nil || on != OffloadAll {
		t.Errorf("offloads of B: %v, %v, want all", on, err)
	}
	if err := p.LinkA.SetOffload(OffloadAll, false); err != nil {
		t.Fatal(err)
	}
	if on, err := p.LinkA.Offloads(); err != nil || on != 0 {
		t.Errorf("offloads of A: %v, %v, want none", on, err)
	}
}

func TestLinkDownAndMTU(t *testing.T) {
	p := TwoHostsT(t, LinkOptions{MTU: 1400})
	for _, mtu := range []int{1400, 1280} {
		if mtu == 1280 {
			if err := p.LinkA.SetMTU(mtu); err != nil {
				t.Fatal(err)
			}
		}
		l, err := p.LinkA.Netlink()
		if err != nil || l.Attrs().MTU != mtu {
			t.Errorf("MTU: %v, %v, want %d", l.Attrs().MTU, err, mtu)
		}
	}
	if err := p.LinkA.SetUp(false); err != nil {
		t.Fatal(err)
	}
	if c, err := p.A.Dial(testContext(t), "udp", "10.77.0.2:9"); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("dial over a link that is down: %v, %v", c, err)
	}
}

func TestParallelLabs(t *testing.T) {
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			p := TwoHostsT(t, LinkOptions{})
			if err := talk(testContext(t), p.A, p.B, p.B.Addr4()); err != nil {
				t.Error(err)
			}
			if err := talk(testContext(t), p.B, p.A, p.A.Addr6()); err != nil {
				t.Error(err)
			}
		})
	}
}

//go:build linux

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// eachEngineAndFamily runs a test for both engines and both families.
func eachEngineAndFamily(t *testing.T, f func(t *testing.T, pair *lab.Pair, e divert.Option, addr func(*lab.Host) netip.Addr)) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, family := range families {
			t.Run(family.name, func(t *testing.T) { f(t, pair, e, family.addr) })
		}
	})
}

// TestAcceptedFlowsOfTCP: a connection works after its flow is accepted at the first packet, and only its first packets
// are received; the counters have the others. A later connection between the same ends is another flow.
func TestAcceptedFlowsOfTCP(t *testing.T) {
	t.Parallel()
	eachEngineAndFamily(t, func(t *testing.T, pair *lab.Pair, e divert.Option, addr func(*lab.Host) netip.Addr) {
		d := openAt(t, pair.A, "tcp", e)
		var syns atomic.Int32
		w := each(t, d, func(p *divert.Packet) {
			var parsed packet.Parsed
			parsed.Parse(p.Data)
			if tcp := parsed.TCP(p.Data); tcp != nil && tcp.Flags()&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn {
				syns.Add(1)
			}
			if err := d.AcceptFlow(p); err != nil {
				t.Error(err)
			}
		})
		const n = 4 << 20
		transfer(t, pair.A, pair.B, addr(pair.B), amount(n))
		transfer(t, pair.B, pair.A, addr(pair.A), amount(n))
		echo := echoAt(t, pair.B, "tcp", addr(pair.B))
		from := freePort(t, pair.A, addr(pair.A))
		for range 3 {
			again(t, pair.A, from, echo.Addr())
		}
		s := quiet(t, d)
		balanced(t, s)
		if got := syns.Load(); got != 5 {
			t.Errorf("%d connections began, want 5", got)
		}
		if s.FlowAcceptedBytes < uint64(2*amount(n)) || s.FlowAccepted < 20 {
			t.Errorf("too little went on by its flow's verdict: %+v", s)
		}
		if s.Received > 5*3 { // a SYN, and packets in flight when the verdict is given
			t.Errorf("received %d packets of 5 connections", s.Received)
		}
		finish(t, d, w)
	})
}

// freePort returns an address with a free port.
func freePort(t testing.TB, h *lab.Host, addr netip.Addr) *net.TCPAddr {
	t.Helper()
	l, err := h.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr)
}

// again connects from a certain port, exchanges a few bytes with an echo server, and ends with a RST, so that the port
// is free at once.
func again(t testing.TB, from *lab.Host, local *net.TCPAddr, to netip.AddrPort) {
	t.Helper()
	c, err := from.DialFrom(t.Context(), local, "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).SetLinger(0)
}

// TestFlowIsOverWithoutItsProcess: when the process that decided is killed, its verdicts end with the next packet, both
// to drop and to accept.
func TestFlowIsOverWithoutItsProcess(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		name := "x" // as many letters as the engine's number
		if strings.HasSuffix(t.Name(), "interpreter") {
			name = "xx"
		}
		child := startChild(t, pair.A, "dropflows", "DIVERT_TEST_ENGINE="+name)
		conn, expect := receiver(t, pair.B, pair.B.Addr4())
		c := dialUDP(t, pair.A, conn.LocalAddr())
		for range 5 {
			if _, err := c.Write([]byte("dropped")); err != nil { // the sender gets no error
				t.Fatal(err)
			}
		}
		expect()
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()
		if _, err := c.Write([]byte("passes")); err != nil {
			t.Fatal(err)
		}
		expect("passes")
	})
}

func init() {
	children["dropflows"] = func() error {
		d, err := divert.Open("outbound and udp", divert.WithEngine(divert.Engine(len(os.Getenv("DIVERT_TEST_ENGINE")))))
		if err != nil {
			return err
		}
		fmt.Println("open")
		for p, err := range d.Packets(context.Background()) {
			if err == nil {
				err = d.DropFlow(p)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// TestFragmentsHaveNoFlow: a fragmented datagram follows its flow's verdict when it is seen whole, and reaches handles
// that ask for fragments as fragments.
func TestFragmentsHaveNoFlow(t *testing.T) {
	t.Parallel()
	eachEngineAndFamily(t, func(t *testing.T, pair *lab.Pair, e divert.Option, addr func(*lab.Host) netip.Addr) {
		conn, _ := receiver(t, pair.A, addr(pair.A))
		c := dialUDP(t, pair.B, conn.LocalAddr())
		filter := fmt.Sprintf("inbound and (udp.DstPort == %d or fragment)", conn.LocalAddr().(*net.UDPAddr).Port)
		whole := openAt(t, pair.A, filter, e)
		pieces := openAt(t, pair.A, filter, e, divert.WithPriority(1), divert.WithFlags(divert.Fragments))
		if _, err := c.Write([]byte("small")); err != nil {
			t.Fatal(err)
		}
		for _, d := range []*divert.Handle{pieces, whole} {
			p := taken(t, d, 1)[0]
			if err := d.AcceptFlow(&p); err != nil {
				t.Fatal(err)
			}
		}
		large := make([]byte, 4000)
		if _, err := c.Write(large); err != nil {
			t.Fatal(err)
		}
		fragments := taken(t, pieces, 3)
		for i := range fragments {
			if err := pieces.AcceptFlow(&fragments[i]); !errors.Is(err, divert.ErrInvalid) {
				t.Errorf("a fragment's flow was decided: %v", err)
			}
			if err := pieces.Accept(&fragments[i]); err != nil {
				t.Error(err)
			}
		}
		b := make([]byte, 5000)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		for _, want := range []int{5, 4000} {
			if n, _, err := conn.ReadFrom(b); n != want || err != nil {
				t.Fatalf("received %d bytes (%v), want %d", n, err, want)
			}
		}
		s := quiet(t, whole)
		balanced(t, s)
		if s.FlowAccepted != 1 || s.Received != 1 || s.FlowAcceptedBytes < 4028 {
			t.Errorf("the whole datagram: %+v", s)
		}
		if s := quiet(t, pieces); s.FlowAccepted != 0 || s.Received != 4 {
			t.Errorf("the fragments: %+v", s)
		}
	})
}

// TestDatagramsCutLaterCountOneByOne: of UDP packets that the kernel segments, flows count each datagram, as a handle
// receives them. Where only single datagrams show whether they match, those of a dropped flow are dropped.
func TestDatagramsCutLaterCountOneByOne(t *testing.T) {
	t.Parallel()
	eachEngineAndFamily(t, func(t *testing.T, pair *lab.Pair, e divert.Option, addr func(*lab.Host) netip.Addr) {
		header := uint64(28)
		if addr(pair.A).Is6() {
			header = 48
		}
		for _, drop := range []bool{false, true} {
			for _, filter := range []string{"outbound and udp", "outbound and udp.PayloadLength > 10"} {
				t.Run(fmt.Sprintf("%s, drop %v", filter, drop), func(t *testing.T) {
					conn, _ := receiver(t, pair.B, addr(pair.B))
					c := dialSegmented(t, pair.A, conn.LocalAddr(), 1000)
					d := openAt(t, pair.A, fmt.Sprintf("%s and udp.DstPort == %d", filter, conn.LocalAddr().(*net.UDPAddr).Port), e)
					if _, err := c.Write(make([]byte, 100)); err != nil {
						t.Fatal(err)
					}
					p := taken(t, d, 1)[0]
					decide := d.AcceptFlow
					if drop {
						decide = d.DropFlow
					}
					if err := decide(&p); err != nil {
						t.Fatal(err)
					}
					if _, err := c.Write(make([]byte, 4500)); err != nil {
						t.Fatal(err)
					}
					w := each(t, d, func(p *divert.Packet) { t.Errorf("received %d bytes", len(p.Data)) })
					s := quiet(t, d)
					balanced(t, s)
					finish(t, d, w)
					got, bytes := s.FlowAccepted, s.FlowAcceptedBytes
					if drop {
						got, bytes = s.FlowDropped, s.FlowDroppedBytes
					}
					if want := 4500 + 5*header; got != 5 || bytes != want || s.Received != 1 {
						t.Errorf("%d packets of %d bytes, want 5 of %d: %+v", got, bytes, want, s)
					}
				})
			}
		}
	})
}

// TestFloodPushesOutFlows: when more flows are decided than fit, some are received again, and no packet is lost. Flows
// in use stay.
func TestFloodPushesOutFlows(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		d := openAt(t, pair.A, "outbound and udp", e, divert.WithFlowTable(64))
		w := each(t, d, func(p *divert.Packet) {
			if err := d.AcceptFlow(p); err != nil {
				t.Error(err)
			}
		})
		conn, _ := receiver(t, pair.B, pair.B.Addr4())
		const flows, rounds, burst = 2000, 3, 50 // a burst fits into every socket's buffer
		b := make([]byte, 100)
		for range rounds {
			for i := range flows {
				c, err := pair.A.DialFrom(t.Context(), &net.UDPAddr{IP: pair.A.Addr4().AsSlice(), Port: 20000 + i}, "udp", conn.LocalAddr().String())
				if err != nil {
					t.Fatal(err)
				}
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				c.Close()
				if i%burst != burst-1 {
					continue
				}
				for n := range burst {
					_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
					if _, _, err := conn.ReadFrom(b); err != nil {
						t.Fatalf("%d of %d arrived: %v", n, burst, err)
					}
				}
			}
		}
		s := quiet(t, d)
		balanced(t, s)
		if s.Received+s.FlowAccepted != flows*rounds || s.Received < flows {
			t.Errorf("the counters are %+v", s)
		}
		finish(t, d, w)
	})
}

// TestManyFlowsDecided: each of 100,000 flows is received with its first packet, and not again once its verdict is in
// force.
func TestManyFlowsDecided(t *testing.T) {
	notInShort(t)
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	const sockets, ports = 5, 20000
	d := openAt(t, pair.A, "outbound and udp", divert.WithEngine(divert.EngineKernel), divert.WithFlowTable(sockets*ports), divert.WithQueueTime(16*time.Second))
	w := each(t, d, func(p *divert.Packet) {
		if err := d.AcceptFlow(p); err != nil {
			t.Error(err)
		}
	})
	var conns []net.PacketConn
	for range sockets {
		c, err := pair.A.ListenPacket("udp", netip.AddrPortFrom(pair.A.Addr4(), 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	round := func(pace int) {
		for port := range ports {
			to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(pair.B.Addr4(), uint16(30000+port)))
			for i, c := range conns {
				if _, err := c.WriteTo([]byte("x"), to); err != nil {
					t.Fatal(err)
				}
				if n := port*sockets + i; n%pace == 0 { // the queue holds some thousands
					for begin := time.Now(); stats(t, d).Waiting > 500 && time.Since(begin) < 20*time.Second; {
						time.Sleep(time.Millisecond)
					}
				}
			}
		}
	}
	round(100)
	before := quiet(t, d)
	if before.Received != sockets*ports || before.FlowAccepted != 0 {
		t.Errorf("after the first packets: %+v", before)
	}
	round(10000)
	after := quiet(t, d)
	balanced(t, after)
	if after.Received != before.Received || after.FlowAccepted != sockets*ports {
		t.Errorf("after the second packets: %+v", after)
	}
	finish(t, d, w)
}

// TestFirstPacketsOfTCP: a filter that counts matches the beginning of connections only, in both directions.
func TestFirstPacketsOfTCP(t *testing.T) {
	t.Parallel()
	eachEngineAndFamily(t, func(t *testing.T, pair *lab.Pair, e divert.Option, addr func(*lab.Host) netip.Addr) {
		d := openAt(t, pair.A, "tcp and flow.Packets <= 6", e)
		w := passthru(t, d)
		transfer(t, pair.A, pair.B, addr(pair.B), amount(2<<20))
		transfer(t, pair.B, pair.A, addr(pair.A), amount(2<<20))
		s := quiet(t, d)
		balanced(t, s)
		if s.Received != 2*6 {
			t.Errorf("%d packets of two connections were diverted, want 12", s.Received)
		}
		finish(t, d, w)
	})
}

// TestFlowsOfSeveralQueues: a verdict applies to the whole handle, whichever queue a packet would go to.
func TestFlowsOfSeveralQueues(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		d := openAt(t, pair.A, "udp", e, divert.WithQueues(4))
		w := each(t, d, func(p *divert.Packet) {
			if err := d.AcceptFlow(p); err != nil {
				t.Error(err)
			}
		})
		echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
		for range 8 {
			if r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 5, Wait: 10 * time.Second}); r.Echoed != 5 {
				t.Errorf("%+v", r)
			}
		}
		s := quiet(t, d)
		balanced(t, s)
		if s.Received != 8 || s.FlowAccepted != 8*9 {
			t.Errorf("the counters are %+v", s)
		}
		finish(t, d, w)
	})
}

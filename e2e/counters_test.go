//go:build linux

package e2e_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// counted waits until the counters of a handle satisfy is and add up: while packets are in flight, the counters are not
// read at a single moment.
func counted(t testing.TB, d *divert.Handle, is func(divert.Stats) bool) divert.Stats {
	t.Helper()
	s := stats(t, d)
	for end := time.Now().Add(10 * time.Second); !(is(s) && accounted(s) == s.Matched) && time.Now().Before(end); s = stats(t, d) {
		time.Sleep(time.Millisecond)
	}
	if !is(s) {
		t.Errorf("counted %+v", s)
	}
	balanced(t, s)
	return s
}

// eventually waits until a condition holds.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after 20 s still not: %s", what)
		}
	}
}

// taken receives n packets.
func taken(t testing.TB, d *divert.Handle, n int) []divert.Packet {
	t.Helper()
	ps := make([]divert.Packet, n)
	if err := d.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for got := 0; got < n; {
		more, err := d.RecvBatch(ps[got:])
		if err != nil {
			t.Fatalf("%d of %d received: %v", got, n, err)
		}
		got += more
	}
	return ps
}

// ignored fails if a packet is received within 20 ms.
func ignored(t testing.TB, d *divert.Handle) {
	t.Helper()
	if err := d.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := d.RecvBatch(make([]divert.Packet, 8)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d received, %v", n, err)
	}
}

// TestPacketsOfADeadLinkAreFailures: the kernel drops queued packets when the network device goes down. Packets that
// the program has then, or receives later, cannot be sent on: they count as failures and nothing else.
func TestPacketsOfADeadLinkAreFailures(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, _ := receiver(t, pair.B, pair.B.Addr4())
		c := dialUDP(t, pair.A, conn.LocalAddr())
		for _, how := range []struct {
			name string
			send func(*divert.Handle, []divert.Packet) (int, error)
		}{
			{"accepted in one batch", (*divert.Handle).AcceptBatch},
			{"changed", func(d *divert.Handle, ps []divert.Packet) (int, error) {
				for i := range ps {
					ps[i].Data[len(ps[i].Data)-1]++
					ps[i].Addr.UDPChecksum = false
				}
				return d.SendBatch(ps)
			}},
			{"accepted one by one", func(d *divert.Handle, ps []divert.Packet) (n int, err error) {
				for i := range ps {
					err = errors.Join(err, d.Accept(&ps[i]))
				}
				return len(ps), err
			}},
		} {
			t.Run(how.name, func(t *testing.T) {
				d := openAt(t, pair.A, "outbound and udp", e)
				send(t, c, 10, 64)
				had := taken(t, d, 10)
				send(t, c, 5, 64) // these wait
				counted(t, d, func(s divert.Stats) bool { return s.Matched == 15 && s.Waiting == 5 })
				link := pair.A.Links()[0]
				if err := link.SetUp(false); err != nil {
					t.Fatal(err)
				}
				// A slow machine may have given up packets by now; those are injected, and there is no route any more.
				if _, err := how.send(d, had); err != nil && !errors.Is(err, unix.ENETUNREACH) {
					t.Error(err)
				}
				late := taken(t, d, 5)
				if _, err := how.send(d, late); err != nil && !errors.Is(err, unix.ENETUNREACH) {
					t.Error(err)
				}
				ignored(t, d)
				counted(t, d, func(s divert.Stats) bool {
					return s.Matched == 15 && s.Received == 15 && s.Failed == 15 && s.Reinjected == 0 && s.Waiting == 0 && s.Lost == 0
				})
				if err := link.SetUp(true); err != nil {
					t.Fatal(err)
				}
				d.Close()
				waitForWay(t, pair)
			})
		}
	})
}

// queueNumber returns the number of a host's only queue that delivers whole packets.
func queueNumber(t testing.TB, h *lab.Host) uint16 {
	t.Helper()
	queues, err := h.PacketQueues()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queues {
		if q.Copied == 65531 {
			return q.Number
		}
	}
	t.Fatalf("no such queue: %+v", queues)
	return 0
}

// waitForWay waits until datagrams can reach B from A again.
func waitForWay(t testing.TB, pair *lab.Pair) {
	t.Helper()
	echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if exchange(t, pair.A, echo.Addr(), lab.Exchange{Wait: 50 * time.Millisecond}).Echoed == 1 {
			return
		}
	}
	t.Fatal("the link stays dead")
}

// arrived waits until n datagrams have arrived and no more follow.
func arrived(t testing.TB, k *lab.Counter, n int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := k.Wait(ctx, n); err != nil {
		t.Error(err)
	}
	if got, _ := k.Count(); got != n {
		t.Errorf("%d datagrams arrived, want %d", got, n)
	}
}

// counterAt counts the datagrams that arrive at a host.
func counterAt(t testing.TB, h *lab.Host) *lab.Counter {
	t.Helper()
	k, err := h.CountUDP(netip.AddrPortFrom(h.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// queueTo sends packets to a queue: struct xt_NFQ_info_v3 of linux/netfilter/xt_NFQUEUE.h.
func queueTo(num uint16) expr.Any {
	info := make(xt.Unknown, 8)
	binary.NativeEndian.PutUint16(info, num)
	binary.NativeEndian.PutUint16(info[2:], 1)
	return &expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}
}

// TestForeignRuleThatQueuesToAHandle: packets that another program's rule sends to a handle's queue go on once, and
// count apart. No packet loops.
func TestForeignRuleThatQueuesToAHandle(t *testing.T) {
	t.Parallel()
	rows := []struct {
		name string
		hook *nftables.ChainHook
		ours bool // the handle has a rule at this hook
	}{
		{"output", nftables.ChainHookOutput, false},
		{"postrouting", nftables.ChainHookPostrouting, true},
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, row := range rows {
			t.Run(row.name, func(t *testing.T) {
				k := counterAt(t, pair.B)
				c := dialUDP(t, pair.A, net.UDPAddrFromAddrPort(k.Addr()))
				d := openAt(t, pair.A, "outbound and udp.DstPort == 9", e)
				w, num := passthru(t, d), queueNumber(t, pair.A)
				openAt(t, pair.A, "outbound and udp.DstPort == 10", e, divert.WithPriority(-1)) // so that packets enter their chain again
				foreign := &nftables.Table{Name: "foreign", Family: nftables.TableFamilyIPv4}
				nft(t, pair.A, func(c *nftables.Conn) {
					c.AddTable(foreign)
					chain := c.AddChain(&nftables.Chain{
						Name: "c", Table: foreign, Type: nftables.ChainTypeFilter, Hooknum: row.hook, Priority: nftables.ChainPriorityFilter,
					})
					c.AddRule(&nftables.Rule{Table: foreign, Chain: chain, Exprs: []expr.Any{queueTo(num)}})
				})
				send(t, c, 20, 64)
				arrived(t, k, 20)
				s := counted(t, d, func(s divert.Stats) bool { return s.Foreign == 20 && s.Waiting == 0 })
				nft(t, pair.A, func(c *nftables.Conn) { c.DelTable(foreign) })
				// Where the handle has a rule too, the kernel does not tell whose rule it was: the packets are received once.
				if most := uint64(map[bool]int{true: 20}[row.ours && engineOf(t) == divert.EngineKernel]); s.Received != most || s.Lost != 0 || s.Failed != 0 {
					t.Errorf("%d received, want %d: %+v", s.Received, most, s)
				}
				finish(t, d, w)
			})
		}
	})
}

// TestFailOpenIsCountedAsPassed: whichever limit is reached first, packets that go on because of it count as passed,
// and received packets do not.
func TestFailOpenIsCountedAsPassed(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		if engineOf(t) == divert.EngineInterpreter {
			t.Skip("the interpreter's goroutine empties the kernel's queue")
		}
		for _, row := range []struct {
			name string
			size int
			opts []divert.Option
		}{
			{"length", 64, []divert.Option{divert.WithQueueLength(32)}},
			{"size", 1400, []divert.Option{divert.WithQueueLength(256), divert.WithQueueSize(65535)}},
		} {
			t.Run(row.name, func(t *testing.T) {
				k := counterAt(t, pair.B)
				d := openAt(t, pair.A, "outbound and udp", append(row.opts, divert.WithFailOpen(), e)...)
				const n = 1200
				for range n / 60 {
					// Waiting packets use their socket's send buffer, so the test uses many sockets.
					send(t, dialUDP(t, pair.A, net.UDPAddrFromAddrPort(k.Addr())), 60, row.size)
				}
				s := counted(t, d, func(s divert.Stats) bool { return s.Matched == n && s.Passed > 0 && s.DroppedFull == 0 && s.Lost == 0 })
				arrived(t, k, int64(s.Passed))
				for left := int(s.Waiting); left > 0; left -= 32 {
					if _, err := d.AcceptBatch(taken(t, d, min(left, 32))); err != nil {
						t.Error(err)
					}
				}
				arrived(t, k, n)
				after := counted(t, d, func(s divert.Stats) bool { return s.Waiting == 0 })
				if after.Passed != s.Passed || after.Reinjected != s.Waiting {
					t.Errorf("before %+v, after %+v", s, after)
				}
			})
		}
	})
}

// track enables connection tracking on a host, or skips.
func track(t testing.TB, h *lab.Host) {
	t.Helper()
	if err := h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "tracking", Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{
			Name: "c", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}}})
		return c.Flush()
	}); err != nil {
		t.Skipf("no connection tracking: %v", err)
	}
}

// TestFirstMulticastAndBroadcast: this host's own copy of a flow's first datagram arrives, although its connection is
// new and the kernel keeps such packets out of queues. A handle that cannot see the copy counts it as lost.
func TestFirstMulticastAndBroadcast(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		track(t, pair.A)
		for _, row := range []struct {
			name  string
			group netip.Addr
			join  bool
		}{
			{"multicast", netip.MustParseAddr("239.1.1.1"), true},
			{"broadcast", netip.MustParseAddr("10.77.0.255"), false},
			{"limited broadcast", netip.MustParseAddr("255.255.255.255"), false},
		} {
			t.Run(row.name, func(t *testing.T) {
				conn, err := pair.A.ListenPacket("udp4", "0.0.0.0:0")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if row.join {
					raw, err := conn.(*net.UDPConn).SyscallConn()
					if err == nil {
						err = raw.Control(func(fd uintptr) {
							err = unix.SetsockoptIPMreq(int(fd), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
								&unix.IPMreq{Multiaddr: row.group.As4(), Interface: pair.A.Addr4().As4()})
						})
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				port := conn.LocalAddr().(*net.UDPAddr).Port
				d := openAt(t, pair.A, fmt.Sprintf("udp.DstPort == %d", port), e)
				w := passthru(t, d)
				from := net.UDPAddrFromAddrPort(netip.AddrPortFrom(pair.A.Addr4(), 0))
				c, err := pair.A.DialFrom(t.Context(), from, "udp", netip.AddrPortFrom(row.group, uint16(port)).String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				got := 0
				for i := range 3 {
					lost := stats(t, d).Lost
					send(t, c, 1, 64)
					came := false
					for end := time.Now().Add(10 * time.Second); !came && quiet(t, d).Lost == lost; { // a packet on its way to the queue briefly counts as lost
						if err := conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
							t.Fatal(err)
						}
						if _, _, err := conn.ReadFrom(make([]byte, 100)); err == nil {
							got, came = got+1, true
						} else if time.Now().After(end) {
							t.Fatalf("datagram %d did not arrive: %v, %+v", i, err, stats(t, d))
						}
					}
					counted(t, d, func(s divert.Stats) bool { return s.Waiting == 0 && s.Received == s.Reinjected })
				}
				finish(t, d, w)
				s := counted(t, d, func(s divert.Stats) bool { return s.Waiting == 0 && s.Received == s.Reinjected })
				if uint64(got)+s.Lost != 3 || s.DroppedFull+s.Failed+s.Abandoned != 0 {
					t.Errorf("%d arrived: %+v", got, s)
				}
				if engineOf(t) == divert.EngineKernel && os.Geteuid() == 0 && s.Lost != 0 {
					t.Errorf("%d were lost: %+v", s.Lost, s)
				}
			})
		}
	})
}

// TestCountersAddUpToTheEnd: whatever a program leaves undone, each matched packet counts in one place when the handle
// is closed, and as many packets have arrived as the counters let go on.
func TestCountersAddUpToTheEnd(t *testing.T) {
	t.Parallel()
	const n = 300
	rows := []struct {
		name  string
		flags divert.Flag
		take  int  // packets received before the end
		send  int  // the part of take that is sent on
		drain bool // the rest is received before the close
		is    func(divert.Stats) bool
	}{
		{"nothing received", 0, 0, 0, false, func(s divert.Stats) bool { return s.Received == 0 && s.DroppedFull > 0 && s.Passed > 0 }},
		{"some not sent on", 0, 20, 10, false, func(s divert.Stats) bool { return s.Received == 20 && s.Reinjected == 10 }},
		{"all received, none sent on", 0, 32, 0, true, func(s divert.Stats) bool { return s.Passed == 0 && s.Reinjected == 0 }},
		{"dropped", divert.Drop, 0, 0, false, func(s divert.Stats) bool { return s.Dropped > 0 && s.Dropped+s.DroppedFull == n }},
		{"copies", divert.Sniff, 20, 0, false, func(s divert.Stats) bool { return s.Received == 20 }},
		{"copies, all received", divert.Sniff, 20, 0, true, func(s divert.Stats) bool { return s.Waiting == 0 && s.Received > 20 }},
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, row := range rows {
			t.Run(row.name, func(t *testing.T) {
				k := counterAt(t, pair.B)
				d := openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", k.Addr().Port()), e, divert.WithQueueLength(32), divert.WithFlags(row.flags))
				c := dialUDP(t, pair.A, net.UDPAddrFromAddrPort(k.Addr()))
				send(t, c, n, 64)
				if row.flags&divert.Sniff == 0 {
					// Packets that the interpreter has not yet judged when the handle closes go on, and do not count.
					counted(t, d, func(s divert.Stats) bool { return s.Matched == n })
				}
				got := taken(t, d, row.take)
				if row.send > 0 {
					if sent, err := d.AcceptBatch(got[:row.send]); sent != row.send || err != nil {
						t.Fatalf("%d sent on: %v", sent, err)
					}
				}
				if row.drain {
					drained(t, d)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				s := counted(t, d, row.is)
				// The interpreter has not judged copies that nobody received.
				looked := row.flags&divert.Sniff == 0 || row.drain || engineOf(t) == divert.EngineKernel
				if looked && s.Matched != n || s.Waiting != 0 || s.Lost != 0 || s.Failed != 0 {
					t.Errorf("at the end %+v", s)
				}
				went := s.Passed + s.Reinjected
				if row.flags&divert.Sniff != 0 {
					went = n
				}
				arrived(t, k, int64(went))
			})
		}
	})
}

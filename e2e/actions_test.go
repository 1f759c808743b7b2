//go:build linux

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

func TestDropIsSilent(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			for _, at := range []string{"outbound", "inbound"} {
				t.Run(f.name+"/"+at, func(t *testing.T) {
					echo, other := echoAt(t, pair.B, "udp", f.addr(pair.B)), echoAt(t, pair.B, "udp", f.addr(pair.B))
					port := echo.Addr().Port()
					field := map[string]string{"outbound": "remotePort", "inbound": "localPort"}[at]
					host := map[string]*lab.Host{"outbound": pair.A, "inbound": pair.B}[at]
					d := openAt(t, host, fmt.Sprintf("%s and udp and %s == %d", at, field, port), divert.WithFlags(divert.Drop), e)

					r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 10, Wait: 20 * time.Millisecond})
					if r.Sent != 10 || r.Refused != 0 || r.Echoed != 0 {
						t.Errorf("dropped traffic: %+v, want 10 sent, none refused, none echoed", r)
					}
					if r := exchange(t, pair.A, other.Addr(), lab.Exchange{Count: 10}); r.Echoed != 10 {
						t.Errorf("other traffic: %+v, want 10 echoed", r)
					}
					if s := counted(t, d, func(s divert.Stats) bool { return s.Dropped >= 10 }); s.Matched != 10 || s.Dropped != 10 || s.Received != 0 {
						t.Errorf("counters %+v, want 10 matched and dropped", s)
					}
				})
			}
		}
	})
}

func TestSniffSeesEachPacketOnceAndDelaysNone(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			t.Run(f.name, func(t *testing.T) {
				echo := echoAt(t, pair.B, "udp", f.addr(pair.B))
				d := openAt(t, pair.A, fmt.Sprintf("udp and remotePort == %d", echo.Addr().Port()), divert.WithFlags(divert.Sniff), e)
				// Nobody receives: the traffic must go on undisturbed.
				if r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 100, Size: 333}); r.Echoed != 100 {
					t.Fatalf("while sniffed: %+v", r)
				}
				if err := d.Shutdown(divert.ShutdownRecv); err != nil {
					t.Fatal(err)
				}
				var out, in int
				for p, err := range d.Packets(t.Context()) {
					if err != nil {
						t.Fatal(err)
					}
					if !p.Addr.Sniffed {
						t.Error("a copy is not marked as one")
					}
					if p.Addr.Outbound {
						out++
					} else {
						in++
					}
				}
				if out != 100 || in != 100 {
					t.Errorf("sniffed %d outbound and %d inbound packets, want 100 and 100", out, in)
				}
				if s := stats(t, d); s.Matched != 200 || s.Received != 200 || s.DroppedFull != 0 {
					t.Errorf("counters %+v", s)
				}
			})
		}
	})
}

func TestLoopbackPacketIsSeenOnceAsOutbound(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, addr := range []netip.Addr{
			netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), pair.A.Addr4(), pair.A.Addr6(),
		} {
			t.Run(addr.String(), func(t *testing.T) {
				echo := echoAt(t, pair.A, "udp", addr)
				d := openAt(t, pair.A, fmt.Sprintf("udp and (udp.SrcPort == %d or udp.DstPort == %[1]d)", echo.Addr().Port()), e)
				w := each(t, d, func(p *divert.Packet) {
					if !p.Addr.Outbound || !p.Addr.Loopback {
						t.Errorf("outbound %v, loopback %v; want both", p.Addr.Outbound, p.Addr.Loopback)
					}
					if err := d.Accept(p); err != nil {
						t.Error(err)
					}
				})
				if r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 20}); r.Echoed != 20 {
					t.Errorf("over loopback: %+v", r)
				}
				d.Close()
				if n := w.wait(); n != 40 {
					t.Errorf("%d packets of 20 datagrams there and back, want 40", n)
				}
			})
		}
	})
}

func TestAddressOfCapturedPackets(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			t.Run(f.name, func(t *testing.T) {
				echo := echoAt(t, pair.B, "udp", f.addr(pair.B))
				d := openAt(t, pair.A, "udp", e)
				before := time.Now()
				var out, in divert.Address
				each(t, d, func(p *divert.Packet) {
					if p.Addr.Outbound {
						out = p.Addr
					} else {
						in = p.Addr
					}
					d.Accept(p)
				})
				exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 1})
				d.Close()
				for _, a := range []divert.Address{out, in} {
					if a.Layer != divert.LayerNetwork || a.Event != 0 || a.Loopback || a.Impostor || a.Sniffed {
						t.Errorf("address %+v", a)
					}
					if a.IPv6 != (f.name == "IPv6") || !a.IPChecksum {
						t.Errorf("IPv6 %v, IPChecksum %v", a.IPv6, a.IPChecksum)
					}
					if got, want := a.Network().IfIdx, uint32(pair.LinkA.Index()); got != want {
						t.Errorf("interface %d, want %d", got, want)
					}
				}
				if out.Timestamp >= in.Timestamp || in.Timestamp-out.Timestamp > int64(time.Since(before)) {
					t.Errorf("timestamps %d and %d of a packet and its answer", out.Timestamp, in.Timestamp)
				}
			})
		}
	})
}

func TestNonMatchingTrafficIsNotQueued(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	d := openAt(t, pair.A, "udp.DstPort == 9", divert.WithEngine(divert.EngineKernel))
	transfer(t, pair.A, pair.B, pair.B.Addr4(), 10<<20)
	if s := stats(t, d); s.Matched != 0 {
		t.Errorf("counters %+v", s)
	}
	queues, err := pair.A.PacketQueues()
	if err != nil {
		t.Fatal(err)
	}
	if len(queues) == 0 || slices.ContainsFunc(queues, func(q lab.PacketQueue) bool { return q.Last != 0 }) {
		t.Errorf("packets went through a queue: %+v", queues)
	}
}

// receiver makes a UDP socket and a function that compares its datagrams with the expected ones.
func receiver(t *testing.T, h *lab.Host, addr netip.Addr) (net.PacketConn, func(want ...string)) {
	t.Helper()
	c, err := h.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, func(want ...string) {
		t.Helper()
		buf := make([]byte, 2000)
		for i := 0; ; i++ {
			wait := 10 * time.Second
			if i >= len(want) {
				wait = 50 * time.Millisecond // no further datagram may arrive
			}
			c.SetReadDeadline(time.Now().Add(wait))
			n, _, err := c.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if i < len(want) {
					t.Errorf("%d datagrams arrived, want %d: %.80q", i, len(want), want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if i >= len(want) || string(buf[:n]) != want[i] {
				t.Errorf("datagram %d is %.80q…, want one of %d: %.80q…", i, buf[:n], len(want), want)
			}
		}
	}
}

// skipWithoutDevice skips where an ordinary user must not make the device that inbound injection needs.
func skipWithoutDevice(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, os.ErrPermission) && strings.Contains(err.Error(), "/dev/net/tun") {
		t.Skip(err)
	}
}

// needInbound skips where inbound injection is unavailable: it tries with a packet of a protocol without listeners.
func needInbound(t *testing.T, h *lab.Host) {
	t.Helper()
	d := openAt(t, h, "false")
	var a divert.Address
	a.SetNetwork(packet.NetworkData{IfIdx: uint32(h.Links()[0].Index())})
	b := packet.IPv4{0: 0x45, 3: packet.IPv4HeaderLen, 8: 64, 9: 253, 19: 0}
	b.SetSrc(netip.MustParseAddr("10.77.0.1"))
	b.SetDst(netip.MustParseAddr("10.77.0.2"))
	if err := d.Send(&divert.Packet{Data: b, Addr: a}); err != nil {
		skipWithoutDevice(t, err)
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestWithInbound: a handle that must inject inbound packets opens only where that is possible.
func TestWithInbound(t *testing.T) {
	t.Parallel()
	n := lab.HostRouterPeerT(t, lab.LinkOptions{})
	tun, missing := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if missing == nil {
		tun.Close()
	}
	for _, layer := range []divert.Layer{divert.LayerNetwork, divert.LayerForward} {
		opts := []divert.Option{divert.WithLayer(layer), divert.WithInbound()}
		var d *divert.Handle
		err := n.R.Do(func() (err error) {
			d, err = divert.Open("true", opts...)
			return err
		})
		switch {
		case missing != nil && (!errors.Is(err, divert.ErrNotSupported) || !strings.Contains(err.Error(), "/dev/net/tun")):
			t.Errorf("%v: with %v, Open returned %v", layer, missing, err)
		case missing == nil && err != nil:
			t.Errorf("%v: %v", layer, err)
		}
		if tables, err := n.R.NFTables(); missing != nil && (err != nil || len(tables) > 0) {
			t.Errorf("%v: tables %v, %v", layer, tables, err)
		}
		if d != nil {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := divert.Open("true", append(opts, divert.WithFlags(divert.Sniff|divert.RecvOnly))...); !errors.Is(err, divert.ErrInvalid) {
			t.Errorf("%v: a handle that cannot send: %v", layer, err)
		}
	}
}

// TestSendAgainLateOrNever: a packet goes on once as itself. Sent again it is a new packet; one never sent is gone, and
// takes no room in the long run.
func TestSendAgainLateOrNever(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			for _, at := range []string{"outbound", "inbound"} {
				t.Run(f.name+"/"+at, func(t *testing.T) {
					host := map[string]*lab.Host{"outbound": pair.A, "inbound": pair.B}[at]
					conn, expect := receiver(t, pair.B, f.addr(pair.B))
					d := openAt(t, host, at+" and udp", divert.WithQueueLength(32), e)
					from, err := pair.A.Dial(t.Context(), "udp", conn.LocalAddr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer from.Close()
					recv := func() ([]byte, divert.Address) {
						buf := make([]byte, 2000)
						n, a, err := d.Recv(buf)
						if err != nil {
							t.Fatal(err)
						}
						return buf[:n], a
					}

					fmt.Fprint(from, "twice")
					b, a := recv()
					for range 2 {
						if err := d.Send(&divert.Packet{Data: b, Addr: a}); err != nil {
							skipWithoutDevice(t, err)
							t.Fatal(err)
						}
					}
					expect("twice", "twice")

					fmt.Fprint(from, "late")
					late, lateAddr := recv()
					for i := range 100 { // far more than may be received and not sent
						fmt.Fprintf(from, "never %d", i)
						recv()
					}
					expect()
					if err := d.Send(&divert.Packet{Data: late, Addr: lateAddr}); err != nil {
						t.Fatal(err)
					}
					expect("late")

					fmt.Fprint(from, "after")
					b, a = recv()
					if err := d.Send(&divert.Packet{Data: b, Addr: a}); err != nil {
						t.Fatal(err)
					}
					expect("after")
					if s := stats(t, d); s.Reinjected != 2 || s.Injected != 2 || s.Failed != 0 || s.Abandoned == 0 {
						t.Errorf("counters %+v, want 2 sent on, 2 injected, none failed", s)
					}
				})
			}
		}
	})
}

func TestReceiversWakeUp(t *testing.T) {
	t.Parallel()
	kinds := []struct {
		name  string
		flags divert.Flag
	}{{"divert", 0}, {"sniff", divert.Sniff}}
	wakers := []struct {
		name string
		wake func(*divert.Handle) error
		want error
	}{
		{"close", (*divert.Handle).Close, net.ErrClosed},
		{"deadline", func(d *divert.Handle) error { return d.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) }, os.ErrDeadlineExceeded},
		{"shutdown", func(d *divert.Handle) error { return d.Shutdown(divert.ShutdownRecv) }, io.EOF},
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, k := range kinds {
			for _, w := range wakers {
				t.Run(k.name+"/"+w.name, func(t *testing.T) {
					d := openAt(t, pair.A, "udp.DstPort == 9", divert.WithFlags(k.flags), e)
					var readers sync.WaitGroup
					for range 3 {
						readers.Go(func() {
							if _, err := d.RecvBatch(make([]divert.Packet, 4)); !errors.Is(err, w.want) {
								t.Errorf("a receiver that waits returns %v, want %v", err, w.want)
							}
						})
					}
					time.Sleep(20 * time.Millisecond) // most likely they wait; the test holds even if not
					if err := w.wake(d); err != nil {
						t.Fatal(err)
					}
					readers.Wait()
					if _, err := d.RecvBatch(make([]divert.Packet, 4)); !errors.Is(err, w.want) {
						t.Errorf("a later receive returns %v, want %v", err, w.want)
					}
				})
			}
		}
	})
}

func TestContextEndsOneReceiverOnly(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
		d := openAt(t, pair.A, "udp", e)
		other := passthru(t, d)
		for range 20 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
			for p, err := range d.Packets(ctx) {
				if err == nil {
					d.Accept(p)
				} else if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("the receiver whose context ended returns %v", err)
				}
			}
			cancel()
			if r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 1}); r.Echoed != 1 {
				t.Fatalf("the other receiver returned: %+v", r)
			}
		}
		d.Close()
		other.wait()
	})
}

// TestCloseLetsWaitingPacketsGoOn: packets not yet received go on when the handle closes.
func TestCloseLetsWaitingPacketsGoOn(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, expect := receiver(t, pair.B, pair.B.Addr4())
		d := openAt(t, pair.A, "udp", e)
		from, err := pair.A.Dial(t.Context(), "udp", conn.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		for _, s := range []string{"one", "two", "three"} {
			fmt.Fprint(from, s)
		}
		expect()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		expect("one", "two", "three")
	})
}

// TestCloseDropsWhatIsTooOld: packets that waited longer than the queue time do not go on when the handle closes, as nobody
// would have received them.
func TestCloseDropsWhatIsTooOld(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, expect := receiver(t, pair.B, pair.B.Addr4())
		d := openAt(t, pair.A, "udp", e, divert.WithQueueTime(time.Second))
		from, err := pair.A.Dial(t.Context(), "udp", conn.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		fmt.Fprint(from, "old")
		time.Sleep(3 * time.Second)
		fmt.Fprint(from, "new")
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		expect("new")
		if s := stats(t, d); s.Matched != 2 || s.DroppedOld != 1 || s.Passed != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestCloseLetsGoOnWhatAnIterationLeft: packets fetched for a loop that ended early are not lost.
func TestCloseLetsGoOnWhatAnIterationLeft(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, expect := receiver(t, pair.B, pair.B.Addr4())
		d := openAt(t, pair.A, "udp", divert.WithFlags(divert.RecvOnly), e)
		from, err := pair.A.Dial(t.Context(), "udp", conn.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		for _, s := range []string{"one", "two", "three"} {
			fmt.Fprint(from, s)
		}
		expect()
		for range d.Packets(t.Context()) {
			break // "one" is received, and thereby gone; the others may have been fetched with it
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		expect("two", "three")
	})
}

// TestShutdownDrains: after Shutdown nothing is captured; waiting packets can still be received, then io.EOF follows.
func TestShutdownDrains(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, expect := receiver(t, pair.B, pair.B.Addr4())
		d := openAt(t, pair.A, "udp", e)
		from, err := pair.A.Dial(t.Context(), "udp", conn.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		fmt.Fprint(from, "captured")
		expect()
		if err := d.Shutdown(divert.ShutdownRecv); err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(from, "passes")
		expect("passes")
		for p, err := range d.Packets(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Accept(p); err != nil {
				t.Fatal(err)
			}
		}
		expect("captured")
		if err := d.Shutdown(divert.ShutdownSend); err != nil {
			t.Fatal(err)
		}
		if err := d.Send(&divert.Packet{Data: []byte("x"), Addr: divert.Address{}}); !errors.Is(err, divert.ErrShutdown) {
			t.Errorf("send after shutdown returns %v", err)
		}
	})
}

func init() {
	children["hold"] = func() error {
		d, err := divert.Open("tcp or udp", divert.WithEngine(divert.Engine(len(os.Getenv("DIVERT_TEST_ENGINE")))))
		if err != nil {
			return err
		}
		fmt.Println("open")
		ps := make([]divert.Packet, 64)
		for {
			n, err := d.RecvBatch(ps)
			if err != nil {
				return err
			}
			if _, err := d.AcceptBatch(ps[:n]); err != nil {
				return err
			}
		}
	}
}

// startChild starts this test binary in a host's namespace to run a job, and waits for its first line.
func startChild(t *testing.T, h *lab.Host, job string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), childEnv+"="+job), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 64)); err != nil {
		t.Fatalf("the child printed nothing: %v", err)
	}
	return cmd
}

// TestKillUnderLoad kills a diverting process while traffic flows through it.
func TestKillUnderLoad(t *testing.T) {
	t.Parallel()
	for i, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			needEngine(t, pair.A, e.engine)
			child := startChild(t, pair.A, "hold", "DIVERT_TEST_ENGINE="+strings.Repeat("x", i+1))
			ended := make(chan error, 1)
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				_, err := lab.TransferTCP(ctx, pair.A, pair.B, netip.AddrPortFrom(pair.B.Addr4(), 0), amount(200<<20), 3)
				ended <- err
			}()
			eventually(t, "packets wait in the queue", func() bool { return queuedPackets(t, pair.A) > 0 })
			if err := child.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			child.Wait()
			echo := echoAt(t, pair.B, "udp", pair.B.Addr6())
			if r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 20, Wait: 5 * time.Second}); r.Echoed != 20 {
				t.Errorf("right after the kill: %+v", r)
			}
			if err := <-ended; err != nil {
				t.Errorf("the transfer that the kill interrupted: %v", err)
			}
			if tables, err := pair.A.NFTables(); err != nil || len(tables) != 1 {
				t.Errorf("after the kill the tables are %v (%v), want the dead one's", tables, err)
			}
			d := openAt(t, pair.A, "false", divert.WithEngine(e.engine))
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			if tables, err := pair.A.NFTables(); err != nil || len(tables) != 0 {
				t.Errorf("after the next open and close the tables are %v (%v), want none", tables, err)
			}
		})
	}
}

// TestRandomFieldsCanBeRepeated: the timestamp of an address is the one that the filter used.
func TestRandomFieldsCanBeRepeated(t *testing.T) {
	t.Parallel()
	const text = "udp and (random8 < 100 or random16 < 10000 or random32 < 700000000)"
	program, err := filter.Compile(text, divert.LayerNetwork, filter.Extended)
	if err != nil {
		t.Fatal(err)
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, flags := range []divert.Flag{0, divert.Sniff} {
			t.Run(flags.String(), func(t *testing.T) {
				echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
				d := openAt(t, pair.A, text, e, divert.WithFlags(flags))
				w := each(t, d, func(p *divert.Packet) {
					if !program.Match(p.Data, &p.Addr) {
						t.Errorf("a packet at %d was captured that does not match", p.Addr.Timestamp)
					}
					if flags == 0 {
						if err := d.Accept(p); err != nil {
							t.Error(err)
						}
					}
				})
				if r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: 300}); r.Echoed != 300 {
					t.Errorf("%+v", r)
				}
				if err := d.Shutdown(divert.ShutdownRecv); err != nil {
					t.Fatal(err)
				}
				// Of 600 packets about 355 match; the bounds are twelve standard deviations away.
				if n := w.wait(); n < 210 || n > 500 {
					t.Errorf("%d of 600 packets matched", n)
				}
			})
		}
	})
}

// TestAcceptNeedsNoBytes: a packet that was cut to the buffer, or changed, still goes on whole and unchanged.
func TestAcceptNeedsNoBytes(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, expect := receiver(t, pair.B, pair.B.Addr4())
		d := openAt(t, pair.A, "outbound and udp", e)
		from, err := pair.A.Dial(t.Context(), "udp", conn.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		fmt.Fprint(from, "cut")
		n, a, err := d.Recv(make([]byte, 5))
		if n != 5 || !errors.Is(err, divert.ErrShortBuffer) {
			t.Fatalf("receive into 5 bytes: %d, %v", n, err)
		}
		if err := d.Accept(&divert.Packet{Addr: a}); err != nil {
			t.Fatal(err)
		}
		expect("cut")
		fmt.Fprint(from, "changed")
		var ps [1]divert.Packet
		if _, err := d.RecvBatch(ps[:]); err != nil {
			t.Fatal(err)
		}
		clear(ps[0].Data)
		if err := d.Accept(&ps[0]); err != nil {
			t.Fatal(err)
		}
		expect("changed")
		if _, _, err := d.Recv(nil); !errors.Is(err, divert.ErrShortBuffer) {
			t.Errorf("receive into nothing: %v", err)
		}
	})
}

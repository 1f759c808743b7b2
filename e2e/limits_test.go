//go:build linux

package e2e_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/wincode"
)

// dialUDP opens a socket from one host to an address and port of another.
func dialUDP(t testing.TB, from *lab.Host, to net.Addr) net.Conn {
	t.Helper()
	c, err := from.Dial(t.Context(), "udp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// balanced checks that each matched packet counts in one place.
func balanced(t testing.TB, s divert.Stats) {
	t.Helper()
	if sum := accounted(s); sum != s.Matched {
		t.Errorf("%d matched, %d accounted for: %+v", s.Matched, sum, s)
	}
}

// accounted returns the number of packets that the counters account for.
func accounted(s divert.Stats) uint64 {
	return s.Received + s.Waiting + s.Dropped + s.DroppedFull + s.DroppedOld + s.DroppedLong + s.Passed + s.Lost +
		s.FlowAccepted + s.FlowDropped + s.HangPassed + s.HangDropped
}

// quiet returns the counters once they no longer change.
func quiet(t testing.TB, d *divert.Handle) divert.Stats {
	t.Helper()
	s := stats(t, d)
	for same := 0; same < 10; same++ {
		time.Sleep(10 * time.Millisecond)
		if next := stats(t, d); next != s {
			s, same = next, 0
		}
	}
	return s
}

// send sends n datagrams of a size.
func send(t testing.TB, c net.Conn, n, size int) {
	t.Helper()
	for i := range n {
		b := append(fmt.Appendf(nil, "%8d", i), make([]byte, size)...)[:max(size, 8)]
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
}

// drained receives the waiting packets after a shutdown, without sending them on, and returns their number.
func drained(t testing.TB, d *divert.Handle) (n int) {
	t.Helper()
	drain(t, d, 64, func(*divert.Packet) { n++ })
	return n
}

// drain receives the waiting packets after a shutdown, up to batch packets per call, without sending them on.
func drain(t testing.TB, d *divert.Handle, batch int, each func(*divert.Packet)) {
	t.Helper()
	if err := d.Shutdown(divert.ShutdownRecv); err != nil {
		t.Fatal(err)
	}
	for ps := make([]divert.Packet, batch); ; {
		n, err := d.RecvBatch(ps)
		for i := range ps[:n] {
			each(&ps[i])
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// limit is a limit of a queue: the option, how to set it, and a check that it is in force.
type limit struct {
	option divert.Option
	set    func(*divert.Handle) error
	is     func(*divert.Handle) bool
}

func lengthOf(n int) limit {
	return limit{divert.WithQueueLength(n), func(h *divert.Handle) error { return h.SetQueueLength(n) }, func(h *divert.Handle) bool { return h.QueueLength() == n }}
}

func sizeOf(n int) limit {
	return limit{divert.WithQueueSize(n), func(h *divert.Handle) error { return h.SetQueueSize(n) }, func(h *divert.Handle) bool { return h.QueueSize() == n }}
}

func timeOf(d time.Duration) limit {
	return limit{divert.WithQueueTime(d), func(h *divert.Handle) error { return h.SetQueueTime(d) }, func(h *divert.Handle) bool { return h.QueueTime() == d }}
}

// TestQueueLimits: packets that exceed a queue's length, size or time are dropped, and counted under the right reason.
// The bounds are those of both engines: the kernel's queue counts its memory, not bytes of packets.
func TestQueueLimits(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, _ := receiver(t, pair.B, pair.B.Addr4())
		c := dialUDP(t, pair.A, conn.LocalAddr())
		for _, way := range []string{"option", "parameter"} {
			open := func(t *testing.T, l limit, opts ...divert.Option) *divert.Handle {
				opts = append(opts, e)
				if way == "option" {
					opts = append(opts, l.option)
				}
				d := openAt(t, pair.A, "outbound and udp", opts...)
				if way != "option" {
					if err := l.set(d); err != nil {
						t.Fatal(err)
					}
				}
				if !l.is(d) {
					t.Errorf("the limits are %d, %v, %d", d.QueueLength(), d.QueueTime(), d.QueueSize())
				}
				return d
			}
			t.Run("length/"+way, func(t *testing.T) {
				d := open(t, lengthOf(64))
				send(t, c, 500, 64)
				s := quiet(t, d)
				balanced(t, s)
				if s.Matched != 500 || s.DroppedFull == 0 || s.DroppedOld != 0 || s.Waiting < 64 || s.Waiting > 128 || s.Abandoned != 0 {
					t.Errorf("500 packets to a queue of 64: %+v", s)
				}
				if n := drained(t, d); uint64(n) != s.Waiting {
					t.Errorf("%d received, %d waited", n, s.Waiting)
				}
				balanced(t, stats(t, d))
			})
			t.Run("size/"+way, func(t *testing.T) {
				d := open(t, sizeOf(65535), divert.WithQueueLength(32))
				send(t, c, 300, 1400)
				s := quiet(t, d)
				balanced(t, s)
				if s.Matched != 300 || s.DroppedFull == 0 || s.Waiting == 0 || s.Waiting > 200 || s.Abandoned != 0 {
					t.Errorf("300 packets of 1400 bytes to a queue of 65535: %+v", s)
				}
				if n := drained(t, d); uint64(n) != s.Waiting {
					t.Errorf("%d received, %d waited", n, s.Waiting)
				}
				balanced(t, stats(t, d))
			})
			t.Run("time/"+way, func(t *testing.T) {
				d := open(t, timeOf(2*time.Second)) // even a slow machine receives the young one in that time
				send(t, c, 20, 64)
				time.Sleep(2500 * time.Millisecond) // they are too old now, even with the tolerance of one eighth
				send(t, c, 1, 64)
				if n := drained(t, d); n != 1 {
					t.Errorf("%d received, want the young one", n)
				}
				s := stats(t, d)
				balanced(t, s)
				if s.Matched != 21 || s.DroppedOld != 20 || s.DroppedFull != 0 {
					t.Errorf("20 old packets and one young: %+v", s)
				}
			})
			t.Run("sniffed/"+way, func(t *testing.T) {
				d := open(t, sizeOf(65535), divert.WithFlags(divert.Sniff), divert.WithQueueLength(32))
				r := lab.Exchange{Count: 1000, Size: 1400, Wait: time.Second}
				if got := exchange(t, pair.A, echoAt(t, pair.B, "udp", pair.B.Addr4()).Addr(), r); got.Echoed != 1000 {
					t.Errorf("sniffed traffic: %+v", got)
				}
				n := drained(t, d)
				s := stats(t, d)
				// With the interpreter, lost copies may be of any packet, and the loss is noticed only when others arrive.
				if interpreted := engineOf(t) == divert.EngineInterpreter; !interpreted && s.Matched != 1000 || n == 0 || n == 1000 || s.Received != uint64(n) || !interpreted && s.DroppedFull+s.Waiting != uint64(1000-n) {
					t.Errorf("%d of 1000 received: %+v", n, s)
				}
				balanced(t, s)
			})
		}
	})
}

// TestFailOpen: packets that do not fit into a full queue pass, and count as passed.
func TestFailOpen(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	k := counterAt(t, pair.B)
	c, err := pair.A.Dial(t.Context(), "udp", k.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d := openAt(t, pair.A, "outbound and udp", divert.WithFailOpen(), divert.WithQueueLength(32), divert.WithEngine(divert.EngineKernel))
	send(t, c, 500, 64)
	s := quiet(t, d)
	balanced(t, s)
	if s.Passed == 0 || s.DroppedFull != 0 {
		t.Errorf("%+v", s)
	}
	arrived(t, k, int64(s.Passed))
	d.Close()
	arrived(t, k, 500)
}

// TestShutdownModes: each half ends on its own; repeated and combined shutdowns do no harm.
func TestShutdownModes(t *testing.T) {
	t.Parallel()
	modes := []struct {
		name       string
		how        []divert.How
		recv, send bool // whether that half has ended
	}{
		{"recv", []divert.How{divert.ShutdownRecv}, true, false},
		{"send", []divert.How{divert.ShutdownSend}, false, true},
		{"both", []divert.How{divert.ShutdownBoth}, true, true},
		{"recv twice", []divert.How{divert.ShutdownRecv, divert.ShutdownRecv}, true, false},
		{"recv, then send", []divert.How{divert.ShutdownRecv, divert.ShutdownSend}, true, true},
		{"both, then recv", []divert.How{divert.ShutdownBoth, divert.ShutdownRecv}, true, true},
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, flags := range []divert.Flag{0, divert.Sniff, divert.Drop} {
			for _, m := range modes {
				t.Run(flags.String()+"/"+m.name, func(t *testing.T) {
					d := openAt(t, pair.A, "udp.DstPort == 9", divert.WithFlags(flags), e)
					results := make(chan error, map[bool]int{false: 3, true: 0}[flags == divert.Drop]) // without waiting
					for range cap(results) {
						go func() {
							_, err := d.RecvBatch(make([]divert.Packet, 4))
							results <- err
						}()
					}
					time.Sleep(10 * time.Millisecond) // most likely they wait; the test holds even if not
					for _, how := range m.how {
						if err := d.Shutdown(how); err != nil {
							t.Fatal(err)
						}
					}
					want := io.EOF
					if !m.recv {
						select {
						case err := <-results:
							t.Fatalf("a receiver returns %v", err)
						case <-time.After(20 * time.Millisecond):
						}
						want = net.ErrClosed
						if err := d.Close(); err != nil {
							t.Fatal(err)
						}
					}
					for range cap(results) {
						if err := <-results; !errors.Is(err, want) {
							t.Errorf("a receiver returns %v, want %v", err, want)
						}
					}
					var wantSend error // for an empty packet
					switch {
					case !m.recv:
						wantSend = net.ErrClosed
					case m.send:
						wantSend = divert.ErrShutdown
					default:
						wantSend = divert.ErrShortBuffer
					}
					if err := d.Send(&divert.Packet{Data: nil, Addr: divert.Address{Outbound: true}}); !errors.Is(err, wantSend) {
						t.Errorf("sending returns %v, want %v", err, wantSend)
					}
				})
			}
		}
		t.Run("no such mode", func(t *testing.T) {
			d := openAt(t, pair.A, "false", e)
			for _, how := range []divert.How{0, 4, 255} {
				if err := d.Shutdown(how); !errors.Is(err, divert.ErrInvalid) {
					t.Errorf("Shutdown(%d) returns %v", how, err)
				}
			}
		})
	})
}

// TestCloseUnderLoad closes handles while many goroutines receive from them and send to them.
func TestCloseUnderLoad(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		f := startFlood(t, pair.A, pair.B, pair.B.Addr4(), 2, 4000, 250)
		for _, flags := range []divert.Flag{0, divert.Sniff, divert.Drop} {
			for range 5 {
				d := openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", f.port()), divert.WithFlags(flags), e)
				var all sync.WaitGroup
				for i := range 8 {
					all.Go(func() {
						ps := make([]divert.Packet, 1+i)
						for {
							n, err := d.RecvBatch(ps)
							if errors.Is(err, divert.ErrDropOnly) {
								err = nil
							}
							if err == nil && flags == 0 {
								_, err = d.AcceptBatch(ps[:n])
							}
							if err == nil && i%4 == 3 {
								_, err = d.Stats()
							}
							if err != nil {
								if !errors.Is(err, net.ErrClosed) {
									t.Errorf("goroutine %d: %v", i, err)
								}
								return
							}
						}
					})
				}
				all.Go(func() {
					for {
						if err := d.SetFilter("outbound and udp"); err != nil {
							if !errors.Is(err, net.ErrClosed) {
								t.Errorf("SetFilter: %v", err)
							}
							return
						}
						time.Sleep(time.Millisecond)
					}
				})
				time.Sleep(30 * time.Millisecond)
				var closers sync.WaitGroup
				results := make(chan error, 3)
				for range cap(results) {
					closers.Go(func() { results <- d.Close() })
				}
				closers.Wait()
				all.Wait()
				closed := 0
				for range cap(results) {
					if err := <-results; err == nil {
						closed++
					} else if !errors.Is(err, net.ErrClosed) {
						t.Errorf("Close: %v", err)
					}
				}
				if closed != 1 {
					t.Errorf("%d of 3 calls closed the handle", closed)
				}
				if s := stats(t, d); flags == 0 {
					balanced(t, s)
				}
			}
		}
		f.finish()
	})
}

// TestNothingIsLeft opens and closes handles of every kind and compares the resources that the process holds.
func TestNothingIsLeft(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		cycle := func() {
			for _, flags := range []divert.Flag{0, divert.Sniff, divert.Drop, divert.SendOnly, divert.RecvOnly, divert.Fragments} {
				d := openAt(t, pair.A, "udp.DstPort == 9", divert.WithFlags(flags), e)
				if flags == 0 || flags == divert.SendOnly {
					out := divert.Address{Outbound: true}
					if err := d.Send(&divert.Packet{Data: datagram(t, "10.77.0.1", "10.77.0.2", "x"), Addr: out}); err != nil {
						t.Fatal(err)
					}
				}
				if flags == divert.Drop {
					d.Shutdown(divert.ShutdownBoth)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := openHere(pair.A, "no filter at all", e); err == nil {
				t.Error("opened with a bad filter")
			}
		}
		cycle()
		runtime.GC()
		before := lab.TakeSnapshot(pair.A)
		for range map[bool]int{false: 8, true: 100}[long()] {
			cycle()
		}
		for _, leak := range before.Leaks() {
			t.Errorf("left behind: %s", leak)
		}
	})
}

// openHere opens a handle in a host's namespace.
func openHere(h *lab.Host, text string, opts ...divert.Option) (d *divert.Handle, err error) {
	err = h.Do(func() (err error) {
		d, err = divert.Open(text, opts...)
		return err
	})
	return d, err
}

// TestCallsAfterClose: every method of a closed handle fails with net.ErrClosed, except those that only return
// information.
func TestCallsAfterClose(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, flags := range []divert.Flag{0, divert.Sniff, divert.Drop} {
			d := openAt(t, pair.A, "udp.DstPort == 9", divert.WithFlags(flags), e)
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			p := divert.Packet{Data: datagram(t, "10.77.0.1", "10.77.0.2", "x")}
			for name, call := range map[string]func() error{
				"Recv":            func() error { _, _, err := d.Recv(make([]byte, 100)); return err },
				"RecvBatch":       func() error { _, err := d.RecvBatch(make([]divert.Packet, 1)); return err },
				"Send":            func() error { return d.Send(&p) },
				"SendBatch":       func() error { _, err := d.SendBatch([]divert.Packet{p}); return err },
				"Accept":          func() error { return d.Accept(&p) },
				"AcceptBatch":     func() error { _, err := d.AcceptBatch([]divert.Packet{p}); return err },
				"Shutdown":        func() error { return d.Shutdown(divert.ShutdownBoth) },
				"Close":           d.Close,
				"SetQueueLength":  func() error { return d.SetQueueLength(100) },
				"SetFilter":       func() error { return d.SetFilter("true") },
				"SetReadDeadline": func() error { return d.SetReadDeadline(time.Now()) },
				"Packets": func() (err error) {
					for _, err = range d.Packets(t.Context()) {
					}
					return err
				},
			} {
				var op *divert.OpError
				if err := call(); !errors.Is(err, net.ErrClosed) || !errors.As(err, &op) || wincode.Of(err) != 995 {
					t.Errorf("%v: %s returns %v (code %d)", flags, name, err, wincode.Of(err))
				}
			}
			if _, err := d.Stats(); err != nil {
				t.Errorf("Stats returns %v", err)
			}
		}
	})
}

// TestShortQueueLosesNothingOfOthers: with the interpreter, packets that do not match go through the handle's queue
// too, even if its own limit is short. Came from a bug: packets of a burst that found more than 128 waiting were lost.
func TestShortQueueLosesNothingOfOthers(t *testing.T) {
	t.Parallel()
	const sockets, datagrams = 5, 50
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for range 10 {
			k := counterAt(t, pair.B)
			d := openAt(t, pair.A, "outbound and udp.DstPort == 9", e, divert.WithQueueLength(32))
			var from []net.Conn // several, since waiting packets count against their sender's buffer
			for range sockets {
				from = append(from, dialUDP(t, pair.A, net.UDPAddrFromAddrPort(k.Addr())))
			}
			for i := range sockets * datagrams {
				if _, err := from[i%sockets].Write([]byte("not the handle's")); err != nil {
					t.Fatal(err)
				}
			}
			arrived(t, k, sockets*datagrams)
			if s := stats(t, d); s.Matched != 0 {
				t.Errorf("counters %+v", s)
			}
			d.Close()
		}
	})
}

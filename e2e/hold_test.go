//go:build linux

package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// A packet that was received and not sent on is gone: TCP retransmits it, even if the host itself sent it.
func TestTCPSendsAgainWhatWasNotSentOn(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		d := openAt(t, pair.A, "outbound and tcp.PayloadLength > 0", e)
		n := 0
		each(t, d, func(p *divert.Packet) {
			if n++; n == 3 || n == 5 || n == 6 {
				return
			}
			if err := d.Accept(p); err != nil {
				t.Error(err)
			}
		})
		transfer(t, pair.A, pair.B, pair.B.Addr4(), amount(2<<20))
	})
}

// It does not count against its sender's buffer for long either.
func TestSendersGoOnAfterWhatWasNotSentOn(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
		d := openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", echo.Addr().Port()), e)
		w := each(t, d, func(p *divert.Packet) {})
		const datagrams = 1000
		sendAll(t, pair.A, echo.Addr().String(), datagrams)
		if n := finish(t, d, w); n != datagrams {
			t.Errorf("%d received, want %d", n, datagrams)
		}
	})
}

// Packets sent on late still go on, and count as sent on: the program has their bytes. Their changes are kept, and the
// kernel waits for a program that is always slow.
func TestHeldPacketsGoOn(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			t.Run(f.name, func(t *testing.T) {
				echo := echoAt(t, pair.B, "udp", f.addr(pair.B))
				d := openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", echo.Addr().Port()), e)
				const count = 5
				c, err := pair.A.Dial(t.Context(), "udp", echo.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				deadline := time.Now().Add(30 * time.Second)
				_ = c.SetDeadline(deadline)
				_ = d.SetReadDeadline(deadline)
				held := make([]divert.Packet, count)
				for i := range held {
					if _, err := c.Write([]byte{byte(i)}); err != nil {
						t.Fatal(err)
					}
					if _, err := d.RecvBatch(held[i : i+1]); err != nil {
						t.Fatal(err)
					}
				}
				for stats(t, d).Abandoned < count && time.Now().Before(deadline) {
					time.Sleep(time.Millisecond) // until the kernel has been told to drop them
				}
				for i := range held {
					if err := d.Accept(&held[i]); err != nil {
						t.Error(err)
					}
				}
				if err := d.Accept(&held[0]); err != nil { // a second time it is a packet of its own
					t.Error(err)
				}
				for i := range count + 1 {
					b := make([]byte, 10)
					if n, err := c.Read(b); err != nil || n != 1 || b[0] != byte(i%count) {
						t.Fatalf("echo %d: %d bytes, %v", i, n, err)
					}
				}
				if s := stats(t, d); s.Matched != count || s.Reinjected != count || s.Abandoned != 0 || s.Injected != 1 || s.Failed != 0 {
					t.Errorf("counters %+v", s)
				}
			})
		}
	})
}

// A packet sent elsewhere is a new packet, whether sent at once or late. Came from a bug: a late one counted as sent
// on, and "divert reject" reported fewer answers than it gave.
func TestSentElsewhereIsNewLateToo(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		conn, expect := receiver(t, pair.B, pair.B.Addr4())
		c := dialUDP(t, pair.A, &net.UDPAddr{IP: net.IPv4(10, 77, 0, 99), Port: int(addrPort(conn).Port())})
		for _, late := range []bool{false, true} {
			d := openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", addrPort(conn).Port()), e)
			send(t, c, 1, 8)
			ps := taken(t, d, 1)
			if late {
				counted(t, d, func(s divert.Stats) bool { return s.Abandoned == 1 })
			}
			copy(ps[0].Data[16:20], pair.B.Addr4().AsSlice())
			ps[0].Addr.IPChecksum, ps[0].Addr.UDPChecksum = false, false
			if err := d.Send(&ps[0]); err != nil {
				t.Error(err)
			}
			expect("       0")
			if s := stats(t, d); s.Injected != 1 || s.Reinjected != 0 || s.Failed != 0 {
				t.Errorf("late %v: %+v", late, s)
			}
			d.Close()
		}
	})
}

// A handle that only receives delays no sender.
func TestReceiveOnlyHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
		d := openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", echo.Addr().Port()), divert.WithFlags(divert.RecvOnly), e)
		w := each(t, d, func(p *divert.Packet) {})
		sendAll(t, pair.A, echo.Addr().String(), 500)
		if n := finish(t, d, w); n != 500 {
			t.Errorf("%d received, want 500", n)
		}
		if s := stats(t, d); s.Received != 500 || s.Reinjected != 0 {
			t.Errorf("counters %+v", s)
		}
	})
}

// sendAll sends datagrams of 1,400 bytes and fails if the socket refuses them.
func sendAll(t testing.TB, from *lab.Host, to string, count int) {
	t.Helper()
	c, err := from.Dial(t.Context(), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for i := range count {
		if _, err := c.Write(make([]byte, 1400)); err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
	}
}

func TestDropReceived(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
		d := openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", echo.Addr().Port()), e)
		kept := make(chan divert.Packet, 1)
		w := each(t, d, func(p *divert.Packet) {
			if len(kept) == 0 {
				kept <- p.Clone()
			}
			if err := d.Drop(p); err != nil {
				t.Error(err)
			}
		})
		sendAll(t, pair.A, echo.Addr().String(), 300)
		if n := finish(t, d, w); n != 300 {
			t.Errorf("%d received, want 300", n)
		}
		if s := stats(t, d); s.Abandoned != 300 || s.Waiting != 0 {
			t.Errorf("counters %+v, want 300 abandoned", s)
		}
		p := <-kept
		if err := d.Accept(&p); err != nil { // the packet is dropped for good, but its bytes may be sent again
			t.Error(err)
		}
		if err := d.Drop(&p); err != nil {
			t.Error(err)
		}
		if s := stats(t, d); s.Abandoned != 300 || s.Reinjected != 0 || s.Injected != 1 {
			t.Errorf("counters %+v, want 300 abandoned and 1 injected", s)
		}
		if err := d.Drop(nil); !errors.Is(err, divert.ErrInvalid) {
			t.Errorf("Drop(nil): %v", err)
		}
		_ = d.Close()
		if err := d.Drop(&p); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Drop after Close: %v", err)
		}
	})
}

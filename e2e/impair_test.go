//go:build linux

package e2e_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/impair"
	"github.com/opendivert/divert/internal/lab"
)

// impairAt impairs packets of a host until the test ends or stop is called.
func impairAt(t testing.TB, h *lab.Host, c impair.Config, opts ...divert.Option) (i *impair.Impairer, stop func()) {
	t.Helper()
	if err := h.Do(func() (err error) {
		i, err = impair.Open(c, opts...)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- i.Run(context.Background()) }()
	stop = func() {
		t.Helper()
		if err := i.Close(); errors.Is(err, net.ErrClosed) {
			return // stopped before
		} else if err != nil {
			t.Errorf("close: %v", err)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the run does not end")
		}
	}
	t.Cleanup(stop)
	return i, stop
}

// datagrams sends numbered datagrams from port 5000 of one host to another. It returns the numbers received, in order,
// and each datagram's travel time. It ends when want of them have arrived, or after some seconds without any.
func datagrams(t testing.TB, from, to *lab.Host, addr func(*lab.Host) netip.Addr, count int, pause time.Duration, want func() int) (numbers []int, took []time.Duration) {
	t.Helper()
	l, err := to.ListenPacket("udp", netip.AddrPortFrom(addr(to), 7000).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_ = l.(*net.UDPConn).SetReadBuffer(4 << 20)
	c, err := from.DialFrom(t.Context(), net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(from), 5000)), "udp", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begun := time.Now()
	sent := make(chan error, 1)
	go func() {
		b := make([]byte, 100)
		for n := range count {
			binary.BigEndian.PutUint64(b, uint64(n))
			binary.BigEndian.PutUint64(b[8:], uint64(time.Since(begun)))
			if _, err := c.Write(b); err != nil {
				sent <- fmt.Errorf("datagram %d: %w", n, err)
				return
			}
			if pause > 0 || n%32 == 0 {
				time.Sleep(max(pause, time.Millisecond))
			}
		}
		sent <- nil
	}()
	b, all := make([]byte, 200), -1
	for quiet := 0; quiet < 100 && len(numbers) != all; {
		_ = l.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, _, err := l.ReadFrom(b)
		switch {
		case err == nil && n == 100:
			numbers = append(numbers, int(binary.BigEndian.Uint64(b)))
			took = append(took, time.Since(begun)-time.Duration(binary.BigEndian.Uint64(b[8:])))
			quiet = 0
		case err == nil:
			t.Errorf("a datagram of %d bytes", n)
		default:
			quiet++
		}
		select {
		case err := <-sent:
			if err != nil {
				t.Fatal(err) // the sender does not see losses
			}
			sent = nil
		default:
		}
		if sent == nil {
			all = want()
		}
	}
	return numbers, took
}

func quantile(d []time.Duration, q float64) time.Duration {
	d = slices.Sorted(slices.Values(d))
	return d[min(int(q*float64(len(d))), len(d)-1)].Round(time.Microsecond)
}

// No packet arrives before its time. Later arrival is due to the machine, and is only reported.
func TestImpairLag(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			const count = 100
			all := func() int { return count }
			_, direct := datagrams(t, pair.A, pair.B, f.addr, count, 5*time.Millisecond, all)
			t.Logf("%s direct: p50 %v, p99 %v", f.name, quantile(direct, 0.5), quantile(direct, 0.99))
			for _, at := range []*lab.Host{pair.A, pair.B} {
				for _, lag := range []time.Duration{0, 10 * time.Millisecond, 100 * time.Millisecond} {
					i, stop := impairAt(t, at, impair.Config{Rules: []impair.Rule{{Filter: "udp.DstPort == 7000", Lag: lag, Duplicate: 0}}}, e)
					got, took := datagrams(t, pair.A, pair.B, f.addr, count, 5*time.Millisecond, all)
					if len(got) != count || !slices.IsSorted(got) {
						t.Errorf("%s lag %v: %d datagrams arrived: %v", f.name, lag, len(got), got)
						continue
					}
					if first := slices.Min(took); first < lag {
						t.Errorf("%s lag %v: a packet arrived after %v", f.name, lag, first)
					}
					t.Logf("%s at %v, lag %v: p50 +%v, p99 +%v", f.name, at, lag, quantile(took, 0.5)-lag, quantile(took, 0.99)-lag)
					if s := i.Stats(); s.Rules[0].Packets != count || s.Failed != 0 {
						t.Errorf("counters %+v", s)
					}
					stop()
				}
			}
		}
	})
}

// The same seed always loses the same packets; the sender notices nothing.
func TestImpairLossRepeats(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		const count = 3000
		for _, f := range families {
			run := func(at *lab.Host, seed uint64, r impair.Rule) []int {
				t.Helper()
				r.Filter = "udp.DstPort == 7000"
				i, stop := impairAt(t, at, impair.Config{Seed: seed, Rules: []impair.Rule{r}}, e)
				defer stop()
				got, _ := datagrams(t, pair.A, pair.B, f.addr, count, 0, func() int {
					if s := i.Stats().Rules[0]; s.Packets == count {
						return count - int(s.Lost)
					}
					return -1
				})
				s := i.Stats()
				if len(got) != count-int(s.Rules[0].Lost) || s.Rules[0].Packets != count || s.Failed != 0 {
					t.Errorf("%d of %d arrived; %+v, %+v", len(got), count, s, stats(t, i.Handle()))
				}
				return got
			}
			for _, r := range []impair.Rule{{Loss: 0.01}, {Loss: 0.1}, {Loss: 0.1, LossRun: 4, Lag: time.Millisecond}} {
				first := run(pair.A, 1, r)
				if !slices.Equal(run(pair.A, 1, r), first) {
					t.Errorf("%s %+v: the same seed lost others", f.name, r)
				}
				if !slices.Equal(run(pair.B, 1, r), first) {
					t.Errorf("%s %+v: the same seed lost others at the receiver", f.name, r)
				}
				if slices.Equal(run(pair.A, 2, r), first) {
					t.Errorf("%s %+v: another seed lost the same", f.name, r)
				}
			}
		}
	})
}

// TCP survives everything: the received bytes equal the sent ones.
func TestImpairTCP(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		needInbound(t, pair.A)
		for _, f := range families {
			i, stop := impairAt(t, pair.A, impair.Config{Rules: []impair.Rule{{
				Filter: "tcp", Lag: 2 * time.Millisecond, Jitter: time.Millisecond, Loss: 0.01, Duplicate: 0.02, Corrupt: 0.02, Reorder: 0.02, Rate: 1e9,
			}}}, e)
			transfer(t, pair.A, pair.B, f.addr(pair.B), amount(2<<20))
			transfer(t, pair.B, pair.A, f.addr(pair.A), amount(2<<20))
			stop()
			s := i.Stats()
			if r := s.Rules[0]; r.Lost == 0 || r.Duplicated == 0 || r.Corrupted == 0 || r.Reordered == 0 || r.Bytes/r.Packets > 1500 || s.Failed != 0 {
				t.Errorf("%s: %+v", f.name, s)
			}
		}
	})
}

// No packet is faster than the rate.
func TestImpairRate(t *testing.T) {
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			const rate = 8_000_000
			i, stop := impairAt(t, pair.A, impair.Config{Rules: []impair.Rule{{Filter: "tcp", Direction: impair.Out, Rate: rate}}}, e)
			took := transfer(t, pair.A, pair.B, f.addr(pair.B), 1<<20)
			stop()
			s := i.Stats().Rules[0]
			least := time.Duration((1<<20-1500)*8*int64(time.Second)) / rate
			if took < least {
				t.Errorf("%s: %v, at least %v", f.name, took, least)
			}
			t.Logf("%s: %.3f of the rate, headers included", f.name, float64(s.Bytes*8)/rate/took.Seconds())
		}
	})
}

// Both ends receive the reset.
func TestImpairReset(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		needInbound(t, pair.A)
		for _, f := range families {
			for _, at := range []*lab.Host{pair.A, pair.B} {
				l, err := pair.B.Listen("tcp", netip.AddrPortFrom(f.addr(pair.B), 0).String())
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				port := l.Addr().(*net.TCPAddr).Port
				i, stop := impairAt(t, at, impair.Config{Rules: []impair.Rule{{Filter: fmt.Sprintf("tcp.DstPort == %d and tcp.PayloadLength > 0", port), Reset: 1}}}, e)
				c, err := pair.A.Dial(t.Context(), "tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				s, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				if _, err := io.WriteString(c, "hello"); err != nil {
					t.Error(err)
				}
				for name, end := range map[string]net.Conn{"client": c, "server": s} {
					_ = end.SetReadDeadline(time.Now().Add(10 * time.Second))
					if n, err := end.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNRESET) {
						t.Errorf("%s, at %v: the %s read %d bytes, %v", f.name, at, name, n, err)
					}
				}
				stop()
				if s := i.Stats(); s.Rules[0].Reset < 1 || s.Rules[0].Reset != s.Rules[0].Packets || s.Failed != 0 { // TCP retransmits if the reset is slow
					t.Errorf("counters %+v", s)
				}
			}
		}
	})
}

// The receiver detects a corrupt packet, even where the hardware would have computed the checksum.
func TestImpairCorrupt(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			for _, at := range []*lab.Host{pair.A, pair.B} {
				i, stop := impairAt(t, at, impair.Config{Rules: []impair.Rule{{Filter: "udp.DstPort == 7000", Corrupt: 0.5}}}, e)
				const count = 200
				got, _ := datagrams(t, pair.A, pair.B, f.addr, count, 0, func() int {
					if s := i.Stats().Rules[0]; s.Packets == count {
						return count - int(s.Corrupted)
					}
					return -1
				})
				stop()
				if s := i.Stats(); s.Rules[0].Corrupted < 50 || len(got) != count-int(s.Rules[0].Corrupted) || s.Failed != 0 {
					t.Errorf("%s at %v: %d arrived; %+v", f.name, at, len(got), s)
				}
			}
		}
	})
}

// Held packets do not delay their sender, and go on when the run ends.
func TestImpairHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			counter, err := pair.B.CountUDP(netip.AddrPortFrom(f.addr(pair.B), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer counter.Close()
			i, stop := impairAt(t, pair.A, impair.Config{Rules: []impair.Rule{{Filter: fmt.Sprintf("udp.DstPort == %d", counter.Addr().Port()), Lag: time.Hour}}}, e)
			const count = 500
			sendAll(t, pair.A, counter.Addr().String(), count)
			for end := time.Now().Add(10 * time.Second); i.Stats().Held < count && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			if s := i.Stats(); s.Held != count {
				t.Errorf("%s: %+v", f.name, s)
			}
			if n, _ := counter.Count(); n != 0 {
				t.Errorf("%s: %d arrived before their time", f.name, n)
			}
			stop()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := counter.Wait(ctx, count); err != nil {
				n, _ := counter.Count()
				t.Errorf("%s: %d arrived: %v", f.name, n, err)
			}
		}
	})
}

// A packet from the host to itself is impaired once: a question and its answer take the lag twice.
func TestImpairLoopback(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		echo := echoAt(t, pair.A, "udp", netip.MustParseAddr("127.0.0.1"))
		port := echo.Addr().Port()
		const lag, count = 20 * time.Millisecond, 3
		i, _ := impairAt(t, pair.A, impair.Config{Rules: []impair.Rule{{Filter: fmt.Sprintf("udp.DstPort == %d or udp.SrcPort == %[1]d", port), Lag: lag}}}, e)
		begun := time.Now()
		r := exchange(t, pair.A, echo.Addr(), lab.Exchange{Count: count, Wait: 5 * time.Second})
		if took := time.Since(begun); r.Echoed != count || took < 2*count*lag {
			t.Errorf("%+v after %v", r, took)
		}
		if s := i.Stats().Rules[0]; s.Packets != 2*count {
			t.Errorf("counters %+v", s)
		}
	})
}

// A router impairs what it forwards.
func TestImpairForward(t *testing.T) {
	t.Parallel()
	for _, en := range engines {
		net := lab.HostRouterPeerT(t, lab.LinkOptions{})
		needEngine(t, net.R, en.engine)
		for _, f := range families {
			echo := echoAt(t, net.B, "udp", f.addr(net.B))
			const lag, count = 10 * time.Millisecond, 5
			i, stop := impairAt(t, net.R, impair.Config{Layer: divert.LayerForward, Rules: []impair.Rule{{Filter: "udp", Lag: lag}}}, divert.WithEngine(en.engine))
			begun := time.Now()
			r := exchange(t, net.A, echo.Addr(), lab.Exchange{Count: count, Wait: 5 * time.Second})
			if took := time.Since(begun); r.Echoed != count || took < 2*count*lag {
				t.Errorf("%s, %s: %+v after %v; %+v", en.name, f.name, r, took, i.Stats())
			}
			stop()
		}
	}
}

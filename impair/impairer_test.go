package impair

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/packet"
)

// bench is a run on a fake network and a fake clock.
type bench struct {
	*Impairer
	t       *testing.T
	network *diverttest.Network
	begun   time.Time
	cancel  context.CancelFunc
	done    chan error
}

// begin starts a run in the bubble of the test.
func begin(t *testing.T, c Config) *bench {
	t.Helper()
	b := &bench{t: t, network: diverttest.New(), begun: time.Now(), done: make(chan error, 1)}
	c.Open = b.network.OpenProgram
	var err error
	if b.Impairer, err = Open(c); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(context.Background())
	go func() { b.done <- b.Run(ctx) }()
	synctest.Wait()
	return b
}

// end ends the run and closes the handle.
func (b *bench) end() {
	b.t.Helper()
	b.cancel()
	if err := <-b.done; err != nil {
		b.t.Errorf("Run: %v", err)
	}
	if err := b.Close(); err != nil {
		b.t.Errorf("Close: %v", err)
	}
	if n := b.network.Handles(); n != 0 {
		b.t.Errorf("%d handles are open still", n)
	}
	if s := b.Stats(); s.Held != 0 || s.HeldBytes != 0 || s.Failed != 0 {
		b.t.Errorf("at the end: %+v", s)
	}
}

var (
	host4, peer4 = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	host6, peer6 = netip.MustParseAddr("fd00::1"), netip.MustParseAddr("fd00::2")
)

// udp returns a datagram with a number from a port to port 7.
func udp(t testing.TB, port uint16, number, payload int) []byte {
	t.Helper()
	data := make([]byte, max(payload, 4))
	binary.BigEndian.PutUint32(data, uint32(number))
	h := packet.Header{Src: netip.AddrPortFrom(host4, port), Dst: netip.AddrPortFrom(peer4, 7)}
	b, err := h.AppendUDP(nil, data)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// put sends a datagram.
func (b *bench) put(port uint16, number int) {
	b.t.Helper()
	b.network.Outbound(udp(b.t, port, number, 4), diverttest.Link)
}

// arrived is a packet that went on, and its time.
type arrived struct {
	port   uint16
	number int
	at     time.Duration
}

// collect returns the packets that went on in each millisecond until a time, or those that went on at once.
func (b *bench) collect(until time.Duration) (all []arrived) {
	b.t.Helper()
	for {
		synctest.Wait()
		for _, p := range b.network.Delivered() {
			all = append(all, arrived{p.Src().Port(), int(binary.BigEndian.Uint32(p.Payload())), time.Since(b.begun)})
		}
		if time.Since(b.begun) >= until {
			return all
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func numbers(all []arrived) (n []int) {
	for _, a := range all {
		n = append(n, a.number)
	}
	return n
}

func TestLag(t *testing.T) {
	for _, lag := range []time.Duration{0, 10 * time.Millisecond, 100 * time.Millisecond, time.Minute} {
		t.Run(lag.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := begin(t, Config{Rules: []Rule{{Filter: "udp", Lag: lag}}})
				for n := range 3 {
					b.put(1, n)
					synctest.Wait()
					time.Sleep(time.Millisecond)
				}
				for n := range 3 {
					p, err := b.network.Next(t.Context())
					if err != nil || int(binary.BigEndian.Uint32(p.Payload())) != n {
						t.Fatalf("packet %d: %v, %v", n, p, err)
					}
					if at := time.Since(b.begun); lag > 3*time.Millisecond && at != lag+time.Duration(n)*time.Millisecond {
						t.Errorf("packet %d went on after %v", n, at)
					}
				}
				if s := b.Stats().Rules[0]; s.Packets != 3 || s.Bytes != 3*32 || (lag > 0) != (s.Delayed == 3) {
					t.Errorf("counters %+v", s)
				}
				b.end()
			})
		})
	}
}

func TestJitter(t *testing.T) {
	const count = 500
	for _, unordered := range []bool{false, true} {
		for d := range distributionNames {
			t.Run(fmt.Sprintf("%v/unordered=%v", Distribution(d), unordered), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := begin(t, Config{Rules: []Rule{{Lag: 20 * time.Millisecond, Jitter: 5 * time.Millisecond, Distribution: Distribution(d), Unordered: unordered}}})
					for n := range count {
						b.put(1, n)
					}
					all := b.collect(3 * time.Second)
					b.end()
					if len(all) != count {
						t.Fatalf("%d packets went on", len(all))
					}
					if got := numbers(all); slices.IsSorted(got) == unordered {
						t.Errorf("sorted: %v", !unordered)
					}
				})
			})
		}
	}
}

// The seed decides the fate of a flow's packets, whatever other flows do meanwhile, and however fast packets come.
func TestSeed(t *testing.T) {
	const flows, count = 20, 100
	run := func(t *testing.T, seed uint64, mixed *rand.Rand, rest time.Duration) (s RuleStats) {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t, Config{Seed: seed, Rules: []Rule{{Loss: 0.1, LossRun: 3, Duplicate: 0.1, Corrupt: 0.05, Reorder: 0.05, Lag: time.Millisecond, Jitter: time.Millisecond}}})
			next := make([]int, flows)
			var turn []int
			for n := range flows * count {
				turn = append(turn, n%flows)
			}
			if mixed != nil {
				mixed.Shuffle(len(turn), func(i, j int) { turn[i], turn[j] = turn[j], turn[i] })
			}
			for n, f := range turn {
				b.put(uint16(1000+f), next[f])
				next[f]++
				if n%50 == 0 {
					time.Sleep(rest)
				}
			}
			time.Sleep(time.Second)
			b.end()
			s = b.Stats().Rules[0]
		})
		return s
	}
	want := run(t, 1, nil, 0)
	if want.Lost == 0 || want.Duplicated == 0 || want.Corrupted == 0 || want.Reordered == 0 {
		t.Errorf("nothing was impaired: %+v", want)
	}
	for n := range uint64(3) {
		if got := run(t, 1, rand.New(rand.NewPCG(n, 0)), time.Duration(n)*time.Millisecond); got != want {
			t.Errorf("in another order:\n%+v, want\n%+v", got, want)
		}
	}
	if other := run(t, 2, nil, 0); other == want {
		t.Error("another seed makes no difference")
	}
}

// The same packets go on, with the same bits flipped.
func TestSeedSamePackets(t *testing.T) {
	const flows, count = 20, 200
	run := func(seed uint64, mixed *rand.Rand) (list []string) {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t, Config{Seed: seed, Rules: []Rule{{Loss: 0.1, LossRun: 2, Duplicate: 0.1, Corrupt: 0.1}}})
			var turn []int
			for n := range flows * count {
				turn = append(turn, n%flows)
			}
			if mixed != nil {
				mixed.Shuffle(len(turn), func(i, j int) { turn[i], turn[j] = turn[j], turn[i] })
			}
			next := make([]int, flows)
			for _, f := range turn {
				b.put(uint16(1000+f), next[f])
				next[f]++
				synctest.Wait()
			}
			for _, p := range b.network.Delivered() {
				list = append(list, fmt.Sprintf("%x", p.Data[packet.IPv4HeaderLen:]))
			}
			b.end()
		})
		slices.Sort(list) // flows come in another order
		return list
	}
	want := run(7, nil)
	if !slices.Equal(run(7, rand.New(rand.NewPCG(1, 2))), want) {
		t.Error("with the same seed other packets were impaired")
	}
	if slices.Equal(run(8, nil), want) {
		t.Error("another seed makes no difference")
	}
}

func TestRate(t *testing.T) {
	for _, row := range []struct {
		rate    int64
		burst   int
		payload int
	}{
		{1e6, 0, 1222}, {1e6, 10_000, 1222}, {8e3, 0, 72}, {999_983, 0, 1222}, {1e9, 0, 1222}, {1e6, 100, 1222},
	} {
		t.Run(fmt.Sprint(row), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := begin(t, Config{Rules: []Rule{{Rate: row.rate, Burst: row.burst, Queue: Limit{Packets: 1 << 20}}}})
				const count = 500
				for n := range count {
					b.network.Outbound(udp(t, 1, n, row.payload), diverttest.Link)
				}
				for range count {
					if _, err := b.network.Next(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				took := time.Since(b.begun).Seconds()
				length := float64(row.payload + 28)
				burst := float64(row.burst)
				if burst == 0 {
					burst = defaultBurst
				}
				// All packets but the burst take their time; rounding to whole packets shifts the result by at most two.
				want := (count*length - max(burst, length)) * 8 / float64(row.rate)
				if slack := length*8/float64(row.rate) + 1e-6; took < want-slack || took > want+slack {
					t.Errorf("took %.6f s, want %.6f s", took, want)
				}
				b.end()
			})
		})
	}
}

func TestQueue(t *testing.T) {
	for _, row := range []struct {
		limit Limit
		want  int // of 200 packets of 1,250 bytes, which take 10 ms each; the first one does not wait
	}{
		{Limit{Packets: 10}, 11}, {Limit{Bytes: 12_500}, 11}, {Limit{Time: 100 * time.Millisecond}, 11},
		{Limit{Packets: 50, Bytes: 2500}, 3}, {Limit{}, 200},
	} {
		t.Run(fmt.Sprint(row.limit), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := begin(t, Config{Rules: []Rule{{Rate: 1e6, Burst: 1250, Queue: row.limit}}})
				for n := range 200 {
					b.network.Outbound(udp(t, 1, n, 1222), diverttest.Link)
				}
				all := b.collect(5 * time.Second)
				if len(all) != row.want || b.Stats().Rules[0].QueueFull != uint64(200-row.want) {
					t.Errorf("%d went on, want %d; %+v", len(all), row.want, b.Stats())
				}
				b.end()
			})
		})
	}
}

func TestDirectionsHaveTheirOwnRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Rules: []Rule{{Rate: 8000, Burst: 1, Queue: Limit{Packets: 1}}}})
		for n := range 5 {
			b.put(1, n)
			b.network.Inbound(udp(t, 2, n, 4), diverttest.Link)
		}
		all := b.collect(time.Second)
		if n := len(all); n != 4 {
			t.Errorf("%d went on, want 2 each way: %v", n, all)
		}
		b.end()
	})
}

func TestReorder(t *testing.T) {
	for _, by := range []int{1, 3} {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t, Config{Seed: 3, Rules: []Rule{{Reorder: 0.2, ReorderBy: by, Lag: 10 * time.Millisecond}}})
			const count = 100
			chosen := map[int]bool{}
			r, f := b.plan.rules[0], &flow{}
			key := keyOfData(t, udp(t, 1, 0, 4))
			f.origin = key.origin(3)
			for n := range count {
				chosen[n] = r.decide(f).reorder
			}
			for n := range count {
				b.put(1, n)
			}
			got := numbers(b.collect(time.Second))
			if len(got) != count {
				t.Fatalf("%d went on", len(got))
			}
			place := map[int]int{}
			for at, n := range got {
				place[n] = at
			}
			for n := range count - by {
				if next := n + by; chosen[n] && !chosen[next] && place[n] < place[next] {
					t.Errorf("packet %d went on before packet %d", n, next)
				}
				if !chosen[n] && !chosen[n+1] && place[n] > place[n+1] {
					t.Errorf("packet %d went on behind packet %d", n, n+1)
				}
			}
			b.end()
		})
	}
}

// If no packets follow, one that lets others pass goes on after a time.
func TestReorderAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Rules: []Rule{{Reorder: 1, ReorderWait: 30 * time.Millisecond}}})
		b.put(1, 0)
		if all := b.collect(time.Second); len(all) != 1 || all[0].at < 30*time.Millisecond || all[0].at > 31*time.Millisecond {
			t.Errorf("went on: %v", all)
		}
		b.end()
	})
}

func keyOfData(t testing.TB, b []byte) flowKey {
	t.Helper()
	var p packet.Parsed
	if !p.Parse(b) {
		t.Fatal("no packet")
	}
	return keyOf(b, &p, 0)
}

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Rules: []Rule{{Throttle: 100 * time.Millisecond}}})
		time.Sleep(10 * time.Millisecond)
		for n := range 5 {
			b.put(1, n)
			synctest.Wait()
			time.Sleep(30 * time.Millisecond) // at 10, 40, 70, 100 (which is a multiple) and 130
		}
		for n, a := range b.collect(time.Second) {
			if want := []int{100, 100, 100, 160, 200}[n]; a.number != n || a.at < time.Duration(min(want, 200))*time.Millisecond && n != 3 || a.at > 201*time.Millisecond {
				t.Errorf("packet %d went on at %v", a.number, a.at)
			}
		}
		b.end()
	})
}

func TestDuplicate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Rules: []Rule{{Duplicate: 1, Lag: time.Millisecond}}})
		for n := range 10 {
			b.put(1, n)
		}
		all := numbers(b.collect(time.Second))
		if want := []int{0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9}; !slices.Equal(all, want) {
			t.Errorf("went on: %v", all)
		}
		if s := b.Stats().Rules[0]; s.Packets != 10 || s.Duplicated != 10 {
			t.Errorf("counters %+v", s)
		}
		b.end()
	})
}

// One bit differs, never in the IP headers, and the checksum shows it.
func TestCorrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Rules: []Rule{{Corrupt: 1}}})
		for n := range 200 {
			clean := udp(t, 1, n, 100)
			a := divert.Address{Outbound: true, IPChecksum: true, TCPChecksum: true, UDPChecksum: n%2 == 0}
			a.SetNetwork(packet.NetworkData{IfIdx: diverttest.Link})
			given := bytes.Clone(clean)
			if n%2 != 0 {
				given[26], given[27] = 0, 0 // left to the hardware
			}
			if err := b.network.Put(given, a); err != nil {
				t.Fatal(err)
			}
			p, err := b.network.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			bits := 0
			for i := range clean {
				for x := clean[i] ^ p.Data[i]; x != 0; x &= x - 1 {
					bits++
					if i < packet.IPv4HeaderLen {
						t.Errorf("byte %d of the IP header has changed", i)
					}
				}
			}
			if bits != 1 || len(p.Data) != len(clean) {
				t.Errorf("%d bits differ", bits)
			}
		}
		b.end()
	})
}

func tcp(t testing.TB, src, dst netip.Addr, s packet.Segment) []byte {
	t.Helper()
	h := packet.Header{Src: netip.AddrPortFrom(src, 1000), Dst: netip.AddrPortFrom(dst, 80)}
	b, err := h.AppendTCP(nil, s, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReset(t *testing.T) {
	for _, ends := range [][2]netip.Addr{{host4, peer4}, {host6, peer6}} {
		synctest.Test(t, func(t *testing.T) {
			b := begin(t, Config{Rules: []Rule{{Reset: 1}}})
			b.network.Outbound(tcp(t, ends[0], ends[1], packet.Segment{Seq: 100, Ack: 200, Flags: packet.TCPAck | packet.TCPPsh}), diverttest.Link)
			synctest.Wait()
			got := b.network.Delivered()
			if len(got) != 2 {
				t.Fatalf("went on: %v", got)
			}
			for _, p := range got {
				var parsed packet.Parsed
				parsed.Parse(p.Data)
				h := parsed.TCP(p.Data)
				src, seq := ends[0], uint32(100)
				if !p.Addr.Outbound {
					src, seq = ends[1], 200
				}
				if h.Flags()&packet.TCPRst == 0 || h.Seq() != seq || p.Src().Addr() != src || parsed.PayloadLen != 0 || !parsed.VerifyTransportChecksum(p.Data) {
					t.Errorf("outbound %v: % x", p.Addr.Outbound, p.Data)
				}
			}
			// A SYN is refused: the receiver does not know it. A reset gets no answer.
			b.network.Outbound(tcp(t, ends[0], ends[1], packet.Segment{Seq: 100, Flags: packet.TCPSyn}), diverttest.Link)
			synctest.Wait()
			if got := b.network.Delivered(); len(got) != 1 || got[0].Addr.Outbound {
				t.Errorf("of a SYN: %v", got)
			}
			b.network.Outbound(tcp(t, ends[0], ends[1], packet.Segment{Seq: 100, Flags: packet.TCPRst}), diverttest.Link)
			b.put(1, 1)
			synctest.Wait()
			if got := b.network.Delivered(); len(got) != 2 || b.Stats().Rules[0].Reset != 2 {
				t.Errorf("of a reset and a datagram: %v", got)
			}
			b.end()
		})
	}
}

// A packet meets the first rule that matches it, and rules respect directions.
func TestRules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Rules: []Rule{
			{Filter: "udp.SrcPort == 1", Lag: 10 * time.Millisecond},
			{Filter: "udp.SrcPort <= 2", Direction: Out, Loss: 1},
			{Filter: "udp.SrcPort == 3", Direction: In, Loss: 1},
		}})
		for port := range uint16(4) {
			b.put(port+1, 0)
			b.network.Inbound(udp(t, port+1, 1, 4), diverttest.Link)
		}
		var got []uint16
		for _, a := range b.collect(time.Second) {
			got = append(got, a.port*10+uint16(a.number))
		}
		slices.Sort(got)
		if want := []uint16{10, 11, 21, 30, 40, 41}; !slices.Equal(got, want) {
			t.Errorf("went on: %v, want %v", got, want)
		}
		s := b.Stats()
		if s.Rules[0].Packets != 2 || s.Rules[1].Lost != 1 || s.Rules[2].Lost != 1 || s.Unimpaired != 0 {
			t.Errorf("counters %+v", s)
		}
		h, _ := b.Handle().Stats()
		if h.Matched != 4 {
			t.Errorf("%d packets came to the program, want 4", h.Matched)
		}
		b.end()
	})
}

// TestRulesBySetsAndNames: the filters of several rules see the named sets and interfaces of the handle, as these change.
func TestRulesBySetsAndNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Rules: []Rule{
			{Filter: "udp.SrcPort in @lost", Loss: 1},
			{Filter: `iface == "wan"`, Loss: 1},
			{Filter: "true", Lag: time.Millisecond},
		}})
		lost, err := b.Handle().Set("lost")
		if err != nil {
			t.Fatal(err)
		}
		ok := func(err error) {
			if err != nil {
				t.Error(err)
			}
		}
		for number, change := range []func(){
			func() {},
			func() { ok(lost.Add(filter.NumberElement(1))) },
			func() { ok(lost.Replace(nil)) },
			func() { b.network.NameInterface(diverttest.Link, "wan") },
			func() { b.network.NameInterface(0, "wan") },
			func() { ok(b.Handle().SetFilter("udp")); b.network.NameInterface(diverttest.Link, "wan") },
		} {
			change()
			b.put(1, number)
			synctest.Wait()
		}
		if got, want := numbers(b.collect(time.Second)), []int{0, 2, 4}; !slices.Equal(got, want) {
			t.Errorf("went on: %v, want %v", got, want)
		}
		if s := b.Stats(); s.Rules[0].Lost != 1 || s.Rules[1].Lost != 2 || s.Rules[2].Packets != 3 {
			t.Errorf("counters %+v", s)
		}
		b.end()
	})
}

// At the end held packets go on at once, or are dropped, and counted.
func TestEnd(t *testing.T) {
	for _, dropHeld := range []bool{false, true} {
		for _, in := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				b := begin(t, Config{Rules: []Rule{{Lag: time.Minute, Reorder: 0.3}}, DropHeld: dropHeld})
				for n := range 1000 {
					if in {
						b.network.Inbound(udp(t, 1, n, 4), diverttest.Link)
					} else {
						b.put(1, n)
					}
				}
				synctest.Wait()
				if s := b.Stats(); s.Held != 1000 || s.HeldBytes != 32000 || len(b.network.Delivered()) != 0 {
					t.Errorf("while it runs: %+v", s)
				}
				b.end()
				got, ended := len(b.network.Delivered()), b.Stats().Rules[0].Ended
				if dropHeld && (got != 0 || ended != 1000) || !dropHeld && (got != 1000 || ended != 0) {
					t.Errorf("drop %v: %d went on, %d ended", dropHeld, got, ended)
				}
				if took := time.Since(b.begun); took != 0 {
					t.Errorf("took %v", took)
				}
			})
		}
	}
}

// Close ends a run as the end of its context does.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Rules: []Rule{{Lag: time.Minute}}})
		b.put(1, 0)
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := <-b.done; err != nil || len(b.network.Delivered()) != 1 {
			t.Errorf("Run: %v", err)
		}
		if err := b.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("a second Close: %v", err)
		}
		if err := b.Run(t.Context()); err == nil {
			t.Error("it ran again")
		}
	})
}

func TestCloseBeforeRun(t *testing.T) {
	i, err := Open(Config{Rules: []Rule{{Loss: 1}}, Open: diverttest.New().OpenProgram})
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
	if err := i.Run(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}

// Closing the handle ends the run too, with the error of receiving.
func TestHandleClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Rules: []Rule{{Lag: time.Minute}}})
		b.put(1, 0)
		synctest.Wait()
		_ = b.Handle().Close()
		if err := <-b.done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Run: %v", err)
		}
		// Held packets went on before the handle was closed, or are counted.
		if s := b.Stats(); len(b.network.Delivered())+int(s.Failed) != 1 || s.Held != 0 {
			t.Errorf("counters %+v", s)
		}
	})
}

func TestPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Repeat: true, Phases: []Phase{
			{For: 100 * time.Millisecond, Rules: []Rule{{Filter: "udp", Loss: 1}}},
			{For: 50 * time.Millisecond},
			{For: 50 * time.Millisecond, Rules: []Rule{{Filter: "tcp", Loss: 1}}},
		}})
		time.Sleep(5 * time.Millisecond)
		for n := range 40 {
			b.put(1, n)
			time.Sleep(10 * time.Millisecond)
		}
		got := numbers(b.collect(0))
		var want []int
		for n := range 40 {
			if n%20 >= 10 {
				want = append(want, n)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("went on: %v, want %v", got, want)
		}
		if s := b.Stats(); s.Rules[0].Lost != 20 || s.Unimpaired != 20 || s.Rules[1].Phase != 2 {
			t.Errorf("counters %+v", s)
		}
		b.end()
	})
}

// The run ends with the last phase.
func TestPhasesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{Phases: []Phase{{For: 100 * time.Millisecond, Rules: []Rule{{Lag: time.Minute}}}, {For: time.Second}}})
		b.put(1, 0)
		if err := <-b.done; err != nil {
			t.Error(err)
		}
		b.done <- nil
		if took := time.Since(b.begun); took != 1100*time.Millisecond || len(b.network.Delivered()) != 1 {
			t.Errorf("ended after %v", took)
		}
		b.end()
	})
}

func TestHoldingFull(t *testing.T) {
	for _, c := range []Config{{MaxPackets: 10}, {MaxBytes: 10*32 + 31}} {
		synctest.Test(t, func(t *testing.T) {
			c.Rules = []Rule{{Lag: 10 * time.Millisecond}}
			b := begin(t, c)
			for n := range 30 {
				b.put(1, n)
			}
			if all := b.collect(time.Second); len(all) != 10 || b.Stats().Rules[0].HoldingFull != 20 {
				t.Errorf("%d went on; %+v", len(all), b.Stats())
			}
			b.end()
		})
	}
}

// Flows that were silent for longest are forgotten first, and a flow with a packet that lets others pass stays in order.
func TestFlowsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := begin(t, Config{MaxFlows: 10, Rules: []Rule{{Reorder: 0.5, ReorderBy: 5}}})
		for n := range 500 {
			b.put(uint16(1+n%25), n)
			b.put(1, n) // never forgotten
		}
		if all := b.collect(time.Second); len(all) != 1000 {
			t.Errorf("%d went on", len(all))
		}
		if s := b.Stats(); s.FlowsForgotten == 0 || len(b.flows.flows) > 10 {
			t.Errorf("%d flows, counters %+v", len(b.flows.flows), s)
		}
		b.end()
	})
}

// A packet that cannot be sent is counted and reported, and the run goes on.
func TestFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []error
		b := begin(t, Config{Rules: []Rule{{Lag: time.Millisecond}}, Report: func(err error) { told = append(told, err) }})
		b.network.FailSends(func(p *divert.Packet) error { return divert.ErrTooLarge })
		b.put(1, 0)
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		b.network.FailSends(nil)
		b.put(1, 1)
		if all := b.collect(time.Second); len(all) != 1 {
			t.Errorf("%d went on", len(all))
		}
		if s := b.Stats(); s.Failed != 1 || len(told) != 1 || !errors.Is(told[0], divert.ErrTooLarge) {
			t.Errorf("counters %+v, told %v", s, told)
		}
		b.cancel()
		<-b.done
		b.Close()
	})
}

func TestOpenErrors(t *testing.T) {
	rule := func(r Rule) Config { return Config{Rules: []Rule{r}} }
	for _, row := range []struct {
		name   string
		config Config
		want   string
	}{
		{"no rules", Config{}, "impair: there is no rule"},
		{"layer", Config{Layer: divert.LayerFlow, Rules: []Rule{{}}}, "impair: layer FLOW has no packets"},
		{"both", Config{Rules: []Rule{{}}, Phases: []Phase{{}}}, "impair: there are rules for the whole run and phases; only one of the two can be"},
		{"limits", Config{Rules: []Rule{{}}, MaxFlows: -1}, "impair: the limits cannot be negative"},
		{"filter", rule(Rule{Filter: "tcq"}), `impair: rule 1: filter: column 1: unknown word "tcq"; did you mean TCP or tcp?`},
		{"flow", Config{Rules: []Rule{{Lag: 1e6}, {Filter: "flow.Packets > 5"}}}, "impair: rule 2: filter: flow.Packets works with a single rule only: with several the handle also counts what other rules match"},
		{"sets of two kinds", Config{Rules: []Rule{{Filter: "tcp.DstPort in @some"}, {Filter: "remoteAddr in @some"}}}, "impair: the filters of all rules together: "},
		{"strict", Config{Strict: true, Rules: []Rule{{Filter: "not (tcp)"}}}, "impair: rule 1: "},
		{"loss", rule(Rule{Loss: 1.5}), "impair: rule 1: loss: 150% is out of range (0% to 100%)"},
		{"negative", rule(Rule{Corrupt: -1}), "impair: rule 1: corrupt: -100% is out of range (0% to 100%)"},
		{"run", rule(Rule{Loss: 0.9, LossRun: 2}), "impair: rule 1: loss-run: with a loss of 90% runs cannot be as short as 2 on average: 9 or more"},
		{"run alone", rule(Rule{LossRun: 2}), "impair: rule 1: loss-run: it says nothing without loss"},
		{"lag", rule(Rule{Lag: -time.Second}), "impair: rule 1: lag: -1s is out of range (0, or 1µs to 1h0m0s)"},
		{"rate", rule(Rule{Rate: 1}), "impair: rule 1: rate: 1 is out of range (8 to 1000000000000)"},
		{"queue", rule(Rule{Queue: Limit{Packets: 1}}), "impair: rule 1: queue: it says nothing without rate"},
		{"distribution", rule(Rule{Jitter: 1e6, Distribution: 9}), "impair: rule 1: distribution: there is no distribution 9"},
		{"forward", Config{Layer: divert.LayerForward, Rules: []Rule{{Direction: In}}}, "impair: rule 1: direction: packets that are forwarded go neither out nor in; use ifIdx in the filter"},
		{"second phase", Config{Phases: []Phase{{For: time.Second, Rules: []Rule{{}}}, {Rules: []Rule{{}, {Loss: 2}}}}}, "impair: phase 2, rule 2: loss: 200% is out of range (0% to 100%)"},
		{"endless", Config{Phases: []Phase{{Rules: []Rule{{}}}, {}}}, "impair: phase 1 has no time; only the last one may, if the phases are not repeated"},
		{"repeat endless", Config{Repeat: true, Phases: []Phase{{Rules: []Rule{{}}}}}, "impair: phase 1 has no time; only the last one may, if the phases are not repeated"},
		{"objects", Config{Rules: []Rule{{Filter: "@WinDiv_WX_1dWW2mAX"}, {Filter: "udp"}}}, "impair: a compiled filter cannot be joined with others; write it as text"},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := diverttest.New()
			row.config.Open = n.OpenProgram
			_, err := Open(row.config)
			if err == nil || !bytes.HasPrefix([]byte(err.Error()), []byte(row.want)) || n.Handles() != 0 {
				t.Errorf("%v, want %s", err, row.want)
			}
		})
	}
	n := diverttest.New()
	for _, f := range []divert.Flag{divert.Sniff, divert.Drop, divert.RecvOnly} {
		if _, err := Open(Config{Rules: []Rule{{}}, Open: n.OpenProgram}, divert.WithFlags(f)); err == nil || n.Handles() != 0 {
			t.Errorf("flag %v: %v", f, err)
		}
	}
	var wrong *filter.Error
	if _, err := Open(rule(Rule{Filter: "tcq"})); !errors.As(err, &wrong) || wrong.Pos != 0 {
		t.Errorf("the filter's error: %v", err)
	}
}

package diverttest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/wincode"
	"github.com/opendivert/divert/packet"
)

var (
	near4, far4 = netip.MustParseAddrPort("10.0.0.1:1000"), netip.MustParseAddrPort("192.0.2.1:53")
	near6, far6 = netip.MustParseAddrPort("[fd00::1]:1000"), netip.MustParseAddrPort("[2001:db8::1]:53")
)

// udp makes a datagram from near to far.
func udp(t testing.TB, payload string) []byte { return datagram(t, near4, far4, payload) }

func datagram(t testing.TB, src, dst netip.AddrPort, payload string) []byte {
	t.Helper()
	b, err := (&packet.Header{Src: src, Dst: dst}).AppendUDP(nil, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// open opens a handle that is closed when the test ends.
func open(t testing.TB, n *diverttest.Network, text string, opts ...divert.Option) *divert.Handle {
	t.Helper()
	h, err := n.Open(text, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

// recv receives one packet.
func recv(t testing.TB, h *divert.Handle) divert.Packet {
	t.Helper()
	ps := make([]divert.Packet, 1)
	if err := h.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := h.RecvBatch(ps); err != nil {
		t.Fatal(err)
	}
	return ps[0]
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// stats compares counters.
func stats(t testing.TB, h *divert.Handle, want divert.Stats) {
	t.Helper()
	if got, err := h.Stats(); err != nil || got != want {
		t.Errorf("the counters are\n%+v (%v), want\n%+v", got, err, want)
	}
}

// delivered compares the delivered packets: payloads with their destinations, such as "out 2 a".
func delivered(t testing.TB, n *diverttest.Network, want ...string) {
	t.Helper()
	var got []string
	for _, p := range n.Delivered() {
		way := "in"
		switch {
		case p.Addr.Layer == divert.LayerForward:
			way = "forward"
		case p.Addr.Loopback:
			way = "loopback"
		case p.Addr.Outbound:
			way = "out"
		}
		got = append(got, fmt.Sprintf("%s %d %s", way, p.Addr.Network().IfIdx, payloadOf(p.Data)))
		if p.Addr.Sniffed || p.Addr.Event != 0 || p.Addr.IPv6 != (p.Data[0]>>4 == 6) || *(*[8]byte)(p.Addr.Union()[8:]) != [8]byte{} {
			t.Errorf("delivered with the address %+v", p.Addr)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("delivered %q, want %q", got, want)
	}
}

func TestWaysOfPackets(t *testing.T) {
	// A handle at each layer sniffs; in the fragment column it wants inbound fragments.
	for _, row := range []struct {
		name      string
		put       func(*diverttest.Network, []byte)
		packet    func(testing.TB) []byte
		network   string // flags of the address that the handle of LayerNetwork sees
		fragments bool   // whether one that wants fragments sees it
		forward   bool
		delivered string
	}{
		{"out", func(n *diverttest.Network, b []byte) { n.Outbound(b, 7) }, nil, "out 7", true, false, "out 7 x"},
		{"out, no interface", func(n *diverttest.Network, b []byte) { n.Outbound(b, 0) }, nil, "out 2", true, false, "out 2 x"},
		{"in", func(n *diverttest.Network, b []byte) { n.Inbound(b, 3) }, nil, "in 3", true, false, "in 3 x"},
		{"to the host itself", func(n *diverttest.Network, b []byte) { n.Outbound(b, diverttest.Loopback) }, nil, "loopback out 1", true, false, "loopback 1 x"},
		{"in on loopback", func(n *diverttest.Network, b []byte) { n.Inbound(b, diverttest.Loopback) }, nil, "", false, false, "loopback 1 x"},
		{"routed", func(n *diverttest.Network, b []byte) { n.Forward(b, 4) }, nil, "", false, true, "forward 4 x"},
		{"fragment in", func(n *diverttest.Network, b []byte) { n.Inbound(b, 3) }, fragment, "", true, false, "in 3 x"},
		{"fragment out", func(n *diverttest.Network, b []byte) { n.Outbound(b, 3) }, fragment, "out 3", true, false, "out 3 x"},
		{"fragment routed", func(n *diverttest.Network, b []byte) { n.Forward(b, 3) }, fragment, "", false, true, "forward 3 x"},
		{"IPv6 out", func(n *diverttest.Network, b []byte) { n.Outbound(b, 7) }, func(t testing.TB) []byte { return datagram(t, near6, far6, "x") },
			"out 7", true, false, "out 7 x"},
		{"longer than its header says", func(n *diverttest.Network, b []byte) { n.Outbound(b, 7) },
			func(t testing.TB) []byte { return append(udp(t, "x"), 0) }, "", false, false, "out 7 x"},
		{"impostor", func(n *diverttest.Network, b []byte) {
			a := divert.Address{Impostor: true}
			a.SetNetwork(packet.NetworkData{IfIdx: 9})
			if err := n.Put(b, a); err != nil {
				t.Error(err)
			}
		}, nil, "impostor in 9", true, false, "in 9 x"},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := diverttest.New()
			sniff := divert.WithFlags(divert.Sniff)
			atNetwork := open(t, n, "true", sniff)
			wanting := open(t, n, "true", sniff, divert.WithFlags(divert.Fragments))
			atForward := open(t, n, "true", sniff, divert.WithLayer(divert.LayerForward))
			b := udp(t, "x")
			if row.packet != nil {
				b = row.packet(t)
			}
			row.put(n, b)
			delivered(t, n, row.delivered)
			if got := seen(t, atNetwork); got != row.network {
				t.Errorf("at NETWORK seen as %q, want %q", got, row.network)
			}
			if got := seen(t, wanting) != ""; got != row.fragments {
				t.Errorf("seen with the flag Fragments: %v", got)
			}
			if got := seen(t, atForward) != ""; got != row.forward {
				t.Errorf("seen at FORWARD: %v", got)
			}
		})
	}
	if err := diverttest.New().Put(nil, divert.Address{Layer: divert.LayerFlow}); !errors.Is(err, divert.ErrInvalid) {
		t.Errorf("an event that is put: %v", err)
	}
}

// fragment is the first of two fragments.
func fragment(t testing.TB) []byte {
	b := udp(t, "x")
	packet.IPv4(b).SetMF(true)
	packet.CalcChecksums(b, nil, 0)
	return b[:len(b):len(b)]
}

// seen shuts a handle down and describes the packet that it has seen, if any.
func seen(t testing.TB, h *divert.Handle) string {
	t.Helper()
	check(t, h.Shutdown(divert.ShutdownRecv))
	ps := make([]divert.Packet, 2)
	k, err := h.RecvBatch(ps)
	if err == io.EOF {
		return ""
	}
	check(t, err)
	if k != 1 {
		t.Errorf("seen %d times", k)
	}
	a := ps[0].Addr
	var words []string
	for _, w := range []struct {
		is   bool
		word string
	}{{a.Loopback, "loopback"}, {a.Impostor, "impostor"}, {a.Outbound, "out"}, {!a.Outbound, "in"}} {
		if w.is {
			words = append(words, w.word)
		}
	}
	return fmt.Sprintf("%s %d", strings.Join(words, " "), a.Network().IfIdx)
}

func TestInjectedAnew(t *testing.T) {
	for _, row := range []struct {
		name     string
		layer    divert.Layer
		outbound bool
		ifIdx    uint32
		dst      netip.AddrPort
		want     string // as delivered; "" for ErrNoSuchDevice
		below    bool   // whether a lower handle sees it
	}{
		{"out", divert.LayerNetwork, true, 5, far4, "out 5 x", true},
		{"out, no interface", divert.LayerNetwork, true, 0, far4, "out 2 x", true},
		{"out, no such interface", divert.LayerNetwork, true, 99, far4, "out 2 x", true},
		{"out, to loopback", divert.LayerNetwork, true, 5, netip.MustParseAddrPort("127.0.0.1:1"), "loopback 1 x", true},
		{"in", divert.LayerNetwork, false, 5, far4, "in 5 x", true},
		{"in on loopback", divert.LayerNetwork, false, 1, far4, "loopback 1 x", false},
		{"in, no interface", divert.LayerNetwork, false, 0, far4, "", false},
		{"in, no such interface", divert.LayerNetwork, false, 99, far4, "", false},
		{"routed", divert.LayerForward, true, 5, far4, "forward 5 x", true},
		{"routed, said to be inbound", divert.LayerForward, false, 5, far4, "forward 5 x", true},
		{"routed, no such interface", divert.LayerForward, true, 99, far4, "", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := diverttest.New()
			n.AddInterface(5)
			h := open(t, n, "false", divert.WithLayer(row.layer))
			low := open(t, n, "true", divert.WithLayer(row.layer), divert.WithPriority(-1), divert.WithFlags(divert.Sniff))
			a := divert.Address{Outbound: row.outbound}
			a.SetNetwork(packet.NetworkData{IfIdx: row.ifIdx})
			b := datagram(t, near4, row.dst, "x")
			clear(b[10:12])
			clear(b[26:28]) // checksums, which Send computes
			err := h.Send(&divert.Packet{Data: b, Addr: a})
			if row.want == "" {
				if !errors.Is(err, divert.ErrNoSuchDevice) || !strings.Contains(err.Error(), fmt.Sprint(row.ifIdx)) {
					t.Errorf("sending returns %v", err)
				}
				delivered(t, n)
				stats(t, h, divert.Stats{Failed: 1})
				return
			}
			check(t, err)
			var parsed packet.Parsed
			if !parsed.ParseExact(b) || !parsed.VerifyIPChecksum(b) || !parsed.VerifyTransportChecksum(b) {
				t.Error("the checksums are wrong")
			}
			delivered(t, n, row.want)
			stats(t, h, divert.Stats{Injected: 1})
			if got := seen(t, low) != ""; got != row.below {
				t.Errorf("seen below: %v", got)
			}
		})
	}
}

// TestChecksums: checksums that the address calls correct stay unchanged, others are computed; an accepted packet keeps
// even checksums left to the hardware.
func TestChecksums(t *testing.T) {
	for _, row := range []struct {
		name      string
		a         divert.Address // address of the packet put
		accept    bool
		ip, udp   bool // checksums that the program calls correct
		ipOK, uOK bool // checksums that are correct
	}{
		{"both computed", divert.Address{IPChecksum: true, UDPChecksum: true}, false, false, false, true, true},
		{"only the header's", divert.Address{IPChecksum: true, UDPChecksum: true}, false, false, true, true, false},
		{"none", divert.Address{IPChecksum: true, UDPChecksum: true}, false, true, true, false, false},
		{"left to the hardware, accepted", divert.Address{IPChecksum: true}, true, true, false, false, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := diverttest.New()
			h := open(t, n, "true")
			b := udp(t, "x")
			b[10] ^= 1
			b[26] ^= 1
			row.a.Outbound = true
			check(t, n.Put(b, row.a))
			p := recv(t, h)
			if p.Addr.IPChecksum != row.a.IPChecksum || p.Addr.UDPChecksum != row.a.UDPChecksum {
				t.Errorf("received with %+v", p.Addr)
			}
			if row.accept {
				check(t, h.Accept(&p))
			} else {
				p.Addr.IPChecksum, p.Addr.UDPChecksum = row.ip, row.udp
				check(t, h.Send(&p))
			}
			out := n.Delivered()
			if len(out) != 1 {
				t.Fatalf("%d packets delivered", len(out))
			}
			var parsed packet.Parsed
			parsed.ParseExact(out[0].Data)
			if parsed.VerifyIPChecksum(out[0].Data) != row.ipOK || parsed.VerifyTransportChecksum(out[0].Data) != row.uOK {
				t.Errorf("delivered %.100x", out[0].Data)
			}
			if row.accept && out[0].Addr.UDPChecksum {
				t.Error("an accepted packet is said to have its checksum")
			}
		})
	}
}

// TestTimes: in a bubble of synctest queue times and deadlines pass exactly, and in no time.
func TestTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const step = time.Microsecond // no clock has longer ticks
		n := diverttest.New()
		h, err := n.Open("true", divert.WithQueueTime(time.Second))
		check(t, err)
		begin := time.Now()
		n.Outbound(udp(t, "old"), 0)
		time.Sleep(step)
		n.Outbound(udp(t, "just in time"), 0)
		time.Sleep(time.Second)
		ps := make([]divert.Packet, 4)
		if k, err := h.RecvBatch(ps); k != 1 || err != nil || payloadOf(ps[0].Data) != "just in time" {
			t.Errorf("received %d, %v", k, err)
		}
		if at := ps[0].Addr.Time(); at.Sub(begin) != step && runtime.GOOS != "windows" { // where bubbles do not control the clock
			t.Errorf("the packet is of %v, want a step after %v", at, begin)
		}
		check(t, h.SetReadDeadline(time.Now().Add(time.Hour)))
		if _, err := h.RecvBatch(ps); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("past the deadline: %v", err)
		}
		if took := time.Since(begin); took != time.Hour+time.Second+step {
			t.Errorf("the deadline came after %v", took)
		}
		stats(t, h, divert.Stats{Matched: 2, Received: 1, DroppedOld: 1})

		// When the handle closes, packets that are too old are lost, the rest go on.
		n.Inbound(udp(t, "old"), 0)
		time.Sleep(2 * time.Second)
		n.Inbound(udp(t, "young"), 0)
		check(t, h.Close())
		delivered(t, n, "in 2 young")
		stats(t, h, divert.Stats{Matched: 4, Received: 1, DroppedOld: 2, Passed: 1})
	})
}

// TestProgramInBubble waits for a program that works through a handle, without sleeping for it.
func TestProgramInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := diverttest.New()
		h, err := n.Open("outbound and udp")
		check(t, err)
		done := make(chan error)
		go func() {
			for p, err := range h.Packets(t.Context()) {
				if err != nil {
					done <- err
					return
				}
				time.Sleep(time.Minute) // delays packets
				if err := h.Accept(p); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		n.Outbound(udp(t, "x"), 0)
		synctest.Wait()
		delivered(t, n)
		time.Sleep(time.Minute)
		synctest.Wait()
		delivered(t, n, "out 2 x")
		check(t, h.Shutdown(divert.ShutdownRecv))
		check(t, <-done)
		check(t, h.Close())
		if n.Handles() != 0 {
			t.Errorf("%d handles are open", n.Handles())
		}
	})
}

// TestQueueLimits: the oldest give way, exactly.
func TestQueueLimits(t *testing.T) {
	for _, row := range []struct {
		name     string
		put      int
		size     int // of each packet, with its headers
		opts     []divert.Option
		want     divert.Stats
		passed   int
		received string // payloads' first bytes
	}{
		{"length", 34, 40, []divert.Option{divert.WithQueueLength(32)}, divert.Stats{Matched: 34, Received: 32, DroppedFull: 2}, 0, "c"},
		// 65535 bytes are room for 10 packets of 6000 and 63 each.
		{"size", 12, 6000, []divert.Option{divert.WithQueueSize(65535)}, divert.Stats{Matched: 12, Received: 10, DroppedFull: 2}, 0, "c"},
		{"longer than the queue", 1, 65500, []divert.Option{divert.WithQueueSize(65535)}, divert.Stats{Matched: 1, DroppedLong: 1}, 0, ""},
		{"longer than the queue, fail-open", 1, 65500, []divert.Option{divert.WithQueueSize(65535), divert.WithFailOpen()},
			divert.Stats{Matched: 1, Passed: 1}, 1, ""},
		{"fail-open", 34, 40, []divert.Option{divert.WithQueueLength(32), divert.WithFailOpen()}, divert.Stats{Matched: 34, Received: 32, Passed: 2}, 2, "a"},
		{"copies", 34, 40, []divert.Option{divert.WithQueueLength(32), divert.WithFlags(divert.Sniff)},
			divert.Stats{Matched: 34, Received: 32, DroppedFull: 2}, 34, "c"},
		{"copies, fail-open", 34, 40, []divert.Option{divert.WithQueueLength(32), divert.WithFlags(divert.Sniff), divert.WithFailOpen()},
			divert.Stats{Matched: 34, Received: 32, DroppedFull: 2}, 34, "c"},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := diverttest.New()
			h := open(t, n, "true", row.opts...)
			for i := range row.put {
				n.Outbound(udp(t, string(rune('a'+i))+strings.Repeat("x", row.size-29)), 0)
			}
			if got := len(n.Delivered()); got != row.passed {
				t.Errorf("%d passed, want %d", got, row.passed)
			}
			check(t, h.Shutdown(divert.ShutdownRecv))
			for i := 0; ; i++ {
				ps := make([]divert.Packet, 1)
				if _, err := h.RecvBatch(ps); err == io.EOF {
					break
				} else if check(t, err); i == 0 && payloadOf(ps[0].Data)[:1] != row.received {
					t.Errorf("the oldest is %q, want %q", payloadOf(ps[0].Data)[:1], row.received)
				}
			}
			stats(t, h, row.want)
		})
	}
}

// TestFailOpenPassesAll: a packet for which a full queue has no room passes the handles below too.
func TestFailOpenPassesAll(t *testing.T) {
	n := diverttest.New()
	h := open(t, n, "true", divert.WithQueueLength(32), divert.WithFailOpen())
	below := open(t, n, "true", divert.WithPriority(-1), divert.WithFlags(divert.Drop))
	for range 33 {
		n.Outbound(udp(t, "x"), 0)
	}
	delivered(t, n, "out 2 x")
	stats(t, below, divert.Stats{})
	stats(t, h, divert.Stats{Matched: 33, Waiting: 32, Passed: 1})
}

// TestLimitLowered: the surplus is dropped when the next item comes (api.md 11).
func TestLimitLowered(t *testing.T) {
	n := diverttest.New()
	h := open(t, n, "true")
	for range 100 {
		n.Outbound(udp(t, "x"), 0)
	}
	check(t, h.SetQueueLength(50))
	stats(t, h, divert.Stats{Matched: 100, Waiting: 100})
	n.Outbound(udp(t, "x"), 0)
	stats(t, h, divert.Stats{Matched: 101, Waiting: 50, DroppedFull: 51})
}

// TestImpostorOfClosedHandle: the hop limit also counts for packets that go on when the handle closes (api.md 10).
func TestImpostorOfClosedHandle(t *testing.T) {
	n := diverttest.New()
	h := open(t, n, "true")
	for _, ttl := range []uint8{64, 1} {
		b := udp(t, fmt.Sprint(ttl))
		packet.IPv4(b).SetTTL(ttl)
		check(t, n.Put(b, divert.Address{Outbound: true, Impostor: true}))
	}
	check(t, h.Close())
	out := n.Delivered()
	if len(out) != 1 || packet.IPv4(out[0].Data).TTL() != 63 {
		t.Errorf("delivered %+v", out)
	}
	stats(t, h, divert.Stats{Matched: 2, Passed: 1, Dropped: 1})
}

// TestFailSends: sends fail as asked, and the packet still waits for a better try.
func TestFailSends(t *testing.T) {
	n := diverttest.New()
	h := open(t, n, "true")
	n.Outbound(udp(t, "x"), 0)
	p := recv(t, h)
	broken := errors.New("broken")
	n.FailSends(func(p *divert.Packet) error {
		if p.Addr.Outbound {
			return broken
		}
		return nil
	})
	if err := h.Send(&p); !errors.Is(err, broken) {
		t.Errorf("sending returns %v", err)
	}
	n.FailSends(nil)
	check(t, h.Send(&p))
	delivered(t, n, "out 2 x")
	stats(t, h, divert.Stats{Matched: 1, Received: 1, Reinjected: 1, Failed: 1})
}

// TestOptionsAreChecked: package divert checks options, above any engine.
func TestOptionsAreChecked(t *testing.T) {
	n := diverttest.New()
	for _, row := range []struct {
		filter string
		opts   []divert.Option
	}{
		{"no such field", nil},
		{"ip.SrcAddr == 10.0.0.0/8", []divert.Option{divert.WithStrict()}},
		{"true", []divert.Option{divert.WithFlags(divert.Sniff | divert.Drop)}},
		{"true", []divert.Option{divert.WithLayer(divert.LayerSocket)}},
		{"true", []divert.Option{divert.WithQueueLength(1)}},
	} {
		h, err := n.Open(row.filter, row.opts...)
		var op *divert.OpError
		if h != nil || !errors.As(err, &op) || wincode.Of(err) != 87 {
			t.Errorf("open %q: %v", row.filter, err)
		}
	}
	if n.Handles() != 0 {
		t.Errorf("%d handles are open", n.Handles())
	}
	p, err := filter.Compile("inbound", divert.LayerNetwork, filter.Extended)
	check(t, err)
	h, err := n.OpenProgram(p, divert.WithPriority(9))
	check(t, err)
	if h.Priority() != 9 || h.Queues() != 1 || h.Description() == "" || n.Handles() != 1 {
		t.Errorf("opened with priority %d, %d queues, engine %q", h.Priority(), h.Queues(), h.Description())
	}
	check(t, h.Close())
}

// TestNext: it waits for a packet, or for its context.
func TestNext(t *testing.T) {
	n := diverttest.New()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Next(ctx); err != context.Canceled {
		t.Errorf("no packet: %v", err)
	}
	go n.Outbound(udp(t, "x"), 0)
	p, err := n.Next(t.Context())
	if err != nil || payloadOf(p.Data) != "x" {
		t.Errorf("next is %.100q (%v)", payloadOf(p.Data), err)
	}
	delivered(t, n)
}

// TestManyAtOnce has goroutines put, receive, send, open and close at the same time: no packet is lost or doubled.
func TestManyAtOnce(t *testing.T) {
	const senders, each = 4, 500
	n := diverttest.New()
	var workers, putters sync.WaitGroup
	var handles []*divert.Handle
	for i := range 3 {
		h := open(t, n, "outbound", divert.WithPriority(int16(i)), divert.WithQueueLength(16384))
		handles = append(handles, h)
		for range 2 {
			workers.Go(func() {
				ps := make([]divert.Packet, 7)
				for {
					k, err := h.RecvBatch(ps)
					if err == nil && i == 1 {
						_, err = h.SendBatch(ps[:k])
					} else if err == nil {
						_, err = h.AcceptBatch(ps[:k])
					}
					if err != nil {
						if err != io.EOF {
							t.Error(err)
						}
						return
					}
				}
			})
		}
	}
	for range senders {
		putters.Go(func() {
			for i := range each {
				n.Outbound(udp(t, "x"), 0)
				if i%50 == 0 {
					h, err := n.Open("outbound", divert.WithPriority(int16(i)))
					if err == nil {
						err = h.Close()
					}
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	putters.Wait()
	for i := range handles { // from the highest to the lowest, each with the packets that the one above has sent on
		h := handles[len(handles)-1-i]
		for s, err := h.Stats(); s.Reinjected < senders*each && err == nil; s, err = h.Stats() {
			time.Sleep(time.Millisecond)
		}
		check(t, h.Shutdown(divert.ShutdownRecv))
	}
	workers.Wait()
	if got := len(n.Delivered()); got != senders*each {
		t.Errorf("%d packets delivered, want %d", got, senders*each)
	}
	for _, h := range handles {
		s, err := h.Stats()
		if err != nil || s.Matched != senders*each || s.Reinjected != senders*each || s.Waiting != 0 {
			t.Errorf("the counters are %+v (%v)", s, err)
		}
	}
}

// TestCloseWhileReceiving: packets that a receive call holds when the handle closes go on.
func TestCloseWhileReceiving(t *testing.T) {
	for range 200 {
		n := diverttest.New()
		h := open(t, n, "true")
		for range 3 {
			n.Outbound(udp(t, "x"), 0)
		}
		received := make(chan int)
		go func() {
			k, err := h.RecvBatch(make([]divert.Packet, 2))
			if err != nil && !errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
			received <- k
		}()
		check(t, h.Close())
		if k, out := <-received, len(n.Delivered()); k+out != 3 {
			t.Fatalf("%d received and %d delivered, want 3 together", k, out)
		}
	}
}

// FuzzNetwork puts, receives and sends as the bytes say. The counters account for every packet lost or made.
func FuzzNetwork(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7}, udp(f, "x"))
	f.Add([]byte{0, 8, 16, 1, 9, 2, 10, 18, 3, 4}, datagram(f, near6, far6, "payload"))
	f.Add([]byte{0, 0, 0, 6, 1, 2}, []byte{0x45})
	f.Fuzz(func(t *testing.T, steps, data []byte) {
		n := diverttest.New()
		handles := []*divert.Handle{
			open(t, n, "true", divert.WithPriority(1), divert.WithQueueLength(32)),
			open(t, n, "ip.Length > 40 or random8 < 128", divert.WithFlags(divert.Fragments)),
			open(t, n, "inbound", divert.WithFlags(divert.Drop), divert.WithPriority(-1)),
		}
		var in, out uint64
		held := make([]divert.Packet, len(handles))
		for i, s := range steps[:min(len(steps), 200)] {
			which := int(s>>3) % len(handles)
			h, p := handles[which], &held[which]
			switch s & 7 {
			case 0:
				n.Outbound(data, uint32(s>>3))
				in++
			case 1:
				n.Inbound(data, uint32(s>>3))
				in++
			case 2, 3:
				if st, err := h.Stats(); err == nil && st.Waiting > 0 {
					*p = recv(t, h)
				}
			case 4:
				_ = h.Send(p)
			case 5:
				_ = h.Accept(p)
			case 6:
				_ = h.Send(&divert.Packet{Data: data, Addr: divert.Address{Outbound: i%2 == 0, Impostor: s>>3&1 != 0}})
			case 7:
				check(t, h.SetFilter([]string{"true", "false", "outbound", "udp"}[s>>3&3]))
			}
		}
		out = uint64(len(n.Delivered()))
		for i, h := range handles {
			s, err := h.Stats()
			if err != nil || s.Matched != s.Received+s.Waiting+s.Dropped+s.DroppedFull+s.DroppedOld+s.DroppedLong+s.Passed+s.Lost {
				t.Errorf("handle %d: %+v (%v)", i, s, err)
			}
			in += s.Injected + s.Reinjected
			out += s.Matched - s.Passed
		}
		if in != out {
			t.Errorf("%d packets went in, %d came out", in, out)
		}
	})
}

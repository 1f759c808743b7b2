//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// bulk is the size of a bulk transfer.
const bulk = 100 << 20

func TestPassthruChangesNothing(t *testing.T) {
	t.Parallel()
	for _, way := range []struct {
		name string
		send func(testing.TB, *divert.Handle) *worker
	}{{"accept", passthru}, {"send", resend}} {
		t.Run(way.name, func(t *testing.T) {
			eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
				for _, f := range families {
					t.Run(f.name, func(t *testing.T) {
						d := openAt(t, pair.A, "tcp or udp", e)
						w := way.send(t, d)
						transfer(t, pair.A, pair.B, f.addr(pair.B), amount(bulk))
						transfer(t, pair.B, pair.A, f.addr(pair.A), amount(bulk/4))
						r := exchange(t, pair.A, echoAt(t, pair.B, "udp", f.addr(pair.B)).Addr(), lab.Exchange{Count: 50, Size: 1200})
						if r.Echoed != 50 {
							t.Errorf("of 50 datagrams: %+v", r)
						}
						finish(t, d, w)
						s := stats(t, d)
						if s.Failed != 0 || s.Reinjected != s.Received || s.Received < 100 {
							t.Errorf("counters %+v", s)
						}
						d.Close()
						if n := w.wait(); uint64(n) != s.Matched {
							t.Errorf("%d packets received, %d matched", n, s.Matched)
						}
					})
				}
			})
		})
	}
}

// upper changes a payload's checksum but not its length.
func upper(b []byte) bool {
	changed := bytes.ToUpper(b)
	differs := !bytes.Equal(changed, b)
	copy(b, changed)
	return differs
}

// rewrite sends every packet on with its payload in upper case.
func rewrite(t testing.TB, d *divert.Handle) *worker {
	return each(t, d, func(p *divert.Packet) {
		var parsed packet.Parsed
		if !parsed.ParseExact(p.Data) {
			t.Errorf("a captured packet does not parse: %.100x", p.Data)
			return
		}
		if upper(parsed.Payload(p.Data)) {
			packet.CalcChecksums(p.Data, &p.Addr, 0)
		}
		if err := d.Send(p); err != nil {
			t.Errorf("send %d bytes: %v", len(p.Data), err)
		}
	})
}

func TestRewrittenPayloadArrivesWithRightChecksums(t *testing.T) {
	t.Parallel()
	links := []struct {
		name    string
		without lab.Offload
	}{
		{"offloading", 0}, // checksums left to the hardware, packets of 64 KiB
		{"plain", lab.OffloadAll},
	}
	for _, l := range links {
		t.Run(l.name, func(t *testing.T) {
			eachEngine(t, lab.LinkOptions{Without: l.without}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
				for _, f := range families {
					for _, at := range []string{"outbound", "inbound"} {
						t.Run(f.name+"/"+at, func(t *testing.T) {
							host := pair.A
							if at == "inbound" {
								host = pair.B
							}
							d := openAt(t, host, at+" and (udp.PayloadLength > 0 or tcp.PayloadLength > 0)", e)
							w := rewrite(t, d)
							checkUpperUDP(t, pair, f.addr(pair.B))
							checkUpperTCP(t, pair, f.addr(pair.B), 4<<20)
							finish(t, d, w)
							if s := stats(t, d); s.Failed != 0 || s.Reinjected == 0 {
								t.Errorf("counters %+v", s)
							}
						})
					}
				}
			})
		})
	}
}

// checkUpperUDP sends datagrams of several sizes from A to B and expects them in upper case.
func checkUpperUDP(t *testing.T, pair *lab.Pair, addr netip.Addr) {
	t.Helper()
	c, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	from, err := pair.A.Dial(t.Context(), "udp", c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	buf := make([]byte, 2048)
	for _, size := range []int{1, 2, 3, 64, 777, 1400} {
		sent := bytes.Repeat([]byte("divert "), size)[:size]
		if _, err := from.Write(sent); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			t.Fatalf("a rewritten datagram of %d bytes does not arrive: %v", size, err)
		}
		if want := bytes.ToUpper(sent); !bytes.Equal(buf[:n], want) {
			t.Errorf("arrived %.100q, want %.100q", buf[:n], want)
		}
	}
}

// checkUpperTCP sends n bytes from A to B over TCP and expects them in upper case.
func checkUpperTCP(t *testing.T, pair *lab.Pair, addr netip.Addr, n int) {
	t.Helper()
	text := bytes.Repeat([]byte("the quick brown fox "), n/20)
	if got := overTCP(t, pair, addr, text); !bytes.Equal(got, bytes.ToUpper(text)) {
		t.Errorf("%d bytes arrived, and not those sent in upper case", len(got))
	}
}

// overTCP sends a text from A to an address of B and returns what arrives.
func overTCP(t *testing.T, pair *lab.Pair, addr netip.Addr, text []byte) []byte {
	t.Helper()
	l, err := pair.B.Listen("tcp", netip.AddrPortFrom(addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		c, err := pair.A.Dial(ctx, "tcp", l.Addr().String())
		if err != nil {
			t.Errorf("connect: %v", err)
			l.Close()
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Write(text); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("%d bytes arrived of %d: %v", len(got), len(text), err)
	}
	return got
}

// TestChecksumsOfSuperpackets changes superpackets of TCP whose checksums the kernel has yet to compute. A handle below
// learns that they are missing, whether it diverts or sniffs, and packets that it sends on without them arrive too.
func TestChecksumsOfSuperpackets(t *testing.T) {
	t.Parallel()
	for _, l := range []struct {
		name    string
		without lab.Offload
	}{
		{"cut by the device", 0},
		{"cut by the kernel", lab.OffloadAll}, // and the receiver verifies
	} {
		t.Run(l.name, func(t *testing.T) {
			eachEngine(t, lab.LinkOptions{Without: l.without}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
				for _, f := range families {
					t.Run(f.name, func(t *testing.T) { checkSuperpackets(t, pair, f.addr(pair.B), e) })
				}
			})
		})
	}
}

func checkSuperpackets(t *testing.T, pair *lab.Pair, addr netip.Addr, e divert.Option) {
	const filter = "outbound and tcp.PayloadLength > 0"
	change := func(d *divert.Handle, from, to byte) *worker {
		return each(t, d, func(p *divert.Packet) {
			if p.Addr.TCPChecksum && len(p.Data) > 1500 {
				t.Errorf("the checksum of %d bytes is said to be right", len(p.Data))
			}
			for i, c := range p.Payload() {
				if c == from {
					p.Payload()[i] = to
				}
			}
			p.Changed()
			if err := d.Send(p); err != nil {
				t.Error(err)
			}
		})
	}
	upper, lower := openAt(t, pair.A, filter, e), openAt(t, pair.A, filter, e, divert.WithPriority(-5))
	sniffer := openAt(t, pair.A, filter, e, divert.WithPriority(-9), divert.WithFlags(divert.Sniff|divert.RecvOnly))
	large := 0
	us, ls := change(upper, 'a', 'b'), change(lower, 'b', 'c')
	ss := each(t, sniffer, func(p *divert.Packet) {
		if len(p.Data) <= 1500 {
			return
		}
		large++
		if p.Addr.TCPChecksum {
			t.Errorf("the checksum of a copy of %d bytes is said to be right", len(p.Data))
		}
	})
	text := bytes.Repeat([]byte("divert a packet, "), int(amount(4<<20))/17)
	got := overTCP(t, pair, addr, text)
	if want := bytes.ReplaceAll(text, []byte("a"), []byte("c")); !bytes.Equal(got, want) {
		t.Errorf("%d bytes arrived of %d, and not those that were to", len(got), len(want))
	}
	finish(t, upper, us)
	finish(t, lower, ls)
	finish(t, sniffer, ss)
	if large == 0 {
		t.Error("there was no superpacket")
	}
	if s := stats(t, lower); s.Failed != 0 || s.Injected != 0 || s.Reinjected == 0 {
		t.Errorf("counters %+v", s)
	}
}

// TestChecksumsOnTheWire checks rewritten packets as they leave: checksums that no device completes must be right.
func TestChecksumsOnTheWire(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{Without: lab.OffloadAll}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		capture, err := pair.LinkB.Capture()
		if err != nil {
			t.Fatal(err)
		}
		defer capture.Close()
		d := openAt(t, pair.A, "outbound and udp", e)
		rewrite(t, d)
		for _, f := range families {
			checkUpperUDP(t, pair, f.addr(pair.B))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for seen := 0; seen < 12; seen++ {
			frame, err := capture.NextMatch(ctx, func(f lab.Frame) bool {
				return !f.Outgoing && bytes.Contains(f.Data, []byte("D"))
			})
			if err != nil {
				t.Fatalf("%d of 12 datagrams on the wire: %v", seen, err)
			}
			if header, transport := frame.Checksums(); header == lab.ChecksumWrong || transport != lab.ChecksumRight {
				t.Errorf("checksums on the wire: header %v, transport %v", header, transport)
			}
		}
	})
}

// TestInjectedAnew carries a TCP connection by injection alone: the kernel forgets each packet, which is injected as a
// new one, even the large ones that it would have segmented later.
func TestInjectedAnew(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			for _, at := range []string{"outbound", "inbound"} {
				t.Run(f.name+"/"+at, func(t *testing.T) {
					host := pair.A
					if at == "inbound" {
						host = pair.B
						needInbound(t, host)
					}
					d := openAt(t, host, at+" and tcp", e)
					w := each(t, d, func(p *divert.Packet) {
						a := divert.Address{
							Outbound: p.Addr.Outbound, IPv6: p.Addr.IPv6, IPChecksum: p.Addr.IPChecksum, TCPChecksum: p.Addr.TCPChecksum,
						}
						a.SetNetwork(p.Addr.Network())
						if err := d.Send(&divert.Packet{Data: p.Data, Addr: a}); err != nil {
							t.Errorf("inject %d bytes: %v", len(p.Data), err)
							d.Close()
						}
					})
					transfer(t, pair.A, pair.B, f.addr(pair.B), 4<<20)
					finish(t, d, w)
					if s := stats(t, d); s.Injected != s.Received || s.Reinjected != 0 {
						t.Errorf("counters %+v", s)
					}
				})
			}
		}
	})
}

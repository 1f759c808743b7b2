package redirect

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/packet"
)

// fake redirects on a network in memory.
func fake(t testing.TB, filter string, o Options) (*Listener, *diverttest.Network) {
	t.Helper()
	n := diverttest.New()
	o.Open, o.OwnByDial = n.OpenProgram, true
	l, err := Listen(t.Context(), filter, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if n.Handles() != 0 {
			t.Errorf("%d handles are open", n.Handles())
		}
	})
	return l, n
}

var (
	client = netip.MustParseAddrPort("10.0.0.1:5555")
	web    = netip.MustParseAddrPort("192.0.2.1:80")
	webTLS = netip.MustParseAddrPort("192.0.2.1:443")
)

func segment(t testing.TB, src, dst netip.AddrPort, s packet.Segment) []byte {
	t.Helper()
	h := packet.Header{Src: src, Dst: dst}
	b, err := h.AppendTCP(nil, s, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// next returns the next packet that has left the host or reached its sockets.
func next(t testing.TB, n *diverttest.Network) divert.Packet {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	p, err := n.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAliases: two connections from one port get separate aliases, a repeated SYN keeps its alias, and answers come from
// the client's destination, with correct checksums.
func TestAliases(t *testing.T) {
	l, n := fake(t, "tcp", Options{})
	local := netip.AddrPortFrom(client.Addr(), l.port)
	seen := map[netip.AddrPort]bool{}
	for i, to := range []netip.AddrPort{web, webTLS} {
		var alias netip.AddrPort
		for again := range 2 {
			n.Outbound(segment(t, client, to, packet.Segment{Seq: uint32(i), Flags: packet.TCPSyn}), diverttest.Link)
			p := next(t, n)
			if p.Dst() != local || p.Src().Addr() != to.Addr() {
				t.Fatalf("the SYN goes from %v to %v", p.Src(), p.Dst())
			}
			if again == 1 && p.Src() != alias {
				t.Errorf("the SYN goes from %v when it is sent again, and went from %v", p.Src(), alias)
			}
			alias = p.Src()
		}
		if seen[alias] {
			t.Errorf("%v twice", alias)
		}
		seen[alias] = true
		n.Outbound(segment(t, local, alias, packet.Segment{Flags: packet.TCPSyn | packet.TCPAck}), diverttest.Link)
		p := next(t, n)
		var h packet.Parsed
		if p.Src() != to || p.Dst() != client || !h.Parse(p.Data) || !h.VerifyIPChecksum(p.Data) || !h.VerifyTransportChecksum(p.Data) {
			t.Errorf("the answer goes from %v to %v: %x", p.Src(), p.Dst(), p.Data)
		}
	}
	n.Outbound(segment(t, client, web, packet.Segment{Seq: 99, Flags: packet.TCPSyn}), diverttest.Link) // a new connection
	if p := next(t, n); seen[p.Src()] {
		t.Errorf("a new connection between the same ends has the old alias %v", p.Src())
	}
}

// TestLeftAlone: connections that began before, and multicast, go on; segments from the listener's port without a
// connection do not.
func TestLeftAlone(t *testing.T) {
	l, n := fake(t, "tcp or udp", Options{})
	n.Outbound(segment(t, netip.AddrPortFrom(client.Addr(), l.port), web, packet.Segment{Flags: packet.TCPAck}), diverttest.Link)
	n.Outbound(segment(t, client, web, packet.Segment{Flags: packet.TCPAck}), diverttest.Link)
	if p := next(t, n); p.Src() != client || p.Dst() != web {
		t.Errorf("from %v to %v", p.Src(), p.Dst())
	}
	many := packet.Header{Src: client, Dst: netip.MustParseAddrPort("224.0.0.251:5353")}
	b, err := many.AppendUDP(nil, []byte("mdns"))
	if err != nil {
		t.Fatal(err)
	}
	n.Outbound(b, diverttest.Link)
	if p := next(t, n); p.Dst() != many.Dst {
		t.Errorf("to %v", p.Dst())
	}
}

// TestFull: traffic beyond the limit is dropped; it does not pass.
func TestFull(t *testing.T) {
	l, n := fake(t, "tcp", Options{MaxConns: 1})
	n.Outbound(segment(t, client, web, packet.Segment{Flags: packet.TCPSyn}), diverttest.Link)
	next(t, n)
	n.Outbound(segment(t, client, webTLS, packet.Segment{Flags: packet.TCPSyn}), diverttest.Link)
	for end := time.Now().Add(10 * time.Second); l.Stats().Full == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if got := n.Delivered(); l.Stats().Full != 1 || len(got) > 0 {
		t.Errorf("%+v, %d packets", l.Stats(), len(got))
	}
}

// TestExchange: datagrams are read and answered, an idle exchange ends, and a reset is an ICMP error.
func TestExchange(t *testing.T) {
	l, n := fake(t, "udp", Options{Idle: 2 * time.Second})
	h := packet.Header{Src: client, Dst: web}
	b, err := h.AppendUDP(nil, []byte("question"))
	if err != nil {
		t.Fatal(err)
	}
	n.Outbound(b, diverttest.Link)
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := c.Read(buf); string(buf[:n]) != "question" || err != nil || c.OriginalDst() != web || c.Source() != client {
		t.Errorf("%q, %v, from %v to %v", buf[:n], err, c.Source(), c.OriginalDst())
	}
	if _, err := c.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if p := next(t, n); p.Src() != web || p.Dst() != client || string(p.Payload()) != "answer" {
		t.Errorf("%q from %v to %v", p.Payload(), p.Src(), p.Dst())
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	var timeout net.Error
	if _, err := c.Read(buf); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("past the deadline: %v", err)
	}
	_ = c.SetReadDeadline(time.Time{})
	if _, err := c.Read(buf); err == nil || err.Error() != "EOF" {
		t.Errorf("idle: %v", err)
	}
	c.Reset()
	p := next(t, n)
	var icmp packet.Parsed
	if !icmp.Parse(p.Data) || icmp.ICMPOff < 0 || p.Dst().Addr() != client.Addr() {
		t.Errorf("the reset is %x", p.Data)
	}
}

// TestSweep: aliases are kept while a socket may be in TIME_WAIT, and go afterwards.
func TestSweep(t *testing.T) {
	table := newTable(10, 1)
	begin := time.Now()
	f := &flow{ends: ends{client, web}}
	f.last.Store(begin.Unix())
	if !table.add(f) {
		t.Fatal("no room")
	}
	table.note(f, true, true, false)
	table.sweep(begin.Add(linger + 5*time.Second))
	if table.findAlias(f.alias) == nil {
		t.Error("a connection of which one direction has ended is forgotten")
	}
	table.note(f, false, true, false)
	table.sweep(begin.Add(linger / 2))
	if table.findAlias(f.alias) == nil {
		t.Error("the alias is free at once")
	}
	table.sweep(begin.Add(linger + 2*time.Second))
	if table.findAlias(f.alias) != nil || table.find(f.ends) != nil || table.live != 0 {
		t.Errorf("it stays; %d live", table.live)
	}
}

// FuzzTranslate: no packet makes a worker panic, and it injects nothing but segments.
func FuzzTranslate(f *testing.F) {
	h := packet.Header{Src: client, Dst: web}
	udp, _ := h.AppendUDP(nil, []byte("x"))
	f.Add(segment(f, client, web, packet.Segment{Flags: packet.TCPSyn}), true)
	f.Add(segment(f, client, web, packet.Segment{Flags: packet.TCPRst}), true)
	f.Add(udp, true)
	f.Fuzz(func(t *testing.T, b []byte, outbound bool) {
		l := &Listener{options: Options{OwnByDial: true, Idle: time.Minute}, port: 4000, table: newTable(100, 4000), ctx: t.Context(), conns: map[*Conn]struct{}{}, ready: make(chan *Conn, 10)}
		var err error
		if l.handle, err = diverttest.New().Open("false"); err != nil {
			t.Fatal(err)
		}
		defer l.handle.Close()
		w := &worker{l: l}
		for range 2 {
			p := divert.Packet{Data: append([]byte(nil), b...), Addr: divert.Address{Outbound: outbound}}
			w.translate(&p, 0)
			for _, out := range w.send {
				var h packet.Parsed
				if !h.Parse(out.Data) || h.TCPOff < 0 { // datagrams go to Accept
					t.Fatalf("%x of %x", out.Data, b)
				}
			}
		}
	})
}

// FuzzSocks: no answer of a proxy makes its client panic.
func FuzzSocks(f *testing.F) {
	f.Add([]byte{5, 0, 0, 1, 1, 2, 3, 4, 0, 80})
	f.Add([]byte{5, 0, 0, 3, 1, 'a', 0, 80})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = readSocksReply(strings.NewReader(string(b)))
		from, payload, ok := cutSocksDatagram(b)
		if ok && len(payload) > len(b) {
			t.Error(from)
		}
	})
}

// BenchmarkTranslate measures the cost of a segment of a redirected connection, without the kernel's part.
func BenchmarkTranslate(b *testing.B) {
	l := &Listener{options: Options{OwnByDial: true}, port: 4000, table: newTable(100, 4000), ctx: b.Context()}
	fl := &flow{ends: ends{client, web}}
	l.table.add(fl)
	w := &worker{l: l}
	data := segment(b, client, web, packet.Segment{Flags: packet.TCPAck})
	p := divert.Packet{Data: append([]byte(nil), data...), Addr: divert.Address{Outbound: true}}
	b.ReportAllocs()
	for b.Loop() {
		copy(p.Data, data)
		w.accept, w.drop, w.send = w.accept[:0], w.drop[:0], w.send[:0]
		w.translate(&p, 0)
	}
}

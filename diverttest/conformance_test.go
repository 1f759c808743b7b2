package diverttest_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/wincode"
	"github.com/opendivert/divert/packet"
)

// world is a host with a peer: the fake network, or a pair of namespaces with a real engine. Both must behave the same.
// Datagrams go between one port of the host and one of its peer.
type world interface {
	open(filter string, opts ...divert.Option) (*divert.Handle, error)
	out(payload string)           // the host sends a datagram to its peer
	in(payload string)            // the peer sends one to the host
	expectOut(payloads ...string) // these, and no others, have left the host since the last call
	expectIn(payloads ...string)  // these, and no others, have reached the host's socket since the last call
	forget()                      // ignore the packets that have left the host so far
	addrs() (host, peer netip.AddrPort)
	link() uint32     // the host's interface to its peer
	linkName() string // its name
	settle()          // waits long enough for packets that must not come

	// bind has the host bind a UDP socket to a port of its address and close it, and reports whether that was allowed.
	bind(port uint16) bool
}

// player performs a row's steps; a failure ends the row.
type player struct {
	*testing.T
	world
}

func (p *player) handle(filter string, opts ...divert.Option) *divert.Handle {
	p.Helper()
	h, err := p.open(filter, opts...)
	if err != nil {
		p.Fatalf("open %q: %v", filter, err)
	}
	p.Cleanup(func() {
		if err := h.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			p.Errorf("close %q: %v", filter, err)
		}
	})
	return h
}

// events opens a handle for events of the host's sockets, or skips where there are none.
func (p *player) events(filter string, opts ...divert.Option) *divert.Handle {
	p.Helper()
	opts = append(opts, divert.WithLayer(divert.LayerSocket), divert.WithFlags(divert.RecvOnly))
	h, err := p.open(filter, opts...)
	if errors.Is(err, divert.ErrNotSupported) || errors.Is(err, os.ErrPermission) {
		p.Skip(err)
	}
	p.ok(err)
	p.Cleanup(func() { h.Close() })
	return h
}

// event receives one event of a socket, which must be bound to the port.
func (p *player) event(h *divert.Handle, e divert.Event, port uint16, sniffed bool) {
	p.Helper()
	p.ok(h.SetReadDeadline(time.Now().Add(patience)))
	n, a, err := h.Recv(nil)
	if err != nil {
		p.Fatalf("receive %v: %v", e, err)
	}
	host, _ := p.addrs()
	d := a.Flow()
	if n != 0 || a.Layer != divert.LayerSocket || a.Event != e || a.Sniffed != sniffed || !a.Outbound || a.Loopback || a.IPv6 ||
		d.LocalAddr != host.Addr() || d.LocalPort != port || d.RemoteAddr != netip.IPv6Unspecified() || d.RemotePort != 0 ||
		d.Protocol != packet.ProtocolUDP || d.ProcessID != uint32(os.Getpid()) {
		p.Errorf("the event is %+v of %+v, want %v of port %d", a, d, e, port)
	}
}

// silent checks that nothing comes.
func (p *player) silent(h *divert.Handle) {
	p.Helper()
	p.ok(h.SetReadDeadline(time.Now().Add(50 * time.Millisecond)))
	if _, a, err := h.Recv(nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		p.Errorf("received %+v, %v; want nothing", a, err)
	}
}

// recv receives one packet, which must have the payload.
func (p *player) recv(h *divert.Handle, payload string) divert.Packet {
	p.Helper()
	if err := h.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.Fatal(err)
	}
	ps := make([]divert.Packet, 1)
	if _, err := h.RecvBatch(ps); err != nil {
		p.Fatalf("receive %q: %v", payload, err)
	}
	if got := payloadOf(ps[0].Data); got != payload {
		p.Errorf("received %q, want %q", got, payload)
	}
	return ps[0]
}

// none checks that nothing waits in a handle.
func (p *player) none(h *divert.Handle) {
	p.Helper()
	p.settle()
	if err := h.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		p.Fatal(err)
	}
	ps := make([]divert.Packet, 1)
	if n, err := h.RecvBatch(ps); !errors.Is(err, os.ErrDeadlineExceeded) {
		p.Errorf("received %d packets (%.100q), %v; want none", n, payloadOf(ps[0].Data), err)
	}
}

// dropsOnly checks that receiving from a handle that drops fails at once.
func (p *player) dropsOnly(h *divert.Handle) {
	p.Helper()
	_, _, err := h.Recv(make([]byte, 100))
	p.fails(err, divert.ErrDropOnly, 87)
}

// ok ends the row at an error.
func (p *player) ok(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// fails checks an error and its code.
func (p *player) fails(err, want error, code uint32) {
	p.Helper()
	if !errors.Is(err, want) || wincode.Of(err) != code {
		p.Errorf("the error is %v with code %d, want %v with code %d", err, wincode.Of(err), want, code)
	}
}

// patience is the longest wait of a row for packets that must come.
const patience = 20 * time.Second

// until waits until a handle's counters satisfy as.
func (p *player) until(h *divert.Handle, what string, as func(divert.Stats) bool) divert.Stats {
	p.Helper()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		s, err := h.Stats()
		p.ok(err)
		if as(s) {
			return s
		}
		if time.Since(begin) > patience {
			p.Fatalf("the counters are\n%+v, want %s", s, what)
		}
	}
}

// waiting waits until n packets wait in a handle's queue.
func (p *player) waiting(h *divert.Handle, n uint64) {
	p.Helper()
	p.until(h, fmt.Sprint(n, " waiting"), func(s divert.Stats) bool { return s.Waiting == n })
}

// counts waits for a handle's counters to become as in want; a field that is 0 in want must be 0.
func (p *player) counts(h *divert.Handle, want divert.Stats) {
	p.Helper()
	p.until(h, fmt.Sprintf("\n%+v", want), func(s divert.Stats) bool {
		if want.Abandoned == 0 && s.Abandoned <= want.Received-want.Reinjected {
			s.Abandoned = 0 // engines differ in when they give up packets that are not sent on
		}
		return s == want
	})
}

// datagram returns a datagram from the host to its peer.
func (p *player) datagram(payload string) []byte {
	p.Helper()
	host, peer := p.addrs()
	b, err := (&packet.Header{Src: host, Dst: peer}).AppendUDP(nil, []byte(payload))
	p.ok(err)
	return b
}

func payloadOf(b []byte) string {
	var parsed packet.Parsed
	parsed.Parse(b)
	return string(parsed.Payload(b))
}

// drain receives the packets left after a shutdown.
func (p *player) drain(h *divert.Handle) (payloads []string) {
	p.Helper()
	ps := make([]divert.Packet, 4)
	for {
		n, err := h.RecvBatch(ps)
		if err == io.EOF {
			return payloads
		}
		p.ok(err)
		for i := range ps[:n] {
			payloads = append(payloads, payloadOf(ps[i].Data))
		}
	}
}

// pri is a priority.
var pri = divert.WithPriority

// expectation is a row: one behaviour of handles.
type expectation struct {
	name string
	run  func(p *player)
}

// expectations are the behaviours of handles, on the fake network and on real ones.
var expectations = []expectation{
	{"what does not match passes", func(p *player) {
		h := p.handle("udp and inbound and udp.DstPort == 1")
		p.out("a")
		p.in("b")
		p.expectOut("a")
		p.expectIn("b")
		p.counts(h, divert.Stats{})
	}},
	{"diverted and not sent is gone", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		p.in("b")
		p.recv(h, "a")
		p.expectOut()
		p.expectIn("b")
		p.counts(h, divert.Stats{Matched: 1, Received: 1})
	}},
	{"sent on as it came", func(p *player) {
		h := p.handle("udp")
		for _, way := range []string{"out", "in"} {
			if way == "out" {
				p.out("a")
			} else {
				p.in("a")
			}
			k := p.recv(h, "a")
			if k.Addr.Outbound != (way == "out") || k.Addr.Network().IfIdx != p.link() || k.Addr.Layer != divert.LayerNetwork ||
				k.Addr.IPv6 || k.Addr.Sniffed || k.Addr.Loopback || k.Addr.Impostor {
				p.Errorf("%s: the address is %+v on %+v", way, k.Addr, k.Addr.Network())
			}
			p.ok(h.Send(&k))
		}
		p.expectOut("a")
		p.expectIn("a")
		p.counts(h, divert.Stats{Matched: 2, Received: 2, Reinjected: 2})
	}},
	{"sent on changed, checksums computed", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("lower")
		k := p.recv(h, "lower")
		copy(k.Data[len(k.Data)-5:], "UPPER")
		k.Addr.UDPChecksum = false
		p.ok(h.Send(&k))
		p.expectOut("UPPER") // a socket accepts only correct checksums
		p.counts(h, divert.Stats{Matched: 1, Received: 1, Reinjected: 1})
	}},
	{"accepted whatever its bytes are now", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("lower")
		k := p.recv(h, "lower")
		clear(k.Data)
		p.ok(h.Accept(&k))
		p.expectOut("lower")
		p.counts(h, divert.Stats{Matched: 1, Received: 1, Reinjected: 1})
	}},
	{"sent twice: once itself, once anew", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		k := p.recv(h, "a")
		p.ok(h.Send(&k))
		p.ok(h.Send(&k))
		p.expectOut("a", "a")
		p.none(h)
		p.counts(h, divert.Stats{Matched: 1, Received: 1, Reinjected: 1, Injected: 1})
	}},
	{"sent too late: anew", func(p *player) {
		h := p.handle("outbound and udp", divert.WithQueueLength(32))
		p.out("late")
		k := p.recv(h, "late")
		for i := range 100 {
			p.out(fmt.Sprint(i))
			p.recv(h, fmt.Sprint(i))
		}
		p.ok(h.Send(&k))
		p.expectOut("late")
		s, err := h.Stats()
		if err != nil || s.Reinjected != 0 || s.Injected != 1 || s.Abandoned == 0 {
			p.Errorf("the counters are %+v (%v)", s, err)
		}
	}},
	{"received and dropped", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		k := p.recv(h, "a")
		p.ok(h.Drop(&k))
		p.ok(h.Drop(&k))
		p.expectOut()
		p.counts(h, divert.Stats{Matched: 1, Received: 1, Abandoned: 1})
	}},
	{"dropped", func(p *player) {
		h := p.handle("udp", divert.WithFlags(divert.Drop))
		p.out("a")
		p.in("b")
		p.expectOut()
		p.expectIn()
		p.dropsOnly(h)
		p.counts(h, divert.Stats{Matched: 2, Dropped: 2})
	}},
	{"sniffed", func(p *player) {
		h := p.handle("udp", divert.WithFlags(divert.Sniff))
		p.out("a")
		p.in("b")
		p.expectOut("a")
		p.expectIn("b")
		a, b := p.recv(h, "a"), p.recv(h, "b")
		if !a.Addr.Sniffed || !b.Addr.Sniffed || !a.Addr.Outbound || b.Addr.Outbound {
			p.Errorf("the addresses are %+v and %+v", a.Addr, b.Addr)
		}
		p.ok(h.Send(&a)) // sending a copy adds a packet
		p.expectOut("a")
		p.none(h)
		p.counts(h, divert.Stats{Matched: 2, Received: 2, Injected: 1})
	}},
	{"receive-only", func(p *player) {
		h := p.handle("outbound and udp", divert.WithFlags(divert.RecvOnly))
		p.out("a")
		k := p.recv(h, "a")
		p.fails(h.Send(&k), divert.ErrRecvOnly, 87)
		p.fails(h.Accept(&k), divert.ErrRecvOnly, 87)
		p.ok(h.Shutdown(divert.ShutdownSend))
		p.fails(h.Send(&k), divert.ErrShutdown, 232)
		p.expectOut()
	}},
	{"send-only swallows what matches until it is closed", func(p *player) {
		h := p.handle("outbound and udp", divert.WithFlags(divert.SendOnly))
		p.out("a")
		p.waiting(h, 1)
		p.expectOut()
		_, _, err := h.Recv(make([]byte, 100))
		p.fails(err, divert.ErrSendOnly, 87)
		p.ok(h.Send(&divert.Packet{Data: p.datagram("b"), Addr: divert.Address{Outbound: true}}))
		p.expectOut("b")
		p.ok(h.Close())
		p.expectOut("a")
		p.counts(h, divert.Stats{Matched: 1, Passed: 1, Injected: 1})
	}},
	{"from the highest priority to the lowest", func(p *player) {
		low, high, mid := p.handle("outbound and udp", pri(-5)), p.handle("outbound and udp", pri(100)), p.handle("outbound and udp")
		p.out("a")
		for _, h := range []*divert.Handle{high, mid, low} {
			for _, other := range []*divert.Handle{high, mid, low} {
				if h != other {
					if s, err := other.Stats(); err != nil || s.Waiting != 0 {
						p.Errorf("another handle has it too: %+v (%v)", s, err)
					}
				}
			}
			k := p.recv(h, "a")
			p.ok(h.Send(&k))
		}
		p.expectOut("a")
		for _, h := range []*divert.Handle{high, mid, low} {
			p.counts(h, divert.Stats{Matched: 1, Received: 1, Reinjected: 1})
		}
	}},
	{"of equal priorities the newest first", func(p *player) {
		older, newer := p.handle("outbound and udp"), p.handle("outbound and udp")
		p.out("a")
		k := p.recv(newer, "a")
		p.ok(newer.Accept(&k))
		k = p.recv(older, "a")
		p.ok(older.Accept(&k))
		p.expectOut("a")
		p.none(newer)
	}},
	{"a handle in between sniffs, one below drops", func(p *player) {
		high := p.handle("outbound and udp", pri(2))
		sniff := p.handle("outbound and udp", pri(1), divert.WithFlags(divert.Sniff))
		drop := p.handle("outbound and udp", divert.WithFlags(divert.Drop))
		p.out("a")
		k := p.recv(high, "a")
		p.none(sniff)
		copy(k.Data[len(k.Data)-1:], "b")
		k.Addr.UDPChecksum = false
		p.ok(high.Send(&k))
		p.recv(sniff, "b")
		p.expectOut()
		p.counts(drop, divert.Stats{Matched: 1, Dropped: 1})
	}},
	{"what is injected meets lower handles only", func(p *player) {
		high := p.handle("udp", pri(1), divert.WithFlags(divert.Sniff))
		h := p.handle("udp")
		low := p.handle("udp", pri(-1), divert.WithFlags(divert.Sniff))
		p.ok(h.Send(&divert.Packet{Data: p.datagram("a"), Addr: divert.Address{Outbound: true}}))
		p.expectOut("a")
		k := p.recv(low, "a")
		if !k.Addr.Outbound || k.Addr.Impostor || k.Addr.Network().IfIdx != p.link() {
			p.Errorf("the address below is %+v on %+v", k.Addr, k.Addr.Network())
		}
		p.none(high)
		p.none(h)
		p.counts(h, divert.Stats{Injected: 1})
	}},
	{"a filter that is set while packets wait", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		p.waiting(h, 1)
		p.ok(h.SetFilter("inbound and udp"))
		p.out("b")
		p.in("c")
		p.expectOut("b")
		p.expectIn()
		p.recv(h, "a")
		p.recv(h, "c")
		p.none(h)
		if err := h.SetFilter("no such field"); wincode.Of(err) != 87 {
			p.Errorf("a wrong filter: %v", err)
		}
		p.counts(h, divert.Stats{Matched: 2, Received: 2})
	}},
	{"a named set that changes", func(p *player) {
		h := p.handle("udp and remoteAddr in @blocked", divert.WithFlags(divert.Drop))
		blocked, err := h.Set("blocked")
		p.ok(err)
		_, peer := p.addrs()
		network, err := peer.Addr().Prefix(24)
		p.ok(err)
		p.out("a")
		p.expectOut("a")
		p.ok(blocked.Add(filter.Prefix(network)))
		p.out("b")
		p.in("c")
		p.expectOut()
		p.expectIn()
		p.ok(blocked.Remove(filter.Address(peer.Addr())))
		p.out("d")
		p.expectOut("d")
		p.ok(blocked.Replace([]filter.Element{filter.Address(peer.Addr())}))
		p.out("e")
		p.expectOut()
		p.counts(h, divert.Stats{Matched: 3, Dropped: 3})
		_, err = h.Set("blokced")
		p.fails(err, divert.ErrInvalid, 87)
	}},
	{"an interface by its name", func(p *player) {
		name := p.linkName()
		h := p.handle(fmt.Sprintf("udp and iface == %q", name), divert.WithFlags(divert.Drop))
		others := p.handle(fmt.Sprintf("udp and iface not in {%q, \"nosuch\"}", name), pri(-1), divert.WithFlags(divert.Drop))
		p.out("a")
		p.in("b")
		p.expectOut()
		p.expectIn()
		p.counts(h, divert.Stats{Matched: 2, Dropped: 2})
		p.ok(h.SetFilter(`udp and iface == "nosuch"`))
		p.out("c")
		p.in("d")
		p.expectOut("c")
		p.expectIn("d")
		p.ok(h.SetFilter(fmt.Sprintf("outbound and udp and iface in {\"nosuch\", %q}", name)))
		p.out("e")
		p.in("f")
		p.expectOut()
		p.expectIn("f")
		p.counts(h, divert.Stats{Matched: 3, Dropped: 3})
		p.counts(others, divert.Stats{})
		if _, err := p.open("iface == " + name); wincode.Of(err) != 87 {
			p.Errorf("a name without quotes: %v", err)
		}
	}},
	{"a set of several handles, which outlives them", func(p *player) {
		ports := filter.NewNumberSet()
		with := divert.WithSet("ports", ports)
		_, peer := p.addrs()
		p.ok(ports.Add(filter.NumberElement(uint64(peer.Port()))))
		low := p.handle("udp.DstPort in @ports or udp.SrcPort in @ports", pri(-1), with, divert.WithFlags(divert.Sniff))
		h := p.handle("outbound and udp and remotePort not in @ports", with)
		p.out("a")
		p.recv(low, "a")
		p.expectOut("a")
		p.ok(ports.Replace(nil))
		p.out("b")
		p.recv(h, "b")
		p.none(low)
		p.expectOut()
		p.ok(h.Close())
		p.ok(low.Close())
		p.ok(ports.Add(filter.NumberRange(0, 65535)))
		h = p.handle("outbound and udp and remotePort in @ports", with)
		p.out("c")
		p.recv(h, "c")
		for name, opt := range map[string]divert.Option{
			"a name that the filter does not have": divert.WithSet("port", ports),
			"no set":                               divert.WithSet("ports", nil),
		} {
			if _, err := p.open("remotePort in @ports", opt); !errors.Is(err, divert.ErrInvalid) {
				p.Errorf("%s: %v", name, err)
			}
		}
		_, err := p.open("remoteAddr in @ports", with)
		p.fails(err, filter.ErrSetKind, 87)
	}},
	{"another filter keeps the sets", func(p *player) {
		h := p.handle("outbound and remoteAddr in @a", divert.WithFlags(divert.Drop))
		a, err := h.Set("a")
		p.ok(err)
		_, peer := p.addrs()
		p.ok(a.Add(filter.Address(peer.Addr())))
		p.ok(h.SetFilter("false"))
		p.out("a")
		p.expectOut("a")
		p.ok(h.SetFilter("outbound and remotePort not in @b and remoteAddr in @a"))
		p.out("b")
		p.expectOut()
		p.ok(a.Remove(filter.Address(peer.Addr())))
		p.out("c")
		p.expectOut("c")
		err = h.SetFilter("remotePort in @a")
		p.fails(err, filter.ErrSetKind, 87)
		p.ok(a.Add(filter.Address(peer.Addr())))
		b, err := h.Set("b")
		p.ok(err)
		p.ok(b.Add(filter.NumberElement(uint64(peer.Port()))))
		p.out("d")
		p.expectOut("d")
		program, err := filter.Compile("outbound and remoteAddr in @a", divert.LayerNetwork, filter.Extended)
		p.ok(err)
		p.ok(h.SetProgram(program)) // brings its own set
		p.out("e")
		p.expectOut("e")
		p.ok(program.Set("a").Add(filter.Address(peer.Addr())))
		p.out("f")
		p.expectOut()
	}},
	{"socket calls are looked up in a set", func(p *player) {
		h := p.events("localPort in @ports and processId not in @mine and endpointId not in @none")
		ports, err := h.Set("ports")
		p.ok(err)
		if !p.bind(4999) {
			p.Error("refused without a port in the set")
		}
		p.ok(ports.Add(filter.NumberRange(4998, 4999)))
		if p.bind(4999) {
			p.Error("allowed")
		}
		p.event(h, packet.EventSocketBind, 4999, false)
		p.ok(ports.Remove(filter.NumberElement(4999)))
		if !p.bind(4999) || p.bind(4998) {
			p.Error("the wrong call was refused")
		}
		p.event(h, packet.EventSocketBind, 4998, false)
	}},
	{"receiving shut down: the rest, then the end; sending goes on", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		p.out("b")
		p.waiting(h, 2)
		p.ok(h.Shutdown(divert.ShutdownRecv))
		p.out("c")
		p.expectOut("c")
		if got := p.drain(h); strings.Join(got, " ") != "a b" {
			p.Errorf("the rest is %q", got)
		}
		_, _, err := h.Recv(make([]byte, 100))
		p.fails(err, io.EOF, 232)
		p.ok(h.Send(&divert.Packet{Data: p.datagram("d"), Addr: divert.Address{Outbound: true}}))
		p.expectOut("d")
	}},
	{"sending shut down: receiving goes on", func(p *player) {
		h := p.handle("outbound and udp")
		p.ok(h.Shutdown(divert.ShutdownSend))
		p.ok(h.Shutdown(divert.ShutdownSend))
		p.fails(h.Send(&divert.Packet{Data: p.datagram("a"), Addr: divert.Address{Outbound: true}}), divert.ErrShutdown, 232)
		p.out("b")
		k := p.recv(h, "b")
		p.fails(h.Accept(&k), divert.ErrShutdown, 232)
		p.expectOut()
	}},
	{"a handle that drops and is shut down lets packets pass", func(p *player) {
		h := p.handle("outbound and udp", divert.WithFlags(divert.Drop))
		p.out("a")
		p.counts(h, divert.Stats{Matched: 1, Dropped: 1})
		p.ok(h.Shutdown(divert.ShutdownBoth))
		p.out("b")
		p.expectOut("b")
		_, _, err := h.Recv(make([]byte, 100))
		p.fails(err, io.EOF, 232)
	}},
	{"closed: what waits goes on, what was received is gone", func(p *player) {
		h := p.handle("outbound and udp", pri(1))
		low := p.handle("outbound and udp")
		p.out("a")
		p.out("b")
		p.recv(h, "a")
		p.waiting(h, 1)
		p.ok(h.Close())
		p.expectOut()
		k := p.recv(low, "b")
		p.ok(low.Accept(&k))
		p.expectOut("b")
		p.fails(h.Close(), net.ErrClosed, 995)
		p.fails(h.Send(&divert.Packet{Data: p.datagram("c"), Addr: divert.Address{Outbound: true}}), net.ErrClosed, 995)
		_, _, err := h.Recv(make([]byte, 100))
		p.fails(err, net.ErrClosed, 995)
		p.counts(h, divert.Stats{Matched: 2, Received: 1, Passed: 1})
	}},
	{"a loop that was left early, and closed", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		p.out("b")
		p.waiting(h, 2)
		for range h.Packets(p.Context()) {
			break
		}
		p.ok(h.Close())
		p.expectOut("b")
	}},
	{"older than the queue time", func(p *player) {
		h := p.handle("outbound and udp", divert.WithQueueTime(time.Second))
		p.out("old")
		p.waiting(h, 1)
		time.Sleep(1500 * time.Millisecond) // the Linux engine keeps packets up to an eighth longer
		p.out("young")
		p.recv(h, "young")
		p.none(h)
		p.expectOut()
		p.counts(h, divert.Stats{Matched: 2, Received: 1, DroppedOld: 1})
	}},
	{"longer than the buffer", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("0123456789")
		b := make([]byte, 30)
		n, a, err := h.Recv(b)
		p.fails(err, divert.ErrShortBuffer, 122)
		if n != 30 || !a.Outbound {
			p.Errorf("%d bytes with %+v", n, a)
		}
		p.ok(h.Accept(&divert.Packet{Data: b, Addr: a}))
		p.expectOut("0123456789")
		if _, _, err := h.Recv(nil); !errors.Is(err, divert.ErrShortBuffer) {
			p.Errorf("no buffer at all: %v", err)
		}
	}},
	{"what is no packet is not sent", func(p *player) {
		h := p.handle("false")
		whole := p.datagram("a")
		short := whole[:len(whole)-1]
		out := &divert.Address{Outbound: true}
		p.fails(h.Send(&divert.Packet{Data: nil, Addr: *out}), divert.ErrShortBuffer, 122)
		p.fails(h.Send(&divert.Packet{Data: whole[:19], Addr: *out}), divert.ErrShortBuffer, 122)
		p.fails(h.Send(&divert.Packet{Data: short, Addr: *out}), divert.ErrShortBuffer, 122)
		p.fails(h.Send(&divert.Packet{Data: append([]byte{0x55}, whole[1:]...), Addr: *out}), divert.ErrInvalid, 87)
		p.fails(h.Send(&divert.Packet{Data: append([]byte{0x45, 0, 0, 19}, whole[4:]...), Addr: *out}), divert.ErrInvalid, 87)
		// The other packets of a batch are sent, and bytes behind a packet do not matter.
		n, err := h.SendBatch([]divert.Packet{
			{Data: whole, Addr: *out}, {Data: short, Addr: *out}, {Data: append(p.datagram("b"), 1, 2, 3), Addr: *out},
		})
		p.fails(err, divert.ErrShortBuffer, 122)
		if n != 2 {
			p.Errorf("%d of the batch were sent, want 2", n)
		}
		p.expectOut("a", "b")
		p.counts(h, divert.Stats{Injected: 2, Failed: 6})
	}},
	{"another program's packet loses a hop, and ends without one", func(p *player) {
		h := p.handle("outbound and udp")
		below := p.handle("outbound and udp", pri(-1), divert.WithFlags(divert.Sniff))
		p.out("a")
		k := p.recv(h, "a")
		packet.IPv4(k.Data).SetTTL(1)
		packet.CalcChecksums(k.Data, nil, 0)
		k.Addr.Impostor, k.Addr.UDPChecksum = true, true
		p.fails(h.Send(&k), divert.ErrHopLimit, 1232)
		packet.IPv4(k.Data).SetTTL(2)
		packet.CalcChecksums(k.Data, nil, 0)
		p.ok(h.Send(&k))
		p.expectOut("a")
		if got := p.recv(below, "a"); packet.IPv4(got.Data).TTL() != 1 {
			p.Errorf("the TTL below is %d, want 1", packet.IPv4(got.Data).TTL())
		}
		p.counts(h, divert.Stats{Matched: 1, Received: 1, Reinjected: 1, Failed: 1})
	}},
	{"turned round", func(p *player) {
		h := p.handle("inbound and udp")
		p.in("ping")
		k := p.recv(h, "ping")
		host, peer := p.addrs()
		answer, err := (&packet.Header{Src: host, Dst: peer}).AppendUDP(nil, []byte("pong"))
		p.ok(err)
		k.Addr.Outbound = true
		p.ok(h.Send(&divert.Packet{Data: answer, Addr: k.Addr}))
		p.expectIn()
		p.expectOut("pong")
		p.counts(h, divert.Stats{Matched: 1, Received: 1, Injected: 1})
	}},
	{"injected on an interface that is not there", func(p *player) {
		h := p.handle("false")
		a := divert.Address{}
		a.SetNetwork(packet.NetworkData{IfIdx: 4711})
		p.fails(h.Send(&divert.Packet{Data: p.datagram("a"), Addr: a}), divert.ErrNoSuchDevice, 87)
		p.counts(h, divert.Stats{Failed: 1})
	}},
	{"handles opened and closed are told of", func(p *player) {
		before := p.handle("outbound and udp", pri(7), divert.WithFlags(divert.Sniff))
		r := p.handle("true", divert.WithLayer(divert.LayerReflect), divert.WithFlags(divert.Sniff|divert.RecvOnly))
		later := p.handle("false", pri(-7))
		p.ok(later.Close())
		p.ok(before.Close())
		for i, want := range []struct {
			event    divert.Event
			priority int16
			flags    divert.Flag
		}{
			{packet.EventReflectOpen, 7, divert.Sniff}, {packet.EventReflectOpen, -7, 0},
			{packet.EventReflectClose, -7, 0}, {packet.EventReflectClose, 7, divert.Sniff},
		} {
			p.ok(r.SetReadDeadline(time.Now().Add(patience)))
			b := make([]byte, 1000)
			n, a, err := r.Recv(b)
			p.ok(err)
			d := a.Reflect()
			if a.Event != want.event || d.Priority != want.priority || divert.Flag(d.Flags) != want.flags ||
				d.Layer != divert.LayerNetwork || d.ProcessID != uint32(os.Getpid()) || !a.Sniffed || d.Timestamp > a.Timestamp {
				p.Errorf("event %d is %+v with %+v, want %+v", i, a, d, want)
			}
			if n == 0 || b[n-1] != 0 || !strings.HasPrefix(string(b[:n]), "@WinDiv_") {
				p.Errorf("event %d has the filter %q", i, b[:n])
			}
		}
	}},
	{"injected as if it came in", func(p *player) {
		h := p.handle("udp")
		above := p.handle("udp", pri(1), divert.WithFlags(divert.Sniff))
		below := p.handle("udp", pri(-1), divert.WithFlags(divert.Sniff))
		host, peer := p.addrs()
		b, err := (&packet.Header{Src: peer, Dst: host}).AppendUDP(nil, []byte("a"))
		p.ok(err)
		a := divert.Address{IPChecksum: true, UDPChecksum: true}
		a.SetNetwork(packet.NetworkData{IfIdx: p.link()})
		if err := h.Send(&divert.Packet{Data: b, Addr: a}); errors.Is(err, os.ErrPermission) {
			p.Skip(err) // no device for that here
		} else {
			p.ok(err)
		}
		p.expectIn("a")
		k := p.recv(below, "a")
		if k.Addr.Outbound || k.Addr.Impostor || k.Addr.Network().IfIdx != p.link() {
			p.Errorf("the address below is %+v on %+v", k.Addr, k.Addr.Network())
		}
		p.none(above)
		p.counts(h, divert.Stats{Injected: 1})
	}},
	{"socket calls are told of", func(p *player) {
		h := p.events("localPort == 4999", divert.WithFlags(divert.Sniff))
		if !p.bind(4999) || !p.bind(4998) {
			p.Error("a sniffed call was refused")
		}
		p.event(h, packet.EventSocketBind, 4999, true)
		p.event(h, packet.EventSocketClose, 4999, true)
		p.silent(h)
		p.counts(h, divert.Stats{Matched: 2, Received: 2})
	}},
	{"socket calls are refused, and hidden from handles below", func(p *player) {
		low := p.events("localPort == 4999", divert.WithFlags(divert.Sniff))
		h := p.events("event == BIND and localPort == 4999", pri(1))
		high := p.events("event == BIND and localPort == 4999", pri(2), divert.WithFlags(divert.Sniff))
		if p.bind(4999) || !p.bind(4998) {
			p.Error("the wrong call was refused")
		}
		p.event(high, packet.EventSocketBind, 4999, true)
		p.event(h, packet.EventSocketBind, 4999, false)
		if p.silent(low); p.Failed() {
			return
		}
		p.ok(h.Shutdown(divert.ShutdownRecv))
		if !p.bind(4999) {
			p.Error("refused by a handle that is shut down")
		}
		p.event(low, packet.EventSocketBind, 4999, true)
		p.event(low, packet.EventSocketClose, 4999, true)
		_, _, err := h.Recv(nil)
		p.fails(err, io.EOF, 232)
	}},
	{"socket calls are refused silently", func(p *player) {
		h := p.events("localPort == 4999", divert.WithFlags(divert.Drop))
		if p.bind(4999) {
			p.Error("allowed")
		}
		p.dropsOnly(h)
		_, err := h.SendBatch([]divert.Packet{{Data: p.datagram("a")}})
		p.fails(err, divert.ErrRecvOnly, 87)
		p.ok(h.Close())
		if !p.bind(4999) {
			p.Error("refused by a handle that is closed")
		}
	}},
	{"limits out of range", func(p *player) {
		h := p.handle("false")
		p.fails(h.SetQueueLength(31), divert.ErrInvalid, 87)
		p.ok(h.SetQueueLength(32))
		if n := h.QueueLength(); n != 32 {
			p.Errorf("the queue length is %d", n)
		}
		p.fails(h.Shutdown(0), divert.ErrInvalid, 87)
		_, err := p.open("true", pri(30001))
		p.fails(err, divert.ErrInvalid, 87)
		_, err = p.open("true", divert.WithLayer(divert.LayerFlow))
		p.fails(err, divert.ErrInvalid, 87)
		if _, err = p.open("udp.DstPort =="); wincode.Of(err) != 87 {
			p.Errorf("a wrong filter: %v", err)
		}
	}},
	{"a queue that is full drops the rest", func(p *player) {
		h := p.handle("outbound and udp", divert.WithQueueLength(32))
		for i := range 200 {
			p.out(fmt.Sprint(i))
		}
		// Engines may keep up to twice the length, and the oldest instead of the newest.
		s := p.until(h, "32 to 64 of 200 waiting, the rest dropped", func(s divert.Stats) bool {
			return s.Matched == 200 && s.Waiting >= 32 && s.Waiting <= 64 && s.Waiting+s.DroppedFull == 200
		})
		p.ok(h.Shutdown(divert.ShutdownRecv))
		if got := p.drain(h); uint64(len(got)) != s.Waiting {
			p.Errorf("received %d, waiting were %d", len(got), s.Waiting)
		}
		p.expectOut()
	}},
}

// TestFakeDoesWhatIsExpected runs the table against the fake network.
func TestFakeDoesWhatIsExpected(t *testing.T) {
	for _, row := range expectations {
		t.Run(row.name, func(t *testing.T) { row.run(&player{t, newFake(t)}) })
	}
}

// fake is the fake network as a world.
type fake struct {
	*testing.T
	n                *diverttest.Network
	sentOut, reached []string // left, and reached the host's socket, since it was looked at
}

func newFake(t *testing.T) *fake { return &fake{T: t, n: diverttest.New()} }

func (f *fake) open(filter string, opts ...divert.Option) (*divert.Handle, error) {
	return f.n.Open(filter, opts...)
}

func (f *fake) addrs() (host, peer netip.AddrPort) {
	return netip.MustParseAddrPort("10.77.0.1:4001"), netip.MustParseAddrPort("10.77.0.2:4002")
}

func (f *fake) link() uint32     { return diverttest.Link }
func (f *fake) linkName() string { return "eth0" }
func (f *fake) settle()          {}

func (f *fake) out(payload string) {
	host, peer := f.addrs()
	f.n.Outbound(f.datagram(host, peer, payload), diverttest.Link)
}

func (f *fake) in(payload string) {
	host, peer := f.addrs()
	f.n.Inbound(f.datagram(peer, host, payload), diverttest.Link)
}

func (f *fake) datagram(src, dst netip.AddrPort, payload string) []byte {
	f.Helper()
	b, err := (&packet.Header{Src: src, Dst: dst}).AppendUDP(nil, []byte(payload))
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func (f *fake) bind(port uint16) bool {
	f.Helper()
	host, _ := f.addrs()
	a := divert.Address{Event: packet.EventSocketBind}
	a.SetFlow(packet.FlowData{LocalAddr: host.Addr(), LocalPort: port, Protocol: packet.ProtocolUDP, ProcessID: uint32(os.Getpid())})
	allowed, err := f.n.Raise(a)
	if allowed && err == nil {
		a.Event = packet.EventSocketClose
		_, err = f.n.Raise(a)
	}
	if err != nil {
		f.Fatal(err)
	}
	return allowed
}

// collect takes the delivered packets with correct checksums: no socket would accept others.
func (f *fake) collect() {
	for _, p := range f.n.Delivered() {
		var parsed packet.Parsed
		switch {
		case !parsed.ParseExact(p.Data) || !parsed.VerifyIPChecksum(p.Data) || !parsed.VerifyTransportChecksum(p.Data):
		case p.Addr.Outbound:
			f.sentOut = append(f.sentOut, payloadOf(p.Data))
		default:
			f.reached = append(f.reached, payloadOf(p.Data))
		}
	}
}

func (f *fake) expectOut(want ...string) {
	f.Helper()
	f.collect()
	compare(f.T, "left the host", f.sentOut, want)
	f.sentOut = nil
}

func (f *fake) forget() {
	f.collect()
	f.sentOut = nil
}

func (f *fake) expectIn(want ...string) {
	f.Helper()
	f.collect()
	compare(f.T, "reached the host", f.reached, want)
	f.reached = nil
}

// compare compares payloads.
func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

package diverttest_test

import (
	"net"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

func init() { expectations = append(expectations, flowExpectations...) }

// flowExpectations are the behaviours of handles with flows, on the fake network and on real ones. A datagram of one byte
// has 29 bytes.
var flowExpectations = []expectation{
	{"a flow that is accepted comes no more, in neither direction", func(p *player) {
		h := p.handle("udp")
		p.out("a")
		k := p.recv(h, "a")
		p.ok(h.AcceptFlow(&k))
		p.out("b")
		p.in("c")
		p.expectOut("a", "b")
		p.expectIn("c")
		p.none(h)
		f, err := h.Flow(&k)
		p.ok(err)
		if want := (divert.FlowStats{Verdict: divert.FlowAccepted, Packets: 1, Bytes: 29, BackPackets: 1, BackBytes: 29}); f != want {
			p.Errorf("the flow is %+v, want %+v", f, want)
		}
		p.counts(h, divert.Stats{Matched: 3, Received: 1, Reinjected: 1, FlowAccepted: 2, FlowAcceptedBytes: 58})
	}},
	{"a flow that is dropped comes no more", func(p *player) {
		h := p.handle("udp")
		p.in("a")
		k := p.recv(h, "a")
		p.ok(h.DropFlow(&k))
		p.out("b")
		p.in("c")
		p.expectOut()
		p.expectIn()
		p.none(h)
		f, err := h.Flow(&k)
		p.ok(err)
		if want := (divert.FlowStats{Verdict: divert.FlowDropped, Packets: 1, Bytes: 29, BackPackets: 1, BackBytes: 29}); f != want {
			p.Errorf("the flow is %+v, want %+v", f, want)
		}
		p.counts(h, divert.Stats{Matched: 3, Received: 1, Abandoned: 1, FlowDropped: 2, FlowDroppedBytes: 58})
	}},
	{"what does not match the filter is not the verdict's", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		k := p.recv(h, "a")
		p.ok(h.DropFlow(&k))
		p.in("b")
		p.out("c")
		p.expectIn("b")
		p.expectOut()
		p.counts(h, divert.Stats{Matched: 2, Received: 1, Abandoned: 1, FlowDropped: 1, FlowDroppedBytes: 29})
	}},
	{"a verdict is changed, and forgotten", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		k := p.recv(h, "a")
		p.ok(h.DropFlow(&k))
		p.out("b")
		p.expectOut()
		p.ok(h.AcceptFlow(&k)) // the packet itself was dropped
		p.out("c")
		p.expectOut("c")
		if had, err := h.ForgetFlow(&k); !had || err != nil {
			p.Errorf("forget: %v, %v", had, err)
		}
		if had, err := h.ForgetFlow(&k); had || err != nil {
			p.Errorf("forget what is forgotten: %v, %v", had, err)
		}
		if f, err := h.Flow(&k); f != (divert.FlowStats{}) || err != nil {
			p.Errorf("the flow is %+v (%v)", f, err)
		}
		p.out("d")
		k = p.recv(h, "d")
		p.ok(h.AcceptFlow(&k))
		p.ok(h.ForgetFlows())
		p.out("e")
		k = p.recv(h, "e")
		p.ok(h.Drop(&k))
		p.expectOut("d")
	}},
	{"another filter ends verdicts, one that is wrong does not", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		k := p.recv(h, "a")
		p.ok(h.AcceptFlow(&k))
		if err := h.SetFilter("no such field"); err == nil {
			p.Error("a wrong filter was set")
		}
		p.out("b")
		p.expectOut("a", "b")
		p.ok(h.SetFilter("outbound and udp.SrcPort != 1"))
		p.out("c")
		k = p.recv(h, "c")
		p.ok(h.DropFlow(&k))
		p.ok(h.SetFilter("outbound and udp"))
		p.out("d")
		p.recv(h, "d")
		p.expectOut()
	}},
	{"shutting down and closing end verdicts", func(p *player) {
		for _, end := range []func(*divert.Handle) error{(*divert.Handle).Close, func(h *divert.Handle) error { return h.Shutdown(divert.ShutdownBoth) }} {
			h := p.handle("outbound and udp")
			p.out("a")
			k := p.recv(h, "a")
			p.ok(h.DropFlow(&k))
			p.ok(end(h))
			p.out("b")
			p.expectOut("b")
		}
	}},
	{"a handle that sniffs gets no more copies", func(p *player) {
		h := p.handle("udp", divert.WithFlags(divert.Sniff))
		p.out("a")
		k := p.recv(h, "a")
		p.fails(h.DropFlow(&k), divert.ErrInvalid, 87)
		p.ok(h.AcceptFlow(&k))
		p.out("b")
		p.in("c")
		p.expectOut("a", "b")
		p.expectIn("c")
		p.none(h)
		p.counts(h, divert.Stats{Matched: 3, Received: 1, FlowAccepted: 2, FlowAcceptedBytes: 58})
	}},
	{"what one handle accepts the handle below gets, which drops it", func(p *player) {
		high, mid := p.handle("outbound and udp", pri(2)), p.handle("outbound and udp", pri(1))
		low := p.handle("outbound and udp")
		p.out("a")
		k := p.recv(high, "a")
		p.ok(high.AcceptFlow(&k))
		k = p.recv(mid, "a")
		p.ok(mid.AcceptFlow(&k))
		k = p.recv(low, "a")
		p.ok(low.DropFlow(&k))
		p.out("b")
		p.expectOut()
		p.counts(high, divert.Stats{Matched: 2, Received: 1, Reinjected: 1, FlowAccepted: 1, FlowAcceptedBytes: 29})
		p.counts(low, divert.Stats{Matched: 2, Received: 1, Abandoned: 1, FlowDropped: 1, FlowDroppedBytes: 29})
		p.ok(low.ForgetFlows())
		p.out("c")
		k = p.recv(low, "c")
		p.ok(low.Accept(&k))
		p.expectOut("c")
		p.counts(mid, divert.Stats{Matched: 3, Received: 1, Reinjected: 1, FlowAccepted: 2, FlowAcceptedBytes: 58})
	}},
	{"a packet that was sent is not sent again", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("lower")
		k := p.recv(h, "lower")
		copy(k.Data[len(k.Data)-5:], "UPPER")
		k.Addr.UDPChecksum = false
		p.ok(h.Send(&k))
		p.ok(h.AcceptFlow(&k))
		p.out("a")
		p.expectOut("UPPER", "a")
		p.counts(h, divert.Stats{Matched: 2, Received: 1, Reinjected: 1, FlowAccepted: 1, FlowAcceptedBytes: 29})
	}},
	{"a packet that was held for long, and dropped, stays so", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		k := p.recv(h, "a")
		p.ok(h.AcceptFlow(&k)) // which may take long the first time
		p.ok(h.ForgetFlows())
		p.out("b")
		k = p.recv(h, "b")
		time.Sleep(200 * time.Millisecond) // Linux gives the packet up meanwhile
		p.ok(h.Drop(&k))
		p.ok(h.AcceptFlow(&k))
		p.out("c")
		p.expectOut("a", "c")
	}},
	{"a table that is small forgets, and nothing is lost", func(p *player) {
		h := p.handle("outbound and udp", divert.WithFlowTable(1))
		p.out("a")
		k := p.recv(h, "a")
		p.ok(h.AcceptFlow(&k))
		p.out("b")
		p.expectOut("a", "b")
	}},
	{"a flow ends when it is idle", func(p *player) {
		h := p.handle("outbound and udp", divert.WithFlowIdle(10e6))
		p.out("a")
		k := p.recv(h, "a")
		p.ok(h.AcceptFlow(&k))
		p.expectOut("a")
		time.Sleep(50 * time.Millisecond) // at least
		p.out("b")
		p.recv(h, "b")
		p.expectOut()
	}},
	{"the first packets of a flow come, the rest passes", func(p *player) {
		h := p.handle("udp and flow.Packets <= 2")
		for _, way := range []func(string){p.out, p.in} {
			way("a")
			k := p.recv(h, "a")
			p.ok(h.Accept(&k))
		}
		p.out("b")
		p.in("c")
		p.expectOut("a", "b")
		p.expectIn("a", "c")
		p.counts(h, divert.Stats{Matched: 2, Received: 2, Reinjected: 2})
		if had, err := h.ForgetFlow(&divert.Packet{Data: p.datagram("x")}); had || err != nil {
			p.Errorf("forget: %v, %v", had, err)
		}
		p.out("d")
		k := p.recv(h, "d")
		p.ok(h.DropFlow(&k)) // the verdict holds whatever the count
		for range 3 {
			p.out("e")
		}
		p.expectOut()
		s := p.until(h, "three dropped", func(s divert.Stats) bool { return s.FlowDropped == 3 })
		if s.Matched != 6 {
			p.Errorf("the counters are %+v", s)
		}
	}},
	{"what a filter counts of one direction", func(p *player) {
		h := p.handle("udp", divert.WithFlags(divert.Sniff))
		p.out("0")
		p.recv(h, "0")
		p.ok(h.SetFilter("udp and flow.WayPackets == 2 and flow.WayBytes in {50-60} and flow.Bytes == 87")) // and counts from now on
		p.out("a")
		p.in("b")
		p.out("c")
		p.in("d")
		p.recv(h, "c")
		p.none(h)
		p.ok(h.SetFilter("udp and flow.Bytes > 100")) // and goes on counting
		p.in("e")
		p.recv(h, "e")
		p.ok(h.ForgetFlows())
		p.in("f")
		p.none(h)
		p.expectOut("0", "a", "c")
		p.expectIn("b", "d", "e", "f")
	}},
	{"a handle that drops, by a count", func(p *player) {
		h := p.handle("outbound and udp and flow.Packets > 1", divert.WithFlags(divert.Drop))
		p.out("a")
		p.out("b")
		p.in("c")
		p.expectOut("a")
		p.expectIn("c")
		p.counts(h, divert.Stats{Matched: 1, Dropped: 1})
	}},
	{"what cannot be decided", func(p *player) {
		h := p.handle("udp")
		other := p.handle("udp", pri(-1), divert.WithFlags(divert.Sniff))
		p.fails(h.AcceptFlow(nil), divert.ErrInvalid, 87)
		p.fails(h.AcceptFlow(&divert.Packet{Data: p.datagram("a")}), divert.ErrInvalid, 87)
		p.out("a")
		k := p.recv(h, "a")
		p.fails(other.AcceptFlow(&k), divert.ErrInvalid, 87)
		broken := divert.Packet{Data: k.Data[:10], Addr: k.Addr}
		p.fails(h.AcceptFlow(&broken), divert.ErrInvalid, 87)
		fragment := divert.Packet{Data: append([]byte(nil), k.Data...), Addr: k.Addr}
		packet.IPv4(fragment.Data).SetMF(true)
		p.fails(h.DropFlow(&fragment), divert.ErrInvalid, 87)
		_, err := h.ForgetFlow(&fragment)
		p.fails(err, divert.ErrInvalid, 87)
		_, err = h.Flow(&fragment)
		p.fails(err, divert.ErrInvalid, 87)
		p.ok(h.Accept(&k)) // it still waits
		p.expectOut("a")
		drop := p.handle("udp.DstPort == 1", divert.WithFlags(divert.Drop))
		p.fails(drop.AcceptFlow(&k), divert.ErrInvalid, 87)
		_, err = p.open("udp", divert.WithFlowTable(0))
		p.fails(err, divert.ErrInvalid, 87)
		_, err = p.open("udp", divert.WithFlowIdle(1))
		p.fails(err, divert.ErrInvalid, 87)
		p.ok(h.Close())
		p.fails(h.AcceptFlow(&k), net.ErrClosed, 995)
		p.fails(h.ForgetFlows(), net.ErrClosed, 995)
	}},
	{"a handle that only receives drops flows and accepts none", func(p *player) {
		h := p.handle("outbound and udp", divert.WithFlags(divert.RecvOnly))
		p.out("a")
		k := p.recv(h, "a")
		p.fails(h.AcceptFlow(&k), divert.ErrRecvOnly, 87)
		p.ok(h.DropFlow(&k))
		p.out("b")
		p.expectOut()
		s := p.until(h, "one dropped", func(s divert.Stats) bool { return s.FlowDropped == 1 })
		if s.Matched != 2 || s.Received != 1 {
			p.Errorf("the counters are %+v", s)
		}
	}},
	{"sending shut down: flows go on as they were decided", func(p *player) {
		h := p.handle("outbound and udp")
		p.out("a")
		k := p.recv(h, "a")
		p.ok(h.AcceptFlow(&k))
		p.ok(h.Shutdown(divert.ShutdownSend))
		p.out("b")
		p.expectOut("a", "b")
		p.fails(h.AcceptFlow(&k), divert.ErrShutdown, 232)
		p.ok(h.DropFlow(&k))
		p.out("c")
		p.expectOut()
	}},
}

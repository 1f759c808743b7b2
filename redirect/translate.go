package redirect

import (
	"net/netip"
	"runtime"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// batch is the number of packets that a worker receives at a time.
const batch = 64

// worker translates the packets of one queue.
type worker struct {
	l      *Listener
	ps     [batch]divert.Packet
	accept []divert.Packet // go on as they came
	drop   []divert.Packet // end here
	send   []divert.Packet // are injected
	parsed packet.Parsed
}

// serve translates packets until the handle has no more.
func (w *worker) serve(q *divert.Queue) error {
	for {
		n, err := q.RecvBatch(w.ps[:])
		if err != nil {
			return err
		}
		w.accept, w.drop, w.send = w.accept[:0], w.drop[:0], w.send[:0]
		now := time.Now().Unix()
		for i := range w.ps[:n] {
			w.translate(&w.ps[i], now)
		}
		w.flush()
	}
}

// flush carries out the decisions. A packet that cannot be sent is lost, as on a network: TCP sends it again.
func (w *worker) flush() {
	h := w.l.handle
	if len(w.accept) > 0 {
		_, _ = h.AcceptBatch(w.accept)
	}
	if len(w.drop) > 0 {
		_ = h.DropBatch(w.drop)
	}
	if len(w.send) > 0 {
		_, _ = h.SendBatch(w.send)
	}
}

// translate decides about a packet.
func (w *worker) translate(p *divert.Packet, now int64) {
	h := &w.parsed
	if !h.Parse(p.Data) {
		w.accept = append(w.accept, *p)
		return
	}
	switch {
	case h.Fragment && (h.MF || h.FragOff > 0): // fragmented by the sender; the later fragments have no ports and pass
		w.drop = append(w.drop, divert.Packet{Addr: p.Addr})
	case h.TCPOff >= 0:
		w.segment(p, h.TCP(p.Data), now)
	case h.UDPOff >= 0:
		w.datagram(p, now)
	default:
		w.accept = append(w.accept, *p)
	}
}

// segment decides about a segment of TCP.
func (w *worker) segment(p *divert.Packet, tcp packet.TCP, now int64) {
	src, dst := p.Src(), p.Dst()
	port := w.l.port
	switch {
	case tcp == nil: // its header is cut
		w.accept = append(w.accept, *p)
		return
	case dst.Port() == port && (!p.Addr.Outbound || p.Addr.Loopback):
		w.refuse(p) // only redirected connections may reach the listener
		return
	case src.Port() == port && p.Addr.Outbound:
		w.fromListener(p, tcp, src, dst, now)
		return
	}
	e := ends{src, dst}
	f := w.l.table.find(e)
	begins := tcp.Flags()&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn
	if begins && (f == nil || f.seq != tcp.Seq()) {
		w.begin(p, e, tcp.Seq(), now)
		return
	}
	if f == nil {
		w.pass(p)
		return
	}
	w.note(f, true, tcp, now)
	if w.l.table.holds(f) {
		w.drop = append(w.drop, divert.Packet{Addr: p.Addr})
		return
	}
	w.inject(p, f, f.alias, netip.AddrPortFrom(src.Addr(), port))
}

// pass lets a segment of a connection that is not redirected go on, and the rest of the connection with it.
func (w *worker) pass(p *divert.Packet) {
	if w.l.handle.AcceptFlow(p) != nil {
		w.accept = append(w.accept, *p)
	}
}

// fromListener translates the segments of the listener's sockets.
func (w *worker) fromListener(p *divert.Packet, tcp packet.TCP, src, dst netip.AddrPort, now int64) {
	f := w.l.table.findAlias(dst)
	if f == nil { // belongs to a connection that ended long ago, or answers a stranger: it must not leave the host
		w.drop = append(w.drop, divert.Packet{Addr: p.Addr})
		return
	}
	w.note(f, false, tcp, now)
	w.inject(p, f, f.dst, f.client)
}

func (w *worker) note(f *flow, fromClient bool, tcp packet.TCP, now int64) {
	f.last.Store(now)
	if flags := tcp.Flags(); flags&(packet.TCPFin|packet.TCPRst) != 0 {
		w.l.table.note(f, fromClient, flags&packet.TCPFin != 0, flags&packet.TCPRst != 0)
	}
}

// inject sends a packet on as a new one between other ends, and drops the original.
func (w *worker) inject(p *divert.Packet, f *flow, src, dst netip.AddrPort) {
	w.drop = append(w.drop, divert.Packet{Addr: p.Addr})
	a := f.toward
	a.IPChecksum, a.TCPChecksum = p.Addr.IPChecksum, p.Addr.TCPChecksum
	out := divert.Packet{Data: p.Data, Addr: a}
	if out.SetSrc(src) == nil && out.SetDst(dst) == nil {
		w.send = append(w.send, out)
	}
}

// begin decides about the SYN of a new connection.
func (w *worker) begin(p *divert.Packet, e ends, seq uint32, now int64) {
	f := w.newFlow(p, e, now)
	if f == nil {
		w.pass(p)
		return
	}
	f.seq = seq
	l := w.l
	hold := l.options.Hold // once f is in the table, other goroutines use it too
	if f.held = hold; hold {
		f.syn = append([]byte(nil), p.Data...)
	}
	if !l.table.add(f) {
		l.full.Add(1)
		w.drop = append(w.drop, divert.Packet{Addr: p.Addr})
		return
	}
	l.redirected.Add(1)
	if hold {
		w.drop = append(w.drop, divert.Packet{Addr: p.Addr})
		summed := p.Addr.TCPChecksum // p holds another packet by the end of the dial
		if !l.spawn(func() { l.dialHeld(f, summed) }) {
			l.table.remove(f) // the listener is ending; the repeated SYN will pass
		}
		return
	}
	w.inject(p, f, f.alias, netip.AddrPortFrom(e.client.Addr(), l.port))
}

// newFlow returns a flow for its first packet, or nil if it is not to be redirected.
func (w *worker) newFlow(p *divert.Packet, e ends, now int64) *flow {
	l := w.l
	own := dialKey{e.client.Port(), "tcp", e.client.Addr().Is6()}
	if w.parsed.UDPOff >= 0 {
		own.network = "udp"
	}
	if l.ctx.Err() != nil || !redirectable(e) || l.dials.has(own) {
		return nil
	}
	n := p.Addr.Network()
	f := &flow{ends: e, toward: toward(&p.Addr, e), ifIdx: n.IfIdx, process: n.ProcessID}
	f.last.Store(now)
	if f.who, f.whoErr = l.lookup(f.process); f.whoErr == nil && l.spares(f.who) {
		return nil
	}
	return f
}

// redirectable reports whether the destination can answer: it is the address of one host.
func redirectable(e ends) bool {
	to := e.dst.Addr().Unmap()
	return !to.IsMulticast() && !to.IsUnspecified() && to != netip.AddrFrom4([4]byte{255, 255, 255, 255}) && !e.client.Addr().IsUnspecified()
}

// toward returns the address for injecting the packets of a flow, both ways. On Linux they go over the loopback
// interface, whatever the source: it does not check sources, and firewalls let it pass. Packets with link-local addresses
// come in on the interface of those addresses. On other systems packets come in on the interface that they were to leave
// by, except those of the host to itself.
func toward(a *divert.Address, e ends) divert.Address {
	loop := a.Loopback || runtime.GOOS == "linux" && !e.dst.Addr().IsLinkLocalUnicast()
	t := divert.Address{Layer: divert.LayerNetwork, Event: divert.EventPacket, Outbound: loop, Loopback: loop, IPv6: a.IPv6}
	n := a.Network()
	t.SetNetwork(packet.NetworkData{IfIdx: n.IfIdx, SubIfIdx: n.SubIfIdx})
	return t
}

// refuse answers a segment for the listener's own port as if the port were closed.
func (w *worker) refuse(p *divert.Packet) {
	w.drop = append(w.drop, divert.Packet{Addr: p.Addr})
	w.l.strangers.Add(1)
	answer, ok := packet.AppendReset(nil, p.Data, &w.parsed)
	if !ok {
		return
	}
	a := p.Addr
	back := divert.Address{Layer: divert.LayerNetwork, Event: divert.EventPacket, Outbound: true, Loopback: a.Loopback, IPv6: a.IPv6}
	back.SetNetwork(packet.NetworkData{IfIdx: a.Network().IfIdx})
	w.send = append(w.send, divert.Packet{Data: answer, Addr: back})
}

// datagram decides about a datagram.
func (w *worker) datagram(p *divert.Packet, now int64) {
	e := ends{p.Src(), p.Dst()}
	f := w.l.table.findUDP(e)
	if f == nil {
		if f = w.newFlow(p, e, now); f == nil {
			w.accept = append(w.accept, *p)
			return
		}
		f = w.l.beginUDP(f, p)
	}
	w.drop = append(w.drop, divert.Packet{Addr: p.Addr})
	if f != nil {
		f.last.Store(now)
		f.exchange.deliver(w.parsed.Payload(p.Data))
	}
}

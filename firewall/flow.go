package firewall

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/clienthello"
	"github.com/opendivert/divert/internal/quicinitial"
	"github.com/opendivert/divert/packet"
)

// flowKey identifies a connection.
type flowKey struct {
	protocol      uint8
	local, remote netip.AddrPort
}

// flow is the record of a connection. The kernel has its verdict; the record serves a second decision.
type flow struct {
	outbound   bool
	seq        uint32 // of the SYN of TCP
	begun      bool   // seq is known
	hello      bool   // serverName is known, or will not come any more
	serverName string
	look       *look     // while the flow waits for its hello
	question   *question // while the flow waits for an answer
	answered   bool      // an answer came, or its time is over
	answer     Action
	decided    bool
	action     Action
	generation uint64 // of the rules that decided
	last       time.Time
}

// look is a connection that waits for the name in its TLS or QUIC client's hello. Until then the firewall lets packets of
// TCP pass one by one, except the client's bytes, which it holds, as it does all datagrams.
type look struct {
	reader clienthello.Reader
	next   uint32              // the client's next sequence number
	quic   *quicinitial.Reader // of a connection of QUIC; nil for TCP
	held   []divert.Packet
	kept   int // bytes kept by quic
	bytes  int // bytes of held, and kept
	until  time.Time
}

// Limits of held packets.
const (
	helloTime    = 10 * time.Second // for a whole hello
	maxHeldHello = 64               // packets of a hello
	maxLooks     = 1 << 16          // connections waiting for a hello
	maxHello     = 32 << 20         // bytes of all hellos
	sameExchange = 30 * time.Second // of UDP and others: a later packet begins another exchange, unless the rules were replaced
)

// packet decides a packet. The caller holds the mutex.
func (f *Firewall) packet(p *divert.Packet) {
	if !f.parsed.Parse(p.Data) {
		f.check(f.handle.Drop(p))
		return
	}
	if needed(&f.parsed, p.Data) {
		f.check(f.handle.Accept(p))
		return
	}
	if action, ok := f.related(p); ok {
		f.alone(p, action)
		return
	}
	now := time.Now()
	key, fl := f.flowOf(p, now)
	tcp := f.parsed.TCP(p.Data)
	if fl.question != nil {
		f.wait(fl, p, tcp)
		return
	}
	if fl.look != nil {
		f.listen(key, fl, p, tcp)
		return
	}
	f.decide(key, fl, p, "packet", now)
}

// decide decides a connection by a packet of it.
func (f *Firewall) decide(key flowKey, fl *flow, p *divert.Packet, at string, now time.Time) {
	c := f.conn(key, fl, p, now)
	d := f.rules.Decide(&c)
	if d.Action == Look {
		if f.lookFor(fl, p, now) {
			return
		}
		if fl.hello, c.Hello, c.ServerName = true, true, fl.serverName; c.ServerName != "" {
			at = "hello"
		}
		d = f.rules.Decide(&c)
	}
	if d.Action == Ask {
		if !fl.answered {
			f.ask(key, fl, p, &c, d)
			return
		}
		d.Action, at = fl.answer, "answer"
	}
	f.conclude(fl, p, &c, d, at)
}

// conn describes a packet's connection.
func (f *Firewall) conn(key flowKey, fl *flow, p *divert.Packet, now time.Time) Conn {
	return Conn{
		Outbound: fl.outbound, Protocol: key.protocol, Local: key.local, Remote: key.remote,
		Program: f.program(p.Addr.Network().ProcessID), Names: f.names.of(key.remote.Addr()),
		ServerName: fl.serverName, Hello: fl.hello, Time: now,
	}
}

// conclude puts a decision on a connection in force: by a packet of it, and those held.
func (f *Firewall) conclude(fl *flow, p *divert.Packet, c *Conn, d Decision, at string) {
	again := fl.decided && fl.action == d.Action && fl.generation == f.generation
	fl.decided, fl.action, fl.generation, fl.last = true, d.Action, f.generation, c.Time
	if !again {
		switch d.Action {
		case Allow:
			f.stats.Allowed++
		case Deny:
			f.stats.Denied++
		case Reject:
			f.stats.Rejected++
		}
		if f.config.Learner != nil && d.Rule == 0 {
			f.config.Learner.add(c)
		}
		f.log(c, d, at)
	}
	f.verdict(p, d.Action)
	if at == "packet" && p.Addr.Timestamp != 0 {
		f.stats.Slowest = max(f.stats.Slowest, time.Since(p.Addr.Time()))
	}
}

// verdict gives a packet and the rest of its flow their verdict.
func (f *Firewall) verdict(p *divert.Packet, a Action) {
	var err error
	switch a {
	case Allow:
		if err = f.handle.AcceptFlow(p); errors.Is(err, divert.ErrInvalid) {
			err = f.handle.Accept(p) // a packet that belongs to no flow
		}
	case Deny:
		if err = f.handle.DropFlow(p); errors.Is(err, divert.ErrInvalid) {
			err = f.handle.Drop(p)
		}
	default: // its packets keep coming, to be refused one by one
		f.refuse(p)
		err = f.handle.Drop(p)
	}
	f.check(err)
}

// alone gives a packet its verdict where its flow has none.
func (f *Firewall) alone(p *divert.Packet, a Action) {
	switch a {
	case Allow:
		f.check(f.handle.Accept(p))
	case Reject:
		f.refuse(p)
		fallthrough
	default:
		f.check(f.handle.Drop(p))
	}
}

// check reports errors of verdicts. They do not end the run: a packet without its verdict is lost.
func (f *Firewall) check(err error) {
	if err != nil && !errors.Is(err, net.ErrClosed) {
		f.config.Warn(err)
	}
}

// needed reports whether IPv6 needs the packet to work on a link (RFC 4890, section 4.4.1): neighbour and router
// discovery, and multicast listeners' reports. No rule decides those.
func needed(h *packet.Parsed, b []byte) bool {
	icmp := h.ICMPv6(b)
	if icmp == nil {
		return false
	}
	t := icmp.Type()
	return t >= 130 && t <= 136 || t == 143
}

// related returns the decision on the connection that an ICMP error concerns.
func (f *Firewall) related(p *divert.Packet) (Action, bool) {
	var at int32
	if icmp := f.parsed.ICMP(p.Data); icmp != nil {
		if t := icmp.Type(); t != 3 && t != 4 && t != 5 && t != 11 && t != 12 { // RFC 792
			return 0, false
		}
		at = f.parsed.ICMPOff
	} else if icmp := f.parsed.ICMPv6(p.Data); icmp != nil {
		if t := icmp.Type(); t > 4 { // RFC 4443
			return 0, false
		}
		at = f.parsed.ICMPv6Off
	} else {
		return 0, false
	}
	if len(p.Data) < int(at)+8 {
		return 0, false
	}
	var inner packet.Parsed
	quoted := divert.Packet{Data: p.Data[at+8:]}
	if !inner.Parse(quoted.Data) {
		return 0, false
	}
	src, dst := quoteEnds(&inner, quoted.Data)
	// The quoted packet went the other way.
	key := flowKey{inner.Protocol, src, dst}
	if p.Addr.Outbound {
		key.local, key.remote = dst, src
	}
	fl, ok := f.flows.get(key)
	if !ok || !fl.decided {
		return 0, false
	}
	return fl.action, true
}

// quoteEnds returns the ends of a packet that an ICMP error quotes; the quotation may have no more than 8 bytes behind
// the IP header.
func quoteEnds(h *packet.Parsed, b []byte) (src, dst netip.AddrPort) {
	if ip := h.IPv4(b); ip != nil {
		src, dst = netip.AddrPortFrom(ip.Src(), 0), netip.AddrPortFrom(ip.Dst(), 0)
	} else if ip := h.IPv6(b); ip != nil {
		src, dst = netip.AddrPortFrom(ip.Src(), 0), netip.AddrPortFrom(ip.Dst(), 0)
	}
	if at := int(h.HeaderLen); h.Protocol == protocolTCP || h.Protocol == protocolUDP {
		if h.TCPOff >= 0 {
			at = int(h.TCPOff)
		} else if h.UDPOff >= 0 {
			at = int(h.UDPOff)
		}
		if len(b) >= at+4 {
			src = netip.AddrPortFrom(src.Addr(), uint16(b[at])<<8|uint16(b[at+1]))
			dst = netip.AddrPortFrom(dst.Addr(), uint16(b[at+2])<<8|uint16(b[at+3]))
		}
	}
	return src, dst
}

// flowOf returns a packet's connection, and begins one if there is none.
func (f *Firewall) flowOf(p *divert.Packet, now time.Time) (flowKey, *flow) {
	src, dst := p.Src(), p.Dst()
	key := flowKey{f.parsed.Protocol, src, dst}
	if !p.Addr.Outbound {
		key.local, key.remote = dst, src
	}
	tcp := f.parsed.TCP(p.Data)
	opens := tcp != nil && tcp.Flags()&(packet.TCPSyn|packet.TCPAck) == packet.TCPSyn
	fl, ok := f.flows.get(key)
	if !ok && p.Addr.Loopback { // the other direction, which is outbound too
		back := flowKey{key.protocol, key.remote, key.local}
		if fl, ok = f.flows.get(back); ok {
			key = back
		}
	}
	if ok && fl.question == nil && fl.look == nil {
		switch {
		case opens:
			ok = fl.begun && fl.seq == tcp.Seq() && fl.outbound == p.Addr.Outbound // the same SYN again
		case tcp == nil:
			ok = fl.generation != f.generation || now.Sub(fl.last) < sameExchange
		}
	} else if ok && opens && fl.seq != tcp.Seq() {
		f.abandon(fl) // a new connection reuses the ports
		ok = false
	}
	if !ok {
		fl = &flow{outbound: f.outbound(p, tcp, opens, key, now), hello: !opens && f.parsed.UDPOff < 0}
		if opens {
			fl.begun, fl.seq = true, tcp.Seq()
		}
		f.flows.put(key, fl)
	}
	return key, fl
}

// outbound reports whether this host began the connection of which the packet is the first one seen.
func (f *Firewall) outbound(p *divert.Packet, tcp packet.TCP, opens bool, key flowKey, now time.Time) bool {
	if tcp != nil && !opens {
		if tcp.Flags()&packet.TCPSyn != 0 { // the answer to a SYN
			return !p.Addr.Outbound
		}
		return !f.listening.on(key.local.Port(), key.remote.Port(), now)
	}
	if icmp := f.parsed.ICMP(p.Data); icmp != nil && icmp.Type() == 0 {
		return !p.Addr.Outbound // an answer to an echo
	}
	if icmp := f.parsed.ICMPv6(p.Data); icmp != nil && icmp.Type() == 129 {
		return !p.Addr.Outbound
	}
	return p.Addr.Outbound
}

// abandon drops the held packets of a connection.
func (f *Firewall) abandon(fl *flow) {
	if fl.question != nil {
		f.withdraw(fl)
	}
	if fl.look != nil {
		f.check(f.handle.DropBatch(fl.look.held))
		f.looked(fl)
	}
}

// looked ends the wait for a connection's hello.
func (f *Firewall) looked(fl *flow) {
	f.helloBytes -= fl.look.bytes
	fl.look = nil
	delete(f.looks, fl)
}

// lookFor begins to wait for the hello of a connection's client, and reports whether a hello may come. The packet opens
// the connection. It may be a datagram with the whole hello: then the flow knows the name.
func (f *Firewall) lookFor(fl *flow, p *divert.Packet, now time.Time) bool {
	l := &look{until: now.Add(helloTime)}
	if tcp := f.parsed.TCP(p.Data); tcp != nil {
		if f.parsed.PayloadLen > 0 {
			return false
		}
		l.next = tcp.Seq() + 1
		f.looking(fl, l)
		f.check(f.handle.Accept(p))
		return true
	}
	l.quic = &quicinitial.Reader{}
	if h := l.quic.Read(f.parsed.Payload(p.Data)); h.State != clienthello.NeedMore {
		fl.serverName = h.Name
		return false
	}
	f.looking(fl, l)
	f.hold(l, p)
	return true
}

// looking enters a connection that waits for its hello.
func (f *Firewall) looking(fl *flow, l *look) {
	if len(f.looks) >= maxLooks {
		f.giveUp(func(a, b *look) bool { return a.until.Before(b.until) })
	}
	fl.look = l
	f.looks[fl] = true
}

// hold holds a packet of a client until its hello is known.
func (f *Firewall) hold(l *look, p *divert.Packet) {
	l.held = append(l.held, p.Clone())
	before := l.bytes
	l.bytes += len(p.Data)
	if l.quic != nil {
		l.bytes += l.quic.Kept() - l.kept
		l.kept = l.quic.Kept()
	}
	if f.helloBytes += l.bytes - before; f.helloBytes > maxHello {
		f.giveUp(func(a, b *look) bool { return a.bytes > b.bytes })
	}
}

// listen takes in a packet of a connection that waits for its hello.
func (f *Firewall) listen(key flowKey, fl *flow, p *divert.Packet, tcp packet.TCP) {
	l := fl.look
	client := p.Addr.Outbound == fl.outbound
	if p.Addr.Loopback {
		client = p.Src() == key.local
	}
	payload := f.parsed.Payload(p.Data)
	if l.quic != nil {
		h := clienthello.Hello{State: clienthello.NotTLS} // the server speaks, though no bytes of the client reached it
		if client {
			h = l.quic.Read(payload)
		}
		if h.State == clienthello.NeedMore && len(l.held) < maxHeldHello {
			f.hold(l, p)
			return
		}
		f.heard(key, fl, p, h)
		return
	}
	ends := tcp.Flags()&(packet.TCPFin|packet.TCPRst) != 0
	switch {
	case client && tcp.Flags()&packet.TCPSyn != 0, len(payload) == 0 && !(client && ends):
		f.check(f.handle.Accept(p))
		return
	case !client, len(payload) == 0: // the server speaks first, or the packet is empty
		f.heard(key, fl, p, clienthello.Hello{State: clienthello.NotTLS})
		return
	case tcp.Seq() != l.next: // a repetition, or one behind a gap: it comes again once the hello has been read
		f.check(f.handle.Drop(p))
		return
	}
	l.next += uint32(len(payload))
	h := l.reader.Read(payload)
	if h.State == clienthello.NeedMore && ends {
		h.State = clienthello.NotTLS
	}
	if h.State == clienthello.NeedMore && len(l.held) < maxHeldHello {
		f.hold(l, p)
		return
	}
	f.heard(key, fl, p, h)
}

// giveUp stops waiting for the hello of one connection, the first by an order, so that a client with many connections, or
// with long or slow hellos, does not block others.
func (f *Firewall) giveUp(before func(a, b *look) bool) {
	var first *flow
	for fl := range f.looks {
		if first == nil || before(fl.look, first.look) {
			first = fl
		}
	}
	f.abandon(first)
	first.hello = true // its client sends its bytes again; the name stays unknown
}

// heard decides a connection by the packet that completed its hello, or showed that none comes.
func (f *Firewall) heard(key flowKey, fl *flow, p *divert.Packet, h clienthello.Hello) {
	held := fl.look.held
	f.looked(fl)
	fl.hello = true
	if h.State == clienthello.Named {
		fl.serverName = h.Name
	}
	first := p
	if len(held) > 0 {
		held = append(held, p.Clone())
		first, held = &held[0], held[1:]
		f.parsed.Parse(first.Data)
	}
	f.decide(key, fl, first, "hello", time.Now())
	for i := range held {
		f.parsed.Parse(held[i].Data)
		if fl.question != nil {
			f.wait(fl, &held[i], f.parsed.TCP(held[i].Data))
		} else {
			f.alone(&held[i], quietly(fl.action))
		}
	}
}

// quietly returns the action for further packets of a flow whose sender has been told already.
func quietly(a Action) Action {
	if a == Reject {
		return Deny
	}
	return a
}

// expire ends questions and hellos whose time has run out.
func (f *Firewall) expire(now time.Time) {
	for fl := range f.looks {
		if now.After(fl.look.until) {
			f.abandon(fl) // the client sends its bytes again; the name stays unknown
			fl.hello = true
		}
	}
	f.expireQuestions(now)
}

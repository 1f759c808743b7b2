package main

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/examples/nat/table"
	"github.com/opendivert/divert/packet"
)

// action says what becomes of a packet.
type action uint8

// The actions.
const (
	accept     action = iota // it goes on as it is
	acceptFlow               // and so does the rest of its flow
	send                     // it goes on as it was changed
	inject                   // it is sent anew, as it was changed, as one of this host's own
	route                    // it is routed anew, as it was changed
	drop                     // it ends here
	refuse                   // and its sender is told that it is prohibited
)

// nat translates packets between an address and the networks behind it. Its methods may be called by several goroutines.
type nat struct {
	addr     netip.Addr     // the NAT's own
	inside   []netip.Prefix // the networks behind it
	prefixes *table.Prefixes

	mu    sync.Mutex
	table *table.Table
	syns  syns
	ids   identifiers

	// forget is called with the first packet of each new session, as it leaves.
	forget func(*divert.Packet)

	translated, filtered, full atomic.Uint64
}

// session returns protocol and ends of a packet. Of an echo of ICMP the identifier is the port of the end that asks.
func session(p *divert.Packet, h *packet.Parsed) (protocol uint8, src, dst netip.AddrPort, flags packet.TCPFlags, ok bool) {
	src, dst = p.Src(), p.Dst()
	switch {
	case h.Fragment: // the kernel puts datagrams together, so this one is not whole
	case h.TCPOff >= 0:
		return table.TCP, src, dst, h.TCP(p.Data).Flags(), true
	case h.UDPOff >= 0:
		return table.UDP, src, dst, 0, true
	case h.ICMPOff >= 0:
		switch icmp := h.ICMP(p.Data); icmp.Type() {
		case icmpEcho:
			return table.ICMP, netip.AddrPortFrom(src.Addr(), uint16(icmp.Body()>>16)), dst, 0, true
		case icmpEchoReply:
			return table.ICMP, src, netip.AddrPortFrom(dst.Addr(), uint16(icmp.Body()>>16)), 0, true
		}
	}
	return 0, src, dst, 0, false
}

// leaving is for a packet that is routed through this host, from behind the NAT to elsewhere, or to the prefix of IPv6 outside.
func (n *nat) leaving(p *divert.Packet, now time.Time) action {
	var h packet.Parsed
	if !h.ParseExact(p.Data) {
		return drop
	}
	if h.Family == 6 {
		return n.prefix(p, &h)
	}
	if isError(&h, p.Data) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.quote(p.Data, &h, false)
		return n.changed(p.SetSrc(netip.AddrPortFrom(n.addr, 0))) // RFC 5508 REQ-5
	}
	protocol, src, dst, flags, ok := session(p, &h)
	if icmp := h.ICMP(p.Data); !ok || icmp != nil && icmp.Type() != icmpEcho {
		return refuse // nothing tells whom an answer would be for
	}
	n.mu.Lock()
	port, fresh, err := n.out(protocol, src, dst, flags, now)
	if err == nil {
		n.ids.set(packet.IPv4(p.Data))
	}
	n.mu.Unlock()
	if err != nil {
		return refuse
	}
	a := n.changed(setSrc(p, &h, netip.AddrPortFrom(n.addr, port)))
	if fresh && n.forget != nil {
		n.forget(p)
	}
	return a
}

// out finds the port that stands for the source of a packet from behind the NAT. The caller holds the lock.
func (n *nat) out(protocol uint8, src, dst netip.AddrPort, flags packet.TCPFlags, now time.Time) (port uint16, fresh bool, err error) {
	if port, fresh, err = n.table.Out(protocol, src, dst, flags, now); err != nil {
		n.full.Add(1)
		return 0, false, err
	}
	if protocol == table.TCP && opens(flags) {
		n.syns.forget(pair{port, dst})
	}
	return port, fresh, nil
}

// opens reports whether a segment is the first of a connection.
func opens(flags packet.TCPFlags) bool {
	return flags&(packet.TCPSyn|packet.TCPAck|packet.TCPRst) == packet.TCPSyn
}

// behind reports whether an address is behind the NAT.
func (n *nat) behind(a netip.Addr) bool {
	return slices.ContainsFunc(n.inside, func(p netip.Prefix) bool { return p.Contains(a) })
}

// arriving is for a packet to the NAT's address.
func (n *nat) arriving(p *divert.Packet, now time.Time) action {
	var h packet.Parsed
	if !h.ParseExact(p.Data) || h.Family != 4 {
		return accept
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if isError(&h, p.Data) {
		to, ok := n.quote(p.Data, &h, true)
		if !ok {
			return accept // about what this host has sent itself
		}
		if n.behind(p.Src().Addr()) { // about what came to its sender by the hairpin, and so goes back (RFC 5508 REQ-7)
			n.quote(p.Data, &h, false)
			return n.turned(p, netip.AddrPortFrom(n.addr, 0), netip.AddrPortFrom(to, 0))
		}
		return n.changed(p.SetDst(netip.AddrPortFrom(to, 0)))
	}
	protocol, src, dst, flags, ok := session(p, &h)
	if icmp := h.ICMP(p.Data); !ok || icmp != nil && icmp.Type() != icmpEchoReply {
		return accept
	}
	if n.behind(src.Addr()) {
		return n.hairpin(p, &h, protocol, src, dst, flags, now)
	}
	to, verdict := n.table.In(protocol, dst.Port(), src, flags, now)
	at := pair{dst.Port(), src}
	switch {
	case verdict == table.Filtered:
		n.filtered.Add(1)
		if protocol == table.TCP && opens(flags) {
			n.syns.add(at, true, now, func() []byte { return portUnreachable(p.Data, &h) })
		}
		return drop
	case verdict == table.Unknown && protocol == table.ICMP:
		return accept
	case verdict == table.Unknown && protocol == table.TCP && opens(flags):
		n.syns.add(at, false, now, func() []byte { return portUnreachable(p.Data, &h) })
		return accept // this host says whether somebody is there
	case verdict == table.Unknown:
		if protocol == table.TCP {
			n.syns.forget(at) // somebody is
		}
		return acceptFlow
	}
	return n.changed(setDst(p, &h, to))
}

// portUnreachable returns the ICMP error that says of a packet that nobody is at its port, nil if there must be none.
func portUnreachable(b []byte, h *packet.Parsed) []byte {
	answer, ok := packet.AppendUnreachable(nil, b, h, packet.ICMPPortUnreachable)
	if !ok {
		return nil
	}
	return answer
}

// hairpin leads a packet from behind the NAT back there; its source becomes the NAT's address, as it would outside
// (RFC 4787 REQ-9). Routing would refuse it on its way in, with a source of this host's own, so it goes out as a new one.
func (n *nat) hairpin(p *divert.Packet, h *packet.Parsed, protocol uint8, src, dst netip.AddrPort, flags packet.TCPFlags, now time.Time) action {
	if _, ok := n.table.Behind(protocol, dst.Port()); !ok || protocol == table.ICMP {
		return accept // for this host itself
	}
	port, _, err := n.out(protocol, src, dst, flags, now)
	if err != nil {
		return refuse
	}
	from := netip.AddrPortFrom(n.addr, port)
	to, verdict := n.table.In(protocol, dst.Port(), from, flags, now)
	if verdict != table.Mapped {
		n.filtered.Add(1)
		if protocol == table.TCP && opens(flags) {
			n.syns.add(pair{dst.Port(), from}, true, now, func() []byte { return portUnreachable(p.Data, h) })
		}
		return drop
	}
	return n.turned(p, from, to)
}

// turned leads a packet back behind the NAT.
func (n *nat) turned(p *divert.Packet, from, to netip.AddrPort) action {
	if !packet.DecrementTTL(p.Data) || p.SetSrc(from) != nil || p.SetDst(to) != nil {
		return drop
	}
	n.ids.set(packet.IPv4(p.Data))
	n.translated.Add(1)
	return inject
}

// own is for a packet of this host's own on its way out. An ICMP error may be about a packet that came in and was translated
// already; a reset may say that nobody is at a port, which is too early.
func (n *nat) own(p *divert.Packet) action {
	var h packet.Parsed
	if !h.ParseExact(p.Data) || h.Family != 4 {
		return accept
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if tcp := h.TCP(p.Data); tcp != nil {
		if tcp.Flags()&packet.TCPRst == 0 || p.Src().Addr() != n.addr {
			return accept
		}
		// A port with a mapping has no socket here: the reset answers a SYN that came before the endpoint behind opened the
		// connection, too.
		if _, mapped := n.table.Behind(table.TCP, tcp.SrcPort()); mapped || n.syns.refuse(pair{tcp.SrcPort(), p.Dst()}) {
			return drop
		}
		return accept
	}
	if !isError(&h, p.Data) || n.behind(p.Dst().Addr()) {
		return accept
	}
	if _, ok := n.quote(p.Data, &h, false); !ok {
		return accept
	}
	return n.changed(nil)
}

// prefix translates a packet of IPv6.
func (n *nat) prefix(p *divert.Packet, h *packet.Parsed) action {
	if n.prefixes == nil {
		return accept
	}
	src, dst := p.Src(), p.Dst()
	from, leaves := n.prefixes.Out(src.Addr())
	to, comes := n.prefixes.In(dst.Addr())
	if leaves && p.SetSrc(netip.AddrPortFrom(from, src.Port())) != nil || comes && p.SetDst(netip.AddrPortFrom(to, dst.Port())) != nil {
		return drop
	}
	switch {
	case comes: // from outside, or from inside by the address outside
		n.quote6(p.Data, h, n.prefixes.In)
		n.translated.Add(1)
		return route
	case leaves:
		n.quote6(p.Data, h, n.prefixes.Out)
		n.translated.Add(1)
		return send
	}
	return drop // an address that cannot be translated (RFC 6296 section 3.5)
}

// changed counts a translated packet; what could not be is dropped.
func (n *nat) changed(err error) action {
	if err != nil {
		return drop
	}
	n.translated.Add(1)
	return send
}

// identifiers are the identifications of packets that may be cut. All hosts behind the NAT have one address outside, where two packets to
// one host that may be cut must not have the same one for a while (RFC 7857 section 10, RFC 6864 section 5.3). Packets
// that may not be cut keep theirs.
type identifiers [2048]uint16

// set gives a packet the next one of its destination.
func (ids *identifiers) set(ip packet.IPv4) {
	if ip.DF() {
		return
	}
	next := &ids[(addr32(ip.Dst())^uint32(ip.Protocol()))*2654435761>>21] // by Fibonacci hashing: 11 bits
	*next++
	ip.SetChecksum(packet.UpdateChecksum16(ip.Checksum(), ip.ID(), *next))
	ip.SetID(*next)
}

// setSrc sets the source of a packet, and setDst the destination, with the identifier of an echo.
func setSrc(p *divert.Packet, h *packet.Parsed, to netip.AddrPort) error {
	return setEnd(p.SetSrc, h.ICMP(p.Data), to)
}

func setDst(p *divert.Packet, h *packet.Parsed, to netip.AddrPort) error {
	return setEnd(p.SetDst, h.ICMP(p.Data), to)
}

func setEnd(set func(netip.AddrPort) error, echo packet.ICMP, to netip.AddrPort) error {
	if echo == nil {
		return set(to)
	}
	setID(echo, to.Port())
	return set(netip.AddrPortFrom(to.Addr(), 0))
}

func setID(echo packet.ICMP, id uint16) {
	echo.SetChecksum(packet.UpdateChecksum16(echo.Checksum(), uint16(echo.Body()>>16), id))
	echo.SetBody(echo.Body()&0xFFFF | uint32(id)<<16)
}

// The numbers of ICMP (RFC 792, RFC 1812 section 5.2.7.1, RFC 4443).
const (
	icmpEchoReply     = 0
	icmpUnreachable   = 3
	icmpProhibited    = 13 // code
	icmpEcho          = 8
	icmpTimeExceeded  = 11
	icmpParameter     = 12
	icmpv6FirstNotice = 128 // types below are errors
)

// isError reports whether a packet is an ICMP error of IPv4.
func isError(h *packet.Parsed, b []byte) bool {
	icmp := h.ICMP(b)
	return icmp != nil && (icmp.Type() == icmpUnreachable || icmp.Type() == icmpTimeExceeded || icmp.Type() == icmpParameter)
}

// quote translates the packet that an ICMP error quotes (RFC 5508 REQ-4). If in, the quoted packet has gone out, and its source, a port
// of the NAT's, becomes the endpoint behind it; else it has come in, and its destination becomes the port. It returns the
// address that stands there then.
func (n *nat) quote(b []byte, h *packet.Parsed, in bool) (netip.Addr, bool) {
	q := h.Payload(b)
	if len(q) < packet.IPv4HeaderLen || q[0]>>4 != 4 {
		return netip.Addr{}, false
	}
	ip := packet.IPv4(q)
	head := ip.HeaderLen()
	if head < packet.IPv4HeaderLen || len(q) < head+8 || ip.FragOff() != 0 {
		return netip.Addr{}, false
	}
	t, protocol, at := q[head:], ip.Protocol(), 0 // where the port stands in t
	switch {
	case protocol == table.ICMP && (t[0] == icmpEcho && in || t[0] == icmpEchoReply && !in):
		at = 4
	case protocol != table.TCP && protocol != table.UDP:
		return netip.Addr{}, false
	case !in:
		at = 2
	}
	before, now := netip.AddrPortFrom(ip.Src(), binary.BigEndian.Uint16(t[at:])), netip.AddrPort{}
	if !in {
		before = netip.AddrPortFrom(ip.Dst(), before.Port())
		port, ok := n.table.PortOf(protocol, before)
		if !ok {
			return netip.Addr{}, false
		}
		now = netip.AddrPortFrom(n.addr, port)
	} else {
		var ok bool
		if now, ok = n.table.Behind(protocol, before.Port()); !ok || before.Addr() != n.addr {
			return netip.Addr{}, false
		}
	}
	binary.BigEndian.PutUint16(t[at:], now.Port())
	if in {
		ip.SetSrc(now.Addr())
	} else {
		ip.SetDst(now.Addr())
	}
	old, fresh := addr32(before.Addr()), addr32(now.Addr())
	ip.SetChecksum(packet.UpdateChecksum32(ip.Checksum(), old, fresh))
	if sum := quotedSum(protocol, t); sum != nil {
		c := packet.UpdateChecksum16(binary.BigEndian.Uint16(sum), before.Port(), now.Port())
		if protocol != table.ICMP {
			c = packet.UpdateChecksum32(c, old, fresh)
		}
		binary.BigEndian.PutUint16(sum, c)
	}
	h.WriteTransportChecksum(b)
	return now.Addr(), true
}

// quotedSum returns the checksum of a quoted packet, nil if it has none or it is not quoted.
func quotedSum(protocol uint8, t []byte) []byte {
	switch at := map[uint8]int{table.ICMP: 2, table.TCP: 16, table.UDP: 6}[protocol]; {
	case len(t) < at+2 || protocol == table.UDP && t[at]|t[at+1] == 0:
		return nil
	default:
		return t[at : at+2]
	}
}

func addr32(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// quote6 translates the addresses of the packet that an error of ICMPv6 quotes; to is the translation in the error's own
// direction. Its checksums stay right.
func (n *nat) quote6(b []byte, h *packet.Parsed, to func(netip.Addr) (netip.Addr, bool)) {
	icmp := h.ICMPv6(b)
	q := h.Payload(b)
	if icmp == nil || icmp.Type() >= icmpv6FirstNotice || len(q) < packet.IPv6HeaderLen || q[0]>>4 != 6 {
		return
	}
	ip := packet.IPv6(q)
	if a, ok := to(ip.Src()); ok {
		ip.SetSrc(a)
	} else if a, ok := to(ip.Dst()); ok {
		ip.SetDst(a)
	}
}

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

// action is the fate of a packet.
type action uint8

// The actions.
const (
	accept     action = iota // sent on unchanged
	acceptFlow               // and the rest of its flow too
	send                     // sent on with its changes
	inject                   // sent with its changes as a new packet of this host
	route                    // routed again with its changes
	drop                     // dropped
	refuse                   // dropped, and its sender gets an error: prohibited
)

// nat translates packets between an address and the networks behind it. Several goroutines may call its methods.
type nat struct {
	addr     netip.Addr     // the NAT's own
	inside   []netip.Prefix // the networks behind it
	prefixes *table.Prefixes

	mu    sync.Mutex
	table *table.Table
	syns  syns
	ids   identifiers

	// forget is called with the first packet of each new session, on its way out.
	forget func(*divert.Packet)

	translated, filtered, full atomic.Uint64
}

// session returns protocol and ends of a packet. For an ICMP echo, the identifier is the port of the asking end.
func session(p *divert.Packet, h *packet.Parsed) (protocol uint8, src, dst netip.AddrPort, flags packet.TCPFlags, ok bool) {
	src, dst = p.Src(), p.Dst()
	switch {
	case h.Fragment: // the kernel reassembles datagrams, so this one is incomplete
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

// leaving handles a packet that is routed through this host from behind the NAT to the outside, or to the outer IPv6
// prefix.
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
		return refuse // nothing would identify the receiver of an answer
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

// out finds the port that represents the source of a packet from behind the NAT. The caller holds the lock.
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

// arriving handles a packet to the NAT's address.
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
			return accept // about a packet of this host itself
		}
		if n.behind(p.Src().Addr()) { // about a packet that took the hairpin, so the error takes it too (RFC 5508 REQ-7)
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
		return accept // this host decides whether a socket is there
	case verdict == table.Unknown:
		if protocol == table.TCP {
			n.syns.forget(at) // the connection is open
		}
		return acceptFlow
	}
	return n.changed(setDst(p, &h, to))
}

// portUnreachable returns the ICMP error for a packet to an unused port, nil if none may be sent.
func portUnreachable(b []byte, h *packet.Parsed) []byte {
	answer, ok := packet.AppendUnreachable(nil, b, h, packet.ICMPPortUnreachable)
	if !ok {
		return nil
	}
	return answer
}

// hairpin sends a packet from behind the NAT back there, with the NAT's address as its source, as it would be outside
// (RFC 4787 REQ-9). Inbound routing would refuse it, with this host's own address as source, so it goes out as a new
// packet.
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

// turned sends a packet back behind the NAT.
func (n *nat) turned(p *divert.Packet, from, to netip.AddrPort) action {
	if !packet.DecrementTTL(p.Data) || p.SetSrc(from) != nil || p.SetDst(to) != nil {
		return drop
	}
	n.ids.set(packet.IPv4(p.Data))
	n.translated.Add(1)
	return inject
}

// own handles an outbound packet of this host itself. An ICMP error may concern an inbound packet that was already
// translated; a reset may refuse a port too early.
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
		// A port with a mapping has no socket here: the reset must answer a SYN that came before the endpoint behind the NAT
		// opened the connection.
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

// prefix translates an IPv6 packet.
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
	case comes: // from outside, or from inside to an outer address
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

// changed counts a translated packet; a packet that could not be translated is dropped.
func (n *nat) changed(err error) action {
	if err != nil {
		return drop
	}
	n.translated.Add(1)
	return send
}

// identifiers are the identifications of packets that may be fragmented. All hosts behind the NAT share one outer
// address, from which two such packets to one host must not have the same identification within some time (RFC 7857
// section 10, RFC 6864 section 5.3). Packets that may not be fragmented keep theirs.
type identifiers [2048]uint16

// set gives a packet the next identification for its destination.
func (ids *identifiers) set(ip packet.IPv4) {
	if ip.DF() {
		return
	}
	next := &ids[(addr32(ip.Dst())^uint32(ip.Protocol()))*2654435761>>21] // by Fibonacci hashing: 11 bits
	*next++
	ip.SetChecksum(packet.UpdateChecksum16(ip.Checksum(), ip.ID(), *next))
	ip.SetID(*next)
}

// setSrc sets the source of a packet, and setDst the destination, including the identifier of an echo.
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
	icmpv6FirstNotice = 128 // smaller types are errors
)

// isError reports whether a packet is an ICMP error for IPv4.
func isError(h *packet.Parsed, b []byte) bool {
	icmp := h.ICMP(b)
	return icmp != nil && (icmp.Type() == icmpUnreachable || icmp.Type() == icmpTimeExceeded || icmp.Type() == icmpParameter)
}

// quote translates the packet that an ICMP error quotes (RFC 5508 REQ-4). With in, the quoted packet was outbound, and
// its source, a port of the NAT, becomes the endpoint behind it. Otherwise it was inbound, and its destination becomes
// the port. quote returns the new address.
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
	t, protocol, at := q[head:], ip.Protocol(), 0 // offset of the port in t
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

// quotedSum returns the checksum of a quoted packet, nil if it has none or the quotation ends before it.
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

// quote6 translates the addresses of the packet that an ICMPv6 error quotes; to is the translation in the error's own
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

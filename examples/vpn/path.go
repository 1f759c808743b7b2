package main

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/opendivert/divert/packet"
)

// The ICMP numbers used here (RFC 792, RFC 1191, RFC 4443, RFC 4861).
const (
	icmpUnreachable      = 3
	icmpTooBig           = 4 // code
	icmpv6PacketTooBig   = 2
	icmpv6FirstNeighbour = 133 // to 137: neighbour discovery
	icmpv6LastNeighbour  = 137
)

// outside reports whether a packet never belongs in a tunnel: it has many receivers, or is neighbour discovery.
func outside(h *packet.Parsed, b []byte, dst netip.Addr) bool {
	if icmp := h.ICMPv6(b); icmp != nil && icmp.Type() >= icmpv6FirstNeighbour && icmp.Type() <= icmpv6LastNeighbour {
		return true
	}
	return dst.IsMulticast() || dst == netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// headers is the length of the headers of IP and TCP without options.
func headers(h *packet.Parsed) int {
	if h.Family == 6 {
		return packet.IPv6HeaderLen + packet.TCPHeaderLen
	}
	return packet.IPv4HeaderLen + packet.TCPHeaderLen
}

// clamp lowers the maximum segment size that a SYN announces to fit mtu (RFC 9293 section 3.7.1).
func clamp(b []byte, h *packet.Parsed, mtu int) {
	size := segmentSize(b, h)
	if size == nil || int(binary.BigEndian.Uint16(size)) <= mtu-headers(h) {
		return
	}
	right := h.VerifyTransportChecksum(b) // wrong checksums stay wrong, including those not yet computed
	binary.BigEndian.PutUint16(size, uint16(mtu-headers(h)))
	if right {
		h.WriteTransportChecksum(b)
	}
}

// segmentSize returns the two bytes of the maximum segment size in a SYN, or nil.
func segmentSize(b []byte, h *packet.Parsed) []byte {
	t := h.TCP(b)
	if t == nil || t.Flags()&packet.TCPSyn == 0 {
		return nil
	}
	for o := t.Options(); len(o) > 0 && o[0] != 0; {
		if o[0] == 1 {
			o = o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return nil
		}
		if o[0] == 2 && o[1] == 4 {
			return o[2:4]
		}
		o = o[o[1]:]
	}
	return nil
}

// narrower returns the path information in a packet from the tunnel: the longest packets that may go to far, from the
// segment size in a SYN or from a router's ICMP error. mtu is 0 if the packet has none.
func narrower(b []byte, h *packet.Parsed) (far netip.Addr, mtu int) {
	if size := segmentSize(b, h); size != nil {
		return sender(b, h), int(binary.BigEndian.Uint16(size)) + headers(h)
	}
	icmp, most := h.ICMP(b), uint32(0xFFFF)
	switch {
	case icmp != nil && icmp.Type() == icmpUnreachable && icmp.Code() == icmpTooBig:
	case h.ICMPv6(b) != nil && h.ICMPv6(b).Type() == icmpv6PacketTooBig:
		icmp = h.ICMPv6(b)
	default:
		return far, 0
	}
	var q packet.Parsed
	quote := h.Payload(b)
	if !q.Parse(quote) {
		return far, 0
	}
	if ip := q.IPv4(quote); ip != nil {
		return ip.Dst(), int(icmp.Body() & most)
	}
	return q.IPv6(quote).Dst(), int(min(icmp.Body(), most))
}

func sender(b []byte, h *packet.Parsed) netip.Addr {
	if ip := h.IPv4(b); ip != nil {
		return ip.Src()
	}
	return h.IPv6(b).Src()
}

// paths remembers the hosts with a path MTU below the tunnel's.
type paths struct {
	mu  sync.RWMutex
	far map[netip.Addr]path
}

type path struct {
	mtu int
	at  time.Time
}

// The limits of paths: number of hosts, time, and the least MTU that is trusted (RFC 791, RFC 8200 section 5).
const (
	maxPaths  = 4096
	pathFor   = 10 * time.Minute
	leastMTU4 = 576
)

// note records mtu, in bytes, as the MTU of packets to far.
func (p *paths) note(far netip.Addr, mtu, tunnel int, now time.Time) {
	least := minMTU
	if far.Is4() {
		least = leastMTU4
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if mtu >= tunnel {
		return // the known MTU stays: it may be that of the path, and the new one that of its end
	}
	if p.far == nil || len(p.far) >= maxPaths {
		p.far = map[netip.Addr]path{}
	}
	p.far[far] = path{max(mtu, least), now}
}

// mtu returns the length limit of packets to far.
func (p *paths) mtu(far netip.Addr, tunnel int, now time.Time) int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if len(p.far) > 0 {
		if at, ok := p.far[far]; ok && now.Sub(at.at) < pathFor {
			return min(at.mtu, tunnel)
		}
	}
	return tunnel
}

// tooBig appends the ICMP error that gives the sender of the parsed packet b the length limit (RFC 1191 section 4, RFC
// 4443 section 3.2).
func tooBig(dst, b []byte, h *packet.Parsed, mtu int) ([]byte, error) {
	var header packet.Header
	if ip := h.IPv4(b); ip != nil {
		header.Src, header.Dst = netip.AddrPortFrom(ip.Dst(), 0), netip.AddrPortFrom(ip.Src(), 0)
		return header.AppendICMP(dst, icmpUnreachable, icmpTooBig, uint32(mtu), b[:min(len(b), ip.HeaderLen()+8)])
	}
	ip := h.IPv6(b)
	header.Src, header.Dst = netip.AddrPortFrom(ip.Dst(), 0), netip.AddrPortFrom(ip.Src(), 0)
	return header.AppendICMP(dst, icmpv6PacketTooBig, 0, uint32(mtu), b[:min(len(b), minMTU-packet.IPv6HeaderLen-packet.ICMPHeaderLen)])
}

// mapQuote replaces the address from with to in the packet that an ICMP error quotes, and recomputes the checksums.
func mapQuote(b []byte, h *packet.Parsed, from, to netip.Addr) {
	var quote []byte
	if icmp := h.ICMP(b); icmp != nil && (icmp.Type() == icmpUnreachable || icmp.Type() == 11 || icmp.Type() == 12) {
		quote = h.Payload(b)
	} else if icmp := h.ICMPv6(b); icmp != nil && icmp.Type() < 128 {
		quote = h.Payload(b)
	}
	var q packet.Parsed
	if !q.Parse(quote) || q.Family != h.Family {
		return
	}
	changed := false
	if ip := q.IPv4(quote); ip != nil {
		changed = ip.Src() == from && ip.SetSrc(to) || ip.Dst() == from && ip.SetDst(to)
		q.WriteIPChecksum(quote)
	} else if ip := q.IPv6(quote); ip != nil {
		changed = ip.Src() == from && ip.SetSrc(to) || ip.Dst() == from && ip.SetDst(to)
	}
	if changed {
		h.WriteTransportChecksum(b)
	}
}

// told remembers the IPv6 destinations whose length limit was reported to the host. Longer packets to them are from
// then on packets that the host itself would fragment.
type told map[netip.Addr]time.Time

// toldFor is how long a host remembers, at least (Linux: 10 min).
const toldFor = 5 * time.Minute

// before reports whether the limit for dst was reported lately; if not, it counts as reported from now on.
func (t told) before(dst netip.Addr, now time.Time) bool {
	if at, ok := t[dst]; ok && now.Sub(at) < toldFor {
		return true
	}
	if len(t) == 1024 {
		clear(t)
	}
	t[dst] = now
	return false
}

// cutter splits a packet into fragments (RFC 791 section 3.2, RFC 8200 section 4.5). The zero cutter has no fragments
// left.
type cutter struct {
	b    []byte
	mtu  int
	head int // bytes in front of each fragment's part, without the fragment header of IPv6
	at   int // offset of the next part
	id   uint32
}

// cut returns the cutter for a packet. It has no fragments if the packet cannot be fragmented: an IPv6 packet that is
// already a fragment, or has headers that every fragment needs.
func cut(b []byte, mtu int) cutter {
	if len(b) > 0 && b[0]>>4 == 4 {
		head := packet.IPv4(b).HeaderLen()
		return cutter{b: b, mtu: mtu, head: head, at: head}
	}
	switch packet.IPv6(b).NextHeader() {
	case packet.ProtocolHopByHop, packet.ProtocolRouting, packet.ProtocolFragment:
		return cutter{}
	}
	cutID++
	return cutter{b: b, mtu: mtu, head: packet.IPv6HeaderLen, at: packet.IPv6HeaderLen, id: cutID}
}

// cutID is the identification of the last fragmented IPv6 datagram. Its first value is arbitrary.
var cutID = uint32(time.Now().UnixNano())

// left reports whether any fragment is left.
func (c *cutter) left() bool { return c.at < len(c.b) }

// next writes the next fragment to dst and returns its length.
func (c *cutter) next(dst []byte) int {
	v6 := c.b[0]>>4 == 6
	head := c.head
	if v6 {
		head += 8
	}
	part := c.b[c.at:]
	more := len(part) > c.mtu-head
	if more {
		part = part[:(c.mtu-head)&^7]
	}
	copy(dst, c.b[:c.head])
	n := head + copy(dst[head:], part)
	offset := (c.at - c.head) / 8
	c.at += len(part)
	if v6 {
		f := dst[c.head:head]
		f[0], f[1] = packet.IPv6(dst).NextHeader(), 0
		binary.BigEndian.PutUint16(f[2:], uint16(offset)<<3)
		if more {
			f[3] |= 1
		}
		binary.BigEndian.PutUint32(f[4:], c.id)
		ip := packet.IPv6(dst)
		ip.SetNextHeader(packet.ProtocolFragment)
		ip.SetLength(uint16(n - packet.IPv6HeaderLen))
		return n
	}
	ip := packet.IPv4(dst)
	ip.SetLength(uint16(n))
	ip.SetFragOff(packet.IPv4(c.b).FragOff() + uint16(offset))
	ip.SetMF(more || packet.IPv4(c.b).MF())
	ip.SetChecksum(0)
	ip.SetChecksum(packet.Checksum(dst[:c.head]))
	return n
}

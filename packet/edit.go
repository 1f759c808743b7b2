package packet

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
)

// The errors of the functions that build, change and cut packets. They come wrapped in an error that names the packet and
// the reason.
var (
	ErrMalformed = errors.New("not one whole IP packet")
	ErrFragment  = errors.New("the packet is a fragment")
	ErrFamily    = errors.New("the addresses are not of one family")
	ErrNoPorts   = errors.New("the packet has no ports")
	ErrTooLong   = errors.New("does not fit an IP packet")
)

// Changed records that the program has changed bytes of the packet itself: it clears the checksum bits of Addr, so that
// Send computes the checksums of the IPv4 header and of TCP and UDP again. Send never computes those of ICMP and ICMPv6;
// CalcChecksums does. The methods below maintain Addr and the checksums themselves.
func (p *Packet) Changed() {
	p.Addr.IPChecksum, p.Addr.TCPChecksum, p.Addr.UDPChecksum = false, false, false
}

// Clone returns a copy of the packet with memory of its own, to keep while p goes to the next receive call. Only one of
// the two can go on as the captured packet; if the other is sent too, it is injected as a new one.
func (p *Packet) Clone() Packet {
	return Packet{Data: append([]byte(nil), p.Data...), Addr: p.Addr}
}

// Src returns the source address with the source port of TCP or UDP, or 0 if there is none: the packet is of another
// protocol, or a fragment other than the first. It returns the zero AddrPort if Data is not an IP packet. An IPv4-mapped IPv6
// address stays mapped.
func (p *Packet) Src() netip.AddrPort { return p.end(true) }

// Dst returns the destination address and port, as Src does. Behind a routing header that is the next stop, as in the IP
// header.
func (p *Packet) Dst() netip.AddrPort { return p.end(false) }

func (p *Packet) end(source bool) netip.AddrPort {
	var h Parsed
	if !h.Parse(p.Data) {
		return netip.AddrPort{}
	}
	addr, port := h.addrField(p.Data, source), uint16(0)
	if f := h.portField(p.Data, source); f != nil {
		port = be.Uint16(f)
	}
	if h.Family == 4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(addr)), port)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(addr)), port)
}

// addrField returns the source or destination address in the header of the parsed b, in network order.
func (p *Parsed) addrField(b []byte, source bool) []byte {
	switch {
	case p.Family == 4 && source:
		return b[12:16]
	case p.Family == 4:
		return b[16:20]
	case source:
		return b[8:24]
	}
	return b[24:40]
}

// portField returns the source or destination port in the parsed b, in network order; nil if there is none.
func (p *Parsed) portField(b []byte, source bool) []byte {
	at := max(p.TCPOff, p.UDPOff)
	switch {
	case at < 0:
		return nil
	case source:
		return b[at : at+2]
	}
	return b[at+2 : at+4]
}

// SetSrc sets the source address and port and keeps the checksums correct. It adjusts the checksum of the IPv4 header, and
// those of TCP and UDP, for the change (RFC 1624) where Addr vouches for them; elsewhere Send computes them anyway. It always
// adjusts the checksum of ICMPv6. If a datagram is in fragments, change all of them alike: only the first has the checksum
// and the ports.
//
// It fails with ErrMalformed, ErrFamily, or ErrNoPorts if to has a port and the packet has none, and then changes nothing.
func (p *Packet) SetSrc(to netip.AddrPort) error { return p.setEnd(true, to) }

// SetDst sets the destination address and port, as SetSrc does. With a routing header it sets the next stop; the
// checksums cover the final destination, so they stay.
func (p *Packet) SetDst(to netip.AddrPort) error { return p.setEnd(false, to) }

func (p *Packet) setEnd(source bool, to netip.AddrPort) error {
	var h Parsed
	if !h.Parse(p.Data) {
		return fmt.Errorf("packet: set an address: %w", ErrMalformed)
	}
	addr, size, ok := h.bytesOf(to.Addr())
	if !ok {
		return fmt.Errorf("packet: set the address of an IPv%d packet to %v: %w", h.Family, to.Addr(), ErrFamily)
	}
	port := h.portField(p.Data, source)
	if port == nil && to.Port() != 0 {
		return fmt.Errorf("packet: set port %d of a packet of protocol %d: %w", to.Port(), h.Protocol, ErrNoPorts)
	}
	p.put(&h, h.addrField(p.Data, source), addr[:size], true, h.summed(p.Data, source))
	if port != nil {
		var by [2]byte
		be.PutUint16(by[:], to.Port())
		p.put(&h, port, by[:], false, true)
	}
	return nil
}

// bytesOf returns an address in the form of the packet's family, in its first size bytes; ok is false if it has none.
func (p *Parsed) bytesOf(a netip.Addr) (b [16]byte, size int, ok bool) {
	switch {
	case p.Family == 4 && a.Unmap().Is4():
		four := a.Unmap().As4()
		copy(b[:], four[:])
		return b, len(four), true
	case p.Family == 6 && a.Is6():
		return a.As16(), len(b), true
	}
	return b, 0, false
}

// put overwrites a field of the headers, of even length and at an even offset, and corrects the checksums over it.
func (p *Packet) put(h *Parsed, field, by []byte, inIP, inTransport bool) {
	before, after := Sum(field, 0), Sum(by, 0)
	copy(field, by)
	if ip := h.IPv4(p.Data); inIP && ip != nil && p.Addr.IPChecksum {
		ip.SetChecksum(UpdateChecksum16(ip.Checksum(), before, after))
	}
	t := h.transport()
	if !inTransport || t == nil || !t.pseudo || t == &transportTCP && !p.Addr.TCPChecksum || t == &transportUDP && !p.Addr.UDPChecksum {
		return
	}
	at := int(max(h.TCPOff, h.UDPOff, h.ICMPv6Off)) + t.field
	if at+2 > len(p.Data) {
		return // the header is cut before its checksum
	}
	sum := be.Uint16(p.Data[at:])
	if t == &transportUDP && sum == 0 {
		return // there is none
	}
	sum = UpdateChecksum16(sum, before, after)
	if t == &transportUDP && sum == 0 {
		sum = 0xFFFF
	}
	be.PutUint16(p.Data[at:], sum)
}

// summed reports whether the transport's checksum covers an address in the header of the parsed b. It covers another one
// where Ends returns it.
func (p *Parsed) summed(b []byte, source bool) bool {
	src, dst, ok := p.Ends(b)
	field := p.addrField(b, source)
	if source {
		return !ok || bytes.Equal(src.AsSlice(), field)
	}
	return !ok || bytes.Equal(dst.AsSlice(), field)
}

// Payload returns the bytes behind the transport header, as a part of Data, or behind the IP headers if the protocol is not
// TCP, UDP, ICMP or ICMPv6. It is nil if there are none, or if Data is not a packet.
func (p *Packet) Payload() []byte {
	var h Parsed
	if !h.Parse(p.Data) {
		return nil
	}
	return h.Payload(p.Data)
}

// SetPayload replaces the bytes that Payload returns by b, of any length that fits. It sets the lengths of the IP and UDP
// headers and the checksums of the IPv4 header and of ICMP, and clears Addr's bits for TCP and UDP, so that Send computes
// those. It keeps no reference to b, which may be a part of Data. If the packet grows, Data moves to memory of the
// Packet's own, which later calls reuse. Bytes behind the packet's end are cut off.
//
// If the length of a TCP stream changes, its sequence numbers must be changed in both directions from then on: see
// Stream. A packet that becomes longer than its path's MTU must be cut by a Segmenter, or sending it fails.
//
// It fails with ErrMalformed if the packet is cut short, with ErrFragment for a fragment, whose payload is only a part,
// or with ErrTooLong, and then changes nothing.
func (p *Packet) SetPayload(b []byte) error {
	var h Parsed
	switch {
	case !h.Parse(p.Data) || h.Truncated || h.headerCut(p.Data):
		return fmt.Errorf("packet: set the payload: %w", ErrMalformed)
	case h.Fragment && (h.MF || h.FragOff > 0):
		return fmt.Errorf("packet: set the payload: %w, and its payload a part of a datagram's", ErrFragment)
	}
	size := int(h.HeaderLen) + len(b)
	if longest := h.longest(); size > longest {
		return fmt.Errorf("packet: a payload of %d bytes behind headers of %d %w; the longest is %d", len(b), h.HeaderLen, ErrTooLong, longest-int(h.HeaderLen))
	}
	p.resize(int(h.HeaderLen), b)
	if h.Family == 4 {
		ip := h.IPv4(p.Data)
		ip.SetLength(uint16(size))
		h.WriteIPChecksum(p.Data)
	} else {
		IPv6(p.Data).SetLength(uint16(size - IPv6HeaderLen))
	}
	if udp := h.UDP(p.Data); udp != nil {
		udp.SetLength(uint16(size - int(h.UDPOff)))
	}
	p.Changed()
	p.Addr.IPChecksum = h.Family == 4
	if h.Parse(p.Data) && (h.ICMPOff >= 0 || h.ICMPv6Off >= 0) {
		h.WriteTransportChecksum(p.Data)
	}
	return nil
}

// headerCut reports whether the packet in the parsed b ends within its transport header.
func (p *Parsed) headerCut(b []byte) bool {
	if p.TCPOff >= 0 {
		n := TCP(b[p.TCPOff:]).HeaderLen()
		return n < TCPHeaderLen || n > int(p.Length-p.TCPOff)
	}
	if p.FragOff > 0 || p.transport() != nil {
		return false
	}
	icmp := uint8(ProtocolICMP)
	if p.Family == 6 {
		icmp = ProtocolICMPv6
	}
	return p.Protocol == ProtocolTCP || p.Protocol == ProtocolUDP || p.Protocol == icmp || p.Family == 6 && isExtension[p.Protocol]
}

// longest returns the greatest length of a packet of the family, in bytes.
func (p *Parsed) longest() int {
	if p.Family == 6 {
		return IPv6HeaderLen + 0xFFFF
	}
	return 0xFFFF
}

// resize sets Data to its first headers bytes and b behind them. Bytes of b may lie in Data.
func (p *Packet) resize(headers int, b []byte) {
	size := headers + len(b)
	if size <= len(p.Data) {
		copy(p.Data[headers:], b)
		p.Data = p.Data[:size]
		return
	}
	// Data may share its memory with other packets, so it grows in place only if the memory is p's own.
	if size <= cap(p.own) && len(p.Data) > 0 && &p.own[:1][0] == &p.Data[0] {
		p.Data = p.own[:size]
		copy(p.Data[headers:], b)
		return
	}
	if size > cap(p.own) {
		p.own = make([]byte, 0, size+spareRoom)
	}
	data := p.own[:size]
	copy(data[headers:], b) // first: b may lie in the same memory
	copy(data, p.Data[:headers])
	p.Data = data
}

// spareRoom is the memory that SetPayload allocates beyond its need, in bytes: for the next packet.
const spareRoom = 256

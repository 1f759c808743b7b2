package packet

import (
	"fmt"
	"net/netip"
)

// Header has the fields of a new packet's IP header, and the two ports of TCP and UDP. Its methods append whole packets with
// correct checksums to the caller's memory. Both addresses must be of one family; IPv4-mapped ones count as IPv4. ICMP
// ignores the ports.
type Header struct {
	Src, Dst netip.AddrPort

	TTL       uint8  // the hop limit; 0 stands for 64
	TOS       uint8  // the traffic class: DSCP and ECN
	ID        uint16 // IPv4: the identification
	DF        bool   // IPv4: routers must not fragment the packet
	FlowLabel uint32 // IPv6: 20 bits
}

// Segment has the fields of a new TCP segment besides ports and payload.
type Segment struct {
	Seq, Ack uint32
	Flags    TCPFlags
	Window   uint16
	Urgent   uint16
	Options  []byte // at most 40 bytes; zeros (the end of the list) pad them to a multiple of 4
}

// defaultTTL is the hop limit of new packets (RFC 1700; Linux uses the same).
const defaultTTL = 64

// AppendUDP appends a UDP datagram to dst and returns the extended slice. On ErrFamily and ErrTooLong it returns dst
// unchanged.
func (h *Header) AppendUDP(dst, payload []byte) ([]byte, error) {
	dst, b, at, err := h.appendIP(dst, ProtocolUDP, ProtocolUDP, UDPHeaderLen+len(payload))
	if err != nil {
		return dst, err
	}
	u := UDP(b[at:])
	u.SetSrcPort(h.Src.Port())
	u.SetDstPort(h.Dst.Port())
	u.SetLength(uint16(len(u)))
	copy(u[UDPHeaderLen:], payload)
	CalcChecksums(b, nil, 0)
	return dst, nil
}

// AppendTCP appends a TCP segment, as AppendUDP does. Options of more than 40 bytes fail with ErrTooLong too.
func (h *Header) AppendTCP(dst []byte, s Segment, payload []byte) ([]byte, error) {
	header := TCPHeaderLen + (len(s.Options)+3)&^3
	if header > maxTCPHeader {
		return dst, fmt.Errorf("packet: TCP options of %d bytes: %w; the most are %d", len(s.Options), ErrTooLong, maxTCPHeader-TCPHeaderLen)
	}
	dst, b, at, err := h.appendIP(dst, ProtocolTCP, ProtocolTCP, header+len(payload))
	if err != nil {
		return dst, err
	}
	t := TCP(b[at:])
	t.SetSrcPort(h.Src.Port())
	t.SetDstPort(h.Dst.Port())
	t.SetSeq(s.Seq)
	t.SetAck(s.Ack)
	t.SetHeaderLen(header)
	t.SetFlags(s.Flags)
	t.SetWindow(s.Window)
	t.SetUrgent(s.Urgent)
	copy(t[TCPHeaderLen:], s.Options)
	copy(t[header:], payload)
	CalcChecksums(b, nil, 0)
	return dst, nil
}

// maxTCPHeader is the greatest length of a TCP header with its options, in bytes: 15 words.
const maxTCPHeader = 60

// AppendICMP appends an ICMP message, or an ICMPv6 message if the addresses are IPv6, as AppendUDP does. Type and code are
// those of the family; body is the 4 bytes whose meaning depends on the type.
func (h *Header) AppendICMP(dst []byte, typ, code uint8, body uint32, payload []byte) ([]byte, error) {
	dst, b, at, err := h.appendIP(dst, ProtocolICMP, ProtocolICMPv6, ICMPHeaderLen+len(payload))
	if err != nil {
		return dst, err
	}
	m := ICMP(b[at:])
	m.SetType(typ)
	m.SetCode(code)
	m.SetBody(body)
	copy(m[ICMPHeaderLen:], payload)
	CalcChecksums(b, nil, 0)
	return dst, nil
}

// appendIP appends a packet with length zero bytes behind its IP header. It returns the extended slice, the packet in it,
// and the offset of those bytes. The protocol is protocol4 in IPv4 packets, protocol6 in others.
func (h *Header) appendIP(dst []byte, protocol4, protocol6 uint8, length int) (all, b []byte, at int, err error) {
	from, to := h.Src.Addr().Unmap(), h.Dst.Addr().Unmap()
	if !from.IsValid() || !to.IsValid() || from.Is4() != to.Is4() {
		return dst, nil, 0, fmt.Errorf("packet: from %v to %v: %w", h.Src.Addr(), h.Dst.Addr(), ErrFamily)
	}
	longest := 0xFFFF
	if from.Is4() {
		longest -= IPv4HeaderLen
	}
	if length > longest {
		return dst, nil, 0, fmt.Errorf("packet: %d bytes behind the IP header: %w; the most are %d", length, ErrTooLong, longest)
	}
	ttl := h.TTL
	if ttl == 0 {
		ttl = defaultTTL
	}
	if from.Is4() {
		all, b, at = appendHeader(dst, 4, protocol4, protocol6, ttl, length)
		ip := IPv4(b)
		ip.SetTOS(h.TOS)
		ip.SetID(h.ID)
		ip.SetDF(h.DF)
		ip.SetSrc(from)
		ip.SetDst(to)
		return all, b, at, nil
	}
	all, b, at = appendHeader(dst, 6, protocol4, protocol6, ttl, length)
	ip := IPv6(b)
	ip.SetTrafficClass(h.TOS)
	ip.SetFlowLabel(h.FlowLabel)
	ip.SetSrc(from)
	ip.SetDst(to)
	return all, b, at, nil
}

// appendHeader appends an IP packet with length zero bytes behind its header, which lacks the addresses. It returns the
// extended slice, the packet in it, and the header's length.
func appendHeader(dst []byte, family, protocol4, protocol6, ttl uint8, length int) (all, b []byte, header int) {
	header = IPv4HeaderLen
	if family == 6 {
		header = IPv6HeaderLen
	}
	begin := len(dst)
	all = append(dst, make([]byte, header+length)...) // allocates nothing: the compiler extends dst
	b = all[begin:]
	if family == 6 {
		ip := IPv6(b)
		ip[0] = 6 << 4
		ip.SetLength(uint16(length))
		ip.SetNextHeader(protocol6)
		ip.SetHopLimit(ttl)
		return all, b, header
	}
	ip := IPv4(b)
	ip[0] = 4<<4 | IPv4HeaderLen/4
	ip.SetLength(uint16(len(b)))
	ip.SetTTL(ttl)
	ip.SetProtocol(protocol4)
	return all, b, header
}

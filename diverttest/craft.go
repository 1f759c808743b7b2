package diverttest

import (
	"fmt"
	"net/netip"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// UDP returns a datagram of UDP as an IP packet, with right checksums and a TTL of 64. Source and destination must be
// of one family, and the payload must fit an IP packet, else the error is divert.ErrInvalid.
func UDP(src, dst netip.AddrPort, payload []byte) ([]byte, error) {
	length := packet.UDPHeaderLen + len(payload)
	b, transport, err := ip(src.Addr(), dst.Addr(), packet.ProtocolUDP, length)
	if err != nil {
		return nil, err
	}
	u := packet.UDP(b[transport:])
	u.SetSrcPort(src.Port())
	u.SetDstPort(dst.Port())
	u.SetLength(uint16(length))
	copy(u[packet.UDPHeaderLen:], payload)
	packet.CalcChecksums(b, nil, 0)
	return b, nil
}

// Segment is what a TCP segment has besides addresses and payload.
type Segment struct {
	Seq, Ack uint32
	Flags    packet.TCPFlags
	Window   uint16
}

// TCP returns a segment of TCP as an IP packet, without options; else it is as UDP.
func TCP(src, dst netip.AddrPort, s Segment, payload []byte) ([]byte, error) {
	b, transport, err := ip(src.Addr(), dst.Addr(), packet.ProtocolTCP, packet.TCPHeaderLen+len(payload))
	if err != nil {
		return nil, err
	}
	t := packet.TCP(b[transport:])
	t.SetSrcPort(src.Port())
	t.SetDstPort(dst.Port())
	t.SetSeq(s.Seq)
	t.SetAck(s.Ack)
	t.SetHeaderLen(packet.TCPHeaderLen)
	t.SetFlags(s.Flags)
	t.SetWindow(s.Window)
	copy(t[packet.TCPHeaderLen:], payload)
	packet.CalcChecksums(b, nil, 0)
	return b, nil
}

// ip returns a packet with room for so many bytes behind its IP header, and where they begin.
func ip(src, dst netip.Addr, protocol uint8, length int) (b []byte, transport int, err error) {
	src, dst = src.Unmap(), dst.Unmap()
	switch {
	case !src.IsValid() || !dst.IsValid() || src.Is4() != dst.Is4():
		return nil, 0, fmt.Errorf("diverttest: %w: a packet from %v to %v", divert.ErrInvalid, src, dst)
	case src.Is4() && packet.IPv4HeaderLen+length > 0xffff || length > 0xffff:
		return nil, 0, fmt.Errorf("diverttest: %w: %d bytes do not fit an IP packet", divert.ErrInvalid, length)
	case src.Is4():
		b = make([]byte, packet.IPv4HeaderLen+length)
		h := packet.IPv4(b)
		b[0], transport = 0x45, packet.IPv4HeaderLen
		h.SetLength(uint16(len(b)))
		h.SetTTL(64)
		h.SetProtocol(protocol)
		h.SetSrc(src)
		h.SetDst(dst)
	default:
		b = make([]byte, packet.IPv6HeaderLen+length)
		h := packet.IPv6(b)
		b[0], transport = 0x60, packet.IPv6HeaderLen
		h.SetLength(uint16(length))
		h.SetHopLimit(64)
		h.SetNextHeader(protocol)
		h.SetSrc(src)
		h.SetDst(dst)
	}
	return b, transport, nil
}

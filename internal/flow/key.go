package flow

import (
	"encoding/binary"
	"errors"

	"github.com/opendivert/divert/packet"
)

// Key identifies a flow: both directions have one key. It is also the key of the kernel's maps, 40 bytes in host byte
// order.
type Key struct {
	Addrs    [4]uint64 // upper and lower half of the lower endpoint's address, then the higher endpoint's; an IPv4 address is a number
	Ports    [2]uint16 // of the lower endpoint and of the higher; of ICMP the identifier, twice
	Protocol uint8     // behind IPv6 extension headers
	Family   uint8     // 4 or 6
	Zero     uint16
}

// Packet has the properties of a packet that matter for its flow.
type Packet struct {
	Key   Key
	Back  bool  // the packet goes from the higher endpoint to the lower
	Flags uint8 // the flags of TCP (RFC 9293 section 3.1), else 0
	Bytes int   // the IP header included
}

// Way returns 0 for packets from the lower endpoint to the higher, 1 for those back.
func (p *Packet) Way() int {
	if p.Back {
		return 1
	}
	return 0
}

// The flags of TCP that begin and end flows.
const (
	FlagFIN = 1 << 0
	FlagSYN = 1 << 1
	FlagRST = 1 << 2
	FlagACK = 1 << 4
)

// Begins reports whether the packet begins a flow: a SYN without ACK.
func (p *Packet) Begins() bool { return p.Flags&(FlagSYN|FlagACK) == FlagSYN }

// The ICMP types with a flow (RFC 792; RFC 4443 section 4).
const (
	EchoReply     = 0
	EchoRequest   = 8
	EchoRequestV6 = 128
	EchoReplyV6   = 129
)

// The reasons why a packet belongs to no flow.
var (
	errNoPacket = errors.New("its data is not an IP packet")
	errFragment = errors.New("it is a fragment, which does not tell its flow")
	errNoFlow   = errors.New("only TCP, UDP and ICMP echo have flows")
	errNotWhole = errors.New("its transport header is not all there")
)

// Of finds the flow of the packet in b; parsed is the result of parsing it. b needs only the beginning of the packet with
// all headers. If the packet has no flow, the error is the reason.
func Of(b []byte, parsed *packet.Parsed) (Packet, error) {
	p := Packet{Bytes: int(parsed.Length)}
	err := p.find(b, parsed)
	return p, err
}

// Find is Of for the hot path, without the reason. Bytes is the length of b.
func Find(b []byte, parsed *packet.Parsed) (p Packet, ok bool) {
	p.Bytes = len(b)
	return p, p.find(b, parsed) == nil
}

// find fills in everything except Bytes.
func (p *Packet) find(b []byte, parsed *packet.Parsed) error {
	be := binary.BigEndian
	if parsed.Family == 0 {
		return errNoPacket
	}
	if parsed.Fragment {
		return errFragment
	}
	k := &p.Key
	var from, to uint16
	switch {
	case parsed.TCPOff >= 0:
		t := b[parsed.TCPOff:]
		from, to, p.Flags = be.Uint16(t), be.Uint16(t[2:]), t[13]
	case parsed.UDPOff >= 0:
		t := b[parsed.UDPOff:]
		from, to = be.Uint16(t), be.Uint16(t[2:])
	case parsed.ICMPOff >= 0:
		t := b[parsed.ICMPOff:]
		if t[0] != EchoRequest && t[0] != EchoReply {
			return errNoFlow
		}
		from = be.Uint16(t[4:])
		to = from
	case parsed.ICMPv6Off >= 0:
		t := b[parsed.ICMPv6Off:]
		if t[0] != EchoRequestV6 && t[0] != EchoReplyV6 {
			return errNoFlow
		}
		from = be.Uint16(t[4:])
		to = from
	case parsed.Protocol == packet.ProtocolTCP || parsed.Protocol == packet.ProtocolUDP:
		return errNotWhole
	default:
		return errNoFlow
	}
	k.Protocol, k.Family = parsed.Protocol, parsed.Family
	var src, dst [2]uint64
	if parsed.Family == 4 {
		src[1], dst[1] = uint64(be.Uint32(b[12:])), uint64(be.Uint32(b[16:]))
	} else {
		src = [2]uint64{be.Uint64(b[8:]), be.Uint64(b[16:])}
		dst = [2]uint64{be.Uint64(b[24:]), be.Uint64(b[32:])}
	}
	if p.Back = higher(src, from, dst, to); p.Back {
		src, dst, from, to = dst, src, to, from
	}
	k.Addrs = [4]uint64{src[0], src[1], dst[0], dst[1]}
	k.Ports = [2]uint16{from, to}
	return nil
}

// higher reports whether endpoint a is above b: by address, then by port.
func higher(a [2]uint64, aPort uint16, b [2]uint64, bPort uint16) bool {
	switch {
	case a[0] != b[0]:
		return a[0] > b[0]
	case a[1] != b[1]:
		return a[1] > b[1]
	}
	return aPort > bPort
}

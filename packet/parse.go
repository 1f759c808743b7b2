package packet

import (
	"encoding/binary"
	"iter"
)

// IP protocol numbers that the parser knows (IANA protocol numbers).
const (
	ProtocolHopByHop    = 0
	ProtocolICMP        = 1
	ProtocolTCP         = 6
	ProtocolUDP         = 17
	ProtocolRouting     = 43
	ProtocolFragment    = 44
	ProtocolAH          = 51
	ProtocolICMPv6      = 58
	ProtocolDestOptions = 60
	ProtocolMobility    = 135
)

// Sizes of the fixed headers, in bytes. IPv4 and TCP headers may have options beyond.
const (
	IPv4HeaderLen = 20
	IPv6HeaderLen = 40
	TCPHeaderLen  = 20
	UDPHeaderLen  = 8
	ICMPHeaderLen = 8
)

// Parsed is the result of parsing a packet. The caller owns it and may reuse it for the next packet. Offsets are in bytes
// from the start of the IP header, -1 for a part that is absent; lengths are in bytes; all numbers are in host order. It
// keeps no reference to the packet, and is out of date once the packet changes. Only Parse and ParseExact fill it: the zero
// Parsed is not a result. (Specification: packets.md 1.)
type Parsed struct {
	IPv4Off   int32 // 0, or -1 in an IPv6 packet
	IPv6Off   int32 // 0, or -1 in an IPv4 packet
	ICMPOff   int32 // in IPv4 packets only
	ICMPv6Off int32 // in IPv6 packets only
	TCPOff    int32
	UDPOff    int32

	Length     int32 // from the IP header, which it includes; up to 65575
	HeaderLen  int32 // of all headers, and so the offset at which a payload would start
	PayloadOff int32 // -1 if the payload is empty
	PayloadLen int32 // up to the end of the packet or of the buffer, whichever comes first
	FragOff    int32 // fragment offset in bytes

	Family    uint8 // 4 or 6
	Protocol  uint8 // the upper-layer protocol: behind the IPv6 extension headers
	Fragment  bool  // IPv4: MF or an offset; IPv6: there is a fragment header
	MF        bool  // more fragments follow
	Truncated bool  // the buffer ends before the packet does
	Extended  bool  // the buffer goes on after the packet
}

// absent is the result for bytes that are not a packet.
var absent = Parsed{
	IPv4Off: -1, IPv6Off: -1, ICMPOff: -1, ICMPv6Off: -1, TCPOff: -1, UDPOff: -1, PayloadOff: -1,
}

// Parse parses the packet at the start of b, an IP header first, and reports whether b starts with one. It accepts
// packets that end before or after the end of b, and marks them Truncated or Extended. On false, all of p is absent or
// zero. Parse does not look at checksums, TCP options or the length in the UDP header.
func (p *Parsed) Parse(b []byte) bool {
	*p = absent
	if len(b) < IPv4HeaderLen {
		return false
	}
	var used, cursor int // the packet's bytes in b, and the number parsed so far
	switch b[0] >> 4 {
	case 4:
		cursor = int(b[0]&0x0F) * 4
		total := int(binary.BigEndian.Uint16(b[2:]))
		if cursor < IPv4HeaderLen || total < cursor || len(b) < cursor {
			return false
		}
		used = p.setLength(total, len(b))
		p.IPv4Off = 0
		p.Family = 4
		p.Protocol = b[9]
		fragment := binary.BigEndian.Uint16(b[6:])
		p.FragOff = int32(fragment&0x1FFF) * 8
		p.MF = fragment&0x2000 != 0
		p.Fragment = fragment&0x3FFF != 0
	case 6:
		if len(b) < IPv6HeaderLen {
			return false
		}
		used = p.setLength(int(binary.BigEndian.Uint16(b[4:]))+IPv6HeaderLen, len(b))
		p.IPv6Off = 0
		p.Family = 6
		p.Protocol = b[6]
		cursor = IPv6HeaderLen
		if isExtension[p.Protocol] {
			cursor = p.parseExtensions(b[:used])
		}
	default:
		return false
	}

	headers := cursor
	if p.FragOff == 0 {
		headers = p.parseTransport(b[:used], cursor)
	}
	p.HeaderLen = int32(headers)
	if headers < used {
		p.PayloadOff = int32(headers)
		p.PayloadLen = int32(used - headers)
	}
	return true
}

// ParseExact is Parse for a buffer that must hold one packet and nothing else: it also fails if the packet is Truncated
// or Extended. Captured packets are judged this way (packets.md 1.4).
func (p *Parsed) ParseExact(b []byte) bool {
	if !p.Parse(b) {
		return false
	}
	if p.Truncated || p.Extended {
		*p = absent
		return false
	}
	return true
}

// setLength notes the packet's length and returns the length of the part in the buffer.
func (p *Parsed) setLength(total, available int) int {
	p.Length = int32(total)
	p.Truncated = total > available
	p.Extended = total < available
	return min(total, available)
}

// isExtension holds the IPv6 extension headers that the parser can skip.
var isExtension = [256]bool{
	ProtocolHopByHop: true, ProtocolRouting: true, ProtocolFragment: true, ProtocolAH: true,
	ProtocolDestOptions: true, ProtocolMobility: true,
}

// parseExtensions skips the IPv6 extension headers (RFC 8200 section 4) and returns the offset behind them. It stops
// where a header is incomplete and at a second fragment header; the protocol is then that header's own.
func (p *Parsed) parseExtensions(b []byte) (cursor int) {
	cursor = IPv6HeaderLen
	for p.FragOff == 0 && len(b)-cursor >= 2 && isExtension[p.Protocol] {
		header := b[cursor:]
		size := (int(header[1]) + 1) * 8
		switch p.Protocol {
		case ProtocolAH: // RFC 4302 section 2.2: in words of 4 bytes, minus 2
			size = (int(header[1]) + 2) * 4
		case ProtocolFragment:
			size = 8
			if p.Fragment {
				return cursor
			}
		}
		if len(header) < size {
			return cursor
		}
		if p.Protocol == ProtocolFragment {
			p.Fragment = true
			p.MF = header[3]&1 != 0
			p.FragOff = int32(binary.BigEndian.Uint16(header[2:]) & 0xFFF8)
		}
		p.Protocol = header[0]
		cursor += size
	}
	return cursor
}

// parseTransport notes the transport header at the cursor, if it is complete, and returns the offset behind it.
func (p *Parsed) parseTransport(b []byte, cursor int) int {
	n := len(b) - cursor
	switch p.Protocol {
	case ProtocolTCP:
		if n < TCPHeaderLen {
			return cursor
		}
		size := int(b[cursor+12]>>4) * 4
		if size < TCPHeaderLen {
			return cursor
		}
		p.TCPOff = int32(cursor)
		return cursor + min(size, n)
	case ProtocolUDP:
		if n < UDPHeaderLen {
			return cursor
		}
		p.UDPOff = int32(cursor)
		return cursor + UDPHeaderLen
	case ProtocolICMP:
		if n < ICMPHeaderLen || p.Family != 4 {
			return cursor
		}
		p.ICMPOff = int32(cursor)
		return cursor + ICMPHeaderLen
	case ProtocolICMPv6:
		if n < ICMPHeaderLen || p.Family != 6 {
			return cursor
		}
		p.ICMPv6Off = int32(cursor)
		return cursor + ICMPHeaderLen
	}
	return cursor
}

// Payload returns the payload as a part of the parsed b, or nil if it is empty.
func (p *Parsed) Payload(b []byte) []byte {
	return part(b, p.PayloadOff, p.PayloadLen)
}

// Next returns the bytes behind an Extended packet in the parsed b, or nil if it is not Extended.
func (p *Parsed) Next(b []byte) []byte {
	if !p.Extended || len(b) <= int(p.Length) {
		return nil
	}
	return b[p.Length:]
}

// part returns the size bytes at off, nil if the header is absent or b too short.
func part(b []byte, off, size int32) []byte {
	if off < 0 || size <= 0 || len(b) < int(off)+int(size) {
		return nil
	}
	end := off + size
	return b[off:end:end]
}

// Split iterates over a batch: packets that lie back to back in b. For each packet it sets p to its parse and yields its
// bytes, a part of b, with true. If the rest is not a complete packet, it yields the rest with false.
func (p *Parsed) Split(b []byte) iter.Seq2[[]byte, bool] {
	return func(yield func([]byte, bool) bool) {
		for rest := b; len(rest) > 0; {
			if !p.Parse(rest) || p.Truncated {
				yield(rest, false)
				return
			}
			packet := rest[:p.Length:p.Length]
			rest = rest[p.Length:]
			p.Extended = false // the yielded slice ends with the packet
			if !yield(packet, true) {
				return
			}
		}
	}
}

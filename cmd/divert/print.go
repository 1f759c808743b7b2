package main

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/opendivert/divert/internal/capfile"
	"github.com/opendivert/divert/packet"
)

// printer turns packets into text for people, in the style of tcpdump.
type printer struct {
	quiet   bool // print less of the transport
	verbose int  // 1: all header fields
	bytes   bytesMode
	times   int  // how often -t was given
	nano    bool // times have nine digits
	number  bool // packets are counted
	link    bool // print the link layer as tcpdump does, as far as it is known
	noSums  bool // do not check checksums
	colour  bool

	count         int       // of packets printed
	first, before time.Time // of the first packet and the one before

	processes *processes // nil if the processes of packets are not known
	parsed    packet.Parsed
}

// bytesMode is how the bytes of packets are printed.
type bytesMode uint8

const (
	bytesNone bytesMode = iota
	bytesHex
	bytesBoth  // in hexadecimal and ASCII
	bytesASCII // with line feeds and tabs unchanged
)

// The layouts of times. A short line has no room for the date.
const (
	shortTime = "15:04:05.000000"
	longTime  = "2006-01-02 15:04:05.000000000"
)

// append appends the text of a packet, one or more lines, each with its newline.
func (p *printer) append(b []byte, r *record) []byte {
	if p.count++; p.number {
		if b = appendNumber(b, p.count); p.times != 1 {
			b = append(b, ' ')
		}
		b = append(b, ' ')
	}
	b = p.begin(b, styleTime)
	b = p.stamp(b, r.when)
	b = p.end(b)
	if r.device != "" {
		b = append(b, printable(r.device)...)
		b = append(b, ' ')
	}
	if arrow := directions[r.direction].arrow; arrow != "" {
		b = append(b, arrow...)
		b = append(b, ' ')
	}
	valid := capfile.Parse(&p.parsed, r.data, r.length)
	if p.link {
		b = p.appendLink(b, r, valid)
	}
	if valid {
		b = p.appendPacket(b, r.data)
	} else {
		b = p.bad(b, "not an IP packet")
		b = appendNumber(append(b, ", length "...), r.length)
	}
	if r.length > len(r.data) {
		b = p.begin(append(b, ' '), styleBad)
		b = appendNumber(append(b, "[captured "...), len(r.data))
		b = appendNumber(append(b, " of "...), r.length)
		b = p.end(append(b, " bytes]"...))
	} else if valid && p.parsed.Truncated {
		b = p.bad(append(b, ' '), "[cut to "+strconv.Itoa(len(r.data))+" bytes]")
	}
	if r.live && r.addr.Impostor {
		b = append(b, " [impostor]"...)
	}
	b = p.appendProcess(b, r)
	if r.verdict != capfile.NoVerdict {
		b = append(append(append(b, " ["...), r.verdict.String()...), ']')
	}
	b = append(b, '\n')
	if p.verbose > 0 {
		b = p.appendFields(b, r, valid)
	}
	if p.bytes != bytesNone {
		b = p.begin(b, styleBytes)
		b = appendDump(b, r.data, p.bytes)
		b = p.end(b)
	}
	return b
}

// appendLink appends the index of the interface, and the type and length of the packet.
func (p *printer) appendLink(b []byte, r *record, valid bool) []byte {
	if r.live {
		b = append(appendNumber(append(b, '#'), r.addr.Network().IfIdx), ", "...)
	}
	switch {
	case valid && p.parsed.Family == 6:
		b = append(b, "ethertype IPv6 (0x86dd), "...)
	case valid:
		b = append(b, "ethertype IPv4 (0x0800), "...)
	}
	return append(appendNumber(append(b, "length "...), r.length), ": "...)
}

// appendProcess appends the program and the process of a packet, if known.
func (p *printer) appendProcess(b []byte, r *record) []byte {
	if r.pid == 0 {
		return b
	}
	b = append(b, " ["...)
	b = p.begin(b, styleInfo)
	b = append(b, printable(r.program)...)
	b = p.end(b)
	return append(appendNumber(append(b, ' '), r.pid), ']')
}

// begin and end enclose text in a style; bad appends text in the style of errors.
func (p *printer) begin(b []byte, s style) []byte {
	if p.colour {
		b = append(b, s.begin...)
	}
	return b
}

func (p *printer) end(b []byte) []byte {
	if p.colour {
		b = append(b, styleEnd...)
	}
	return b
}

func (p *printer) bad(b []byte, text string) []byte {
	b = p.begin(b, styleBad)
	b = append(b, text...)
	return p.end(b)
}

// appendPacket appends the contents of the IP packet described by p.parsed.
func (p *printer) appendPacket(b, data []byte) []byte {
	name := "IP "
	if p.parsed.Family == 6 {
		name = "IP6 "
	}
	b = p.begin(b, styleProto)
	b = append(b, name...)
	b = p.end(b)
	b = p.begin(b, styleInfo)
	b = appendEndpoints(b, data, &p.parsed)
	b = p.end(b)
	b = append(b, ": "...)
	if p.quiet {
		return p.appendBrief(b)
	}
	b = appendTransport(b, data, &p.parsed)
	b = appendFragment(b, data, &p.parsed)
	if lacksHeader(&p.parsed) {
		b = p.bad(append(b, ' '), "[bad header]")
	}
	return b
}

// lacksHeader reports whether a transport header is missing or broken.
func lacksHeader(p *packet.Parsed) bool {
	if p.FragOff != 0 || p.Truncated {
		return false
	}
	switch p.Protocol {
	case packet.ProtocolTCP:
		return p.TCPOff < 0
	case packet.ProtocolUDP:
		return p.UDPOff < 0
	case packet.ProtocolICMP:
		return p.Family == 4 && p.ICMPOff < 0
	case packet.ProtocolICMPv6:
		return p.Family == 6 && p.ICMPv6Off < 0
	}
	return false
}

// appendBrief appends the protocol and the length of its payload.
func (p *printer) appendBrief(b []byte) []byte {
	b = appendProtocol(b, p.parsed.Protocol)
	if p.parsed.Fragment {
		b = append(b, " fragment"...)
	}
	return appendNumber(append(b, ' '), payloadLength(&p.parsed))
}

// payloadLength returns the length of the payload on the wire, even if the capture cut it.
func payloadLength(p *packet.Parsed) int { return int(max(0, p.Length-p.HeaderLen)) }

// addresses returns source and destination.
func addresses(data []byte, p *packet.Parsed) (src, dst netip.Addr) {
	if h := p.IPv4(data); h != nil {
		return h.Src(), h.Dst()
	}
	h := p.IPv6(data)
	return h.Src(), h.Dst()
}

// ports returns source and destination port.
func ports(data []byte, p *packet.Parsed) (src, dst uint16, ok bool) {
	if h := p.TCP(data); h != nil {
		return h.SrcPort(), h.DstPort(), true
	}
	if h := p.UDP(data); h != nil {
		return h.SrcPort(), h.DstPort(), true
	}
	return 0, 0, false
}

// appendEndpoints appends source > destination, with the ports behind a dot.
func appendEndpoints(b, data []byte, p *packet.Parsed) []byte {
	src, dst := addresses(data, p)
	sport, dport, ok := ports(data, p)
	b = src.AppendTo(b)
	if ok {
		b = appendNumber(append(b, '.'), sport)
	}
	b = append(b, " > "...)
	b = dst.AppendTo(b)
	if ok {
		b = appendNumber(append(b, '.'), dport)
	}
	return b
}

// appendFragment appends the place of a fragment in its datagram.
func appendFragment(b, data []byte, p *packet.Parsed) []byte {
	if !p.Fragment {
		return b
	}
	b = append(b, ", fragment id "...)
	b = appendNumber(b, fragmentID(data, p))
	b = append(b, " offset "...)
	b = appendNumber(b, p.FragOff)
	if p.MF {
		b = append(b, " more"...)
	}
	return b
}

// fragmentID returns the number that all fragments of a datagram share: 16 bits in IPv4, 32 in IPv6.
func fragmentID(data []byte, p *packet.Parsed) uint32 {
	if h := p.IPv4(data); h != nil {
		return uint32(h.ID())
	}
	if h := fragmentHeader(data); h != nil {
		return be32(h[4:])
	}
	return 0
}

// fragmentHeader returns the fragment header of an IPv6 packet, all 8 bytes, or nil (RFC 8200 section 4.5). The parser
// skips it together with the other extension headers.
func fragmentHeader(data []byte) []byte {
	next, at := data[6], packet.IPv6HeaderLen
	for at+8 <= len(data) {
		size := (int(data[at+1]) + 1) * 8
		switch next {
		case packet.ProtocolFragment:
			return data[at : at+8]
		case packet.ProtocolAH:
			size = (int(data[at+1]) + 2) * 4
		case packet.ProtocolHopByHop, packet.ProtocolRouting, packet.ProtocolDestOptions, packet.ProtocolMobility:
		default:
			return nil
		}
		next = data[at]
		at += size
	}
	return nil
}

// integer is any number.
type integer interface {
	~int | ~int32 | ~int64 | ~uint8 | ~uint16 | ~uint32 | ~uint64
}

func appendNumber[T integer](b []byte, v T) []byte {
	if v < 0 {
		return strconv.AppendInt(b, int64(v), 10)
	}
	return strconv.AppendUint(b, uint64(v), 10)
}

// appendHex appends 0x and a number in at least digits digits.
func appendHex[T integer](b []byte, v T, digits int) []byte {
	b = append(b, "0x"...)
	for shift := 4 * (digits - 1); shift > 0 && uint64(v)>>shift == 0; shift -= 4 {
		b = append(b, '0')
	}
	return strconv.AppendUint(b, uint64(v), 16)
}

func be16(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }
func be32(b []byte) uint32 { return uint32(be16(b))<<16 | uint32(be16(b[2:])) }

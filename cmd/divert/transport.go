package main

import (
	"net/netip"
	"strconv"

	"github.com/opendivert/divert/packet"
)

// appendTransport appends the transport header and the length of the payload.
func appendTransport(b, data []byte, p *packet.Parsed) []byte {
	switch {
	case p.TCPOff >= 0:
		return appendTCP(b, p.TCP(data), p)
	case p.UDPOff >= 0:
		return appendNumber(append(b, "UDP, length "...), payloadLength(p))
	case p.ICMPOff >= 0:
		return appendICMP(b, data, p)
	case p.ICMPv6Off >= 0:
		return appendICMP6(b, data, p)
	}
	b = appendProtocol(b, p.Protocol)
	return appendNumber(append(b, ", length "...), payloadLength(p))
}

// tcpFlags are the control bits with their letters, in tcpdump's order.
var tcpFlags = [...]struct {
	flag   packet.TCPFlags
	letter byte
}{
	{packet.TCPFin, 'F'}, {packet.TCPSyn, 'S'}, {packet.TCPRst, 'R'}, {packet.TCPPsh, 'P'}, {packet.TCPAck, '.'},
	{packet.TCPUrg, 'U'}, {packet.TCPEce, 'E'}, {packet.TCPCwr, 'W'},
}

// appendTCPFlags appends a letter for each control bit, "none" if there is none.
func appendTCPFlags(b []byte, f packet.TCPFlags) []byte {
	if f == 0 {
		return append(b, "none"...)
	}
	for _, t := range tcpFlags {
		if f&t.flag != 0 {
			b = append(b, t.letter)
		}
	}
	return b
}

func appendTCP(b []byte, h packet.TCP, p *packet.Parsed) []byte {
	b = append(b, "Flags ["...)
	b = appendTCPFlags(b, h.Flags())
	b = append(b, "], seq "...)
	b = appendNumber(b, h.Seq())
	n := payloadLength(p)
	if n > 0 {
		b = appendNumber(append(b, ':'), h.Seq()+uint32(n))
	}
	if h.Flags()&packet.TCPAck != 0 {
		b = appendNumber(append(b, ", ack "...), h.Ack())
	}
	b = appendNumber(append(b, ", win "...), h.Window())
	if h.Flags()&packet.TCPUrg != 0 {
		b = appendNumber(append(b, ", urg "...), h.Urgent())
	}
	if o := h.Options(); len(o) > 0 {
		b = append(b, ", options ["...)
		b = appendTCPOptions(b, o)
		b = append(b, ']')
	}
	return appendNumber(append(b, ", length "...), n)
}

// tcpOption describes how an option with a kind, a length and a value is printed.
type tcpOption struct {
	name string
	size int // of the value in bytes, -1 if variable
	text func(b, value []byte) []byte
}

// tcpOptions are the options with names (IANA TCP parameters). All others print with their number.
var tcpOptions = map[byte]tcpOption{
	2:  {"mss", 2, func(b, v []byte) []byte { return appendNumber(b, be16(v)) }},
	3:  {"wscale", 1, func(b, v []byte) []byte { return appendNumber(b, v[0]) }},
	4:  {"sackOK", 0, nil},
	5:  {"sack", -1, appendSACK},
	8:  {"TS", 8, appendTimestamps},
	34: {"tfo", -1, func(b, v []byte) []byte { return append(b, "cookie "+strconv.Itoa(len(v))+" bytes"...) }},
}

// appendTCPOptions appends the options of a TCP header (RFC 9293 section 3.1). It stops at the first one
// whose length does not fit.
func appendTCPOptions(b, o []byte) []byte {
	for first := true; len(o) > 0; first = false {
		if !first {
			b = append(b, ',')
		}
		switch o[0] {
		case 0:
			return append(b, "eol"...)
		case 1:
			b, o = append(b, "nop"...), o[1:]
			continue
		}
		if len(o) < 2 || o[1] < 2 || int(o[1]) > len(o) {
			return append(b, "bad"...)
		}
		b = appendTCPOption(b, o[0], o[2:o[1]])
		o = o[o[1]:]
	}
	return b
}

func appendTCPOption(b []byte, kind byte, value []byte) []byte {
	known, ok := tcpOptions[kind]
	if !ok || known.size >= 0 && known.size != len(value) {
		b = appendNumber(append(b, "unknown-"...), kind)
		return b
	}
	b = append(b, known.name...)
	if known.text == nil {
		return b
	}
	return known.text(append(b, ' '), value)
}

func appendTimestamps(b, v []byte) []byte {
	b = appendNumber(append(b, "val "...), be32(v))
	return appendNumber(append(b, " ecr "...), be32(v[4:]))
}

// appendSACK appends the blocks of a selective acknowledgment (RFC 2018 section 3).
func appendSACK(b, v []byte) []byte {
	b = appendNumber(b, len(v)/8)
	for ; len(v) >= 8; v = v[8:] {
		b = appendNumber(append(b, " {"...), be32(v))
		b = appendNumber(append(b, ':'), be32(v[4:]))
		b = append(b, '}')
	}
	return b
}

// The types of messages whose body is printed.
const (
	icmpEchoReply    = 0
	icmpUnreachable  = 3
	icmpRedirect     = 5
	icmpEchoRequest  = 8
	icmpTimeExceeded = 11
	icmpParameter    = 12
	icmpNeedFrag     = 4 // a code

	icmp6TooBig         = 2
	icmp6Errors         = 127 // the last type of error
	icmp6EchoRequest    = 128
	icmp6EchoReply      = 129
	icmp6NeighborAsk    = 135
	icmp6NeighborAnswer = 136
)

// appendICMPName appends the names of a message and its code, or the numbers.
func appendICMPName(b []byte, h packet.ICMP, names *[256]icmpName) []byte {
	n := &names[h.Type()]
	if n.name == "" {
		b = appendNumber(append(b, "type "...), h.Type())
		return appendNumber(append(b, " code "...), h.Code())
	}
	if code := n.codeName(h.Code()); code != "" {
		b = append(b, code...)
		return append(append(b, ' '), n.name...)
	}
	b = append(b, n.name...)
	if h.Code() != 0 {
		b = appendNumber(append(b, " code "...), h.Code())
	}
	return b
}

func appendICMP(b, data []byte, p *packet.Parsed) []byte {
	h := p.ICMP(data)
	b = appendICMPName(append(b, "ICMP "...), h, &icmpNames)
	switch h.Type() {
	case icmpEchoRequest, icmpEchoReply:
		b = appendEcho(b, h)
	case icmpUnreachable:
		if h.Code() == icmpNeedFrag {
			b = appendNumber(append(b, ", mtu "...), h.Body()&0xffff)
		}
		b = appendCause(b, p.Payload(data))
	case icmpRedirect:
		var a [4]byte
		copy(a[:], h[4:8])
		b = netip.AddrFrom4(a).AppendTo(append(b, " to "...))
		b = appendCause(b, p.Payload(data))
	case icmpTimeExceeded, icmpParameter:
		b = appendCause(b, p.Payload(data))
	}
	return appendNumber(append(b, ", length "...), payloadLength(p)+packet.ICMPHeaderLen)
}

func appendICMP6(b, data []byte, p *packet.Parsed) []byte {
	h := p.ICMPv6(data)
	b = appendICMPName(append(b, "ICMP6 "...), h, &icmp6Names)
	payload := p.Payload(data)
	switch t := h.Type(); {
	case t == icmp6EchoRequest || t == icmp6EchoReply:
		b = appendEcho(b, h)
	case t == icmp6TooBig:
		b = appendNumber(append(b, ", mtu "...), h.Body())
		b = appendCause(b, payload)
	case t <= icmp6Errors:
		b = appendCause(b, payload)
	case (t == icmp6NeighborAsk || t == icmp6NeighborAnswer) && len(payload) >= 16:
		verb := ", who has "
		if t == icmp6NeighborAnswer {
			verb = ", target "
		}
		b = netip.AddrFrom16([16]byte(payload[:16])).AppendTo(append(b, verb...))
	}
	return appendNumber(append(b, ", length "...), payloadLength(p)+packet.ICMPHeaderLen)
}

// appendEcho appends identifier and sequence number.
func appendEcho(b []byte, h packet.ICMP) []byte {
	b = appendNumber(append(b, ", id "...), h.Body()>>16)
	return appendNumber(append(b, ", seq "...), h.Body()&0xffff)
}

// appendCause appends the packet that caused an error, as far as the error quotes it.
func appendCause(b, quoted []byte) []byte {
	var p packet.Parsed
	if !p.Parse(quoted) {
		return b
	}
	b = append(b, ", for "...)
	b = appendProtocol(b, p.Protocol)
	src, dst := addresses(quoted, &p)
	sport, dport, ok := quotedPorts(quoted, &p)
	b = src.AppendTo(append(b, ' '))
	if ok {
		b = appendNumber(append(b, '.'), sport)
	}
	b = dst.AppendTo(append(b, " > "...))
	if ok {
		b = appendNumber(append(b, '.'), dport)
	}
	return b
}

// quotedPorts is ports for a quoted packet, which has only 8 bytes of its TCP header (RFC 792).
func quotedPorts(data []byte, p *packet.Parsed) (src, dst uint16, ok bool) {
	if src, dst, ok = ports(data, p); ok {
		return src, dst, ok
	}
	at := int(p.HeaderLen)
	if p.Protocol != packet.ProtocolTCP || p.FragOff != 0 || len(data) < at+4 {
		return 0, 0, false
	}
	return be16(data[at:]), be16(data[at+2:]), true
}

package main

import "github.com/opendivert/divert/packet"

// The lines of -v use the names and values of the filter language, so a user can copy them into a filter.

// appendFields appends a line of fields for the address and one for each header.
func (p *printer) appendFields(b []byte, r *record, valid bool) []byte {
	b = p.appendAddress(b, r, valid)
	if !valid {
		return b
	}
	if h := p.parsed.IPv4(r.data); h != nil {
		b = p.appendIPv4(b, h, r)
	}
	if h := p.parsed.IPv6(r.data); h != nil {
		b = p.appendIPv6(b, h)
	}
	if h := p.parsed.TCP(r.data); h != nil {
		b = p.appendTCPFields(b, h, r)
	}
	if h := p.parsed.UDP(r.data); h != nil {
		b = p.label(b, "udp")
		b = appendNumber(append(b, " SrcPort="...), h.SrcPort())
		b = appendNumber(append(b, " DstPort="...), h.DstPort())
		b = appendNumber(append(b, " Length="...), h.Length())
		b = p.appendChecksum(b, h.Checksum(), r)
		b = append(appendNumber(append(b, " PayloadLength="...), payloadLength(&p.parsed)), '\n')
	}
	if h := p.parsed.ICMP(r.data); h != nil {
		b = p.appendICMPFields(p.label(b, "icmp"), h, r)
	}
	if h := p.parsed.ICMPv6(r.data); h != nil {
		b = p.appendICMPFields(p.label(b, "icmpv6"), h, r)
	}
	return b
}

// label begins a line of fields with its name.
func (p *printer) label(b []byte, name string) []byte {
	b = p.begin(append(b, '\t'), styleProto)
	b = append(b, name...)
	return p.end(b)
}

func (p *printer) appendAddress(b []byte, r *record, valid bool) []byte {
	if !r.live && !valid {
		return b
	}
	b = p.label(b, "packet")
	if r.live {
		n := r.addr.Network()
		b = appendFlag(b, "outbound", r.addr.Outbound)
		b = appendFlag(b, "loopback", r.addr.Loopback)
		b = appendFlag(b, "impostor", r.addr.Impostor)
		b = appendNumber(append(b, " ifIdx="...), n.IfIdx)
		b = appendNumber(append(b, " subIfIdx="...), n.SubIfIdx)
		if p.processes != nil {
			b = appendNumber(append(b, " processId="...), n.ProcessID)
		}
		b = appendNumber(append(b, " timestamp="...), r.addr.Timestamp)
	}
	if valid {
		b = appendFlag(b, "fragment", p.parsed.Fragment)
		b = appendNumber(append(b, " length="...), p.parsed.Length)
		b = appendHex(append(b, " hash="...), p.parsed.Hash(r.data, 0), 16)
	}
	return append(b, '\n')
}

// appendFlag appends a field of 0 or 1.
func appendFlag(b []byte, name string, on bool) []byte {
	b = append(b, ' ')
	b = append(b, name...)
	if on {
		return append(b, "=1"...)
	}
	return append(b, "=0"...)
}

func (p *printer) appendIPv4(b []byte, h packet.IPv4, r *record) []byte {
	b = p.label(b, "ip")
	b = appendNumber(append(b, " HdrLength="...), h.HeaderLen()/4)
	b = appendHex(append(b, " TOS="...), h.TOS(), 2)
	b = appendNumber(append(b, " Length="...), h.Length())
	b = appendHex(append(b, " Id="...), h.ID(), 4)
	b = appendFlag(b, "DF", h.DF())
	b = appendFlag(b, "MF", h.MF())
	b = appendNumber(append(b, " FragOff="...), h.FragOff())
	b = appendNumber(append(b, " TTL="...), h.TTL())
	b = appendNumber(append(b, " Protocol="...), h.Protocol())
	b = appendHex(append(b, " Checksum="...), h.Checksum(), 4)
	switch {
	case p.parsed.VerifyIPChecksum(r.data):
		b = append(b, " (right)"...)
	case r.live && r.direction != directionIn && h.Checksum() == 0:
		b = append(b, " (not yet computed)"...)
	default:
		b = p.bad(append(b, ' '), "(wrong)")
	}
	b = h.Src().AppendTo(append(b, " SrcAddr="...))
	b = h.Dst().AppendTo(append(b, " DstAddr="...))
	return append(b, '\n')
}

func (p *printer) appendIPv6(b []byte, h packet.IPv6) []byte {
	b = p.label(b, "ipv6")
	b = appendHex(append(b, " TrafficClass="...), h.TrafficClass(), 2)
	b = appendHex(append(b, " FlowLabel="...), h.FlowLabel(), 5)
	b = appendNumber(append(b, " Length="...), h.Length())
	b = appendNumber(append(b, " NextHdr="...), h.NextHeader())
	b = appendNumber(append(b, " HopLimit="...), h.HopLimit())
	b = h.Src().AppendTo(append(b, " SrcAddr="...))
	b = h.Dst().AppendTo(append(b, " DstAddr="...))
	return append(b, '\n')
}

func (p *printer) appendTCPFields(b []byte, h packet.TCP, r *record) []byte {
	f := h.Flags()
	b = p.label(b, "tcp")
	b = appendNumber(append(b, " SrcPort="...), h.SrcPort())
	b = appendNumber(append(b, " DstPort="...), h.DstPort())
	b = appendNumber(append(b, " SeqNum="...), h.Seq())
	b = appendNumber(append(b, " AckNum="...), h.Ack())
	b = appendNumber(append(b, " HdrLength="...), h.HeaderLen()/4)
	b = appendFlag(b, "Urg", f&packet.TCPUrg != 0)
	b = appendFlag(b, "Ack", f&packet.TCPAck != 0)
	b = appendFlag(b, "Psh", f&packet.TCPPsh != 0)
	b = appendFlag(b, "Rst", f&packet.TCPRst != 0)
	b = appendFlag(b, "Syn", f&packet.TCPSyn != 0)
	b = appendFlag(b, "Fin", f&packet.TCPFin != 0)
	b = appendNumber(append(b, " Window="...), h.Window())
	b = p.appendChecksum(b, h.Checksum(), r)
	b = appendNumber(append(b, " UrgPtr="...), h.Urgent())
	return append(appendNumber(append(b, " PayloadLength="...), payloadLength(&p.parsed)), '\n')
}

func (p *printer) appendICMPFields(b []byte, h packet.ICMP, r *record) []byte {
	b = appendNumber(append(b, " Type="...), h.Type())
	b = appendNumber(append(b, " Code="...), h.Code())
	b = p.appendChecksum(b, h.Checksum(), r)
	b = appendHex(append(b, " Body="...), h.Body(), 8)
	return append(b, '\n')
}

// appendChecksum appends a transport checksum and whether it is right.
func (p *printer) appendChecksum(b []byte, v uint16, r *record) []byte {
	b = appendHex(append(b, " Checksum="...), v, 4)
	switch {
	case p.noSums:
		return b
	case p.parsed.UDPOff >= 0 && v == 0 && p.parsed.Family == 4:
		return append(b, " (none)"...)
	case p.parsed.Truncated || p.parsed.Fragment:
		return append(b, " (covers more than is here)"...)
	case p.parsed.VerifyTransportChecksum(r.data):
		return append(b, " (right)"...)
	case v != 0 && v == p.parsed.PseudoHeaderSum(r.data):
		return append(b, " (left to the device)"...) // the sum of the pseudo-header only
	}
	return p.bad(append(b, ' '), "(wrong)")
}

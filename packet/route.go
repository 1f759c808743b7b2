package packet

import "net/netip"

// Ends returns the addresses under the transport checksum of the packet in b, parsed as p, if they are not those of the
// IP header; otherwise ok is false. They differ on a source route, where the final destination counts: IPv6 routing
// headers of the types 0, 2, 3 and 4 with segments left (RFC 8200 section 8.1, RFC 6275, RFC 6554, RFC 8754) and the IPv4
// options LSRR and SSRR before their last hop (RFC 791 section 3.1). They also differ when a mobile host sends from away:
// the address in its Home Address option counts (RFC 6275 section 11.3.1).
func (p *Parsed) Ends(b []byte) (src, dst netip.Addr, ok bool) {
	switch {
	case len(b) < IPv4HeaderLen:
	case p.Family == 4 && b[0]&0x0F > IPv4HeaderLen/4 && len(b) >= int(b[0]&0x0F)*4:
		dst, ok = sourceRoute(b[IPv4HeaderLen : int(b[0]&0x0F)*4])
		return netip.AddrFrom4([4]byte(b[12:16])), dst, ok
	case p.Family == 6 && isExtension[b[6]] && len(b) >= int(p.HeaderLen):
		return p.endsIPv6(b)
	}
	return src, dst, false
}

// The IPv4 options that matter (RFC 791 section 3.1).
const (
	optionEnd  = 0
	optionNone = 1
	optionLSRR = 0x83
	optionSSRR = 0x89
)

// sourceRoute returns the last address of the route in IPv4 options, if hops of the route remain.
func sourceRoute(options []byte) (last netip.Addr, ok bool) {
	for len(options) >= 2 && options[0] != optionEnd {
		if options[0] == optionNone {
			options = options[1:]
			continue
		}
		size := int(options[1])
		if size < 2 || size > len(options) {
			return last, false
		}
		if kind := options[0]; kind == optionLSRR || kind == optionSSRR {
			// Type, length, a pointer to the next hop (counted from 1), and the hops.
			if size < 7 || int(options[2])+3 > size {
				return last, false
			}
			return netip.AddrFrom4([4]byte(options[size-4 : size])), true
		}
		options = options[size:]
	}
	return last, false
}

// optionHome is the Home Address option, in a header of destination options (RFC 6275 section 6.3).
const optionHome = 0xC9

func (p *Parsed) endsIPv6(b []byte) (src, dst netip.Addr, ok bool) {
	src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	end := int(p.HeaderLen)
	for next, at := b[6], IPv6HeaderLen; isExtension[next] && at+8 <= end; {
		size := (int(b[at+1]) + 1) * 8
		switch next {
		case ProtocolFragment:
			size = 8
		case ProtocolAH:
			size = (int(b[at+1]) + 2) * 4
		}
		if at+size > end {
			break
		}
		switch header := b[at : at+size]; next {
		case ProtocolRouting:
			if last, routed := finalSegment(header, dst); routed {
				dst, ok = last, true
			}
		case ProtocolDestOptions:
			if home, away := homeAddress(header); away {
				src, ok = home, true
			}
		}
		next, at = b[at], at+size
	}
	return src, dst, ok
}

// Types of IPv6 routing headers (IANA, IPv6 routing types).
const (
	routingSource  = 0 // RFC 2460 section 4.4
	routingMobile  = 2 // RFC 6275 section 6.4
	routingRPL     = 3 // RFC 6554
	routingSegment = 4 // RFC 8754
)

// finalSegment returns the last address of a routing header that has segments left. dst is the packet's destination,
// which supplies the first bytes of a compressed address.
func finalSegment(h []byte, dst netip.Addr) (last netip.Addr, ok bool) {
	const fixed = 8
	if h[3] == 0 || len(h) < fixed {
		return last, false
	}
	switch h[2] {
	case routingSource, routingMobile:
		if len(h) < fixed+16 {
			return last, false
		}
		return netip.AddrFrom16([16]byte(h[len(h)-16:])), true
	case routingSegment:
		if len(h) < fixed+16 {
			return last, false
		}
		return netip.AddrFrom16([16]byte(h[fixed : fixed+16])), true // the list is in the reverse order
	case routingRPL:
		elided, pad := int(h[4]&0x0F), int(h[5]>>4)
		end := len(h) - pad
		if end-(16-elided) < fixed {
			return last, false
		}
		whole := dst.As16()
		copy(whole[elided:], h[end-(16-elided):end])
		return netip.AddrFrom16(whole), true
	}
	return last, false
}

// homeAddress returns the address in the Home Address option of a header of destination options.
func homeAddress(h []byte) (home netip.Addr, ok bool) {
	for options := h[2:]; len(options) > 0; {
		if options[0] == 0 { // Pad1
			options = options[1:]
			continue
		}
		if len(options) < 2 || len(options) < 2+int(options[1]) {
			return home, false
		}
		value := options[2 : 2+int(options[1])]
		if options[0] == optionHome && len(value) == 16 {
			return netip.AddrFrom16([16]byte(value)), true
		}
		options = options[2+len(value):]
	}
	return home, false
}

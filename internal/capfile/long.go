package capfile

import (
	"encoding/binary"

	"github.com/opendivert/divert/packet"
)

// longHeaders is the part of a packet searched for its headers if they do not give its length.
const longHeaders = 512

// longest is the greatest packet length that an IP header can give, in bytes.
const longest = packet.IPv6HeaderLen + 0xFFFF

// Parse is p.Parse(b) for a packet of length bytes, of which b has the first. A TCP packet that the stack has still to
// cut may be longer than its header can say; the length there is then 0 (BIG TCP; iph_totlen in include/linux/ip.h).
// Parse treats such a packet as if its header gave the length.
func Parse(p *packet.Parsed, b []byte, length int) bool {
	ok := p.Parse(b)
	var at, before int // offset of the length field, and the bytes that it does not count
	switch {
	case len(b) >= packet.IPv4HeaderLen && b[0]>>4 == 4 && !ok:
		at = 2
	case ok && p.Family == 6 && length > longest:
		at, before = 4, packet.IPv6HeaderLen
	default:
		return ok
	}
	if binary.BigEndian.Uint16(b[at:]) != 0 || length < len(b) {
		return ok
	}
	var headers [longHeaders]byte
	n := copy(headers[:], b)
	binary.BigEndian.PutUint16(headers[at:], uint16(n-before))
	var long packet.Parsed
	if !long.Parse(headers[:n]) || long.TCPOff < 0 {
		return ok
	}
	long.Length, long.Truncated, long.Extended = int32(length), length > len(b), false
	long.PayloadOff, long.PayloadLen = -1, int32(len(b))-long.HeaderLen
	if long.PayloadLen > 0 {
		long.PayloadOff = long.HeaderLen
	} else {
		long.PayloadLen = 0
	}
	*p = long
	return true
}

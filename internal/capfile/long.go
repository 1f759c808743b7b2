package capfile

import (
	"encoding/binary"

	"github.com/opendivert/divert/packet"
)

// longHeaders is how much of a packet is looked at for its headers if they do not tell its length.
const longHeaders = 512

// longest is the length of the longest packet that an IP header can tell, in bytes.
const longest = packet.IPv6HeaderLen + 0xFFFF

// Parse is p.Parse(b) for a packet of length bytes, of which b has the first. A packet of TCP that the stack is still to cut
// may be longer than its header can tell, which then tells 0 (BIG TCP; iph_totlen in include/linux/ip.h): such a one is
// parsed as if its header told the length.
func Parse(p *packet.Parsed, b []byte, length int) bool {
	ok := p.Parse(b)
	var at, before int // where the length is told, and what it does not count
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

package table

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/opendivert/divert/packet"
)

// Prefixes translates the prefix of IPv6 addresses without state (NPTv6, RFC 6296). Checksums of TCP, UDP and ICMPv6
// stay right, since one word of the address compensates for the change of the prefix. The zero Prefixes is useless.
// Several goroutines may use it.
type Prefixes struct {
	inside, outside netip.Prefix
	adjust          uint16 // change of the word on the way out, in ones' complement
}

// NewPrefixes returns the translation between an inner and an outer prefix of the same length, at most 64 bits.
func NewPrefixes(inside, outside netip.Prefix) (Prefixes, error) {
	for _, p := range []netip.Prefix{inside, outside} {
		switch {
		case !p.IsValid() || !p.Addr().Is6() || p.Addr().Is4In6():
			return Prefixes{}, fmt.Errorf("%v: not a prefix of IPv6", p)
		case p != p.Masked():
			return Prefixes{}, fmt.Errorf("%v: there are bits behind the prefix; it is %v", p, p.Masked())
		case p.Bits() > 64:
			return Prefixes{}, fmt.Errorf("%v: longer than 64 bits", p)
		}
	}
	if inside.Bits() != outside.Bits() {
		return Prefixes{}, fmt.Errorf("%v and %v are not of one length", inside, outside)
	}
	from, to := inside.Addr().As16(), outside.Addr().As16()
	return Prefixes{inside, outside, packet.Sum(from[:], ^packet.Sum(to[:], 0))}, nil
}

// Out returns the outer address for an inner one. It returns false if a is not an inner address, or has no word that
// can be adjusted (RFC 6296 section 3.5: all are 0xFFFF).
func (p Prefixes) Out(a netip.Addr) (netip.Addr, bool) { return move(a, p.inside, p.outside, p.adjust) }

// In returns the inner address for an outer one, like Out.
func (p Prefixes) In(a netip.Addr) (netip.Addr, bool) { return move(a, p.outside, p.inside, ^p.adjust) }

func move(a netip.Addr, from, to netip.Prefix, adjust uint16) (netip.Addr, bool) {
	if !from.Contains(a) {
		return a, false
	}
	b, t := a.As16(), to.Addr().As16()
	for i := range from.Bits() {
		bit := byte(0x80) >> (i % 8)
		b[i/8] = b[i/8]&^bit | t[i/8]&bit
	}
	word := 6 // the subnet's, where the prefix leaves it free (section 3.4);
	if from.Bits() > 48 {
		for word = 8; word < 16 && binary.BigEndian.Uint16(b[word:]) == 0xFFFF; word += 2 { // otherwise one of the interface's (section 3.5)
		}
	}
	if word == 16 || binary.BigEndian.Uint16(b[word:]) == 0xFFFF {
		return a, false
	}
	sum := uint32(binary.BigEndian.Uint16(b[word:])) + uint32(adjust)
	sum = sum&0xFFFF + sum>>16
	if sum == 0xFFFF { // -0; the word is never that (section 3.4)
		sum = 0
	}
	binary.BigEndian.PutUint16(b[word:], uint16(sum))
	return netip.AddrFrom16(b), true
}

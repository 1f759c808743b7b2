package tcpdump

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/opendivert/divert/internal/prog"
)

// prefixesOf returns the networks that a range of addresses of one family is made of. IPv4 addresses are those of ::ffff:0:0/96.
func prefixesOf(r prog.Range) (list []netip.Prefix) {
	for at := r.First; ; {
		// The largest network that begins here and does not go beyond the end.
		free := trailingZeros(at)
		for free > 0 && plus(at, minus(power(free), prog.Value{Lo: 1})).Compare(r.Last) > 0 {
			free--
		}
		list = append(list, prefix(at, 128-free))
		end := plus(at, minus(power(free), prog.Value{Lo: 1}))
		if end.Compare(r.Last) >= 0 || len(list) > mostPrefixes {
			return list
		}
		at = plus(end, prog.Value{Lo: 1})
	}
}

func prefix(v prog.Value, length int) netip.Prefix {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], v.Hi)
	binary.BigEndian.PutUint64(b[8:], v.Lo)
	a := netip.AddrFrom16(b)
	if v.IsMapped() && length >= 96 {
		return netip.PrefixFrom(a.Unmap(), length-96)
	}
	return netip.PrefixFrom(a, length)
}

// trailingZeros returns how many of the lowest bits are 0, at most 128.
func trailingZeros(v prog.Value) int {
	if v.Lo != 0 {
		return bits.TrailingZeros64(v.Lo)
	}
	return 64 + bits.TrailingZeros64(v.Hi)
}

// power returns 2 to the power of n; for 128 that is 0, and 1 less than it the greatest value.
func power(n int) prog.Value {
	switch {
	case n >= 128:
		return prog.Value{}
	case n >= 64:
		return prog.Value{Hi: 1 << (n - 64)}
	}
	return prog.Value{Lo: 1 << n}
}

// plus and minus wrap around.
func plus(v, w prog.Value) prog.Value {
	lo, carry := bits.Add64(v.Lo, w.Lo, 0)
	hi, _ := bits.Add64(v.Hi, w.Hi, carry)
	return prog.Value{Hi: hi, Lo: lo}
}

func minus(v, w prog.Value) prog.Value {
	lo, borrow := bits.Sub64(v.Lo, w.Lo, 0)
	hi, _ := bits.Sub64(v.Hi, w.Hi, borrow)
	return prog.Value{Hi: hi, Lo: lo}
}

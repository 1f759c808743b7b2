package tcpdump

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	"github.com/opendivert/divert/internal/prog"
)

// prefixesOf returns the networks that together are a range of addresses of one family. IPv4 addresses are those of
// ::ffff:0:0/96.
func prefixesOf(r prog.Range) (list []netip.Prefix) {
	for at := r.First; ; {
		// The largest network that begins here and does not go beyond the end.
		free := trailingZeros(at)
		for filled(at, free).Compare(r.Last) > 0 {
			free--
		}
		list = append(list, prefix(at, 128-free))
		end := filled(at, free)
		if end.Compare(r.Last) >= 0 || len(list) > mostPrefixes {
			return list
		}
		at = end.Next()
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

// trailingZeros returns the number of trailing zero bits, at most 128.
func trailingZeros(v prog.Value) int {
	if v.Lo != 0 {
		return bits.TrailingZeros64(v.Lo)
	}
	return 64 + bits.TrailingZeros64(v.Hi)
}

// filled returns v with its n lowest bits set.
func filled(v prog.Value, n int) prog.Value {
	if n >= 64 {
		return prog.Value{Hi: v.Hi | (1<<(n-64) - 1), Lo: ^uint64(0)}
	}
	return prog.Value{Hi: v.Hi, Lo: v.Lo | (1<<n - 1)}
}

// Package addrtext converts addresses between WinDivert's forms: four words in host order, and text, which WinDivert
// parses and writes in its own way. Filters, object strings and the C interface need these forms; elsewhere use
// net/netip.
package addrtext

import (
	"encoding/binary"
	"math/bits"
	"strconv"
)

// Words is an IPv6 address as four 32-bit words in host order, word 0 the least significant.
// An IPv4 address is kept as ::ffff:a.b.c.d. (Specification: api.md 2.1.)
type Words [4]uint32

// As16 returns the address in network order.
func (w Words) As16() (ip [16]byte) {
	binary.BigEndian.PutUint32(ip[0:], w[3])
	binary.BigEndian.PutUint32(ip[4:], w[2])
	binary.BigEndian.PutUint32(ip[8:], w[1])
	binary.BigEndian.PutUint32(ip[12:], w[0])
	return ip
}

// Is4In6 reports whether the address is one of ::ffff:0:0/96.
func (w Words) Is4In6() bool { return w[3] == 0 && w[2] == 0 && w[1] == 0xFFFF }

// text is the input of the parsers: Go text, or the bytes of a lexer or of C.
type text interface{ ~string | ~[]byte }

// ParseIPv4 parses four decimal parts with dots between, leading zeros allowed, and returns the
// address in host order (1.2.3.4 is 0x01020304). (Specification: packets.md 6.1.)
//
// As in the original, each part is a 128-bit number, and only its low 32 bits must be at most 255: "4294967296.0.0.1" is
// 0.0.0.1.
func ParseIPv4[T text](s T) (uint32, bool) { return parseIPv4(s, 0) }

// parseIPv4 parses s from position at.
func parseIPv4[T text](s T, at int) (addr uint32, ok bool) {
	for part := range 4 {
		if part > 0 {
			if at == len(s) || s[at] != '.' {
				return 0, false
			}
			at++
		}
		value, next, ok := parseDecimal(s, at)
		if !ok || value > 255 {
			return 0, false
		}
		addr = addr<<8 | value
		at = next
	}
	if at < len(s) {
		return 0, false
	}
	return addr, true
}

// parseDecimal reads a decimal number of up to 128 bits at position at, and returns its low 32 bits and the
// position behind it. It fails if there is no digit or the number is larger.
func parseDecimal[T text](s T, at int) (low uint32, next int, ok bool) {
	var hi, lo uint64
	next = at
	for ; next < len(s) && '0' <= s[next] && s[next] <= '9'; next++ {
		over, hi10 := bits.Mul64(hi, 10)
		carry, lo10 := bits.Mul64(lo, 10)
		var c uint64
		lo, c = bits.Add64(lo10, uint64(s[next]-'0'), 0)
		carry += c // at most 9 + 1
		hi, c = bits.Add64(hi10, carry, 0)
		if over+c != 0 {
			return 0, 0, false
		}
	}
	return uint32(lo), next, next > at
}

// groups is a list of 16-bit groups of an IPv6 address.
type groups struct {
	list [8]uint16
	n    int
}

func (g *groups) add(v uint16) {
	g.list[g.n] = v
	g.n++
}

// ParseIPv6 parses an IPv6 address without zone, brackets or prefix length. An IPv4 address may follow :: or ::ffff:.
// (Specification: packets.md 6.2.)
//
// It accepts everything that the original accepts: anything may follow eight groups and a colon, :: may stand for no
// group, and "1.2.3.4" is ::1.2.3.4.
func ParseIPv6[T text](s T) (Words, bool) {
	var left, right groups
	current := &left
	at := 0
	if len(s) > 0 && s[0] == ':' {
		if len(s) < 2 || s[1] != ':' {
			return Words{}, false
		}
		current = &right
		at = 2
		if at == len(s) {
			return Words{}, true
		}
	}
	for range 8 {
		if at < len(s) && s[at] == ':' {
			if current == &right {
				return Words{}, false
			}
			current = &right
			at++
			if at == len(s) {
				break
			}
		}
		if left.n < 6 {
			if tail, ok := parseIPv4(s, at); ok {
				return withIPv4Tail(&left, &right, tail)
			}
		}
		group, next, ok := parseGroup(s, at)
		if !ok || next < len(s) && s[next] != ':' {
			return Words{}, false
		}
		current.add(group)
		if next == len(s) {
			if current == &left && left.n < 8 {
				return Words{}, false
			}
			break
		}
		at = next + 1
	}
	return joinGroups(&left, &right), true
}

// parseGroup reads 1 to 4 hexadecimal digits at position at.
func parseGroup[T text](s T, at int) (group uint16, next int, ok bool) {
	for next = at; next < len(s) && next < at+4; next++ {
		digit := hexDigits[s[next]]
		if digit == 0 {
			break
		}
		group = group<<4 | uint16(digit-1)
	}
	return group, next, next > at
}

// hexDigits holds the value of each hexadecimal digit plus one.
var hexDigits = func() (t [256]uint8) {
	for i := range 10 {
		t['0'+i] = uint8(i) + 1
	}
	for i := range 6 {
		t['a'+i] = uint8(i) + 11
		t['A'+i] = uint8(i) + 11
	}
	return t
}()

// withIPv4Tail makes the address with the low 32 bits tail. The rest must be that of an IPv4-compatible or IPv4-mapped
// address.
func withIPv4Tail(left, right *groups, tail uint32) (Words, bool) {
	if right.n > 6 {
		return Words{}, false // the original reads beyond its list here
	}
	right.add(0)
	right.add(0)
	w := joinGroups(left, right)
	if w[3] != 0 || w[2] != 0 || w[1] != 0 && w[1] != 0xFFFF || w[0] != 0 {
		return Words{}, false
	}
	w[0] = tail
	return w, true
}

// joinGroups fills the address from the top with the left groups and from the bottom with the right ones. Where they
// overlap, as nine groups do, it combines the bits of both.
func joinGroups(left, right *groups) (w Words) {
	set := func(i int, v uint16) { w[3-i/2] |= uint32(v) << (16 - 16*(i%2)) }
	for i := range left.n {
		set(i, left.list[i])
	}
	for i := range right.n {
		set(8-right.n+i, right.list[i])
	}
	return w
}

// FormatIPv4 returns an address in host order as four decimal parts.
func FormatIPv4(addr uint32) string {
	var buf [15]byte
	return string(AppendIPv4(buf[:0], addr))
}

// AppendIPv4 appends the text of FormatIPv4, up to 15 bytes.
func AppendIPv4(dst []byte, addr uint32) []byte {
	for shift := 24; ; shift -= 8 {
		dst = strconv.AppendUint(dst, uint64(uint8(addr>>shift)), 10)
		if shift == 0 {
			return dst
		}
		dst = append(dst, '.')
	}
}

// FormatIPv6 returns an address as text: groups in lower-case hex, the first of the longest runs of zero groups as "::",
// and IPv4-mapped addresses as the IPv4 address alone. Unlike RFC 5952 and netip it also shortens a single zero group.
// (Specification: packets.md 7.)
func FormatIPv6(w Words) string {
	var buf [39]byte
	return string(AppendIPv6(buf[:0], w))
}

// AppendIPv6 appends the text of FormatIPv6, up to 39 bytes.
func AppendIPv6(dst []byte, w Words) []byte {
	if w.Is4In6() {
		return AppendIPv4(dst, w[0])
	}
	var list [8]uint16
	for i := range list {
		list[i] = uint16(w[3-i/2] >> (16 - 16*(i%2)))
	}
	start, size := longestZeroRun(&list)
	for i := 0; i < len(list); i++ {
		if i == start && size > 0 {
			dst = append(dst, ':', ':')
			i += size - 1
			continue
		}
		if i > 0 && i != start+size {
			dst = append(dst, ':')
		}
		dst = strconv.AppendUint(dst, uint64(list[i]), 16)
	}
	return dst
}

// longestZeroRun returns the first of the longest runs of zeros.
func longestZeroRun(list *[8]uint16) (start, size int) {
	run := 0
	for i, v := range list {
		if v != 0 {
			run = 0
			continue
		}
		run++
		if run > size {
			start, size = i+1-run, run
		}
	}
	return start, size
}

package filter

import (
	"strings"

	"github.com/opendivert/divert/internal/addrtext"
	"github.com/opendivert/divert/internal/prog"
)

// digit returns the value of a hexadecimal digit of either case, or 16.
func digit(c byte) uint64 {
	switch {
	case '0' <= c && c <= '9':
		return uint64(c - '0')
	case 'a' <= c && c <= 'f':
		return uint64(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return uint64(c-'A') + 10
	}
	return 16
}

// readDigits reads the digits of base at the start of s and returns their value and number. ok is false if the value
// needs more than 128 bits; then only the first n digits fit.
func readDigits(s string, base uint64) (v prog.Value, n int, ok bool) {
	for n < len(s) && digit(s[n]) < base {
		sum, fits := v.MulAdd(base, digit(s[n]))
		if !fits {
			return v, n, false
		}
		v = sum
		n++
	}
	return v, n, true
}

// readLiteral reads a word as a number or an address. mark reports a decimal number that ends in
// the b of a byte offset. (Specification: filter-language.md 1.2.)
func readLiteral(s string) (v prog.Value, form literalForm, mark, ok bool) {
	if digit(s[0]) < 10 {
		v, n, fits := readDigits(s, 10)
		if rest := s[n:]; fits && (rest == "" || rest == "b") {
			return v, formDecimal, rest == "b", true
		}
	}
	if hex, found := strings.CutPrefix(s, "0x"); found {
		v, n, fits := readDigits(hex, 16)
		return v, formHex, false, fits && n == len(hex)
	}
	if addr, isIPv4 := addrtext.ParseIPv4(s); isIPv4 {
		return prog.Value{Lo: 0xFFFF<<32 | uint64(addr)}, formIPv4, false, true
	}
	if strings.IndexByte(s, ':') >= 0 { // without a colon the address parser accepts only IPv4
		if w, isIPv6 := addrtext.ParseIPv6(s); isIPv6 {
			v := prog.Value{Hi: uint64(w[3])<<32 | uint64(w[2]), Lo: uint64(w[1])<<32 | uint64(w[0])}
			return v, formIPv6, false, true
		}
	}
	return prog.Value{}, 0, false, false
}

// accident returns the error of a literal that the original reads by accident, or "".
// The extended dialect does not accept these.
func accident(s string, form literalForm) string {
	switch {
	case form == formHex && len(s) == len("0x"):
		return "a hexadecimal number needs digits"
	case form == formIPv4 && bigOctet(s):
		return "a part of an IPv4 address must be at most 255"
	case form == formIPv6 && bigOctet(s[strings.LastIndexByte(s, ':')+1:]):
		return "a part of an IPv4 address must be at most 255"
	case form == formIPv6 && groupCount(s) > 8:
		return "an IPv6 address has at most eight groups"
	}
	return ""
}

// bigOctet reports whether a part of a dotted address exceeds 255 in more than its low 32 bits.
func bigOctet(s string) bool {
	if strings.IndexByte(s, '.') < 0 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if len(strings.TrimLeft(part, "0")) > 3 {
			return true
		}
	}
	return false
}

// groupCount counts the 16-bit groups written in an IPv6 address; an IPv4 tail is two.
func groupCount(s string) (n int) {
	for group := range strings.SplitSeq(s, ":") {
		if group != "" {
			n++
		}
		if strings.IndexByte(group, '.') >= 0 {
			n++
		}
	}
	return n
}

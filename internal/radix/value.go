package radix

import "math/bits"

// Value is an unsigned number of 128 bits. An IPv4 address has the value of its mapped IPv6 address, ::ffff:a.b.c.d.
type Value struct{ Hi, Lo uint64 }

// Range is all values from First to Last, both included. If Last lies below First there are none.
type Range struct{ First, Last Value }

// The ends of the IPv4 addresses, ::ffff:0:0/96, and of all values.
var (
	firstIPv4 = Value{Lo: 0xFFFF_0000_0000}
	lastIPv4  = Value{Lo: 0xFFFF_FFFF_FFFF}
	lastValue = Value{^uint64(0), ^uint64(0)}
)

// IsMapped reports whether v lies in ::ffff:0:0/96, the IPv4 addresses.
func (v Value) IsMapped() bool { return v.Hi == 0 && v.Lo>>32 == 0xFFFF }

// Compare returns -1, 0 or 1 as v is less than, equal to or greater than w.
func (v Value) Compare(w Value) int {
	switch {
	case v.Hi < w.Hi, v.Hi == w.Hi && v.Lo < w.Lo:
		return -1
	case v == w:
		return 0
	}
	return 1
}

// Less reports whether v < w, without a branch.
func (v Value) Less(w Value) bool {
	_, borrow := bits.Sub64(v.Lo, w.Lo, 0)
	_, borrow = bits.Sub64(v.Hi, w.Hi, borrow)
	return borrow != 0
}

// Next returns v + 1; the greatest value wraps to zero.
func (v Value) Next() Value {
	lo, carry := bits.Add64(v.Lo, 1, 0)
	return Value{v.Hi + carry, lo}
}

// Prev returns v - 1; zero wraps to the greatest value.
func (v Value) Prev() Value {
	lo, borrow := bits.Sub64(v.Lo, 1, 0)
	return Value{v.Hi - borrow, lo}
}

// Minus returns v - w, modulo 2^128.
func (v Value) Minus(w Value) Value {
	lo, borrow := bits.Sub64(v.Lo, w.Lo, 0)
	hi, _ := bits.Sub64(v.Hi, w.Hi, borrow)
	return Value{hi, lo}
}

// Divide returns v / d and the remainder. d is not 0.
func (v Value) Divide(d uint64) (Value, uint64) {
	hi, rem := v.Hi/d, v.Hi%d
	lo, rem := bits.Div64(rem, v.Lo, d)
	return Value{hi, lo}, rem
}

// MulAdd returns v*m + a; ok is false if that needs more than 128 bits.
func (v Value) MulAdd(m, a uint64) (sum Value, ok bool) {
	carry, lo := bits.Mul64(v.Lo, m)
	over, hi := bits.Mul64(v.Hi, m)
	lo, c := bits.Add64(lo, a, 0)
	hi, c1 := bits.Add64(hi, carry, c)
	return Value{hi, lo}, over == 0 && c1 == 0
}

// BitLen returns the number of bits that v needs.
func (v Value) BitLen() int {
	if v.Hi != 0 {
		return 64 + bits.Len64(v.Hi)
	}
	return bits.Len64(v.Lo)
}

// shifted returns v >> n, n less than 128.
func (v Value) shifted(n int) Value {
	if n >= 64 {
		return Value{Lo: v.Hi >> (n - 64)}
	}
	return Value{v.Hi >> n, v.Lo>>n | v.Hi<<(64-n)}
}

// low returns the value of n ones, n at most 128.
func low(n int) Value {
	if n <= 64 {
		return Value{Lo: 1<<n - 1}
	}
	return Value{1<<(n-64) - 1, ^uint64(0)}
}

func (v Value) or(w Value) Value      { return Value{v.Hi | w.Hi, v.Lo | w.Lo} }
func (v Value) and(w Value) Value     { return Value{v.Hi & w.Hi, v.Lo & w.Lo} }
func (v Value) without(w Value) Value { return Value{v.Hi &^ w.Hi, v.Lo &^ w.Lo} }

// split cuts a range at the ends of the IPv4 addresses, which are a tree of their own.
func (r Range) split(yield func(Range) bool) {
	for _, bounds := range [...]Range{{Value{}, firstIPv4.Prev()}, {firstIPv4, lastIPv4}, {lastIPv4.Next(), lastValue}} {
		part := r
		if part.First.Less(bounds.First) {
			part.First = bounds.First
		}
		if bounds.Last.Less(part.Last) {
			part.Last = bounds.Last
		}
		if !part.Last.Less(part.First) && !yield(part) {
			return
		}
	}
}

// piece is the part of a range in one node.
type piece struct {
	level  int
	prefix Value
	mask   uint64 // of the node's bits
}

// block returns the values of the piece.
func (p *piece) block() Range {
	unit := shifts[p.level]
	at := func(n int) Value {
		v := Value{Lo: uint64(n)}
		return p.prefix.or(v.up(unit))
	}
	return Range{at(bits.TrailingZeros64(p.mask)), at(bits.Len64(p.mask) - 1).or(low(unit))}
}

// up returns v << n, n less than 128.
func (v Value) up(n int) Value {
	if n >= 64 {
		return Value{Hi: v.Lo << (n - 64)}
	}
	return Value{v.Hi<<n | v.Lo>>(64-n), v.Lo << n}
}

// pieces divides a range, which split has cut, into as few parts of nodes as possible, in the order of their values: at
// each level there are two ends that do not fill a node.
func (r Range) pieces(yield func(piece) bool) {
	top := 1
	if r.First.IsMapped() {
		top = IPv4Levels + 1
	}
	var ends [Levels]piece
	n := 0
	first, last := r.First, r.Last
	for level := Levels; ; level-- {
		host := low(shifts[level] + 6)
		begins, finishes := first.and(host) == (Value{}), last.and(host) == host
		one := first.without(host) == last.without(host)
		if level == top || one && !(begins && finishes) {
			if !wholes(level, first, last, yield) {
				return
			}
			break
		}
		if !begins {
			end := first.or(host)
			if !yield(pieceOf(level, first, end)) {
				return
			}
			first = end.Next()
		}
		if !finishes {
			begin := last.without(host)
			ends[n] = pieceOf(level, begin, last)
			n++
			last = begin.Prev()
		}
		if last.Less(first) {
			break // nothing lies between the two ends
		}
	}
	for n > 0 {
		if n--; !yield(ends[n]) {
			return
		}
	}
}

// wholes yields the pieces of one level that make up a range: one, or at the top up to four. It returns the result of
// yield.
func wholes(level int, first, last Value, yield func(piece) bool) bool {
	for host := low(shifts[level] + 6); ; {
		if first.without(host) == last.without(host) {
			return yield(pieceOf(level, first, last))
		}
		end := first.or(host)
		if !yield(pieceOf(level, first, end)) {
			return false
		}
		first = end.Next()
	}
}

// pieceOf returns the piece of a level for a range within one node.
func pieceOf(level int, first, last Value) piece {
	from, to := part(level, first), part(level, last)
	return piece{level, first.and(masks[level]), ^uint64(0) >> (63 - to) &^ (1<<from - 1)}
}

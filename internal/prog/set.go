package prog

import (
	"math/bits"
	"slices"
	"sort"
)

// maxValue is the greatest value there is.
var maxValue = Value{Hi: ^uint64(0), Lo: ^uint64(0)}

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

// less reports whether v < w, without a branch.
func (v Value) less(w Value) bool {
	_, borrow := bits.Sub64(v.Lo, w.Lo, 0)
	_, borrow = bits.Sub64(v.Hi, w.Hi, borrow)
	return borrow != 0
}

// Next returns v + 1; the greatest value wraps to zero.
func (v Value) Next() Value {
	lo, carry := bits.Add64(v.Lo, 1, 0)
	return Value{Hi: v.Hi + carry, Lo: lo}
}

// Prev returns v - 1; zero wraps to the greatest value.
func (v Value) Prev() Value {
	lo, borrow := bits.Sub64(v.Lo, 1, 0)
	return Value{Hi: v.Hi - borrow, Lo: lo}
}

// divide returns v / d and the remainder.
func (v Value) divide(d uint64) (Value, uint64) {
	hi, rem := v.Hi/d, v.Hi%d
	lo, rem := bits.Div64(rem, v.Lo, d)
	return Value{Hi: hi, Lo: lo}, rem
}

// MulAdd returns v*m + a; ok is false if that needs more than 128 bits.
func (v Value) MulAdd(m, a uint64) (sum Value, ok bool) {
	carry, lo := bits.Mul64(v.Lo, m)
	over, hi := bits.Mul64(v.Hi, m)
	lo, c := bits.Add64(lo, a, 0)
	hi, c1 := bits.Add64(hi, carry, c)
	return Value{Hi: hi, Lo: lo}, over == 0 && c1 == 0
}

// bitLen returns how many bits v needs.
func (v Value) bitLen() int {
	if v.Hi != 0 {
		return 64 + bits.Len64(v.Hi)
	}
	return bits.Len64(v.Lo)
}

// bitValue returns 2^n, 0 for n of 128 or more.
func bitValue(n int) Value {
	if n < 64 {
		return Value{Lo: 1 << n}
	}
	return Value{Hi: 1 << (n - 64)}
}

// NewSet returns the set of all values that lie in at least one of the ranges, which may come in any
// order, overlap and touch. A range whose Last lies below its First is empty. The argument is neither
// changed nor kept.
func NewSet(ranges []Range) *Set {
	sorted := make([]Range, 0, len(ranges))
	for _, r := range ranges {
		if !r.Last.less(r.First) {
			sorted = append(sorted, r)
		}
	}
	slices.SortFunc(sorted, func(a, b Range) int { return a.First.Compare(b.First) })

	merged := sorted[:0]
	for _, r := range sorted {
		if n := len(merged); n > 0 && joins(merged[n-1], r) {
			if merged[n-1].Last.less(r.Last) {
				merged[n-1].Last = r.Last
			}
			continue
		}
		merged = append(merged, r)
	}
	return &Set{Ranges: slices.Clip(merged)}
}

// joins reports whether b, which does not start before a, overlaps a or follows it without a gap.
func joins(a, b Range) bool {
	return a.Last == maxValue || !a.Last.Next().less(b.First)
}

// Contains reports whether v lies in the set. It takes time logarithmic in the number of ranges,
// allocates nothing and may be called by several goroutines at once.
func (s *Set) Contains(v Value) bool {
	i := sort.Search(len(s.Ranges), func(i int) bool { return v.less(s.Ranges[i].First) })
	return i > 0 && !s.Ranges[i-1].Last.less(v)
}

// A bitmap is a set of 16-bit values. Greater ones are never members.
type bitmap [1 << 16 / 64]uint64

func (m *bitmap) contains(v uint32) bool {
	i := v >> 6
	return i < uint32(len(m)) && m[i]&(1<<(v&63)) != 0
}

func (m *bitmap) add(first, last uint32) {
	for v := first; v <= last; v++ {
		m[v>>6] |= 1 << (v & 63)
	}
}

// set32 is a set of 32-bit values: the boundaries at which membership changes, ascending.
// A value is a member if an odd number of boundaries is at or below it.
type set32 []uint32

func (s set32) contains(v uint32) bool {
	// Halving without an early exit: the two outcomes of the comparison become a conditional move,
	// so the lookup costs no mispredicted branches.
	base, n := 0, len(s)
	for n > 1 {
		half := n >> 1
		if s[base+half] <= v {
			base += half
		}
		n -= half
	}
	if n == 1 && s[base] <= v {
		base++
	}
	return base&1 == 1
}

// newSet32 builds the lookup of ranges that are ascending, apart from each other and within 32 bits.
func newSet32(ranges []Range) set32 {
	s := make(set32, 0, 2*len(ranges))
	for _, r := range ranges {
		s = append(s, uint32(r.First.Lo))
		if uint32(r.Last.Lo) != ^uint32(0) {
			s = append(s, uint32(r.Last.Lo)+1)
		}
	}
	return s
}

// clip returns the parts of the ranges that lie in bounds.
func clip(ranges []Range, bounds Range) []Range {
	var out []Range
	for _, r := range ranges {
		if r.First.less(bounds.First) {
			r.First = bounds.First
		}
		if bounds.Last.less(r.Last) {
			r.Last = bounds.Last
		}
		if !r.Last.less(r.First) {
			out = append(out, r)
		}
	}
	return out
}

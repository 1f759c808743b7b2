package prog

import (
	"slices"
	"sort"

	"github.com/opendivert/divert/internal/radix"
)

// maxValue is the greatest value.
var maxValue = Value{Hi: ^uint64(0), Lo: ^uint64(0)}

// bitValue returns 2^n, 0 for n of 128 or more.
func bitValue(n int) Value {
	if n < 64 {
		return Value{Lo: 1 << n}
	}
	return Value{Hi: 1 << (n - 64)}
}

// NewSet returns the set of all values in the ranges, which may come in any order, overlap and touch. A range whose Last
// lies below its First is empty. NewSet neither changes nor keeps the argument.
func NewSet(ranges []Range) *Set { return &Set{Ranges: slices.Clip(radix.Join(ranges))} }

// Contains reports whether v lies in the set. It takes time logarithmic in the number of ranges,
// allocates nothing and may be called by several goroutines at once.
func (s *Set) Contains(v Value) bool {
	i := sort.Search(len(s.Ranges), func(i int) bool { return v.Less(s.Ranges[i].First) })
	return i > 0 && !s.Ranges[i-1].Last.Less(v)
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
		if r.First.Less(bounds.First) {
			r.First = bounds.First
		}
		if bounds.Last.Less(r.Last) {
			r.Last = bounds.Last
		}
		if !r.Last.Less(r.First) {
			out = append(out, r)
		}
	}
	return out
}

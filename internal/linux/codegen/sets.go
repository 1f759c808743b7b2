//go:build linux

package codegen

import (
	"encoding/binary"
	"math/bits"

	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/prog"
)

// Sets of up to so many ranges are compared inline, larger ones are looked up in a map.
const (
	maxInline    = 16
	maxInline128 = 4
)

// setsMap is the name of the map that holds all large sets of a program, one after the other, in the
// single value of an array map that programs only read.
const setsMap = "divert_sets"

// setTable collects the contents of the map.
type setTable struct {
	data []byte
	at   map[string]uint32 // offsets of the sets by their contents
}

// add appends the contents of a set, unless they are there already, and returns their offset.
func (s *setTable) add(contents []byte) uint32 {
	if at, ok := s.at[string(contents)]; ok {
		return at
	}
	if s.at == nil {
		s.at = make(map[string]uint32)
	}
	at := uint32(len(s.data))
	s.data = append(s.data, contents...)
	for len(s.data)%8 != 0 {
		s.data = append(s.data, 0)
	}
	s.at[string(contents)] = at
	return at
}

// search emits code that sets R0 to 1 if R1 (value128: R1:R2) lies in a range of the condition, else
// to 0. It has no branches, so that the verifier sees one way through it.
func (s *setTable) search(t *tests, c *condition, kind valueKind) {
	switch {
	case kind == value128:
		s.search128(t, c.ranges)
	case c.domain.First == zero && c.domain.Last.Lo <= 0xFFFF:
		s.bitmap(t, c)
	default:
		s.search32(t, c.ranges)
	}
}

// pointTo leaves the address of a set in R3.
func (s *setTable) pointTo(t *tests, contents []byte) {
	t.Emit(asm.LoadMapValue(asm.R3, 0, s.add(contents)).WithReference(setsMap))
}

// bitmap tests a bit.
func (s *setTable) bitmap(t *tests, c *condition) {
	size := 1 << bits.Len64(c.domain.Last.Lo) / 8
	contents := make([]byte, size)
	for _, r := range c.ranges {
		for v := r.First.Lo; v <= r.Last.Lo; v++ {
			contents[v>>3] |= 1 << (v & 7)
		}
	}
	s.pointTo(t, contents)
	t.Emit(
		asm.Mov.Reg32(asm.R2, asm.R1),
		asm.RSh.Imm32(asm.R2, 3),
		asm.And.Imm32(asm.R2, int32(size-1)),
		asm.Add.Reg(asm.R3, asm.R2),
		asm.LoadMem(asm.R0, asm.R3, 0, asm.Byte),
		asm.And.Imm32(asm.R1, 7),
		asm.RSh.Reg32(asm.R0, asm.R1),
		asm.And.Imm32(asm.R0, 1),
	)
}

// Sorted ranges are searched by halving: a position to which half, a quarter, ... are added where the
// entry there does not begin above the value. Entries are words in host byte order, the least
// significant first: the first and the last value of a range. The search begins where an index by
// the upper bits of the value says, so the number of steps depends on how evenly the values lie, not
// on how many they are: three or four for random ones.
const (
	entry32  = 8
	entry128 = 32
)

// sortedSet is a set as it is searched.
type sortedSet struct {
	key     func(prog.Value) uint64 // the 64 bits that are indexed
	upper   bool                    // they are the upper half
	base    uint64                  // key of the first range
	shift   int                     // bits of key - base that are not indexed
	starts  []uint32                // for each value of the others: the position to begin at, in bytes
	steps   int                     // entries from there on that come into question, a power of two
	mask    uint32                  // a bound of all starts, one less than a power of two
	entries []byte
}

// newSortedSet lays a set out.
func newSortedSet(ranges []prog.Range, entry int) *sortedSet {
	first, last := ranges[0].First, ranges[len(ranges)-1].First
	s := &sortedSet{upper: first.Hi != last.Hi}
	s.key = func(v prog.Value) uint64 { return v.Lo }
	if s.upper {
		s.key = func(v prog.Value) uint64 { return v.Hi }
	}
	s.base = s.key(first)
	span := bits.Len64(s.key(last) - s.base)
	indexed := min(span, max(4, min(16, bits.Len(uint(len(ranges))))))
	s.shift = span - indexed

	// An index value stands for the ranges that begin in its part, and the one before them.
	counts := make([]int, 1<<indexed)
	for _, r := range ranges {
		counts[(s.key(r.First)-s.base)>>s.shift]++
	}
	s.starts = make([]uint32, len(counts))
	before, most := 0, 0
	for i, n := range counts {
		s.starts[i] = uint32(max(0, before-1) * entry)
		before += n
		most = max(most, n)
	}
	s.steps = powerOfTwo(most + 1)
	room := powerOfTwo(len(ranges))
	s.mask = uint32(room*entry - 1)
	for i := range room + s.steps {
		r := ranges[min(i, len(ranges)-1)]
		s.entries = appendWords(s.entries, r.First, entry/8)
		s.entries = appendWords(s.entries, r.Last, entry/8)
	}
	return s
}

// appendWords appends the lower words of a value.
func appendWords(b []byte, v prog.Value, words int) []byte {
	for i := range words {
		word := uint32(v.Lo >> (32 * i))
		if i >= 2 {
			word = uint32(v.Hi >> (32 * (i - 2)))
		}
		b = binary.NativeEndian.AppendUint32(b, word)
	}
	return b
}

// powerOfTwo rounds up.
func powerOfTwo(n int) int { return 1 << bits.Len(uint(n-1)) }

// start leaves the position to begin at in R5. The key is in a register, which is kept; it uses R3
// and R4. A key outside the set begins anywhere: the final comparison finds it out.
func (s *setTable) start(t *tests, set *sortedSet, key asm.Register) {
	var index []byte
	for _, at := range set.starts {
		index = binary.NativeEndian.AppendUint32(index, at)
	}
	t.set(asm.R4, set.base)
	t.Emit(
		asm.Mov.Reg(asm.R5, key),
		asm.Sub.Reg(asm.R5, asm.R4),
	)
	if set.shift != 0 {
		t.Emit(asm.RSh.Imm(asm.R5, int32(set.shift)))
	}
	t.Emit(
		asm.And.Imm(asm.R5, int32(len(set.starts)-1)),
		asm.LSh.Imm(asm.R5, 2),
	)
	s.pointTo(t, index)
	t.Emit(
		asm.Add.Reg(asm.R3, asm.R5),
		asm.LoadMem(asm.R5, asm.R3, 0, asm.Word),
		asm.And.Imm(asm.R5, int32(set.mask)),
	)
}

// step leaves the address of the entry to compare in R4; R3 is the set, R2 the position in bytes.
func (t *tests) step(bytes int32) {
	t.Emit(
		asm.Mov.Reg(asm.R4, asm.R3),
		asm.Add.Reg(asm.R4, asm.R2),
	)
	if bytes != 0 {
		t.Emit(asm.Add.Imm(asm.R4, bytes))
	}
}

// advance adds bytes to R2 unless r is -1 (otherwise it is 0).
func (t *tests) advance(r asm.Register, bytes int32) {
	t.Emit(
		asm.Xor.Imm(r, -1),
		asm.And.Imm(r, bytes),
		asm.Add.Reg(asm.R2, r),
	)
}

// search32 searches for R1.
func (s *setTable) search32(t *tests, ranges []prog.Range) {
	if ranges[0].First.Lo >= mappedPrefix { // an IPv4 address, of which R1 has the lower 32 bits
		ranges = lower32(ranges)
	}
	set := newSortedSet(ranges, entry32)
	s.start(t, set, asm.R1)
	t.Emit(asm.Mov.Reg(asm.R2, asm.R5))
	s.pointTo(t, set.entries)
	for n := set.steps / 2; n > 0; n /= 2 {
		bytes := int32(n * entry32)
		t.step(bytes)
		t.Emit(
			asm.LoadMem(asm.R4, asm.R4, 0, asm.Word),
			asm.Mov.Reg(asm.R0, asm.R1),
			asm.Sub.Reg(asm.R0, asm.R4),
			asm.ArSh.Imm(asm.R0, 63),
		)
		t.advance(asm.R0, bytes)
	}
	t.step(0)
	t.Emit(
		asm.LoadMem(asm.R5, asm.R4, 0, asm.Word),
		asm.LoadMem(asm.R4, asm.R4, 4, asm.Word),
		asm.Mov.Reg(asm.R0, asm.R1),
		asm.Sub.Reg(asm.R0, asm.R5), // negative: below the first
		asm.Sub.Reg(asm.R4, asm.R1), // negative: above the last
		asm.Or.Reg(asm.R0, asm.R4),
		asm.RSh.Imm(asm.R0, 63),
		asm.Xor.Imm(asm.R0, 1),
	)
}

// lower32 cuts the values of ranges to 32 bits.
func lower32(ranges []prog.Range) []prog.Range {
	out := make([]prog.Range, len(ranges))
	for i, r := range ranges {
		out[i] = prog.Range{First: low(r.First.Lo & 0xFFFFFFFF), Last: low(r.Last.Lo & 0xFFFFFFFF)}
	}
	return out
}

// search128 searches for R1:R2.
func (s *setTable) search128(t *tests, ranges []prog.Range) {
	set := newSortedSet(ranges, entry128)
	key := asm.R2
	if set.upper {
		key = asm.R1
	}
	s.start(t, set, key)
	for i, half := range [...]asm.Register{asm.R2, asm.R1} {
		at := frameSearch + 8*int16(i)
		t.Emit(
			asm.StoreMem(regFrame, at, half, asm.Word),
			asm.RSh.Imm(half, 32),
			asm.StoreMem(regFrame, at+4, half, asm.Word),
		)
	}
	t.Emit(asm.Mov.Reg(asm.R2, asm.R5))
	s.pointTo(t, set.entries)
	for n := set.steps / 2; n > 0; n /= 2 {
		bytes := int32(n * entry128)
		t.step(bytes)
		t.difference(0, false)
		t.advance(asm.R5, bytes)
	}
	t.step(0)
	t.difference(0, false)
	t.Emit(asm.Mov.Reg(asm.R1, asm.R5))
	t.difference(16, true)
	t.Emit(
		asm.Mov.Reg(asm.R0, asm.R1),
		asm.Or.Reg(asm.R0, asm.R5),
		asm.And.Imm32(asm.R0, 1),
		asm.Xor.Imm(asm.R0, 1),
	)
}

// difference sets R5 to -1 if the searched value is less than the one at R4+offset (swapped: if
// that one is less), else to 0, by subtracting words of 32 bits and keeping the borrow. It uses R0
// and keeps R1 to R4.
func (t *tests) difference(offset int16, swapped bool) {
	for i := range int16(4) {
		x := asm.LoadMem(asm.R0, regFrame, frameSearch+4*i, asm.Word)
		y := asm.LoadMem(asm.R0, asm.R4, offset+4*i, asm.Word)
		if swapped {
			x, y = y, x
		}
		if i == 0 {
			x.Dst = asm.R5
			t.Emit(x)
		} else {
			t.Emit(x, asm.Add.Reg(asm.R5, asm.R0))
		}
		t.Emit(y, asm.Sub.Reg(asm.R5, asm.R0), asm.ArSh.Imm(asm.R5, 63))
	}
}

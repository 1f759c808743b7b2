//go:build linux

package codegen

import (
	"encoding/binary"
	"math/bits"

	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/filter"
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
	t.emit(asm.LoadMapValue(asm.R3, 0, s.add(contents)).WithReference(setsMap))
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
	t.emit(
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

// Sorted ranges are searched by halving: a number of entries that is a power of two, the last range
// repeated, and a position to which half, a quarter, ... are added where the entry there does not
// begin above the value. Entries are words in host byte order, the least significant first: the
// first and the last value of a range.
const (
	entry32  = 8
	entry128 = 32
)

// sorted returns the entries of ranges, words of 32 bits each.
func sorted(ranges []filter.Range, words int) []byte {
	var out []byte
	value := func(v filter.Value) {
		for i := range words {
			word := uint32(v.Lo >> (32 * i))
			if i >= 2 {
				word = uint32(v.Hi >> (32 * (i - 2)))
			}
			out = binary.NativeEndian.AppendUint32(out, word)
		}
	}
	for i := range powerOfTwo(len(ranges)) {
		r := ranges[min(i, len(ranges)-1)]
		value(r.First)
		value(r.Last)
	}
	return out
}

// powerOfTwo rounds up.
func powerOfTwo(n int) int { return 1 << bits.Len(uint(n-1)) }

// step leaves the address of the entry to compare in R4; R3 is the set, R2 the position in bytes.
func (t *tests) step(bytes int32) {
	t.emit(
		asm.Mov.Reg(asm.R4, asm.R3),
		asm.Add.Reg(asm.R4, asm.R2),
	)
	if bytes != 0 {
		t.emit(asm.Add.Imm(asm.R4, bytes))
	}
}

// advance adds bytes to R2 unless r is -1 (otherwise it is 0).
func (t *tests) advance(r asm.Register, bytes int32) {
	t.emit(
		asm.Xor.Imm(r, -1),
		asm.And.Imm(r, bytes),
		asm.Add.Reg(asm.R2, r),
	)
}

// search32 searches for R1.
func (s *setTable) search32(t *tests, ranges []filter.Range) {
	s.pointTo(t, sorted(ranges, 1))
	t.emit(asm.Mov.Imm(asm.R2, 0))
	for n := powerOfTwo(len(ranges)) / 2; n > 0; n /= 2 {
		bytes := int32(n * entry32)
		t.step(bytes)
		t.emit(
			asm.LoadMem(asm.R4, asm.R4, 0, asm.Word),
			asm.Mov.Reg(asm.R0, asm.R1),
			asm.Sub.Reg(asm.R0, asm.R4),
			asm.ArSh.Imm(asm.R0, 63),
		)
		t.advance(asm.R0, bytes)
	}
	t.step(0)
	t.emit(
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

// search128 searches for R1:R2.
func (s *setTable) search128(t *tests, ranges []filter.Range) {
	for i, half := range [...]asm.Register{asm.R2, asm.R1} {
		at := frameSearch + 8*int16(i)
		t.emit(
			asm.StoreMem(regFrame, at, half, asm.Word),
			asm.RSh.Imm(half, 32),
			asm.StoreMem(regFrame, at+4, half, asm.Word),
		)
	}
	s.pointTo(t, sorted(ranges, 4))
	t.emit(asm.Mov.Imm(asm.R2, 0))
	for n := powerOfTwo(len(ranges)) / 2; n > 0; n /= 2 {
		bytes := int32(n * entry128)
		t.step(bytes)
		t.difference(0, false)
		t.advance(asm.R5, bytes)
	}
	t.step(0)
	t.difference(0, false)
	t.emit(asm.Mov.Reg(asm.R1, asm.R5))
	t.difference(16, true)
	t.emit(
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
			t.emit(x)
		} else {
			t.emit(x, asm.Add.Reg(asm.R5, asm.R0))
		}
		t.emit(y, asm.Sub.Reg(asm.R5, asm.R0), asm.ArSh.Imm(asm.R5, 63))
	}
}

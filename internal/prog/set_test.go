package prog

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestSetModel compares sets, and the lookups built from them, with lists of ranges.
func TestSetModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for range 300 {
		ranges := make([]Range, rng.IntN(30))
		for i := range ranges {
			first := uint64(rng.IntN(70000))
			ranges[i] = Range{First: Value{Lo: first}, Last: Value{Lo: first + uint64(rng.IntN(200)) - 2}}
			if rng.IntN(30) == 0 {
				ranges[i].Last = Value{Lo: 0xFFFFFFFF}
			}
		}
		set := NewSet(ranges)
		for i, r := range set.Ranges {
			if r.Last.Less(r.First) || i > 0 && !set.Ranges[i-1].Last.Next().Less(r.First) {
				t.Fatalf("not in normal form: %v", set.Ranges)
			}
		}
		narrow, bits := newSet32(set.Ranges), new(bitmap)
		for _, r := range clip(set.Ranges, Range{Last: Value{Lo: 0xFFFF}}) {
			bits.add(uint32(r.First.Lo), uint32(r.Last.Lo))
		}
		for range 300 {
			v := uint32(rng.IntN(71000))
			if rng.IntN(20) == 0 {
				v = 0xFFFFFFFF
			}
			want := false
			for _, r := range ranges {
				want = want || uint64(v) >= r.First.Lo && uint64(v) <= r.Last.Lo
			}
			if set.Contains(Value{Lo: uint64(v)}) != want || narrow.contains(v) != want {
				t.Fatalf("%d: Contains %v, set32 %v, want %v", v, set.Contains(Value{Lo: uint64(v)}), narrow.contains(v), want)
			}
			if bits.contains(v) != (want && v <= 0xFFFF) {
				t.Fatalf("%d: bitmap %v, want %v", v, bits.contains(v), want)
			}
		}
	}
}

func TestSetEnds(t *testing.T) {
	set := NewSet([]Range{
		{First: Value{Hi: 5}, Last: maxValue}, {First: maxValue, Last: maxValue},
		{First: Value{Lo: 9}, Last: Value{Lo: 3}}, {First: Value{}, Last: Value{}},
		{First: Value{Lo: 1}, Last: Value{Hi: 1}}, {First: Value{Hi: 1, Lo: 1}, Last: Value{Hi: 1, Lo: 1}},
	})
	want := []Range{{Last: Value{Hi: 1, Lo: 1}}, {First: Value{Hi: 5}, Last: maxValue}}
	if fmt.Sprint(set.Ranges) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", set.Ranges, want)
	}
	if (&Set{}).Contains(Value{}) || NewSet(nil).Contains(maxValue) {
		t.Error("the empty set contains something")
	}
}

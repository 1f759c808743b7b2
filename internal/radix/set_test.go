package radix

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// model is a set of values as a list of ascending disjoint ranges.
type model []Range

func (m model) contains(v Value) bool {
	return slices.ContainsFunc(m, func(r Range) bool { return !v.Less(r.First) && !r.Last.Less(v) })
}

// remove cuts a range out.
func (m model) remove(r Range) (out model) {
	for _, is := range m {
		if is.Last.Less(r.First) || r.Last.Less(is.First) {
			out = append(out, is)
			continue
		}
		if is.First.Less(r.First) {
			out = append(out, Range{is.First, r.First.Prev()})
		}
		if r.Last.Less(is.Last) {
			out = append(out, Range{r.Last.Next(), is.Last})
		}
	}
	return out
}

func (m model) add(r Range) model {
	if r.Last.Less(r.First) {
		return m
	}
	all := append(m.remove(r), r)
	slices.SortFunc(all, func(a, b Range) int {
		if a.First.Less(b.First) {
			return -1
		}
		return 1
	})
	var out model
	for _, r := range all {
		if n := len(out); n > 0 && out[n-1].Last.Next() == r.First {
			out[n-1].Last = r.Last
			continue
		}
		out = append(out, r)
	}
	return out
}

// equal compares a set with a model, at and around all ends.
func equal(t testing.TB, s *Set, m model) {
	t.Helper()
	if got := slices.Collect(s.Ranges); !slices.Equal(got, m) {
		t.Fatalf("ranges\n%x\nwant\n%x", got, m)
	}
	for _, r := range m {
		for _, v := range [...]Value{r.First, r.Last, r.First.Prev(), r.Last.Next(), {r.First.Hi, r.First.Lo ^ 1<<40}} {
			if got := s.Contains(v); got != m.contains(v) {
				t.Fatalf("value %x: %v, of %x", v, got, m)
			}
		}
	}
}

// values make values that lie near each other often.
var values = []func(r *rand.Rand) Value{
	func(r *rand.Rand) Value { return Value{Lo: 0xFFFF_0000_0000 | r.Uint64()&0xFFFFFFFF} },
	func(r *rand.Rand) Value { return Value{Lo: 0xFFFF_0A00_0000 | r.Uint64()&0x3FF} },
	func(r *rand.Rand) Value { return Value{r.Uint64(), r.Uint64()} },
	func(r *rand.Rand) Value { return Value{0x20010db8 << 32, r.Uint64() & 0xFFF} },
	func(r *rand.Rand) Value { return Value{0x20010db8<<32 | r.Uint64()&7, r.Uint64() & 3 << 62} },
	func(r *rand.Rand) Value {
		return [...]Value{{}, lastValue, firstIPv4, lastIPv4, firstIPv4.Prev(), lastIPv4.Next(), {1 << 63, 0}, {0, 1 << 63}}[r.IntN(8)]
	},
}

// randomRange makes a value, a prefix or any range.
func randomRange(r *rand.Rand) Range {
	v := values[r.IntN(len(values))](r)
	switch r.IntN(4) {
	case 0:
		return Range{v, v}
	case 1, 2:
		host := low(r.IntN(129))
		if v.IsMapped() {
			host = low(r.IntN(33))
		}
		return Range{v.without(host), v.or(host)}
	}
	return Range{v, values[r.IntN(len(values))](r)}
}

// TestChanges compares sets with a model after each of many changes, of ranges of all kinds.
func TestChanges(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		s, m := New(), model(nil)
		for range 120 {
			ranges := []Range{randomRange(r)}
			for r.IntN(3) == 0 {
				ranges = append(ranges, randomRange(r))
			}
			var err error
			switch k := r.IntN(20); {
			case k < 11:
				err = s.Add(ranges...)
				for _, x := range ranges {
					m = m.add(x)
				}
			case k < 18:
				err = s.Remove(ranges...)
				for _, x := range ranges {
					if !x.Last.Less(x.First) {
						m = m.remove(x)
					}
				}
			case k == 18:
				err = s.Grow(r.IntN(500))
			default:
				err = s.Replace(append(ranges, m...))
				for _, x := range ranges {
					m = m.add(x)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			equal(t, s, m)
		}
	}
}

// FuzzChanges is TestChanges with changes from the fuzzer, 34 bytes each.
func FuzzChanges(f *testing.F) {
	f.Add([]byte("\x01\x00aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbb\x02\x18aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbb"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, m := New(), model(nil)
		for ; len(b) >= 34 && len(b) < 34*64; b = b[34:] {
			be := binary.BigEndian.Uint64
			r := Range{Value{be(b[2:]), be(b[10:])}, Value{be(b[18:]), be(b[26:])}}
			if b[0]&4 != 0 {
				r.First.Hi, r.First.Lo = 0, 0xFFFF<<32|r.First.Lo&0xFFFFFFFF
				r.Last.Hi, r.Last.Lo = 0, 0xFFFF<<32|r.Last.Lo&0xFFFFFFFF
			}
			if b[0]&8 != 0 {
				host := low(int(b[1] & 127))
				r = Range{r.First.without(host), r.First.or(host)}
			}
			empty := r.Last.Less(r.First)
			switch err := error(nil); {
			case b[0]&3 == 3:
				if err = s.Replace(append(m, r)); err != nil {
					t.Fatal(err)
				}
				m = m.add(r)
			case b[0]&1 != 0:
				if err = s.Remove(r); err != nil {
					t.Fatal(err)
				}
				if !empty {
					m = m.remove(r)
				}
			default:
				if err = s.Add(r); err != nil {
					t.Fatal(err)
				}
				m = m.add(r)
			}
			equal(t, s, m)
		}
	})
}

// TestReadersMeetNoOtherState: while ranges around them come and go, values that are always in the set are always found,
// and values that are never in it are never found.
func TestReadersMeetNoOtherState(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	var always, never []Value
	for i := range uint64(64) {
		always = append(always, Value{Lo: 0xFFFF_0A00_0000 | i<<12 | 5}, Value{0x20010db8<<32 | i, 5})
		never = append(never, Value{Lo: 0xFFFF_0A00_0000 | i<<12 | 6}, Value{0x20010db8<<32 | i, 6})
	}
	s := New()
	for _, v := range always {
		if err := s.Add(Range{v, v}); err != nil {
			t.Fatal(err)
		}
	}
	var readers sync.WaitGroup
	var done, looks atomic.Int64
	for n := range 3 {
		readers.Go(func() {
			for i := n; done.Load() == 0; i++ {
				if v := always[i%len(always)]; !s.Contains(v) {
					t.Errorf("%x was away", v)
				}
				if v := never[i%len(never)]; s.Contains(v) {
					t.Errorf("%x was there", v)
				}
				looks.Add(1)
			}
		})
	}
	// Changes leave out the 16 values around each of those above, except for the covers, which never contain one of
	// "never".
	for round := 0; round < 20_000 || looks.Load() < 20_000; round++ {
		v := always[r.IntN(len(always))]
		host := low(4 + r.IntN(8))
		first, last := v.without(host), v.or(host)
		around := []Range{{first, v.without(low(4)).Prev()}, {v.or(low(4)).Next(), last}}
		if first == v.without(low(4)) {
			around = around[1:]
		}
		below := Range{v.without(low(4)), v} // with the value itself
		var err error
		switch r.IntN(4) {
		case 0:
			err = s.Add(around...)
		case 1:
			err = s.Remove(around...)
		case 2:
			err = s.Add(below)
		default:
			err = s.Remove(Range{below.First, v.Prev()})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	done.Store(1)
	readers.Wait()
}

// TestReplaceIsOneStep: a reader meets the old set or the new one.
func TestReplaceIsOneStep(t *testing.T) {
	s := New()
	both, one, other := Value{Lo: 1}, Value{Lo: 2}, Value{Lo: 3}
	if err := s.Replace([]Range{{both, both}, {one, one}}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if !s.Contains(both) {
				t.Error("it was empty")
			}
		}
	})
	for i := range 3000 {
		changing := one
		if i%2 == 0 {
			changing = other
		}
		if err := s.Replace([]Range{{both, both}, {changing, changing}}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	all.Wait()
}

// refusing is a home that is full from a certain time on.
type refusing struct {
	heap
	left int
}

func (h *refusing) Make(buckets int) (Memory, error) {
	if h.left--; h.left < 0 {
		return Memory{}, fmt.Errorf("no memory")
	}
	return h.heap.Make(buckets)
}

// TestFailedChangesChangeNothing: without more memory the set stays as it was.
func TestFailedChangesChangeNothing(t *testing.T) {
	s := New()
	s.home = &refusing{left: 2}
	r := rand.New(rand.NewPCG(1, 1))
	var m model
	failed := 0
	for range 2000 {
		ranges := []Range{randomRange(r), randomRange(r)}
		if err := s.Add(ranges...); err != nil {
			failed++
			continue
		}
		m = m.add(ranges[0]).add(ranges[1])
	}
	if failed == 0 {
		t.Fatal("nothing failed")
	}
	if err := s.Replace([]Range{{}}); err == nil {
		t.Error("replaced without memory")
	}
	equal(t, s, m)
}

// sample makes a set of n prefixes like those of real lists.
func sample(n int, six bool) (*Set, []Range) {
	r := rand.New(rand.NewPCG(3, uint64(n)))
	ranges := make([]Range, n)
	for i := range ranges {
		v, host := Value{Lo: 0xFFFF_0000_0000 | r.Uint64()&0xFFFFFFFF}, low([]int{0, 0, 8, 8, 4, 12}[r.IntN(6)])
		if six {
			v, host = Value{0x2000<<48 | r.Uint64()>>8, r.Uint64()}, low([]int{0, 64, 64, 80, 72, 96}[r.IntN(6)])
		}
		ranges[i] = Range{v.without(host), v.or(host)}
	}
	s := New()
	if err := s.Replace(ranges); err != nil {
		panic(err)
	}
	return s, ranges
}

func BenchmarkContains(b *testing.B) {
	for _, six := range []bool{false, true} {
		for _, n := range []int{10, 1_000_000} {
			s, ranges := sample(n, six)
			bytes, _ := s.Size()
			b.Run(fmt.Sprintf("%d/IPv6=%v", n, six), func(b *testing.B) {
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if !s.Contains(ranges[i%10].Last) {
						b.Fatal("not there")
					}
					i++
				}
				b.ReportMetric(float64(bytes)/float64(n), "B/prefix")
			})
		}
	}
}

// BenchmarkChange adds a prefix and removes it.
func BenchmarkChange(b *testing.B) {
	for _, six := range []bool{false, true} {
		s, _ := sample(1_000_000, six)
		_, more := sample(1000, six)
		b.Run(fmt.Sprintf("IPv6=%v", six), func(b *testing.B) {
			i := 0
			for b.Loop() {
				r := more[i%len(more)]
				if s.Add(r) != nil || s.Remove(r) != nil {
					b.Fatal("refused")
				}
				i++
			}
		})
	}
}

func BenchmarkReplace(b *testing.B) {
	s, ranges := sample(1_000_000, false)
	for b.Loop() {
		if err := s.Replace(ranges); err != nil {
			b.Fatal(err)
		}
	}
}

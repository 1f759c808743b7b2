//go:build linux

package verdict

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

func TestOutstanding(t *testing.T) {
	for _, row := range []struct{ n, slots int }{{0, 2}, {1, 2}, {2, 2}, {3, 4}, {4096, 4096}, {4097, 8192}} {
		if o := newOutstanding(row.n); len(o.slots) != row.slots {
			t.Errorf("room for %d is %d", row.n, len(o.slots))
		}
	}
	for _, first := range []uint32{0, 1, math.MaxInt32 - 3, math.MaxUint32 - 3} { // past the wrap-around, too
		o := newOutstanding(4)
		if o.claim(first) {
			t.Errorf("%d was there before it was put", first)
		}
		for i := range uint32(4) {
			if gone, gaveWay := o.put(first + i); gaveWay {
				t.Errorf("%d gave way to %d", gone, first+i)
			}
		}
		if o.claim(first+4) || !o.claim(first+1) || o.claim(first+1) {
			t.Error("a claim of what is not there, or not of what is, or twice")
		}
		if gone, gaveWay := o.put(first + 4); gone != first || !gaveWay {
			t.Errorf("%d, %t gave way, want %d", gone, gaveWay, first)
		}
		if o.claim(first) {
			t.Errorf("%d gave way and is there", first)
		}
		if gone, gaveWay := o.put(first + 5); gaveWay { // the place of a claimed packet
			t.Errorf("%d gave way", gone)
		}
		for _, id := range []uint32{first + 2, first + 3, first + 4, first + 5} {
			if !o.claim(id) {
				t.Errorf("%d is missing", id)
			}
		}
		o.put(first + 6)
		o.put(first + 7)
		o.giveUp(first+7, first+7)
		o.put(first + 8)
		var all []uint32
		o.takeAll(func(id uint32) { all = append(all, id) })
		if len(all) != 2 || !slices.Contains(all, first+6) || !slices.Contains(all, first+8) || o.claim(first+6) || o.count() != 0 {
			t.Errorf("%d were taken out, want %d and %d, once", all, first+6, first+8)
		}
	}
}

// Each id ends once: it is claimed by one sender, or it gives way.
func TestOutstandingConcurrently(t *testing.T) {
	const ids, senders = 20000, 3
	first := uint32(math.MaxUint32 - ids/2)
	o := newOutstanding(64)
	var ended [ids]atomic.Int32
	var put atomic.Uint32
	var wg sync.WaitGroup
	for s := range uint64(senders) {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(s, 0))
			for n := put.Load(); n < ids; n = put.Load() {
				i := uint32(max(0, int(n)-random.IntN(80)))
				if o.claim(first + i) {
					ended[i].Add(1)
				}
			}
		})
	}
	for i := range uint32(ids) {
		if gone, gaveWay := o.put(first + i); gaveWay {
			ended[gone-first].Add(1)
		}
		put.Store(i + 1)
	}
	wg.Wait()
	for i := range uint32(ids) {
		if o.claim(first + i) {
			ended[i].Add(1)
		}
		if n := ended[i].Load(); n != 1 {
			t.Fatalf("id %d ended %d times", first+i, n)
		}
	}
}

func BenchmarkOutstanding(b *testing.B) {
	o := newOutstanding(4096)
	b.ReportAllocs()
	id := uint32(0)
	for b.Loop() {
		o.put(id)
		if !o.claim(id) {
			b.Fatal(id)
		}
		id++
	}
}

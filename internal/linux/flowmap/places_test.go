//go:build linux

package flowmap

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/opendivert/divert/internal/flow"
)

// TestPlacesOfFlowsInUse: a flow that has had a packet since the hand's last visit does not make way while another can, and a
// flow whose verdict has ended makes way before those.
func TestPlacesOfFlowsInUse(t *testing.T) {
	const size, busy = 50, 20
	var p places
	last := map[flow.Key]int64{} // of the flows that have a place
	key := func(n int) flow.Key { return flow.Key{Addrs: [4]uint64{uint64(n)}} }
	now := int64(1)
	add := func(n int) {
		at, ok := p.take(size)
		if !ok {
			var k *flow.Key
			var err error
			at, k, err = p.oldest(func(k *flow.Key) (int64, error) { return last[*k], nil })
			if err != nil {
				t.Fatal(err)
			}
			if k.Addrs[0] < busy {
				t.Fatalf("flow %d has made way, of which packets come", k.Addrs[0])
			}
			delete(last, *k)
		}
		k := key(n)
		p.note(at, &k, now)
		last[k] = now
	}
	for n := range 5000 {
		now++
		add(n)
		for i := range min(busy, n+1) {
			now++
			last[key(i)] = now
		}
		if len(last) > size || p.count > size {
			t.Fatalf("%d flows in %d places, want %d", len(last), p.count, size)
		}
	}
	ended := key(7)
	_, k, err := p.oldest(func(k *flow.Key) (int64, error) {
		if *k == ended {
			return 0, nil
		}
		now++
		return now, nil
	})
	if err != nil || *k != ended {
		t.Errorf("flow %d makes way (%v), want the one that has ended", k.Addrs[0], err)
	}
}

// TestPlacesAreGivenBack: places that are taken and released in any order stay within the size, and no place has two flows.
func TestPlacesAreGivenBack(t *testing.T) {
	for _, size := range []int{20, 2*chunk + 100} {
		giveBack(t, size)
	}
}

func giveBack(t *testing.T, size int) {
	t.Helper()
	r := rand.New(rand.NewPCG(rand.Uint64(), 3))
	var p places
	taken := map[uint32]bool{}
	full := 0
	for range 10000 + 30*size {
		if at, ok := p.take(size); r.IntN(2) == 0 && ok {
			if taken[at] || at >= uint32(size) {
				t.Fatalf("place %d of %d was taken before", at, size)
			}
			taken[at] = true
			p.note(at, &flow.Key{Addrs: [4]uint64{uint64(at)}}, 1)
		} else if ok {
			p.release(at)
		} else if full++; len(taken) != size {
			t.Fatalf("no place is free, %d of %d are taken", len(taken), size)
		}
		for at := range taken { // any
			if r.IntN(3) == 0 {
				p.release(at)
				delete(taken, at)
			}
			break
		}
	}
	if full == 0 {
		t.Errorf("the %d places were never all taken", size)
	}
}

// TestOldestTellsWhy: a table that cannot be read is no reason to forget a flow.
func TestOldestTellsWhy(t *testing.T) {
	var p places
	at, _ := p.take(1)
	p.note(at, &flow.Key{}, 1)
	broken := errors.New("broken")
	if _, _, err := p.oldest(func(*flow.Key) (int64, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("the error is %v", err)
	}
}

// BenchmarkOldest measures the search for a flow to make way when all flows have had packets.
func BenchmarkOldest(b *testing.B) {
	const size = 65536
	var p places
	for i := range size {
		at, _ := p.take(size)
		p.note(at, &flow.Key{Addrs: [4]uint64{uint64(i)}}, 1)
	}
	b.ReportAllocs()
	now := int64(1)
	for b.Loop() {
		now++
		if _, _, err := p.oldest(func(*flow.Key) (int64, error) { return now, nil }); err != nil {
			b.Fatal(err)
		}
	}
}

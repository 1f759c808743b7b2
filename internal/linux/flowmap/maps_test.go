//go:build linux

package flowmap_test

import (
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/linux/flowmap"
)

func newMaps(t *testing.T, size int) *flowmap.Maps {
	t.Helper()
	m, err := flowmap.New(size, flow.DefaultIdle)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, ebpf.ErrNotSupported) {
		t.Skipf("needs CAP_BPF: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	if err := m.Make(flowmap.Decided); err != nil {
		t.Fatal(err)
	}
	return m
}

func key(n int) *flow.Key { return &flow.Key{Addrs: [4]uint64{1: uint64(n)}, Protocol: 17, Family: 4} }

// count returns how many flows the table of verdicts has.
func count(t *testing.T, m *flowmap.Maps) (n int) {
	t.Helper()
	var k flow.Key
	var e flowmap.Entry
	each := m.Named(flowmap.Decided).Iterate()
	for each.Next(&k, &e) {
		n++
	}
	if err := each.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestFullTable: a table has room for as many flows as it should and for no more, whatever is decided, decided again and
// forgotten; the last verdict holds, and a flow in use stays.
func TestFullTable(t *testing.T) {
	const size = 40
	m := newMaps(t, size)
	r := rand.New(rand.NewPCG(rand.Uint64(), 1))
	decided := map[int]flow.Verdict{}
	used := key(-1)
	for range 4000 {
		// A packet of the flow comes: the programs would write this.
		e := flowmap.Entry{}
		if err := m.Named(flowmap.Decided).Lookup(used, &e); err == nil {
			e.LastSeen = clock.Now()
			err = m.Named(flowmap.Decided).Update(used, &e, ebpf.UpdateExist)
			if err != nil {
				t.Fatal(err)
			}
		} else if !errors.Is(err, ebpf.ErrKeyNotExist) || len(decided) > 0 {
			t.Fatalf("a flow in use is gone: %v", err)
		} else if err := m.Decide(used, flow.Accept); err != nil {
			t.Fatal(err)
		}
		n := r.IntN(3 * size)
		if r.IntN(4) == 0 {
			if _, err := m.Forget(key(n)); err != nil {
				t.Fatal(err)
			}
			if _, ok, err := m.Get(key(n)); ok || err != nil {
				t.Fatalf("flow %d is forgotten and there: %v", n, err)
			}
			delete(decided, n)
		} else {
			v := flow.Accept + flow.Verdict(r.IntN(2))
			if err := m.Decide(key(n), v); err != nil {
				t.Fatal(err)
			}
			if got, ok, err := m.Get(key(n)); !ok || err != nil || got.Verdict != v {
				t.Fatalf("flow %d: %+v %v %v, want %v", n, got, ok, err, v)
			}
			decided[n] = v
		}
		for n, v := range decided {
			if got, ok, err := m.Get(key(n)); err != nil || ok && got.Verdict != v {
				t.Fatalf("flow %d: %+v %v, want %v or nothing", n, got, err, v)
			}
			break // any
		}
	}
	if n := count(t, m); n > size || n < size/2 {
		t.Errorf("%d flows in a table of %d", n, size)
	}
	for n := range size - 1 {
		if err := m.Decide(key(n), flow.Drop); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 * size { // until all flows without packets have made way
		for n := range size - 1 {
			if err := m.Decide(key(n), flow.Drop); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := count(t, m); n != size {
		t.Errorf("%d flows in a table of %d that is full", n, size)
	}
}

// TestDecidedAgain: the same verdict again leaves the counters alone; another verdict restarts them, as does one after a packet
// that has begun another flow.
func TestDecidedAgain(t *testing.T) {
	m := newMaps(t, 10)
	if err := m.Decide(key(1), flow.Accept); err != nil {
		t.Fatal(err)
	}
	change := func(f func(*flowmap.Entry)) {
		t.Helper()
		var e flowmap.Entry
		if err := m.Named(flowmap.Decided).Lookup(key(1), &e); err != nil {
			t.Fatal(err)
		}
		f(&e)
		if err := m.Named(flowmap.Decided).Put(key(1), &e); err != nil {
			t.Fatal(err)
		}
	}
	decide := func(v flow.Verdict, want uint64) {
		t.Helper()
		if err := m.Decide(key(1), v); err != nil {
			t.Fatal(err)
		}
		if r, ok, err := m.Get(key(1)); !ok || err != nil || r.Verdict != v || r.Packets[0] != want {
			t.Errorf("%+v %v %v, want %v and %d packets", r, ok, err, v, want)
		}
	}
	counted := func(e *flowmap.Entry) { e.Packets[0] = 7 }
	change(counted)
	decide(flow.Accept, 7)
	decide(flow.Drop, 0)
	change(counted)
	decide(flow.Drop, 7)
	change(func(e *flowmap.Entry) { e.Verdict = flow.Undecided })
	decide(flow.Drop, 0)
	change(counted)
	if err := m.Revoke(); err != nil {
		t.Fatal(err)
	}
	decide(flow.Drop, 0)
}

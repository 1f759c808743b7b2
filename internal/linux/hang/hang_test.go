//go:build linux

package hang

import (
	"encoding/binary"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func open(t testing.TB, after time.Duration, drop bool) *Guard {
	t.Helper()
	g, err := Open(after, drop)
	if errors.Is(err, os.ErrPermission) || errors.Is(err, ebpf.ErrNotSupported) {
		t.Skipf("needs CAP_BPF: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// run returns the answer of a program for a packet that is to be cut into so many segments, 0: not to be cut.
func (g *Guard) run(t *testing.T, k kind, segments uint32) bool {
	t.Helper()
	skb := make([]byte, 192) // struct __sk_buff
	if segments > 0 {
		binary.NativeEndian.PutUint32(skb[skbGSOSegs:], segments)
		binary.NativeEndian.PutUint32(skb[skbGSOSize:], 100)
	}
	result, err := g.programs[k].Run(&ebpf.RunOptions{Data: make([]byte, 1000), Context: skb})
	if err != nil {
		t.Fatal(err)
	}
	return result != 0
}

// ago makes the first packet, and the last probe, older.
func (g *Guard) ago(since, probe time.Duration) {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	g.word.since, g.word.probe, g.word.behind = now.Nano()-int64(since), now.Nano()-int64(probe), 0
}

// TestPass: packets are queued until the first has waited for the time; then they pass and are counted, except for one after
// twice the time. When the program receives, packets are queued again.
func TestPass(t *testing.T) {
	const after = time.Minute
	g := open(t, after, false)
	want := func(when string, k kind, segments uint32, queued bool, packets uint64) {
		t.Helper()
		if got := g.run(t, k, segments); got != queued || g.Packets() != packets {
			t.Errorf("%s: queued %v, %d led past; want %v, %d", when, got, g.Packets(), queued, packets)
		}
	}
	want("the first", note, 0, true, 0)
	first := g.word.since
	if first == 0 || g.word.probe != first {
		t.Fatalf("the first packet is not noted: %+v", *g.word)
	}
	want("the second", noteSegs, 4, true, 0)
	if g.word.since != first {
		t.Error("the second packet is noted as the first")
	}
	g.ago(after/2, after/2)
	want("before the time", note, 0, true, 0)
	g.ago(after+time.Second, after+time.Second)
	want("after the time", note, 0, false, 1)
	want("a superpacket that is taken whole", note, 4, false, 2)
	want("one of four segments", noteSegs, 4, false, 6)
	want("one packet", noteSegs, 0, false, 7)
	g.ago(5*after, probeTimes*after+time.Second)
	for i := range uint64(probePackets) {
		want("before a probe", note, 0, false, 8+i)
	}
	const all = 7 + probePackets
	want("a probe", note, 0, true, all)
	for i := range uint64(2 * probePackets) {
		want("behind the probe, too early for another", note, 0, false, all+1+i)
	}
	g.Alive()
	want("after a receive call", note, 0, true, all+2*probePackets)
	g.word.since += int64(time.Hour) // written by a processor whose tick is ahead
	want("with a clock that is ahead", note, 0, true, all+2*probePackets)
}

// TestDrop: the rule that drops is asked first, then the one that queues.
func TestDrop(t *testing.T) {
	const after = time.Minute
	g := open(t, after, true)
	want := func(when string, drops bool) {
		t.Helper()
		if got := g.run(t, blocked, 0); got != drops {
			t.Errorf("%s: drops %v, want %v", when, got, drops)
		}
		if !drops && !g.run(t, queued, 0) {
			t.Errorf("%s: what is not dropped is not queued", when)
		}
	}
	want("the first", false)
	if g.word.since == 0 {
		t.Error("the first packet is not noted")
	}
	want("the second", false)
	g.ago(after+time.Second, after+time.Second)
	want("after the time", true)
	if !g.run(t, count, 4) || g.Packets() != 1 || !g.run(t, countSegs, 4) || g.Packets() != 5 || !g.run(t, countSegs, 0) {
		t.Errorf("%d packets are counted", g.Packets())
	}
	g.ago(5*after, probeTimes*after+time.Second)
	for range probePackets {
		want("before a probe", true)
		g.run(t, count, 0)
	}
	want("a probe", false)
	want("behind the probe", true)
	g.Alive()
	want("after a receive call", false)
}

// TestCloseBesideReceivers: a receive call that returns when the guard is closed finds nothing to write, and no fault.
func TestCloseBesideReceivers(t *testing.T) {
	g := open(t, time.Second, false)
	g.run(t, note, 0)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for range 10000 {
				g.Alive()
				g.Packets()
			}
		})
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	work.Wait()
	var none *Guard
	none.Alive()
	if err := none.Close(); err != nil || none.Drops() {
		t.Error("no guard is one")
	}
}

func BenchmarkAlive(b *testing.B) {
	g := open(b, time.Second, false)
	b.ReportAllocs()
	for b.Loop() {
		g.Alive()
	}
}

// BenchmarkQueued measures the guard's cost for a queued packet.
func BenchmarkQueued(b *testing.B) {
	g := open(b, time.Second, false)
	_, took, err := g.programs[note].Benchmark(make([]byte, 1000), b.N, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(took.Nanoseconds()), "ns/op")
}

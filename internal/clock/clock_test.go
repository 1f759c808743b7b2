package clock

import (
	"testing"
	"time"
)

// TestAt: a timestamp taken between two readings of the wall clock stands for a time between them, now and later.
func TestAt(t *testing.T) {
	const slack = 50 * time.Millisecond // of the wall clock's adjustments, and of Windows' coarse clock
	before := time.Now()
	ticks := Now()
	after := time.Now()
	for range 3 {
		if at := At(ticks); at.Before(before.Add(-slack)) || at.After(after.Add(slack)) {
			t.Errorf("%v, want %v to %v", at, before, after)
		}
		time.Sleep(10 * time.Millisecond)
	}
	second := int64(1e9 / Tick())
	if d := At(ticks + second).Sub(At(ticks)); d < time.Second-slack || d > time.Second+slack {
		t.Errorf("a second is %v", d)
	}
}

func BenchmarkAt(b *testing.B) {
	ticks := Now()
	b.ReportAllocs()
	for b.Loop() {
		At(ticks)
	}
}

//go:build linux

package clock

import "testing"

func TestClock(t *testing.T) {
	// The origin was read after the start, so now is never behind the clock itself.
	last := monotonicNow()
	for range 1000 {
		at := Now()
		if at < last {
			t.Fatalf("%d after %d", at, last)
		}
		last = at
	}
	if n := testing.AllocsPerRun(10, func() { Now() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

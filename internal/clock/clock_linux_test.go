package clock

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestNow: the origin was read after the start, so Now is never behind the clock itself.
func TestNow(t *testing.T) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	last := ts.Nano()
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

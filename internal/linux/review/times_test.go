//go:build linux

package review

import (
	"testing"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/verdict"
)

// The record that a program has sent about a packet is found by the packet's hash, the oldest first, and is kept for as many
// packets as the longest queue holds.
func TestTimes(t *testing.T) {
	times := times{told: [2]map[uint64][]codegen.Time{{}, {}}}
	for i := range int64(5) {
		times.keep(codegen.Time{Hash: 7, Timestamp: i})
	}
	for i := range int64(2) {
		if got, ok := times.take(7); !ok || got.Timestamp != i {
			t.Errorf("%v, %t, want %d", got, ok, i)
		}
	}
	if _, ok := times.take(8); ok {
		t.Error("found what nobody told")
	}
	for i := range int64(maxTimes) { // most of which never come
		times.keep(codegen.Time{Hash: 1000 + uint64(i), Timestamp: i})
	}
	for i := int64(2); i < 5; i++ {
		if got, ok := times.take(7); !ok || got.Timestamp != i {
			t.Errorf("%v, %t, want %d", got, ok, i)
		}
	}
	for i := range int64(2 * maxTimes) {
		times.keep(codegen.Time{Hash: 1 << 40, Timestamp: i})
	}
	if n := len(times.told[0]) + len(times.told[1]); n > 2 || times.count > maxTimes {
		t.Errorf("%d hashes, %d in the newer half", n, times.count)
	}
}

// A filter that does not ask for the time ends the look-ups, but not for the packets that wait.
func TestTimesAreAskedForWhileOldPacketsWait(t *testing.T) {
	var times times
	first, second := &verdict.Lane{Index: 0}, &verdict.Lane{Index: 1}
	times.Begin()
	if !times.asked(first, 1) {
		t.Error("not asked while the filter asks for the time")
	}
	times.end([]uint32{1<<32 - 1, 5})
	for _, row := range []struct {
		l    *verdict.Lane
		id   uint32
		want bool
	}{{first, 1<<32 - 1, true}, {first, 0, false}, {first, 1<<32 - 9, true}, {second, 5, true}, {second, 6, false}, {nil, 0, true}} {
		if got := times.asked(row.l, row.id); got != row.want {
			t.Errorf("lane %v, number %d: %t", row.l, row.id, got)
		}
	}
}

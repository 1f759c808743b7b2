//go:build linux

package capture

import (
	"testing"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/perfbuf"
)

// TestCopiesPace looks at how long copies may lie in their buffers as more and fewer packets come.
func TestCopiesPace(t *testing.T) {
	r := copies{most: gatherTime}
	r.limits.Store(&engine.Limits{Length: 4096})
	at := int64(1000)
	r.pace(0, at)
	for _, step := range []struct {
		name  string
		after time.Duration
		came  uint64
		want  time.Duration
	}{
		{"nothing came", time.Second, 0, gatherTime},
		{"a quarter of the queue in a hundredth of a second", time.Second, 102400, gatherTime},
		{"four times as many", time.Second, 102400 + 409600, gatherTime / 4},
		{"a moment later, too short to tell", minGatherTime / 2, 102400 + 409600, gatherTime / 4},
		{"ten million a second", time.Second, 1e7 + 102400 + 409600, minGatherTime},
		{"hardly any in a day", 24 * time.Hour, 105 + 1e7 + 102400 + 409600, gatherTime},
	} {
		at += int64(step.after)
		if r.pace(step.came, at); r.most != step.want {
			t.Errorf("%s: %v, want %v", step.name, r.most, step.want)
		}
	}
}

// TestCopiesRhythm: copies gather only when they come faster than the reader, for longer and longer.
func TestCopiesRhythm(t *testing.T) {
	var r rhythm
	came, bytes := uint64(0), uint64(0)
	for i, step := range []struct {
		came, bytes uint64 // since the last time
		want        time.Duration
	}{
		{0, 0, 0}, {1, 100, 0}, {burst - 1, 700, 0}, {burst, 800, minGatherTime}, {1, 100, 0}, {1, 1500, 0},
		{100, 0, minGatherTime}, {100, 0, 2 * minGatherTime}, {100, 0, 4 * minGatherTime}, {100, 0, 5 * minGatherTime}, {100, 0, 5 * minGatherTime},
		{burst - 1, 0, 0}, {1000, 0, minGatherTime}, {0, 0, 0}, {1, burstBytes, minGatherTime}, {2, burstBytes, 2 * minGatherTime}, {1, burstBytes - 1, 0},
	} {
		came, bytes = came+step.came, bytes+step.bytes
		if got := r.next(came, bytes, 5*minGatherTime); got != step.want {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
}

func TestCopiesWatermark(t *testing.T) {
	for _, row := range []struct{ size, length, want int }{
		{16 << 20, 16384, 16384 * perfbuf.MinSample},
		{1 << 20, 16384, 1 << 18},
		{16 << 20, 32, 32 * perfbuf.MinSample},
	} {
		if got := watermark(row.size, engine.Limits{Length: row.length}); got != row.want {
			t.Errorf("%d bytes for %d packets: %d, want %d", row.size, row.length, got, row.want)
		}
	}
}

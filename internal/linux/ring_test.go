//go:build linux

package linux

import (
	"testing"
	"time"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/perfbuf"
)

// TestRingPace looks at how long copies may lie in their buffers as more and fewer packets come.
func TestRingPace(t *testing.T) {
	r := ring{gather: gatherTime}
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
		if r.pace(step.came, at); r.gather != step.want {
			t.Errorf("%s: %v, want %v", step.name, r.gather, step.want)
		}
	}
}

func TestRingWatermark(t *testing.T) {
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

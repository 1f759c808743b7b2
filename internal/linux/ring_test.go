//go:build linux

package linux

import (
	"slices"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/backlog"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/race"
	"github.com/opendivert/divert/packet"
)

// TestRingPace looks at how long copies may lie in their buffers as more and fewer packets come.
func TestRingPace(t *testing.T) {
	r := ring{gather: gatherTime, backlog: backlog.New(backlog.Config{Limits: engine.Limits{Length: 4096}})}
	start := time.Unix(1000, 0)
	r.pace(0, start)
	for _, step := range []struct {
		name    string
		after   time.Duration
		matched uint64
		want    time.Duration
	}{
		{"nothing came", time.Second, 0, gatherTime},
		{"a quarter of the queue in a hundredth of a second", time.Second, 102400, gatherTime},
		{"four times as many", time.Second, 102400 + 409600, gatherTime / 4},
		{"a moment later, too short to tell", minGatherTime / 2, 102400 + 409600, gatherTime / 4},
		{"ten million a second", time.Second, 1e7 + 102400 + 409600, minGatherTime},
		{"the counters went back", time.Second, 5, gatherTime},
		{"hardly any in a day", 24 * time.Hour, 105, gatherTime},
	} {
		start = start.Add(step.after)
		if r.pace(step.matched, start); r.gather != step.want {
			t.Errorf("%s: %v, want %v", step.name, r.gather, step.want)
		}
	}
}

func TestRingWatermark(t *testing.T) {
	for _, row := range []struct{ size, length, want int }{
		{16 << 20, 16384, 16384 * shortSample},
		{1 << 20, 16384, 1 << 18},
		{16 << 20, 32, 32 * shortSample},
	} {
		if got := watermark(row.size, engine.Limits{Length: row.length}); got != row.want {
			t.Errorf("%d bytes for %d packets: %d, want %d", row.size, row.length, got, row.want)
		}
	}
}

// TestRingWindow takes packets out of the window of a ring without a reader: those that came after a look at all
// buffers stay, and whoever asks for few gets the rest later.
func TestRingWindow(t *testing.T) {
	r := ring{window: make([]packet.Packet, leastWindow)}
	come := func(cut int64, times ...int64) {
		for _, at := range times {
			p := &r.window[r.waiting]
			p.Addr = packet.Address{Timestamp: at}
			p.Data = append(p.Buffer(16)[:0], byte(at))
			r.waiting++
		}
		r.order(cut)
	}
	ps := make([]packet.Packet, 3)
	check := func(name string, asked int, want ...int64) {
		t.Helper()
		n, err := r.take(ps[:asked])
		var got []int64
		for _, p := range ps[:n] {
			got = append(got, p.Addr.Timestamp)
			if len(p.Data) != 1 || p.Data[0] != byte(p.Addr.Timestamp) {
				t.Errorf("%s: packet %d has the bytes %x", name, p.Addr.Timestamp, p.Data)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, want)
		}
	}
	come(5, 3, 1, 2)
	check("in order", 3, 1, 2, 3)
	come(5, 7, 4, 6, 5)
	check("one of two that are ready", 1, 4)
	check("the other, though more was asked for", 3, 5)
	come(7, 8, 5)
	check("an older one came late", 3, 5, 6, 7)
	come(0, 9)
	check("never none", 3, 8)
	come(20, 10)
	check("the rest", 3, 9, 10)
	if r.waiting != 0 || r.ready != 0 {
		t.Errorf("%d wait, %d are ready", r.waiting, r.ready)
	}
	at := int64(100)
	turn := func() {
		for range 3 { // three come in each turn; one of the turn before waits
			p := &r.window[r.waiting]
			p.Addr.Timestamp, p.Data = at, p.Buffer(16)
			r.waiting++
			at++
		}
		r.order(at - 2)
		_, _ = r.take(ps)
	}
	turn()
	if n := testing.AllocsPerRun(100, turn); n > 0 && !race.Enabled {
		t.Errorf("%v allocations a turn", n)
	}
}

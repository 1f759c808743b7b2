package impair

import (
	"math"
	"testing"
	"time"
)

// A seed has the same meaning for ever, and on every machine.
func TestDrawStays(t *testing.T) {
	k := keyOfData(t, udp(t, 1000, 0, 4))
	o := k.origin(42)
	got := [3]uint64{o, draw(o, 0, drawLoss), draw(o, 99, drawReorder)}
	if want := [3]uint64{0xde0980b1200c6767, 0x33a9d48014484c5f, 0x97faf91c2f5ba4c5}; got != want {
		t.Errorf("%#x, want %#x", got, want)
	}
}

// fates decides on packets of flows.
func fates(r *Rule, flows, count int, f func(first bool, d decision)) {
	ready := &rule{Rule: *r, chances: chancesOf(r)}
	for n := range flows {
		k := flowKey{ports: uint32(n), family: 4}
		fl := &flow{origin: k.origin(1)}
		for i := range count {
			f(i == 0, ready.decide(fl))
		}
	}
}

func TestShares(t *testing.T) {
	for _, share := range []float64{0, 0.01, 0.1, 0.5, 1} {
		for _, flows := range []int{1, 100, 20_000} {
			var lost, duplicated, corrupted, reordered, kept float64
			const count = 200_000
			fates(&Rule{Loss: share, Duplicate: share, Corrupt: share, Reorder: share}, flows, count/flows, func(_ bool, d decision) {
				switch {
				case d.lost:
					lost++
					return
				case d.duplicate:
					duplicated++
				}
				if d.corrupt {
					corrupted++
				}
				if d.reorder {
					reordered++
				}
				kept++
			})
			near := func(name string, got, of float64) {
				if of > 0 && math.Abs(got/of-share) > 0.1*share {
					t.Errorf("%d flows: %s %v of %v, want a share of %v", flows, name, got, of, share)
				}
			}
			near("lost", lost, count)
			near("duplicated", duplicated, kept)
			near("corrupted", corrupted, kept)
			near("reordered", reordered, kept)
		}
	}
}

func TestLossRuns(t *testing.T) {
	for _, row := range []struct{ loss, run float64 }{{0.01, 5}, {0.1, 1}, {0.1, 3}, {0.1, 20}, {0.5, 2}} {
		const count = 1_000_000
		var lost, runs float64
		losing := false
		fates(&Rule{Loss: row.loss, LossRun: row.run}, 1, count, func(_ bool, d decision) {
			if d.lost {
				lost++
				if !losing {
					runs++
				}
			}
			losing = d.lost
		})
		if math.Abs(lost/count-row.loss) > 0.1*row.loss || math.Abs(lost/runs-row.run) > 0.1*row.run {
			t.Errorf("loss %v in runs of %v: %v in runs of %v", row.loss, row.run, lost/count, lost/runs)
		}
	}
	// Short flows lose as much as long ones: a flow begins anywhere in a run.
	var first, lost float64
	const flows = 100_000
	fates(&Rule{Loss: 0.1, LossRun: 5}, flows, 3, func(begins bool, d decision) {
		if d.lost {
			lost++
			if begins {
				first++
			}
		}
	})
	if math.Abs(first/flows-0.1) > 0.01 || math.Abs(lost/flows/3-0.1) > 0.01 {
		t.Errorf("of first packets %v, of all %v, want 0.1", first/flows, lost/flows/3)
	}
}

func TestDistributions(t *testing.T) {
	const lag, jitter = 100 * time.Millisecond, 10 * time.Millisecond
	for _, row := range []struct {
		d                 Distribution
		mean, least, most float64 // in milliseconds
		tail              float64 // share delayed by more than 7 times the jitter beyond the lag
	}{
		{Uniform, 100, 90, 110, 0}, {Normal, 100, 30, 170, 0}, {Exponential, 110, 100, 500, 0.0009}, {Pareto, 110, 100, 1e6, 0.011},
	} {
		var sum, tail float64
		const count = 200_000
		fates(&Rule{Lag: lag, Jitter: jitter, Distribution: row.d}, 1, count, func(_ bool, d decision) {
			ms := d.delay.Seconds() * 1000
			if ms < row.least || ms > row.most {
				t.Errorf("%v: %v", row.d, d.delay)
			}
			if ms > 170 {
				tail++
			}
			sum += ms
		})
		if math.Abs(sum/count-row.mean) > 0.5 || math.Abs(tail/count-row.tail) > 0.002 {
			t.Errorf("%v: mean %.2f ms, tail %.4f", row.d, sum/count, tail/count)
		}
	}
	// No delay is below 0 or infinite.
	for d := range distributionNames {
		r := &Rule{Jitter: maxDelay, Distribution: Distribution(d)}
		for _, u := range []uint64{0, 1, math.MaxUint64 / 2, math.MaxUint64} {
			if got := r.delay(u); got < 0 || got > 2*maxDelay {
				t.Errorf("%v of %x: %v", Distribution(d), u, got)
			}
		}
	}
}

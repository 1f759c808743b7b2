package impair

import (
	"math"
	"math/bits"
	"time"
)

// A purpose is the use of a drawn number. The values are part of a seed's meaning: new ones go to the end.
type purpose uint64

const (
	drawLoss purpose = iota
	drawReset
	drawCorrupt
	drawCorruptBit
	drawDuplicate
	drawJitter
	drawJitterOfDuplicate
	drawReorder
	drawLossBegin

	purposes = 16 // numbers reserved for each packet
)

// golden is 2^64 divided by the golden ratio.
const golden = 0x9E3779B97F4A7C15

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

// draw returns number of a stream of SplitMix64 that begins at origin: one for each purpose of each packet.
func draw(origin, ordinal uint64, p purpose) uint64 {
	return mix(origin + golden*(ordinal*purposes+uint64(p)+1))
}

// origin returns the start of a flow's stream.
func (k *flowKey) origin(seed uint64) uint64 {
	h := mix(seed + golden)
	for _, w := range k.words() {
		h = mix(bits.RotateLeft64(h, 23)*golden ^ w)
	}
	return h
}

// A chance is a probability in units of 2^-53.
type chance uint64

func chanceOf(p float64) chance { return chance(math.Round(min(max(p, 0), 1) * (1 << 53))) }

// hit reports whether a drawn number is below the chance.
func (c chance) hit(drawn uint64) bool { return drawn>>11 < uint64(c) }

// fraction returns a drawn number as one above 0 and below 1.
func fraction(drawn uint64) float64 { return (float64(drawn>>12) + 0.5) / (1 << 52) }

// paretoShape is the shape of the Pareto distribution, moved to begin at 0 (Lomax). Its mean is scale/(shape-1).
const paretoShape = 3

// delay returns the delay for a drawn number.
func (r *Rule) delay(drawn uint64) time.Duration {
	if r.Jitter == 0 {
		return r.Lag
	}
	u, j := fraction(drawn), float64(r.Jitter)
	switch r.Distribution {
	case Uniform:
		j *= 2*u - 1
	case Normal:
		j *= math.Sqrt2 * math.Erfinv(2*u-1)
	case Exponential:
		j *= -math.Log(u)
	case Pareto:
		j *= (paretoShape - 1) * (math.Pow(u, -1.0/paretoShape) - 1)
	}
	return min(max(r.Lag+time.Duration(min(j, float64(maxDelay))), 0), 2*maxDelay)
}

// A decision is the fate of a packet, as far as it does not depend on time and other flows.
type decision struct {
	lost, reset, corrupt, duplicate, reorder bool

	delay, delayOfDuplicate time.Duration
	bit                     uint64 // number of the bit to flip, modulo the packet's bits
}

// chances are the probabilities of a rule.
type chances struct {
	loss, reset, corrupt, duplicate, reorder chance

	runs       bool   // losses come in runs:
	begin, end chance // of a run, at each packet
}

func chancesOf(r *Rule) chances {
	c := chances{loss: chanceOf(r.Loss), reset: chanceOf(r.Reset), corrupt: chanceOf(r.Corrupt), duplicate: chanceOf(r.Duplicate), reorder: chanceOf(r.Reorder)}
	if r.LossRun != 0 && r.Loss > 0 && r.Loss < 1 {
		// The bad state lasts for LossRun packets on average; its share of all packets is Loss.
		c.runs = true
		c.end = chanceOf(1 / r.LossRun)
		c.begin = chanceOf(r.Loss / (1 - r.Loss) / r.LossRun)
	}
	return c
}

// decide returns the fate of the next packet of a flow: a function of the flow's origin, of the number of its earlier
// packets, and of the rule.
func (r *rule) decide(f *flow) (d decision) {
	n, o := f.ordinal, f.origin
	f.ordinal++
	d.lost = r.lose(f, n)
	if d.lost {
		return d
	}
	c := &r.chances
	d.reset = c.reset != 0 && c.reset.hit(draw(o, n, drawReset))
	if d.corrupt = c.corrupt != 0 && c.corrupt.hit(draw(o, n, drawCorrupt)); d.corrupt {
		d.bit = draw(o, n, drawCorruptBit)
	}
	d.delay = r.delay(draw(o, n, drawJitter))
	if d.duplicate = c.duplicate != 0 && c.duplicate.hit(draw(o, n, drawDuplicate)); d.duplicate {
		d.delayOfDuplicate = r.delay(draw(o, n, drawJitterOfDuplicate))
	}
	d.reorder = c.reorder != 0 && c.reorder.hit(draw(o, n, drawReorder))
	return d
}

// lose reports whether packet n of a flow is lost. With runs it depends on the packet before it, and so on to the first.
func (r *rule) lose(f *flow, n uint64) bool {
	c := &r.chances
	switch {
	case c.loss == 0:
		return false
	case !c.runs:
		return c.loss.hit(draw(f.origin, n, drawLoss))
	case n == 0:
		f.losing = c.loss.hit(draw(f.origin, n, drawLossBegin))
	case f.losing:
		f.losing = !c.end.hit(draw(f.origin, n, drawLoss))
	default:
		f.losing = c.begin.hit(draw(f.origin, n, drawLoss))
	}
	return f.losing
}

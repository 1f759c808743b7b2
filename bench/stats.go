//go:build linux

package main

import (
	"math"
	"slices"
)

// series holds the values of a metric in the rounds of a run.
type series []float64

// median returns the middle value, NaN without values.
func (s series) median() float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(s))
	mid := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[mid]
	}
	return (sorted[mid-1] + sorted[mid]) / 2
}

// spread returns the lowest and the highest value.
func (s series) spread() (low, high float64) {
	if len(s) == 0 {
		return math.NaN(), math.NaN()
	}
	return slices.Min(s), slices.Max(s)
}

// summary is the reported result of a contender with a load.
type summary struct {
	Load      string
	Contender string
	Rounds    int

	Rate, RateLow, RateHigh    number // units per second
	Ratio, RatioLow, RatioHigh number // of the rate, or of P50, to that of "none" in the same round
	CPU, CPUAll                number // ns per unit
	RatioCPU                   number // of CPUAll to that of "none" in the same round
	P50, P99, P999             number // ns, 0 except for latency
	Sent, Lost, Missed, Resets uint64 // of all rounds

	// With many flows:
	FlowsLost *int   `json:",omitempty"` // in all rounds; nil if not counted
	Again     uint64 `json:",omitempty"` // the most in a round
	Maps      uint64 `json:",omitempty"` // bytes, the most in a round
}

// number is a number that JSON writes as null if it is NaN.
type number float64

// MarshalJSON writes null for NaN.
func (n number) MarshalJSON() ([]byte, error) {
	if math.IsNaN(float64(n)) || math.IsInf(float64(n), 0) {
		return []byte("null"), nil
	}
	return appendFloat(nil, float64(n)), nil
}

// metric is a value of a cell.
type metric func(*cell) float64

func rate(c *cell) float64 { return c.Rate }
func cpu(c *cell) float64  { return c.CPU }
func all(c *cell) float64  { return c.CPUAll }
func p50(c *cell) float64  { return float64(c.P50) }
func p99(c *cell) float64  { return float64(c.P99) }
func p999(c *cell) float64 { return float64(c.P999) }

// of returns the cells of a contender with a load, by round.
func (r *results) of(load, contender string) map[int]*cell {
	cells := make(map[int]*cell)
	for _, c := range r.Cells {
		if c.Load == load && c.Contender == contender {
			cells[c.Round] = c
		}
	}
	return cells
}

// values returns a metric in each round.
func (r *results) values(load, contender string, m metric) (s series) {
	for _, c := range r.of(load, contender) {
		s = append(s, m(c))
	}
	return s
}

// ratios returns the metric's ratio to that of another contender in the same round.
func (r *results) ratios(load, contender, base string, m metric) (s series) {
	bases := r.of(load, base)
	for round, c := range r.of(load, contender) {
		if b := bases[round]; b != nil && m(b) > 0 {
			s = append(s, m(c)/m(b))
		}
	}
	return s
}

// differences returns the difference of a metric to that of another contender in the same round, as a fraction of the
// value of "none".
func (r *results) differences(load, contender, base string, m metric) (s series) {
	bases, nones := r.of(load, base), r.of(load, none)
	for round, c := range r.of(load, contender) {
		if b, n := bases[round], nones[round]; b != nil && n != nil && m(n) > 0 {
			s = append(s, (m(c)-m(b))/m(n))
		}
	}
	return s
}

// others returns the fraction of the processors' time used by others, the median over all cells.
func (r *results) others() float64 {
	var s series
	for _, c := range r.Cells {
		s = append(s, c.Others)
	}
	return s.median()
}

// summarise summarises the results of each contender with each load.
func (r *results) summarise() (list []*summary) {
	for _, l := range loads {
		for _, c := range contenders {
			if s := r.sum(&l, c.name); s.Rounds > 0 {
				list = append(list, s)
			}
		}
	}
	return list
}

func (r *results) sum(l *load, contender string) *summary {
	load := l.name
	s := &summary{Load: load, Contender: contender}
	for _, c := range r.of(load, contender) {
		s.Rounds++
		s.Sent += c.Sent
		s.Lost += c.Lost
		s.Missed += c.Missed
		s.Resets += c.Resets
		s.Again, s.Maps = max(s.Again, c.Again), max(s.Maps, c.Maps)
		if c.FlowsLost != nil {
			if s.FlowsLost == nil {
				s.FlowsLost = new(int)
			}
			*s.FlowsLost += *c.FlowsLost
		}
	}
	median := func(m metric) number { return number(r.values(load, contender, m).median()) }
	s.Rate, s.P50, s.P99, s.P999 = median(rate), median(p50), median(p99), median(p999)
	s.CPU, s.CPUAll = median(cpu), median(all)
	s.RatioCPU = number(r.ratios(load, contender, none, all).median())
	low, high := r.values(load, contender, rate).spread()
	s.RateLow, s.RateHigh = number(low), number(high)
	ratios := r.ratios(load, contender, none, l.metric())
	low, high = ratios.spread()
	s.Ratio, s.RatioLow, s.RatioHigh = number(ratios.median()), number(low), number(high)
	return s
}

//go:build linux

package main

import (
	"fmt"
	"math"
)

// goal is a bound for a contender: for a metric itself, or for its comparison with another contender in the same round.
// The median over the rounds counts.
type goal struct {
	load      string
	contender string
	base      string // the other contender; "": no comparison
	apart     bool   // compare the difference, as a fraction of the value of "none"; otherwise the ratio
	metric    metric
	word      string // name of the metric
	bound     bound
}

// bound is the least or the greatest good value.
type bound struct {
	limit float64
	most  bool
}

func least(limit float64) bound { return bound{limit: limit} }
func most(limit float64) bound  { return bound{limit: limit, most: true} }

// reached compares the printed digits: a ratio of 0.9996 equals 1.
func (b bound) reached(value float64) bool {
	rounded := math.Round(value*100) / 100
	if b.most {
		return rounded <= b.limit
	}
	return rounded >= b.limit
}

// goals are the goals that a run can check.
var goals = []goal{
	// A handle whose filter matches nothing costs the same as an nftables rule.
	{load: "udp64", contender: "idle-1", base: "nft-1", apart: true, metric: rate, word: "rate", bound: least(-0.02)},
	{load: "udp64", contender: "idle-10", base: "nft-1", apart: true, metric: rate, word: "rate", bound: least(-0.02)},
	{load: "udp64", contender: "idle-100", base: "nft-1", apart: true, metric: rate, word: "rate", bound: least(-0.02)},
	{load: "udp64", contender: "set-10000", base: "nft-1", apart: true, metric: rate, word: "rate", bound: least(-0.02)},
	{load: "udp64", contender: "idle-64-handles", base: "idle-1", metric: rate, word: "rate", bound: least(0.9)},
	{load: "udp64", contender: "prefixes-1m", base: "prefixes-10", metric: perUnit, word: "time per packet", bound: most(1.2)},

	// A handle that diverts costs the same as the loop in C.
	{load: "udp64", contender: "accept-64", base: "c-queue", metric: rate, word: "rate", bound: least(1)},
	{load: "udp64", contender: "accept-64", base: "c-queue", metric: cpu, word: "processor time", bound: most(1)},
	{load: "udp64", contender: "accept-64", metric: cpu, word: "processor time in ns", bound: most(1100)},
	{load: "tcp1", contender: "accept-64", base: "c-queue", metric: rate, word: "rate", bound: least(1)},
	{load: "tcp1", contender: "accept-64", base: "c-queue", metric: cpu, word: "processor time", bound: most(1)},
	{load: "tcp1", contender: "c-send-64", base: "send-64", metric: cpu, word: "processor time", bound: most(1.1)},
	{load: "udp64", contender: "c-send-64", base: "send-64", metric: rate, word: "rate", bound: least(0.9)},
	{load: "tcp1", contender: "c-send-64", base: "send-64", metric: rate, word: "rate", bound: least(0.9)},
	{load: "tcp1", contender: "redirect-64", base: "c-redirect", metric: rate, word: "rate", bound: least(1)},
	{load: "tcp1", contender: "redirect-64", base: "c-redirect", metric: all, word: "processor time with load", bound: most(1)},
	{load: "tcp8", contender: "redirect-64", base: "c-redirect", metric: rate, word: "rate", bound: least(1)},
	{load: "latency", contender: "accept-1", base: "one-by-one", metric: p50, word: "p50", bound: most(1)},
	{load: "latency", contender: "accept-1", base: "one-by-one", metric: p99, word: "p99", bound: most(1)},
	{load: "latency", contender: "accept-64", base: "one-by-one", metric: p50, word: "p50", bound: most(1)},
	{load: "latency", contender: "accept-64", base: "one-by-one", metric: p99, word: "p99", bound: most(1)},

	// A handle that decides flows, or counts their packets, costs no more than one that matches nothing.
	{load: "tcp1", contender: "accept-flow", base: none, metric: rate, word: "rate", bound: least(0.95)},
	{load: "tcp8", contender: "accept-flow", base: none, metric: rate, word: "rate", bound: least(0.95)},
	{load: "udp64", contender: "accept-flow", base: "idle-1", apart: true, metric: rate, word: "rate", bound: least(-0.02)},
	{load: "udp64", contender: "first-6", base: "idle-1", metric: rate, word: "rate", bound: least(0.95)},
	{load: "flows100k", contender: "accept-flow", metric: cameAgain, word: "packets of a flow after its verdict", bound: most(2)},
	{load: "flows100k", contender: "accept-flow", metric: flowsLost, word: "flows with lost packets", bound: most(0)},

	// Dropping.
	{load: "udp64in", contender: "drop", base: "nft-drop", metric: rate, word: "rate", bound: least(0.9)},
	{load: "udp64in", contender: "drop-flow", base: "drop", apart: true, metric: rate, word: "rate", bound: least(-0.02)},

	// Copies.
	{load: "udp64", contender: "sniff", base: "ring", metric: rate, word: "rate", bound: least(1)},
	{load: "udp64", contender: "sniff", base: "ring", metric: kept, word: "copies kept", bound: least(1)},
	{load: "tcp1", contender: "sniff", base: "ring", metric: rate, word: "rate", bound: least(1)},
	{load: "tcp1", contender: "sniff", base: "ring", metric: kept, word: "copies kept", bound: least(1)},
	{load: "udp64", contender: "sniff-loop", base: "ring", metric: rate, word: "rate", bound: least(1)},
	{load: "tcp1", contender: "sniff-loop", base: "ring", metric: rate, word: "rate", bound: least(1)},
	{load: "tcp1", contender: "sniff-loop", base: "ring", metric: kept, word: "copies kept", bound: least(1)},
}

// kept is the fraction of the copies that were not lost.
func kept(c *cell) float64 {
	if c.Handled+c.Missed == 0 {
		return 0
	}
	return float64(c.Handled) / float64(c.Handled+c.Missed)
}

// perUnit is the time per unit.
func perUnit(c *cell) float64 { return 1 / c.Rate }

// cameAgain is the most packets of a flow received by the program after its verdict.
func cameAgain(c *cell) float64 { return float64(c.Again) }

// flowsLost is the number of flows that lost a packet, NaN if they could not be counted.
func flowsLost(c *cell) float64 {
	if c.FlowsLost == nil {
		return math.NaN()
	}
	return float64(*c.FlowsLost)
}

// outcome is the result for a goal.
type outcome struct {
	Load, Contender string
	Base            string `json:",omitempty"`
	Apart           bool   `json:",omitempty"`
	Metric          string
	Value           number
	Limit           float64
	Most            bool // Limit is the greatest good value, not the least
	Reached         bool
}

// value returns the goal's value, NaN if its contenders did not run.
func (r *results) value(g *goal) float64 {
	switch {
	case g.base == "":
		return r.values(g.load, g.contender, g.metric).median()
	case g.apart:
		return r.differences(g.load, g.contender, g.base, g.metric).median()
	}
	return r.ratios(g.load, g.contender, g.base, g.metric).median()
}

// judge compares the results with the goals; it leaves out those whose contenders did not run.
func (r *results) judge() (list []outcome) {
	for i := range goals {
		g := &goals[i]
		value := r.value(g)
		if math.IsNaN(value) {
			continue
		}
		list = append(list, outcome{Load: g.load, Contender: g.contender, Base: g.base, Apart: g.apart, Metric: g.word,
			Value: number(value), Limit: g.bound.limit, Most: g.bound.most, Reached: g.bound.reached(value)})
	}
	return list
}

// subject describes the comparison in words.
func (o *outcome) subject() string {
	switch {
	case o.Base == "":
		return fmt.Sprintf("%s of %s", o.Metric, o.Contender)
	case o.Apart:
		return fmt.Sprintf("%s of %s less that of %s, ÷ %s", o.Metric, o.Contender, o.Base, none)
	}
	return fmt.Sprintf("%s of %s to %s", o.Metric, o.Contender, o.Base)
}

// decimals returns the number of decimals for a value: 0 for large and whole ones.
func (o *outcome) decimals() int {
	if o.Base == "" {
		return 0
	}
	return 2
}

// bound describes the bound in words.
func (o *outcome) bound() string {
	sign := "≥"
	if o.Most {
		sign = "≤"
	}
	return fmt.Sprintf("%s %s", sign, fixed(number(o.Limit), o.decimals()))
}

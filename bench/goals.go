//go:build linux

package main

import (
	"fmt"
	"math"
)

// goal is a bound that a contender should keep to: of a metric itself, or compared with another contender's in the same round. The median
// over the rounds counts.
type goal struct {
	load      string
	contender string
	base      string // the other contender; "": none is compared with
	apart     bool   // compared by the difference, as part of what "none" has; otherwise by the ratio
	metric    metric
	word      string // of the metric
	bound     bound
}

// bound is the least or the most that is good.
type bound struct {
	limit float64
	most  bool
}

func least(limit float64) bound { return bound{limit: limit} }
func most(limit float64) bound  { return bound{limit: limit, most: true} }

// reached compares to the digits that are printed: a ratio of 0.9996 is no different from 1.
func (b bound) reached(value float64) bool {
	rounded := math.Round(value*100) / 100
	if b.most {
		return rounded <= b.limit
	}
	return rounded >= b.limit
}

// goals are those that a run can tell.
var goals = []goal{
	// A handle whose filter matches nothing costs what a rule of nftables does.
	{load: "udp64", contender: "idle-1", base: "nft-1", apart: true, metric: rate, word: "rate", bound: least(-0.02)},
	{load: "udp64", contender: "idle-10", base: "nft-1", apart: true, metric: rate, word: "rate", bound: least(-0.02)},
	{load: "udp64", contender: "idle-100", base: "nft-1", apart: true, metric: rate, word: "rate", bound: least(-0.02)},
	{load: "udp64", contender: "set-10000", base: "nft-1", apart: true, metric: rate, word: "rate", bound: least(-0.02)},
	{load: "udp64", contender: "idle-64-handles", base: "idle-1", metric: rate, word: "rate", bound: least(0.9)},
	{load: "udp64", contender: "prefixes-1m", base: "prefixes-10", metric: perUnit, word: "time per packet", bound: most(1.2)},

	// One that diverts costs what the same loop in C does.
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

	// One that decides flows, or counts their packets, costs no more than one that matches nothing.
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

// kept is the part of the copies that were not lost.
func kept(c *cell) float64 {
	if c.Handled+c.Missed == 0 {
		return 0
	}
	return float64(c.Handled) / float64(c.Handled+c.Missed)
}

// perUnit is the time that a unit takes.
func perUnit(c *cell) float64 { return 1 / c.Rate }

// cameAgain is how many packets of a flow came to the program after its verdict, at most.
func cameAgain(c *cell) float64 { return float64(c.Again) }

// flowsLost is how many flows lost a packet, NaN if nobody counted.
func flowsLost(c *cell) float64 {
	if c.FlowsLost == nil {
		return math.NaN()
	}
	return float64(*c.FlowsLost)
}

// outcome is how a goal was met.
type outcome struct {
	Load, Contender string
	Base            string `json:",omitempty"`
	Apart           bool   `json:",omitempty"`
	Metric          string
	Value           number
	Limit           float64
	Most            bool // Limit is the most that is good, not the least
	Reached         bool
}

// value returns the goal's value, NaN if those that it is about did not run.
func (r *results) value(g *goal) float64 {
	switch {
	case g.base == "":
		return r.values(g.load, g.contender, g.metric).median()
	case g.apart:
		return r.differences(g.load, g.contender, g.base, g.metric).median()
	}
	return r.ratios(g.load, g.contender, g.base, g.metric).median()
}

// judge compares the results with the goals; those whose contenders did not run are left out.
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

// subject says in words what is compared.
func (o *outcome) subject() string {
	switch {
	case o.Base == "":
		return fmt.Sprintf("%s of %s", o.Metric, o.Contender)
	case o.Apart:
		return fmt.Sprintf("%s of %s less that of %s, ÷ %s", o.Metric, o.Contender, o.Base, none)
	}
	return fmt.Sprintf("%s of %s to %s", o.Metric, o.Contender, o.Base)
}

// decimals are those that a value is printed with: none for large and whole ones.
func (o *outcome) decimals() int {
	if o.Base == "" {
		return 0
	}
	return 2
}

// bound says in words what the value must be.
func (o *outcome) bound() string {
	sign := "≥"
	if o.Most {
		sign = "≤"
	}
	return fmt.Sprintf("%s %s", sign, fixed(number(o.Limit), o.decimals()))
}

//go:build linux

package main

import (
	"fmt"
	"math"
)

// goal is a ratio that the engine should reach: of a metric of one contender to that of another in the same
// round, the median over the rounds.
type goal struct {
	load      string
	contender string
	base      string
	metric    metric
	word      string // of the metric
	least     float64
	most      float64 // 0: there is a least
}

// goals are those that ratios of a run can tell.
var goals = []goal{
	{load: "tcp1", contender: "accept-64", base: none, metric: rate, word: "rate", least: 0.95},
	{load: "tcp1", contender: "rewrite-64", base: none, metric: rate, word: "rate", least: 0.80},
	{load: "tcp8", contender: "accept-64", base: none, metric: rate, word: "rate", least: 0.95},
	{load: "tcp8", contender: "rewrite-64", base: none, metric: rate, word: "rate", least: 0.80},
	{load: "udp64", contender: "accept-64", base: none, metric: rate, word: "rate", least: 0.85},
	{load: "udp64", contender: "send-64", base: none, metric: rate, word: "rate", least: 0.85},
	{load: "udp64", contender: "rewrite-64", base: none, metric: rate, word: "rate", least: 0.80},
	{load: "udp64", contender: "accept-64", base: "one-by-one", metric: rate, word: "rate", least: 1.6},
	{load: "udp64", contender: "accept-64", base: "c-queue", metric: rate, word: "rate", least: 1},
	{load: "udp64", contender: "accept-64", base: "c-queue", metric: ownTime, word: "processor time", most: 1},
	{load: "tcp1", contender: "accept-64", base: "c-queue", metric: rate, word: "rate", least: 1},
	{load: "tcp1", contender: "accept-64", base: "c-queue", metric: ownTime, word: "processor time", most: 1},
	{load: "udp64", contender: "idle-1", base: none, metric: rate, word: "rate", least: 0.98},
	{load: "udp64", contender: "idle-10", base: none, metric: rate, word: "rate", least: 0.98},
	{load: "udp64", contender: "idle-100", base: none, metric: rate, word: "rate", least: 0.98},
	{load: "tcp1", contender: "idle-1", base: none, metric: rate, word: "rate", least: 0.98},
	{load: "tcp1", contender: "idle-10", base: none, metric: rate, word: "rate", least: 0.98},
	{load: "tcp1", contender: "idle-100", base: none, metric: rate, word: "rate", least: 0.98},
	{load: "tcp1", contender: "accept-flow", base: none, metric: rate, word: "rate", least: 0.95},
	{load: "tcp8", contender: "accept-flow", base: none, metric: rate, word: "rate", least: 0.95},
	{load: "udp64", contender: "accept-flow", base: "idle-1", metric: rate, word: "rate", least: 0.98},
	{load: "udp64", contender: "first-6", base: "idle-1", metric: rate, word: "rate", least: 0.95},
	{load: "udp64in", contender: "drop-flow", base: "drop", metric: rate, word: "rate", least: 0.95},
	{load: "udp64", contender: "idle-64-handles", base: "idle-1", metric: rate, word: "rate", least: 0.9},
	{load: "udp64", contender: "idle-1", base: "nft-1", metric: rate, word: "rate", least: 1},
	{load: "tcp1", contender: "idle-1", base: "nft-1", metric: rate, word: "rate", least: 1},
	{load: "udp64in", contender: "drop", base: "nft-drop", metric: rate, word: "rate", least: 0.95},
	{load: "udp64", contender: "sniff", base: "ring", metric: rate, word: "rate", least: 1},
	{load: "tcp1", contender: "sniff", base: "ring", metric: rate, word: "rate", least: 1},
	{load: "udp64", contender: "sniff-loop", base: "ring", metric: rate, word: "rate", least: 1},
	{load: "tcp1", contender: "sniff-loop", base: "ring", metric: rate, word: "rate", least: 1},
	{load: "tcp1", contender: "sniff-loop", base: "ring", metric: kept, word: "copies kept", least: 1},
	{load: "udp64", contender: "sniff", base: "ring", metric: kept, word: "copies kept", least: 1},
	{load: "tcp1", contender: "sniff", base: "ring", metric: kept, word: "copies kept", least: 1},
	{load: "udp64", contender: "c-send-64", base: "send-64", metric: rate, word: "rate", least: 0.9},
	{load: "tcp1", contender: "redirect-64", base: "c-redirect", metric: rate, word: "rate", least: 1},
	{load: "tcp1", contender: "redirect-64", base: "c-redirect", metric: allTime, word: "processor time with load", most: 1},
	{load: "tcp8", contender: "redirect-64", base: "c-redirect", metric: rate, word: "rate", least: 1},
	{load: "tcp1", contender: "c-send-64", base: "send-64", metric: rate, word: "rate", least: 0.9},
	{load: "tcp1", contender: "c-send-64", base: "send-64", metric: ownTime, word: "processor time", most: 1.1},
	{load: "latency", contender: "accept-1", base: "one-by-one", metric: p50, word: "p50", most: 1},
	{load: "latency", contender: "accept-1", base: "one-by-one", metric: p99, word: "p99", most: 1},
	{load: "latency", contender: "accept-64", base: "one-by-one", metric: p50, word: "p50", most: 1},
	{load: "latency", contender: "accept-64", base: "one-by-one", metric: p99, word: "p99", most: 1},
	{load: "udp64", contender: "set-10000", base: "set-10", metric: perUnit, word: "time per packet", most: 1.2},
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

// ownTime is the processor time of the contender's process for a unit.
func ownTime(c *cell) float64 { return c.CPU }

// allTime is the processor time of the contender, and of sender and receiver, for a unit.
func allTime(c *cell) float64 { return c.CPUAll }

// outcome is how a goal was met.
type outcome struct {
	Load, Contender, Base string
	Metric                string
	Ratio                 number
	Least                 float64 `json:",omitempty"`
	Most                  float64 `json:",omitempty"`
	Reached               bool
}

// judge compares the results with the goals; those whose contenders did not run are left out.
func (r *results) judge() (list []outcome) {
	for _, g := range goals {
		ratio := r.ratios(g.load, g.contender, g.base, g.metric).median()
		if math.IsNaN(ratio) {
			continue
		}
		o := outcome{Load: g.load, Contender: g.contender, Base: g.base, Metric: g.word,
			Ratio: number(ratio), Least: g.least, Most: g.most}
		// To the digits that are printed: a ratio of 0.9996 is no different from 1.
		rounded := math.Round(ratio*100) / 100
		o.Reached = rounded >= g.least
		if g.most > 0 {
			o.Reached = rounded <= g.most
		}
		list = append(list, o)
	}
	return list
}

// bound says in words what the ratio must be.
func (o *outcome) bound() string {
	if o.Most > 0 {
		return fmt.Sprintf("≤ %.2f", o.Most)
	}
	return fmt.Sprintf("≥ %.2f", o.Least)
}

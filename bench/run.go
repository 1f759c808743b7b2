//go:build linux

package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// cell is the result of one contender with one load in one round.
type cell struct {
	Load      string
	Contender string
	Round     int

	Rate    float64 // units per second
	Count   float64 // units that arrived
	Seconds float64
	CPU     float64 // ns of the contender's process per unit
	CPUAll  float64 // the same, including sender and receiver
	Others  float64 // fraction of the processors' time used by others

	Sent    uint64 `json:",omitempty"` // packets
	Lost    uint64 // packets sent that did not arrive
	Handled uint64 // packets handled by the contender
	Missed  uint64 // copies lost by a sniffing contender
	Resets  uint64 `json:",omitempty"` // short connections that ended with a reset

	// With many flows:
	FlowsLost *int   `json:",omitempty"` // flows that lost a packet; nil if they could not be counted
	Again     uint64 `json:",omitempty"` // most packets of a flow received by the program after its verdict
	Maps      uint64 `json:",omitempty"` // memory of the contender's eBPF maps at the end, in bytes

	P50  time.Duration `json:",omitempty"` // of the round trips
	P99  time.Duration `json:",omitempty"`
	P999 time.Duration `json:",omitempty"`

	load *load
}

// selection is the choice of contenders and loads for a run.
type selection struct {
	contenders []*contender
	loads      []*load
	rounds     int
	duration   time.Duration // of each cell
	all        bool          // every sensible combination, not only the default ones
}

// pairs returns the contenders for a load.
func (s *selection) pairs(l *load) (list []*contender) {
	for _, c := range s.contenders {
		if c.can(l) && (s.all || c.name == none || contains(c.loads, l.name)) {
			list = append(list, c)
		}
	}
	return list
}

func contains(list []string, s string) bool {
	for _, have := range list {
		if have == s {
			return true
		}
	}
	return false
}

// results are the cells of a run.
type results struct {
	Cells   []*cell
	Skipped map[string]string // contenders that cannot run here, with the reason
}

// run measures. progress is called before each cell.
func (s *selection) run(pair *lab.Pair, progress func(round int, l *load, c *contender)) (*results, error) {
	r := &results{Skipped: make(map[string]string)}
	for round := range s.rounds {
		for _, l := range s.loads {
			list := s.pairs(l)
			for i := range list {
				c := list[(i+round)%len(list)]
				if _, skipped := r.Skipped[c.name]; skipped {
					continue
				}
				progress(round, l, c)
				one, err := s.measure(pair, l, c)
				if no := (errUnavailable{}); errors.As(err, &no) {
					r.Skipped[c.name] = no.reason
					continue
				}
				if err != nil {
					return r, fmt.Errorf("%s with %s, round %d: %w", l.name, c.name, round+1, err)
				}
				one.Round = round
				r.Cells = append(r.Cells, one)
			}
		}
	}
	return r, nil
}

// measure measures one cell.
func (s *selection) measure(pair *lab.Pair, l *load, c *contender) (*cell, error) {
	child, err := startChild(pair.A, job{Contender: c.name, Traffic: l.traffic()})
	if err != nil {
		return nil, err
	}
	var rule *ruleset
	if c.rule != nil {
		err := pair.A.Do(func() (err error) { rule, err = c.rule(l.traffic()); return err })
		if err != nil {
			return nil, errors.Join(err, child.end())
		}
	}
	run := &course{
		from: pair.A, to: pair.B, duration: s.duration, drops: c.drops, leads: c.leads, turns: max(c.turns, 1), child: child,
		cell: &cell{Load: l.name, Contender: c.name, load: l},
	}
	if l.inbound {
		run.from, run.to = pair.B, pair.A
	}
	err = l.run(run)
	if rule != nil {
		err = errors.Join(err, rule.remove())
	}
	err = errors.Join(err, child.end())
	if err == nil {
		err = nothingLeft(pair)
	}
	return run.cell, err
}

// nothingLeft fails if a host still has rules after a cell.
func nothingLeft(pair *lab.Pair) error {
	for _, h := range pair.Hosts() {
		tables, err := h.NFTables()
		if err != nil {
			return err
		}
		if len(tables) > 0 {
			return fmt.Errorf("left behind on %v: %s", h, strings.Join(tables, ", "))
		}
	}
	return nil
}

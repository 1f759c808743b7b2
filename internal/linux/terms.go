//go:build linux

package linux

import (
	"errors"
	"maps"
	"slices"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/life"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/prog"
)

// terms are the conditions that a handle's rules test before they call a program, or lead packets to the interpreter, by the
// chain: the filter's necessary conditions. A packet that meets none pays a few comparisons of nftables and no more.
type terms map[rules.Chain][]prog.Term

// termsOf returns the terms of a filter. Counts of flows also depend on packets that do not match, those of the other direction,
// and verdicts on packets that begin a flow.
func (h *handle) termsOf(p *prog.Program) terms {
	ts := terms{}
	for _, chain := range paths(h.layer, h.cfg.Flags) {
		ts[chain] = p.Necessary(chain == rules.Outbound)
		if h.entries == nil {
			ts[chain] = prog.WithFragments(ts[chain]) // or the first one would be overtaken by the others
		}
		switch {
		case p.CountsFlows():
			ts[chain] = prog.WithoutEnds(ts[chain])
		case h.flows.follows:
			ts[chain] = prog.WithBeginnings(ts[chain])
		}
	}
	return ts
}

// with returns terms that a packet meets if it meets either.
func (ts terms) with(others terms) terms {
	both := maps.Clone(ts)
	for chain, list := range others {
		both[chain] = prog.JoinTerms(slices.Clone(ts[chain]), list)
	}
	return both
}

func (ts terms) equal(others terms) bool { return maps.EqualFunc(ts, others, prog.SameTerms) }

// leadBy makes the rules lead packets that p may match, and calls swap, which makes p decide: it widens the rules before and
// narrows them after, so that no packet is missed in between. If swap fails the rules are as before. h.mu is held.
func (h *handle) leadBy(p *prog.Program, swap func() error) error {
	if h.terms == nil || h.life.Is(life.NoRecv) { // the rules are still to be made, or gone already
		return swap()
	}
	before, after := h.terms, h.termsOf(p)
	if err := h.leadTo(before.with(after)); err != nil {
		return err
	}
	if err := swap(); err != nil {
		_ = h.leadTo(before) // else the program sees more packets than it must
		return err
	}
	_ = h.leadTo(after) // the same
	return nil
}

// leadTo replaces the rules by those for terms, if these are others.
func (h *handle) leadTo(ts terms) error {
	before := h.terms
	if ts.equal(before) {
		return nil
	}
	h.terms = ts
	err := h.entry.Replace(h.rules())
	if err == nil {
		return nil
	}
	h.terms = before
	if errors.Is(err, rules.ErrGone) {
		return engine.ErrRulesGone
	}
	return err
}

//go:build linux

package codegen

import (
	"math/bits"

	"github.com/opendivert/divert/filter"
)

// condition is a test brought into the one form that code is generated from: the field's value is
// available and lies in one of the ranges, or, if negate is set, in none of them. The ranges are
// ascending, do not overlap and lie within the values the field can have (its domain).
type condition struct {
	field  filter.Field
	index  int32
	ranges []filter.Range
	negate bool
	domain filter.Range
}

var (
	zero    = filter.Value{}
	maximum = filter.Value{Hi: ^uint64(0), Lo: ^uint64(0)}
)

func low(v uint64) filter.Value { return filter.Value{Lo: v} }

func add1(v filter.Value) filter.Value {
	lo, carry := bits.Add64(v.Lo, 1, 0)
	return filter.Value{Hi: v.Hi + carry, Lo: lo}
}

func sub1(v filter.Value) filter.Value {
	lo, borrow := bits.Sub64(v.Lo, 1, 0)
	return filter.Value{Hi: v.Hi - borrow, Lo: lo}
}

// The timestamp is signed. Its conditions are about the value with the top bit flipped, which
// keeps the order and has no sign.
const signBit = 1 << 63

// toCondition brings a test into its normal form (specification: filter-language.md 6).
func toCondition(t *filter.Test) condition {
	c := condition{field: t.Field, index: t.Index, domain: domainOf(t.Field)}
	switch {
	case t.Op == filter.OpIn || t.Op == filter.OpNotIn:
		c.negate = t.Op == filter.OpNotIn
		if t.Set != nil {
			c.ranges = t.Set.Ranges
		}
		if t.Field == filter.FieldTimestamp {
			c.ranges = biasedRanges(c.ranges)
		}
	case t.Field == filter.FieldTimestamp:
		c.compare(t.Op, biased(t.Neg, t.Value))
	case t.Neg:
		// Every value is greater than a negative literal, minus zero included.
		c.compare(t.Op, bound{})
	case isWide(t.Field):
		c.compare(t.Op, bound{value: t.Value, exact: true})
	default:
		c.compare(t.Op, bound{value: low(t.Value.Lo & 0xFFFFFFFF), exact: true})
	}
	c.clip()
	return c
}

// bound is a literal among the values of a field: exact is the value itself, otherwise it stands
// just below value, or above every value if past is set.
type bound struct {
	value filter.Value
	exact bool
	past  bool
}

// compare sets the ranges for an operator and a literal.
func (c *condition) compare(op filter.Op, b bound) {
	below, from, above := b.below(), b.value, b.above()
	switch op {
	case filter.OpEq, filter.OpNe:
		if b.exact {
			c.ranges = []filter.Range{{First: from, Last: from}}
		}
		c.negate = op == filter.OpNe
	case filter.OpLt:
		c.ranges = below
	case filter.OpGe:
		c.ranges, c.negate = below, true
	case filter.OpGt:
		c.ranges = above
	case filter.OpLe:
		c.ranges, c.negate = above, true
	}
}

// below are the values less than the literal.
func (b bound) below() []filter.Range {
	switch {
	case b.past:
		return []filter.Range{{First: zero, Last: maximum}}
	case b.value == zero:
		return nil
	}
	return []filter.Range{{First: zero, Last: sub1(b.value)}}
}

// above are the values greater than the literal.
func (b bound) above() []filter.Range {
	switch {
	case b.past, b.exact && b.value == maximum:
		return nil
	case b.exact:
		return []filter.Range{{First: add1(b.value), Last: maximum}}
	}
	return []filter.Range{{First: b.value, Last: maximum}}
}

// biased places a literal of the timestamp among the biased timestamps. Minus zero lies between
// -1 and 0.
func biased(neg bool, v filter.Value) bound {
	switch {
	case !neg && (v.Hi != 0 || v.Lo >= signBit):
		return bound{past: true}
	case !neg:
		return bound{value: low(v.Lo | signBit), exact: true}
	case v == zero:
		return bound{value: low(signBit)}
	case v.Hi != 0 || v.Lo > signBit:
		return bound{}
	}
	return bound{value: low(signBit - v.Lo), exact: true}
}

// biasedRanges turns ranges of non-negative timestamps into ranges of biased ones.
func biasedRanges(ranges []filter.Range) []filter.Range {
	out := make([]filter.Range, 0, len(ranges))
	for _, r := range ranges {
		if r.First.Hi != 0 || r.First.Lo >= signBit {
			break
		}
		last := r.Last
		if last.Hi != 0 || last.Lo >= signBit {
			last = low(signBit - 1)
		}
		out = append(out, filter.Range{First: low(r.First.Lo | signBit), Last: low(last.Lo | signBit)})
	}
	return out
}

// clip cuts the ranges to the domain. A condition that says no for few values and yes for all others
// is kept as it is; one that covers the domain becomes the negation of nothing.
func (c *condition) clip() {
	var out []filter.Range
	for _, r := range c.ranges {
		if r.First.Compare(c.domain.First) < 0 {
			r.First = c.domain.First
		}
		if r.Last.Compare(c.domain.Last) > 0 {
			r.Last = c.domain.Last
		}
		if r.First.Compare(r.Last) <= 0 {
			out = append(out, r)
		}
	}
	if len(out) == 1 && out[0] == c.domain {
		out, c.negate = nil, !c.negate
	}
	c.ranges = out
}

// constant reports whether the answer is the same for all values, and which.
func (c *condition) constant() (holds, ok bool) { return c.negate, len(c.ranges) == 0 }

// holds gives the answer for a value.
func (c *condition) holds(v filter.Value) bool {
	for _, r := range c.ranges {
		if r.First.Compare(v) <= 0 && v.Compare(r.Last) <= 0 {
			return !c.negate
		}
	}
	return c.negate
}

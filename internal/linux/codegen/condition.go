//go:build linux

package codegen

import (
	"math/bits"

	"github.com/opendivert/divert/internal/prog"
)

// condition is a test brought into the one form that code is generated from: the field's value is
// available and lies in one of the ranges, or, if negate is set, in none of them. The ranges are
// ascending, do not overlap and lie within the values the field can have (its domain).
type condition struct {
	field  prog.Field
	index  int32
	ranges []prog.Range
	negate bool
	named  *prog.Named // nil, or the set that is asked instead of the ranges; which values it has is not known
	domain prog.Range
}

var (
	zero    = prog.Value{}
	maximum = prog.Value{Hi: ^uint64(0), Lo: ^uint64(0)}
)

func low(v uint64) prog.Value { return prog.Value{Lo: v} }

func add1(v prog.Value) prog.Value {
	lo, carry := bits.Add64(v.Lo, 1, 0)
	return prog.Value{Hi: v.Hi + carry, Lo: lo}
}

func sub1(v prog.Value) prog.Value {
	lo, borrow := bits.Sub64(v.Lo, 1, 0)
	return prog.Value{Hi: v.Hi - borrow, Lo: lo}
}

// The timestamp is signed. Its conditions are about the value with the top bit flipped, which
// keeps the order and has no sign.
const signBit = 1 << 63

// toCondition brings a test into its normal form (specification: filter-language.md 6).
func toCondition(t *prog.Test) condition {
	c := condition{field: t.Field, index: t.Index, domain: domainOf(t.Field)}
	switch {
	case t.Op == prog.OpIn || t.Op == prog.OpNotIn:
		c.negate = t.Op == prog.OpNotIn
		if t.Named != nil {
			c.named = t.Named
			return c
		}
		if t.Set != nil {
			c.ranges = t.Set.Ranges
		}
		if t.Field == prog.FieldTimestamp {
			c.ranges = biasedRanges(c.ranges)
		}
	case t.Field == prog.FieldTimestamp:
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
	value prog.Value
	exact bool
	past  bool
}

// compare sets the ranges for an operator and a literal.
func (c *condition) compare(op prog.Op, b bound) {
	below, from, above := b.below(), b.value, b.above()
	switch op {
	case prog.OpEq, prog.OpNe:
		if b.exact {
			c.ranges = []prog.Range{{First: from, Last: from}}
		}
		c.negate = op == prog.OpNe
	case prog.OpLt:
		c.ranges = below
	case prog.OpGe:
		c.ranges, c.negate = below, true
	case prog.OpGt:
		c.ranges = above
	case prog.OpLe:
		c.ranges, c.negate = above, true
	}
}

// below are the values less than the literal.
func (b bound) below() []prog.Range {
	switch {
	case b.past:
		return []prog.Range{{First: zero, Last: maximum}}
	case b.value == zero:
		return nil
	}
	return []prog.Range{{First: zero, Last: sub1(b.value)}}
}

// above are the values greater than the literal.
func (b bound) above() []prog.Range {
	switch {
	case b.past, b.exact && b.value == maximum:
		return nil
	case b.exact:
		return []prog.Range{{First: add1(b.value), Last: maximum}}
	}
	return []prog.Range{{First: b.value, Last: maximum}}
}

// biased places a literal of the timestamp among the biased timestamps. Minus zero lies between
// -1 and 0.
func biased(neg bool, v prog.Value) bound {
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
func biasedRanges(ranges []prog.Range) []prog.Range {
	out := make([]prog.Range, 0, len(ranges))
	for _, r := range ranges {
		if r.First.Hi != 0 || r.First.Lo >= signBit {
			break
		}
		last := r.Last
		if last.Hi != 0 || last.Lo >= signBit {
			last = low(signBit - 1)
		}
		out = append(out, prog.Range{First: low(r.First.Lo | signBit), Last: low(last.Lo | signBit)})
	}
	return out
}

// clip cuts the ranges to the domain. A condition that says no for few values and yes for all others
// is kept as it is; one that covers the domain becomes the negation of nothing.
func (c *condition) clip() {
	var out []prog.Range
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
func (c *condition) constant() (holds, ok bool) {
	return c.negate, len(c.ranges) == 0 && c.named == nil
}

// holds gives the answer for a value.
func (c *condition) holds(v prog.Value) bool {
	for _, r := range c.ranges {
		if r.First.Compare(v) <= 0 && v.Compare(r.Last) <= 0 {
			return !c.negate
		}
	}
	return c.negate
}

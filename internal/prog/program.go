package prog

import (
	"slices"

	"github.com/opendivert/divert/internal/radix"
	"github.com/opendivert/divert/packet"
)

// Op is the operator of a test. The values up to OpGe are those of the compiled form
// (specification: filter-object.md 1); OpIn and OpNotIn exist in the extended dialect only.
type Op uint8

// The operators.
const (
	OpEq Op = iota
	OpNe
	OpLt
	OpLe
	OpGt
	OpGe
	OpIn    // the value lies in Test.Set or Test.Named
	OpNotIn // the value is available and does not lie in Test.Set or Test.Named
)

// Target is the continuation after a test: the index of a later test, or Accept or Reject.
type Target int32

// The two ends of an evaluation.
const (
	Accept Target = -1
	Reject Target = -2
)

// Value is a 128-bit magnitude. IPv4 addresses are values of ::ffff:0:0/96, as in the language.
type Value = radix.Value

// Range is all values from First to Last, both included.
type Range = radix.Range

// Set is a set of non-negative values: ranges in ascending order that neither overlap nor touch.
type Set struct{ Ranges []Range }

// Test compares one field with a literal or a set. If the field's value is not available in the
// packet (a header is absent, an index out of range) the test fails whatever its operator.
type Test struct {
	Field Field
	Op    Op
	Neg   bool   // the literal is negative (magnitude in Value)
	Index int32  // index fields: byte offset, negative from the end
	Value Value  // the literal, for the operators OpEq to OpGe
	Set   *Set   // for OpIn and OpNotIn, one of them:
	Named *Named // only for fields that TakesNamed
	Succ  Target // next if the test holds
	Fail  Target // next if it does not
}

// Program is a compiled filter: a list of tests, entered at the first. Jumps only go forward.
// A program is immutable and may be used by several goroutines at once.
type Program struct {
	layer     packet.Layer
	tests     []Test
	code      code     // the tests as the interpreter executes them; New makes it
	uncounted *Program // see Uncounted; nil if the program does not test counts of flows

	strict bool // compiled in the strict dialect
}

// Constant returns the program that accepts everything, or nothing.
func Constant(layer packet.Layer, accept bool) *Program {
	end := Reject
	if accept {
		end = Accept
	}
	return New(layer, []Test{{Field: FieldZero, Op: OpEq, Succ: end, Fail: end}}, true)
}

// Only returns the program that accepts everything with a flag.
func Only(layer packet.Layer, flag Field) *Program {
	return New(layer, []Test{{Field: flag, Op: OpNe, Succ: Accept, Fail: Reject}}, true)
}

// Layer returns the layer the program was compiled for.
func (p *Program) Layer() packet.Layer { return p.layer }

// Len returns the number of tests of the program, at least 1.
func (p *Program) Len() int { return len(p.tests) }

// Tests returns the tests of the program. The slice is the program's own: do not write to it.
func (p *Program) Tests() []Test { return p.tests }

// Asks reports whether the program tests a field for which is returns true.
func (p *Program) Asks(is func(Field) bool) bool {
	return slices.ContainsFunc(p.tests, func(t Test) bool { return is(t.Field) })
}

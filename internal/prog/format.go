package prog

import (
	"errors"
	"fmt"
	"slices"
)

// maxFormatted is the longest text from Format, in bytes. Only programs written for the purpose come near it: a part with
// several predecessors is printed once for each.
const maxFormatted = 16 << 20

// ErrFormatTooLong means that the text of a program would be longer than 16 MiB.
var ErrFormatTooLong = errors.New("filter: the program has no text of reasonable length")

// Format turns the program back into a filter text, that of WinDivertHelperFormatFilter (specification: filter-object.md
// 5). Compiled again for the same layer it means the same, with two exceptions: literals of index fields and of flags
// lose their sign, and literals that no compiler leaves, which objects may have, are folded. Sets are printed in the
// extended dialect: as one prefix where possible, else as "field in {…}" with prefixes, ranges and values.
//
// The only error is ErrFormatTooLong.
func (p *Program) Format() (string, error) {
	w := formatter{style: p.style()}
	w.write(rebuild(p.tests), nil)
	if w.full {
		return "", ErrFormatTooLong
	}
	return string(w.text), nil
}

// String returns the text of Format, or a remark in angle brackets if there is none.
func (p *Program) String() string {
	text, err := p.Format()
	if err != nil {
		return fmt.Sprintf("<%d tests, too long to print>", len(p.tests))
	}
	return text
}

// ExprKind is the kind of an expression.
type ExprKind uint8

const (
	ExprConst ExprKind = iota
	ExprTest
	ExprAnd
	ExprOr
	ExprCond
	ExprNot // one part; from builders only
)

// Expr is an expression rebuilt from tests. Expressions share their parts.
type Expr struct {
	Kind  ExprKind
	Value bool     // ExprConst
	Test  *Test    // ExprTest
	Parts [3]*Expr // ExprAnd, ExprOr: two; ExprCond: condition, then, else
}

var (
	ExprTrue  = &Expr{Kind: ExprConst, Value: true}
	ExprFalse = &Expr{Kind: ExprConst}
)

func conditional(condition, then, otherwise *Expr) *Expr {
	return &Expr{Kind: ExprCond, Parts: [3]*Expr{condition, then, otherwise}}
}

// Expr returns the expression that the program's tests compute.
func (p *Program) Expr() *Expr { return rebuild(p.tests) }

// block is an expression with its two continuations.
type block struct {
	expr       *Expr
	succ, fail Target

	// refs counts the targets that point here, in the 8 bits of the original: 256 count as none.
	refs    uint8
	removed bool // now a part of another block
}

// blocks are the expressions built from the program's tests so far, by the index of their first test.
type blocks []block

// rebuild returns the expression that the tests compute.
func rebuild(tests []Test) *Expr {
	b := make(blocks, len(tests))
	for i := range tests {
		t := &tests[i]
		b[i].expr, b[i].succ, b[i].fail = &Expr{Kind: ExprTest, Test: t}, t.Succ, t.Fail
		b.refer(t.Succ)
		b.refer(t.Fail)
	}
	b.refer(0)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i].refs == 0 {
			continue
		}
		for b.absorb(&b[i]) {
		}
	}
	return b.build()
}

func (b blocks) refer(t Target) {
	if t >= 0 {
		b[t].refs++
	}
}

func (b blocks) release(t Target) {
	if t >= 0 {
		b[t].refs--
		b[t].removed = b[t].removed || b[t].refs == 0
	}
}

// sole returns the block at t if it has only one predecessor, else nil.
func (b blocks) sole(t Target) *block {
	if t >= 0 && b[t].refs == 1 && !b[t].removed {
		return &b[t]
	}
	return nil
}

// absorb merges x with a block it leads to and reports whether it found one.
// (Specification: filter-object.md 5.1, phase A; the order of the rules matters.)
func (b blocks) absorb(x *block) bool {
	s, f := b.sole(x.succ), b.sole(x.fail)
	oldSucc, oldFail := x.succ, x.fail
	switch {
	case s != nil && s.fail == x.fail:
		x.expr = &Expr{Kind: ExprAnd, Parts: [3]*Expr{x.expr, s.expr}}
		x.succ = s.succ
	case s != nil && s.succ == x.fail:
		x.expr = conditional(x.expr, s.expr, ExprTrue)
		x.succ, x.fail = s.succ, s.fail
	case f != nil && f.succ == x.succ:
		x.expr = &Expr{Kind: ExprOr, Parts: [3]*Expr{x.expr, f.expr}}
		x.fail = f.fail
	case f != nil && f.fail == x.succ:
		x.expr = conditional(x.expr, ExprFalse, f.expr)
		x.succ, x.fail = f.succ, f.fail
	case s != nil && f != nil && s.succ == f.succ && s.fail == f.fail:
		x.expr = conditional(x.expr, s.expr, f.expr)
		x.succ, x.fail = s.succ, s.fail
		b.release(x.succ)
		b.release(x.fail)
	default:
		return false
	}
	b.release(oldSucc)
	b.release(oldFail)
	return true
}

// build joins the blocks that could not be merged, from the last to the first: a block with several predecessors becomes
// a part of each. (Specification: filter-object.md 5.1, phase B.)
func (b blocks) build() *Expr {
	built := make([]*Expr, len(b))
	at := func(t Target) *Expr {
		switch t {
		case Accept:
			return ExprTrue
		case Reject:
			return ExprFalse
		}
		return built[t]
	}
	for i := len(b) - 1; i >= 0; i-- {
		x := &b[i]
		then, otherwise := at(x.succ), at(x.fail)
		switch {
		case x.succ == x.fail:
			built[i] = then
		case isConst(then, true) && isConst(otherwise, false):
			built[i] = x.expr
		default:
			built[i] = conditional(x.expr, then, otherwise)
		}
	}
	return built[0]
}

func isConst(e *Expr, value bool) bool { return e.Kind == ExprConst && e.Value == value }

// formatter writes an expression as text. (Specification: filter-object.md 5.2.)
type formatter struct {
	style style
	text  []byte
	full  bool
}

// write appends an expression; outer is the "and" or "or" that directly contains it, or nil.
func (w *formatter) write(e, outer *Expr) {
	if len(w.text) > maxFormatted {
		w.full = true
		return
	}
	switch e.Kind {
	case ExprConst:
		if e.Value {
			w.text = append(w.text, "true"...)
		} else {
			w.text = append(w.text, "false"...)
		}
	case ExprTest:
		w.text = w.style.appendTest(w.text, e.Test)
	case ExprAnd:
		w.join(e, " and ", outer != nil && outer.Kind != ExprAnd)
	case ExprOr:
		w.join(e, " or ", outer != nil && outer.Kind != ExprOr)
	case ExprCond:
		w.text = append(w.text, '(')
		w.write(e.Parts[0], nil)
		w.text = append(w.text, "? "...)
		w.write(e.Parts[1], nil)
		w.text = append(w.text, ": "...)
		w.write(e.Parts[2], nil)
		w.text = append(w.text, ')')
	case ExprNot:
		w.text = append(w.text, "not "...)
		w.negated(e.Parts[0])
	}
}

// negated writes the operand of a negation. A test that always has a value needs no parentheses; for others "not" without
// them would mean the opposite comparison, not the negation.
func (w *formatter) negated(e *Expr) {
	if e.IsBare() || e.Kind == ExprCond { // a conditional has its own parentheses
		w.write(e, nil)
		return
	}
	w.text = append(w.text, '(')
	w.write(e, nil)
	w.text = append(w.text, ')')
}

// IsBare reports whether e is a test of a flag that always has a value, written as the name alone.
func (e *Expr) IsBare() bool {
	if e.Kind != ExprTest || e.Test.Op != OpNe || e.Test.Value != (Value{}) {
		return false
	}
	info := e.Test.Field.Info()
	return info.Boolean && info.Base == FieldZero
}

// Chain returns the operands of a chain of "and" or "or", from left to right. It does not recurse down the left side:
// chains are as long as programs make them.
func (e *Expr) Chain() []*Expr {
	kind := e.Kind
	var parts []*Expr
	for ; e.Kind == kind; e = e.Parts[0] {
		parts = append(parts, e.Parts[1])
	}
	parts = append(parts, e)
	slices.Reverse(parts)
	return parts
}

func (w *formatter) join(e *Expr, word string, parentheses bool) {
	if parentheses {
		w.text = append(w.text, '(')
	}
	for i, part := range e.Chain() {
		if i > 0 {
			w.text = append(w.text, word...)
		}
		w.write(part, e)
	}
	if parentheses {
		w.text = append(w.text, ')')
	}
}

// Text returns an expression as text of the extended dialect. The only error is ErrFormatTooLong.
func (e *Expr) Text() (string, error) {
	w := formatter{style: style{layer: anyLayer}}
	w.write(e, nil)
	if w.full {
		return "", ErrFormatTooLong
	}
	return string(w.text), nil
}

// LiteralText returns a value of a field as text of the extended dialect.
func LiteralText(f Field, v Bound) string {
	var b []byte
	if v.Neg {
		b = append(b, '-')
	}
	return string(style{layer: anyLayer}.appendLiteral(b, f, v.Mag))
}

// Text returns a test as text of the extended dialect.
func (t *Test) Text() string { return string(style{layer: anyLayer}.appendTest(nil, t)) }

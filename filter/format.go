package filter

import (
	"errors"
	"fmt"
)

// maxFormatted is the longest text that Format returns, in bytes. Only programs written for the
// purpose come near it: a part that is reached in several ways is printed once for each.
const maxFormatted = 16 << 20

// ErrFormatTooLong says that the text of a program would be longer than 16 MiB.
var ErrFormatTooLong = errors.New("filter: the program has no text of reasonable length")

// Format turns the program back into a filter text, the one that WinDivertHelperFormatFilter gives
// (specification: filter-object.md 5). Compiled again for the same layer it means the same, except that
// literals of index fields and of flags lose their sign and that literals which no compiler lets
// stand, as objects may have them, are folded. Sets are printed in the extended dialect: as a prefix
// if they are one, else as "field in {…}" with prefixes, ranges and values.
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

// exprKind is the kind of an expression.
type exprKind uint8

const (
	exprConst exprKind = iota
	exprTest
	exprAnd
	exprOr
	exprCond
	exprNot // one part; from builders only
)

// expr is an expression rebuilt from tests. Expressions share their parts.
type expr struct {
	kind  exprKind
	value bool     // exprConst
	test  *Test    // exprTest
	parts [3]*expr // exprAnd, exprOr: two; exprCond: condition, then, else
}

var (
	exprTrue  = &expr{kind: exprConst, value: true}
	exprFalse = &expr{kind: exprConst}
)

func conditional(condition, then, otherwise *expr) *expr {
	return &expr{kind: exprCond, parts: [3]*expr{condition, then, otherwise}}
}

// block is an expression with the places where the evaluation goes on after it.
type block struct {
	expr       *expr
	succ, fail Target

	// refs counts the targets that point here, in the 8 bits of the original: 256 count as none.
	refs    uint8
	removed bool // a part of another block now
}

// blocks are the expressions that the tests of a program have become so far, by the index of
// their first test.
type blocks []block

// rebuild returns the expression that the tests compute.
func rebuild(tests []Test) *expr {
	b := make(blocks, len(tests))
	for i := range tests {
		t := &tests[i]
		b[i].expr, b[i].succ, b[i].fail = &expr{kind: exprTest, test: t}, t.Succ, t.Fail
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

// sole returns the block at t if nothing else leads there, else nil.
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
		x.expr = &expr{kind: exprAnd, parts: [3]*expr{x.expr, s.expr}}
		x.succ = s.succ
	case s != nil && s.succ == x.fail:
		x.expr = conditional(x.expr, s.expr, exprTrue)
		x.succ, x.fail = s.succ, s.fail
	case f != nil && f.succ == x.succ:
		x.expr = &expr{kind: exprOr, parts: [3]*expr{x.expr, f.expr}}
		x.fail = f.fail
	case f != nil && f.fail == x.succ:
		x.expr = conditional(x.expr, exprFalse, f.expr)
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

// build joins the blocks that could not be merged, from the last to the first: what several lead to
// becomes a part of each. (Specification: filter-object.md 5.1, phase B.)
func (b blocks) build() *expr {
	built := make([]*expr, len(b))
	at := func(t Target) *expr {
		switch t {
		case Accept:
			return exprTrue
		case Reject:
			return exprFalse
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

func isConst(e *expr, value bool) bool { return e.kind == exprConst && e.value == value }

// formatter writes an expression as text. (Specification: filter-object.md 5.2.)
type formatter struct {
	style style
	text  []byte
	full  bool

	// If large is not nil, the text has only the ends of large sets, and the sets stand here by the number of their test
	// in the text. See source.
	large map[int]*Set
	tests int
}

// fewestElided is how many ranges a set has at least that has no text when an expression is compiled.
const fewestElided = 64

// short returns what is written for a test, and counts it.
func (w *formatter) short(t *Test) *Test {
	n := w.tests
	w.tests++
	if w.large == nil || t.Set == nil || len(t.Set.Ranges) < fewestElided {
		return t
	}
	w.large[n] = t.Set
	ends := *t
	ends.Set = &Set{Ranges: []Range{t.Set.Ranges[0], t.Set.Ranges[len(t.Set.Ranges)-1]}}
	return &ends
}

// write appends an expression; outer is the "and" or "or" that it is directly part of, or nil.
func (w *formatter) write(e, outer *expr) {
	if len(w.text) > maxFormatted {
		w.full = true
		return
	}
	switch e.kind {
	case exprConst:
		w.tests++
		if e.value {
			w.text = append(w.text, "true"...)
		} else {
			w.text = append(w.text, "false"...)
		}
	case exprTest:
		w.text = w.style.appendTest(w.text, w.short(e.test))
	case exprAnd:
		w.join(e, " and ", outer != nil && outer.kind != exprAnd)
	case exprOr:
		w.join(e, " or ", outer != nil && outer.kind != exprOr)
	case exprCond:
		w.text = append(w.text, '(')
		w.write(e.parts[0], nil)
		w.text = append(w.text, "? "...)
		w.write(e.parts[1], nil)
		w.text = append(w.text, ": "...)
		w.write(e.parts[2], nil)
		w.text = append(w.text, ')')
	case exprNot:
		w.text = append(w.text, "not "...)
		w.negated(e.parts[0])
	}
}

// negated writes what is negated. A test that always has a value needs no parentheses; of the others
// "not" would be the opposite comparison, not the negation.
func (w *formatter) negated(e *expr) {
	if e.kind == exprTest && e.test.Op == OpNe && e.test.Value == (Value{}) {
		if info := e.test.Field.info(); info.boolean && info.base == FieldZero {
			w.write(e, nil)
			return
		}
	}
	if e.kind == exprCond { // has its own
		w.write(e, nil)
		return
	}
	w.text = append(w.text, '(')
	w.write(e, nil)
	w.text = append(w.text, ')')
}

func (w *formatter) join(e *expr, word string, parentheses bool) {
	if parentheses {
		w.text = append(w.text, '(')
	}
	w.write(e.parts[0], e)
	w.text = append(w.text, word...)
	w.write(e.parts[1], e)
	if parentheses {
		w.text = append(w.text, ')')
	}
}

package filter

import (
	"github.com/opendivert/divert/internal/prog"
)

// nodeKind is the kind of a node of the syntax tree.
type nodeKind uint8

const (
	nodeTest nodeKind = iota
	nodeAnd           // two or more parts
	nodeOr            // two or more parts
	nodeCond          // condition, then, else
	nodeNot           // one part; extended dialect only
)

// node is a node of the syntax tree. Chains of the same operator are one node, so that the depth of the
// tree is that of the parentheses.
type node struct {
	kind  nodeKind
	parts []*node
	test  prog.Test // nodeTest, without targets; Field may be prog.FieldTrue or prog.FieldFalse
}

// Budgets of nesting. A parenthesis costs 3, and in the strict dialect each "or" in a chain costs 1 (specification:
// filter-language.md 2).
const (
	strictDepth = 1024

	maxNesting    = 1024 // parentheses in the extended dialect
	extendedDepth = 3*maxNesting + 2
)

// maxTests is the most tests of a filter of the extended dialect.
const maxTests = 65535

// maxIndexLiteral is the greatest number in an index, and maxOffset the greatest byte offset, the size of the element
// included. (Specification: filter-language.md 4.)
const (
	maxIndexLiteral = 65575
	maxOffset       = 65535
)

// parser makes the syntax tree. Its methods return nil after an error, which is in err.
type parser struct {
	source
	lexer lexer
	tok   token // the current one
	end   int   // end of the one before it
	err   *Error
	tests int

	sets       map[string]*namedSet   // the named sets so far
	interfaces map[string]*prog.Named // the interfaces so far, by their names

	negated bool // an odd number of negations precede the current test

	// For hints: the start of the comparison read last, the end of its field, and the end of its operator.
	last struct{ start, field, op int }
}

// parse returns the syntax tree of the text.
func parse(s source) (*node, *Error) {
	p := parser{source: s, lexer: lexer{source: s}}
	depth := extendedDepth
	if s.dialect == Strict {
		// A bad token anywhere wins over a syntax error before it.
		for p.tok = p.lexer.next(); p.tok.kind != tokEnd; p.tok = p.lexer.next() {
			if p.tok.kind == tokBad {
				return nil, p.lexer.err
			}
		}
		p.lexer, p.tok = lexer{source: s}, token{}
		depth = strictDepth
	}
	p.advance()
	root := p.disjunction(depth)
	if root != nil && p.tok.kind != tokEnd {
		return nil, p.unexpected(wantEnd)
	}
	if root == nil {
		return nil, p.err
	}
	return root, nil
}

func (p *parser) advance() {
	p.end = p.tok.end
	p.tok = p.lexer.next()
}

// fail records an error and returns nil.
func (p *parser) fail(err *Error) *node {
	p.err = err
	return nil
}

// tooDeep reports whether the budget of nesting is used up, and records the error.
func (p *parser) tooDeep(depth int) bool {
	if depth >= 0 {
		return false
	}
	p.err = p.at(ErrTooDeep, p.tok.pos, p.tok.end, "the filter is nested too deeply", "")
	return true
}

// disjunction parses a filter, or a part of one in parentheses.
func (p *parser) disjunction(depth int) *node {
	if p.tooDeep(depth) {
		return nil
	}
	depth--
	var chain []*node
	for {
		if p.tooDeep(depth) {
			return nil
		}
		n := p.conjunction(depth - 1)
		if n == nil {
			return nil
		}
		chain = append(chain, n)
		if p.tok.kind != tokOr {
			return joined(nodeOr, chain)
		}
		p.advance()
		if p.dialect == Strict {
			depth--
		}
	}
}

// conjunction parses a chain of "and".
func (p *parser) conjunction(depth int) *node {
	var chain []*node
	for {
		n := p.primary(depth)
		if n == nil {
			return nil
		}
		chain = append(chain, n)
		if p.tok.kind != tokAnd {
			return joined(nodeAnd, chain)
		}
		p.advance()
	}
}

// joined returns a node of the parts, or the only part.
func joined(kind nodeKind, parts []*node) *node {
	if len(parts) == 1 {
		return parts[0]
	}
	return &node{kind: kind, parts: parts}
}

// primary parses a test or a parenthesis.
func (p *parser) primary(depth int) *node {
	if p.tooDeep(depth) {
		return nil
	}
	not := false
	start := p.tok
	for p.tok.kind == tokNot {
		not = !not
		p.advance()
	}
	if p.tok.kind != tokOpen {
		return p.comparison(not)
	}
	if p.dialect == Strict && start.kind == tokNot {
		return p.fail(p.unexpected(wantField))
	}
	n := p.parenthesis(depth - 1)
	if n != nil && not {
		n = &node{kind: nodeNot, parts: []*node{n}}
	}
	return n
}

// parenthesis parses an expression in parentheses, the current token being the opening one.
func (p *parser) parenthesis(depth int) *node {
	p.advance()
	n := p.disjunction(depth)
	switch {
	case p.tok.kind == tokQuestion && (n != nil || p.dialect == Strict):
		return p.conditional(n, depth)
	case n == nil && p.dialect == Extended:
		return nil
	case p.tok.kind == tokClose:
		p.advance()
		return n // nil: the error inside is kept
	case n == nil:
		return p.fail(p.moved(p.err, p.tok))
	}
	return p.fail(p.unexpected(wantClose))
}

// conditional parses the rest of a conditional from its question mark on. condition is nil after an error: where the
// original then crashes, the question mark is unexpected. Strict dialect only. (Specification: filter-language.md 2.)
func (p *parser) conditional(condition *node, depth int) *node {
	question, inCondition := p.tok, p.err
	p.advance()
	then := p.disjunction(depth)
	if then == nil {
		return nil
	}
	if p.tok.kind != tokColon {
		return p.fail(p.unexpected(wantColon))
	}
	p.advance()
	otherwise := p.disjunction(depth)
	if otherwise == nil {
		return nil
	}
	if p.tok.kind != tokClose {
		return p.fail(p.unexpected(wantClose))
	}
	p.advance()
	if condition == nil {
		return p.fail(p.moved(inCondition, question))
	}
	return &node{kind: nodeCond, parts: []*node{condition, then, otherwise}}
}

// moved returns an error inside a parenthesis as the original reports it: as a syntax error at token t (specification:
// filter-language.md 8). Its text remains that of the true error.
func (p *parser) moved(err *Error, t token) *Error {
	e := *err
	e.Kind, e.Pos = ErrUnexpectedToken, uint32(t.pos)
	return &e
}

// comparison parses a test from its field on; not means that an odd number of negations precede it.
func (p *parser) comparison(not bool) *node {
	if p.tok.kind != tokField {
		return p.fail(p.unexpected(wantField))
	}
	if p.dialect == Extended {
		if p.tests++; p.tests > maxTests {
			return p.fail(p.at(ErrTooLong, p.tok.pos, p.tok.end, "the filter has more than 65535 tests", hintUseSets))
		}
	}
	n := &node{test: prog.Test{Field: p.tok.field, Op: prog.OpNe}}
	subject := p.tok
	p.last.start, p.last.op = subject.pos, 0
	p.advance()
	if n.test.Field.Info().Elem > 0 && !p.index(&n.test) {
		return nil
	}
	subject.end = p.end
	p.last.field = subject.end
	p.negated = not
	if n.test.Field.Info().Kind == prog.KindName {
		return p.nameTest(n.test.Field, subject)
	}
	if !p.relation(&n.test, subject) {
		return nil
	}
	return n
}

// index parses the index of a field like packet16[-3b]. (Specification: filter-language.md 4.)
func (p *parser) index(t *prog.Test) bool {
	if !p.take(tokOpenIndex, wantIndex) {
		return false
	}
	negative := p.tok.kind == tokMinus
	if negative {
		p.advance()
	}
	if p.tok.kind != tokNumber {
		p.fail(p.unexpected(wantIndexNumber))
		return false
	}
	number, size := p.tok, t.Field.Info().Elem
	if number.value.Compare(prog.Value{Lo: maxIndexLiteral}) > 0 {
		p.fail(p.indexOutOfBounds(number, number, size))
		return false
	}
	offset := int(number.value.Lo)
	p.advance()
	if p.tok.kind == tokMark {
		p.advance()
	} else {
		offset *= size
	}
	switch {
	case !negative && offset > maxOffset-size, negative && (offset < size || offset > maxOffset):
		p.fail(p.indexOutOfBounds(p.tok, number, size))
		return false
	case negative:
		offset = -offset
	}
	t.Index = int32(offset)
	return p.take(tokCloseIndex, wantCloseIndex)
}

// take steps over a token of the kind, or fails.
func (p *parser) take(kind tokenKind, want expectation) bool {
	if p.tok.kind != kind {
		p.fail(p.unexpected(want))
		return false
	}
	p.advance()
	return true
}

// relation parses the operator and its operand, and applies the negation before the test to the
// operator. Without an operator the test is "!= 0". subject is the field with its index.
func (p *parser) relation(t *prog.Test, subject token) bool {
	ok := true
	checked := token{} // a literal still to check
	switch op, found := relations[p.tok.kind]; {
	case found:
		t.Op = op
		checked, ok = p.rightSide(t, subject)
	case p.dialect == Extended && (p.tok.kind == tokIn || p.tok.kind == tokNot):
		ok = p.membership(t, subject)
	}
	if !ok {
		return false
	}
	if p.negated {
		t.Op = flipped[t.Op]
	}
	if checked.kind == tokNumber && p.dialect == Extended {
		if err := p.check(t, subject, checked); err != nil {
			return p.refuse(err)
		}
	}
	return true
}

// rightSide parses the right side of a comparison; the current token is the operator. It returns the literal with its
// sign, unless that was a prefix.
func (p *parser) rightSide(t *prog.Test, subject token) (literal token, ok bool) {
	p.advance()
	p.last.op = p.end
	start := p.tok.pos
	if t.Neg = p.tok.kind == tokMinus; t.Neg {
		p.advance()
	}
	if p.tok.kind != tokNumber {
		return token{}, p.refuse(p.unexpected(wantNumber))
	}
	literal = p.tok
	literal.pos = start
	t.Value = literal.value
	p.advance()
	if p.tok.kind == tokSlash {
		return token{}, p.prefixComparison(t, subject, literal)
	}
	return literal, true
}

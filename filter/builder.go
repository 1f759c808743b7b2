package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// An Expr is a filter that is built in Go instead of written as text:
//
//	filter.TCPDstPort.In(80, 443).And(filter.Outbound)
//
// The fields are constants of this package, named after those of the language; a flag such as TCP or Outbound is a
// condition by itself. The types let Go reject most impossible values. Others, such as an IPv6 address for IPSrcAddr, put
// the expression in error, which Err and Compile report. The meaning is that of the extended dialect: a comparison fails
// if the packet does not have the field.
//
// An Expr is an immutable value; any number of goroutines may use it. The zero Expr is in error.
type Expr struct {
	tree *prog.Expr
	err  error

	tests, depth int // of the tree
}

// A Condition is a part of expressions: an Expr, or a flag like TCP.
type Condition interface {
	condition() Expr
}

var (
	errNoExpr    = errors.New("filter: an expression is missing")
	errNoField   = errors.New("filter: the number is not that of a field of this kind; use the constants of package filter")
	errDeepExpr  = &Error{Kind: ErrTooDeep, Msg: "the expression is nested too deeply"}
	errLargeExpr = &Error{Kind: ErrTooLong, Msg: "the expression has more than 65535 tests", Hint: "In takes any number of values, and counts as one test"}
)

func (e Expr) condition() Expr {
	if e.tree == nil && e.err == nil {
		e.err = errNoExpr
	}
	return e
}

// conditionOf returns c as an expression; a nil c becomes one in error.
func conditionOf(c Condition) Expr {
	if c == nil {
		return Expr{err: errNoExpr}
	}
	return c.condition()
}

// combine makes an expression of parts. It takes over the first error among them.
func combine(kind prog.ExprKind, parts ...Condition) Expr {
	e := Expr{tree: &prog.Expr{Kind: kind}}
	for i, part := range parts {
		p := conditionOf(part)
		if p.err != nil {
			return Expr{err: p.err}
		}
		e.tree.Parts[i] = p.tree
		e.tests += p.tests
		if chained := (kind == prog.ExprAnd || kind == prog.ExprOr) && i == 0 && p.tree.Kind == kind; !chained {
			p.depth++
		}
		e.depth = max(e.depth, p.depth)
	}
	switch {
	case e.depth > maxNesting:
		return Expr{err: errDeepExpr}
	case e.tests > maxTests:
		return Expr{err: errLargeExpr}
	}
	return e
}

// testOf makes an expression of a test.
func testOf(t prog.Test) Expr {
	return Expr{tree: &prog.Expr{Kind: prog.ExprTest, Test: &t}, tests: 1}
}

// And holds if e and all others hold. They are evaluated from left to right until one fails.
func (e Expr) And(others ...Condition) Expr {
	for _, o := range others {
		e = combine(prog.ExprAnd, e, o)
	}
	return e.condition()
}

// Or holds if e or one of the others holds. They are evaluated from left to right until one holds.
func (e Expr) Or(others ...Condition) Expr {
	for _, o := range others {
		e = combine(prog.ExprOr, e, o)
	}
	return e.condition()
}

// Not holds exactly if e does not: TCPDstPort.Eq(80).Not() holds for UDP packets too, unlike
// TCPDstPort.Ne(80).
func (e Expr) Not() Expr { return combine(prog.ExprNot, e) }

// If holds if c and then hold, or if c does not and otherwise does.
func If(c, then, otherwise Condition) Expr { return combine(prog.ExprCond, c, then, otherwise) }

// Err returns the error of the expression, or nil.
func (e Expr) Err() error { return e.condition().err }

// String returns the expression as text of the extended dialect, with the parentheses that it needs. If the expression is
// in error, the text is the error in angle brackets and is no filter.
func (e Expr) String() string {
	err := e.Err()
	if err == nil {
		var text string
		if text, err = e.tree.Text(); err == nil {
			return text
		}
	}
	return "<" + err.Error() + ">"
}

// Compile compiles the expression for a layer. It returns the error of Err, or an *Error for a field that the layer
// lacks, an impossible value of a field, or a comparison that can never hold; Filter of that error is the text of the
// test alone. The limits are those of the function Compile, except that sets may be of any size. All programs of one
// expression share the memory of a large set, 32 bytes a range, and keep it alive.
func (e Expr) Compile(layer packet.Layer) (*Program, error) {
	if err := e.Err(); err != nil {
		return nil, err
	}
	root, err := nodeOf(e.tree, layer)
	if err != nil {
		return nil, err
	}
	tests, _ := place(root, maxTests)
	if err := bindNames(tests); err != nil {
		return nil, err
	}
	return (*Program)(prog.New(layer, tests, false)), nil
}

// nodeOf returns an expression as a syntax tree for a layer.
func nodeOf(e *prog.Expr, layer packet.Layer) (*node, *Error) {
	var kind nodeKind
	var parts []*prog.Expr
	switch e.Kind {
	case prog.ExprTest:
		t, err := testFor(*e.Test, layer)
		return &node{test: t}, err
	case prog.ExprAnd:
		kind, parts = nodeAnd, e.Chain()
	case prog.ExprOr:
		kind, parts = nodeOr, e.Chain()
	case prog.ExprCond:
		kind, parts = nodeCond, e.Parts[:]
	case prog.ExprNot:
		kind, parts = nodeNot, e.Parts[:1]
	}
	n := &node{kind: kind}
	for _, part := range parts {
		child, err := nodeOf(part, layer)
		if err != nil {
			return nil, err
		}
		n.parts = append(n.parts, child)
	}
	if kind == nodeNot && parts[0].IsBare() { // as the parser reads "not tcp"
		n = n.parts[0]
		n.test.Op = flipped[n.test.Op]
	}
	return n, nil
}

// testFor returns a test in the layer's form, after the checks that the parser makes of a test.
func testFor(t prog.Test, layer packet.Layer) (prog.Test, *Error) {
	info := t.Field.Info()
	if !isConstant(t.Field) && !info.In(false).Has(layer) {
		msg, hint := foreignField(t.Field, layer, Extended)
		return t, testError(ErrBadTokenForLayer, &t, msg, hint)
	}
	t.Field = extendedField(t.Field, layer)
	if t.Named != nil && !t.Named.Interface && !t.Field.TakesNamed() {
		return t, testError(ErrBadSet, &t, notForSets(t.Field.String()), hintNotForSets(t.Field))
	}
	if info.Boolean || t.Named != nil { // it compares with nothing
		return t, nil
	}
	least, greatest := prog.Bound{Neg: t.Neg, Mag: t.Value}, prog.Bound{Neg: t.Neg, Mag: t.Value}
	if t.Set != nil {
		least.Mag, greatest.Mag = t.Set.Ranges[0].First, t.Set.Ranges[len(t.Set.Ranges)-1].Last
	}
	for _, v := range [...]prog.Bound{least, greatest} {
		if !isPossible(t.Field, layer, v) {
			msg := impossible(t.Field.String(), prog.LiteralText(t.Field, v))
			return t, testError(ErrOutOfRange, &t, msg, rangeHint(t.Field, layer))
		}
	}
	if t.Set == nil && isNever(&t, layer) {
		return t, testError(ErrOutOfRange, &t, quote(t.Text())+" is never true", rangeHint(t.Field, layer))
	}
	return t, nil
}

// testError makes an error about a test built in Go.
func testError(kind ErrorKind, t *prog.Test, msg, hint string) *Error {
	text := beginning(t.Text())
	return &Error{Kind: kind, Filter: text, Token: text, Msg: msg, Hint: hint, end: len(text)}
}

// A field of the language in a constant: the lowest 8 bits are its number, bit 8 is set if its index is out of bounds,
// and the bits from 32 on are its index.
const (
	fieldMask       = 1<<8 - 1
	indexOutOfRange = 1 << 8
	indexShift      = 32
)

// subject is a field, with its index if it has one, as the left side of a comparison.
type subject struct {
	field prog.Field
	index int32
	err   error
}

// subjectOf reads a constant. The field must be of one of the kinds.
func subjectOf(code uint64, kinds ...prog.Kind) subject {
	s := subject{field: prog.Field(code & fieldMask), index: int32(code >> indexShift)}
	switch info := s.field.Info(); {
	case info.Name == "" || !slices.Contains(kinds, info.Kind) || info.Elem == 0 && code != uint64(s.field):
		s.err = errNoField
	case code&indexOutOfRange != 0:
		s.err = fmt.Errorf("filter: the index of %v is out of bounds", s.field)
	}
	return s
}

// compare makes the test "subject op v".
func (s subject) compare(op prog.Op, neg bool, v prog.Value) Expr {
	if s.err != nil {
		return Expr{err: s.err}
	}
	return testOf(prog.Test{Field: s.field, Index: s.index, Op: op, Neg: neg, Value: v})
}

// inSet makes the test that the subject lies in a named set.
func (s subject) inSet(name string) Expr {
	if s.err == nil && !ValidName(name) {
		s.err = fmt.Errorf("filter: a set cannot have the name %q; names are of letters, digits, _, - and points, at most %d", name, MaxName)
	}
	if s.err != nil {
		return Expr{err: s.err}
	}
	return testOf(prog.Test{Field: s.field, Index: s.index, Op: prog.OpIn, Named: &prog.Named{Name: name}})
}

// in makes the test that the subject lies in one of the ranges.
func (s subject) in(ranges ...prog.Range) Expr {
	if s.err != nil {
		return Expr{err: s.err}
	}
	t := prog.Test{Field: s.field, Index: s.index, Op: prog.OpEq}
	if putSet(&t, ranges); t.Set != nil && len(t.Set.Ranges) == 0 {
		return False.condition()
	}
	return testOf(t)
}

// Flag is a field that is 0 or 1, and the condition that it is 1. Its values are constants of this package.
type Flag uint64

func (f Flag) condition() Expr {
	return subjectOf(uint64(f), prog.KindBool).compare(prog.OpNe, false, prog.Value{})
}

// And holds if f and all others hold.
func (f Flag) And(others ...Condition) Expr { return f.condition().And(others...) }

// Or holds if f or one of the others holds.
func (f Flag) Or(others ...Condition) Expr { return f.condition().Or(others...) }

// Not holds exactly if f does not: TCPSyn.Not() holds for UDP packets too.
func (f Flag) Not() Expr { return f.condition().Not() }

// Compile compiles the flag as a filter for a layer, as Expr.Compile does.
func (f Flag) Compile(layer packet.Layer) (*Program, error) { return f.condition().Compile(layer) }

// String returns the flag as filters write it.
func (f Flag) String() string { return f.condition().String() }

// Number is a field with unsigned values, or an element of a packet or payload. Its values are constants of this package
// and results of its functions, such as Packet.
type Number[T ~uint8 | ~uint16 | ~uint32 | ~uint64] uint64

func (n Number[T]) subject() subject { return subjectOf(uint64(n), prog.KindNumber, prog.KindBytes) }

func valueOf[T ~uint8 | ~uint16 | ~uint32 | ~uint64](v T) prog.Value {
	return prog.Value{Lo: uint64(v)}
}

// Eq holds if the value is v.
func (n Number[T]) Eq(v T) Expr { return n.subject().compare(prog.OpEq, false, valueOf(v)) }

// Ne holds if the field has a value and it is not v.
func (n Number[T]) Ne(v T) Expr { return n.subject().compare(prog.OpNe, false, valueOf(v)) }

// Lt holds if the value is less than v.
func (n Number[T]) Lt(v T) Expr { return n.subject().compare(prog.OpLt, false, valueOf(v)) }

// Le holds if the value is v or less.
func (n Number[T]) Le(v T) Expr { return n.subject().compare(prog.OpLe, false, valueOf(v)) }

// Gt holds if the value is greater than v.
func (n Number[T]) Gt(v T) Expr { return n.subject().compare(prog.OpGt, false, valueOf(v)) }

// Ge holds if the value is v or greater.
func (n Number[T]) Ge(v T) Expr { return n.subject().compare(prog.OpGe, false, valueOf(v)) }

// Between holds if the value lies between first and last, both included; never if last < first.
func (n Number[T]) Between(first, last T) Expr {
	return n.subject().in(prog.Range{First: valueOf(first), Last: valueOf(last)})
}

// InSet holds if the value is in the named set, as "in @name" in text. See Set.
func (n Number[T]) InSet(name string) Expr { return n.subject().inSet(name) }

// In holds if the value is one of values.
func (n Number[T]) In(values ...T) Expr {
	ranges := make([]prog.Range, len(values))
	for i, v := range values {
		ranges[i] = prog.Range{First: valueOf(v), Last: valueOf(v)}
	}
	return n.subject().in(ranges...)
}

// Signed is a field whose values may be negative.
type Signed[T ~int16 | ~int64] uint64

func (n Signed[T]) subject() subject { return subjectOf(uint64(n), prog.KindSigned) }

func (n Signed[T]) compare(op prog.Op, v T) Expr {
	if v < 0 {
		return n.subject().compare(op, true, prog.Value{Lo: -uint64(int64(v))})
	}
	return n.subject().compare(op, false, prog.Value{Lo: uint64(v)})
}

// Eq holds if the value is v.
func (n Signed[T]) Eq(v T) Expr { return n.compare(prog.OpEq, v) }

// Ne holds if the value is not v.
func (n Signed[T]) Ne(v T) Expr { return n.compare(prog.OpNe, v) }

// Lt holds if the value is less than v.
func (n Signed[T]) Lt(v T) Expr { return n.compare(prog.OpLt, v) }

// Le holds if the value is v or less.
func (n Signed[T]) Le(v T) Expr { return n.compare(prog.OpLe, v) }

// Gt holds if the value is greater than v.
func (n Signed[T]) Gt(v T) Expr { return n.compare(prog.OpGt, v) }

// Ge holds if the value is v or greater.
func (n Signed[T]) Ge(v T) Expr { return n.compare(prog.OpGe, v) }

// Between holds if the value lies between first and last, both included; never if last < first.
func (n Signed[T]) Between(first, last T) Expr { return n.Ge(first).And(n.Le(last)) }

// InSet holds if the value is in the named set, as "in @name" in text. Negative values are in none.
func (n Signed[T]) InSet(name string) Expr { return n.subject().inSet(name) }

// In holds if the value is one of values.
func (n Signed[T]) In(values ...T) Expr {
	if len(values) == 0 {
		return False.condition()
	}
	e := n.Eq(values[0])
	for _, v := range values[1:] {
		e = e.Or(n.Eq(v))
	}
	return e
}

// Addr is a field with addresses: of IPv4, of IPv6, or of both. The zero netip.Addr, an address with a zone, or one of a
// family that the field does not have puts the expression in error. For fields of both families an IPv4 address and its
// IPv6-mapped form are the same.
type Addr uint64

func (f Addr) subject() subject {
	return subjectOf(uint64(f), prog.KindIPv4, prog.KindIPv6, prog.KindAddr)
}

// value returns an address in the field's form.
func (f Addr) value(a netip.Addr) (prog.Value, error) {
	kind := f.subject().field.Info().Kind
	switch {
	case !a.IsValid() || a.Zone() != "",
		kind == prog.KindIPv4 && !a.Unmap().Is4(),
		kind == prog.KindIPv6 && a.Is4():
		return prog.Value{}, fmt.Errorf("filter: %v is not an address for %v", a, f.subject().field)
	}
	ip := a.As16()
	return valueFromBytes(ip), nil
}

func valueFromBytes(ip [16]byte) (v prog.Value) {
	for i := range 8 {
		v.Hi = v.Hi<<8 | uint64(ip[i])
		v.Lo = v.Lo<<8 | uint64(ip[8+i])
	}
	return v
}

func (f Addr) compare(op prog.Op, a netip.Addr) Expr {
	v, err := f.value(a)
	if err != nil {
		return Expr{err: err}
	}
	return f.subject().compare(op, false, v)
}

// InSet holds if the address is in the named set, as "in @name" in text. See Set.
func (f Addr) InSet(name string) Expr { return f.subject().inSet(name) }

// Eq holds if the address is a.
func (f Addr) Eq(a netip.Addr) Expr { return f.compare(prog.OpEq, a) }

// Ne holds if the field has a value and it is not a.
func (f Addr) Ne(a netip.Addr) Expr { return f.compare(prog.OpNe, a) }

// Lt holds if the address is below a.
func (f Addr) Lt(a netip.Addr) Expr { return f.compare(prog.OpLt, a) }

// Le holds if the address is a or below.
func (f Addr) Le(a netip.Addr) Expr { return f.compare(prog.OpLe, a) }

// Gt holds if the address is above a.
func (f Addr) Gt(a netip.Addr) Expr { return f.compare(prog.OpGt, a) }

// Ge holds if the address is a or above.
func (f Addr) Ge(a netip.Addr) Expr { return f.compare(prog.OpGe, a) }

// Between holds if the address lies between first and last, both included; never if last < first.
func (f Addr) Between(first, last netip.Addr) Expr {
	from, err := f.value(first)
	if err != nil {
		return Expr{err: err}
	}
	to, err := f.value(last)
	if err != nil {
		return Expr{err: err}
	}
	return f.subject().in(prog.Range{First: from, Last: to})
}

// In holds if the address lies in one of the prefixes. Bits behind a prefix are ignored.
func (f Addr) In(prefixes ...netip.Prefix) Expr {
	ranges := make([]prog.Range, len(prefixes))
	for i, p := range prefixes {
		if !p.IsValid() {
			return Expr{err: fmt.Errorf("filter: %v is not a prefix for %v", p, f.subject().field)}
		}
		first, err := f.value(p.Masked().Addr())
		if err != nil {
			return Expr{err: err}
		}
		host := hostMask(p.Addr().BitLen() - p.Bits())
		ranges[i] = prog.Range{First: first, Last: prog.Value{Hi: first.Hi | host.Hi, Lo: first.Lo | host.Lo}}
	}
	return f.subject().in(ranges...)
}

// OneOf holds if the address is one of addrs.
func (f Addr) OneOf(addrs ...netip.Addr) Expr {
	ranges := make([]prog.Range, len(addrs))
	for i, a := range addrs {
		v, err := f.value(a)
		if err != nil {
			return Expr{err: err}
		}
		ranges[i] = prog.Range{First: v, Last: v}
	}
	return f.subject().in(ranges...)
}

package filter

import (
	"errors"
	"fmt"
	"net/netip"
)

// An Expr is a filter that is built in Go instead of written as text:
//
//	filter.TCP.DstPort.In(80, 443).And(filter.Outbound)
//
// The fields are variables of this package; the boolean ones are expressions themselves, and so are the
// groups IP, IPv6, ICMP, ICMPv6, TCP and UDP. Types keep most values that a field cannot have
// from compiling in Go; the rest, such as an IPv6 address for ip.SrcAddr, is an error that travels with
// the expression and that Err and Compile report. The meaning is that of the extended dialect: a
// comparison fails if the packet does not have the field.
//
// An Expr is an immutable value; any number of goroutines may use it. The zero Expr is in error.
type Expr struct {
	tree *expr
	err  error
}

// A Condition is what expressions are made of: an Expr or a group of fields like TCP.
type Condition interface {
	condition() Expr
}

var errNoExpr = errors.New("filter: an expression is missing")

func (e Expr) condition() Expr {
	if e.tree == nil && e.err == nil {
		e.err = errNoExpr
	}
	return e
}

// conditionOf returns c as an expression, nil as one in error.
func conditionOf(c Condition) Expr {
	if c == nil {
		return Expr{err: errNoExpr}
	}
	return c.condition()
}

// combine makes an expression of parts, the first error of which is its own.
func combine(kind exprKind, parts ...Condition) Expr {
	tree := &expr{kind: kind}
	for i, part := range parts {
		p := conditionOf(part)
		if p.err != nil {
			return Expr{err: p.err}
		}
		tree.parts[i] = p.tree
	}
	return Expr{tree: tree}
}

// And holds if e and all others hold. They are evaluated from left to right until one fails.
func (e Expr) And(others ...Condition) Expr {
	for _, o := range others {
		e = combine(exprAnd, e, o)
	}
	return e.condition()
}

// Or holds if e or one of the others holds. They are evaluated from left to right until one holds.
func (e Expr) Or(others ...Condition) Expr {
	for _, o := range others {
		e = combine(exprOr, e, o)
	}
	return e.condition()
}

// Not holds exactly if e does not: TCP.DstPort.Eq(80).Not() holds for UDP packets too, unlike
// TCP.DstPort.Ne(80).
func (e Expr) Not() Expr { return combine(exprNot, e) }

// If holds if c and then hold, or if c does not and otherwise does.
func If(c, then, otherwise Condition) Expr { return combine(exprCond, c, then, otherwise) }

// Err returns what is wrong with the expression, nil if nothing is.
func (e Expr) Err() error { return e.condition().err }

// String returns the expression as text of the extended dialect, with the parentheses that it needs.
// If the expression is in error the text says so in angle brackets and is no filter.
func (e Expr) String() string {
	if err := e.Err(); err != nil {
		return "<" + err.Error() + ">"
	}
	text, err := e.text()
	if err != nil {
		return "<" + err.Error() + ">"
	}
	return text
}

func (e Expr) text() (string, error) {
	w := formatter{style: style{layer: anyLayer}}
	w.write(e.tree, nil)
	if w.full {
		return "", ErrFormatTooLong
	}
	return string(w.text), nil
}

// Compile compiles the expression for a layer. The errors are that of Err, ErrFormatTooLong, and those of
// the function Compile. Sets may be of any size: 4 MiB is the limit of the text without them. The program keeps the
// memory of a large set, 32 bytes a range, and so do all programs of the same expression.
func (e Expr) Compile(layer Layer) (*Program, error) {
	if err := e.Err(); err != nil {
		return nil, err
	}
	w := formatter{style: style{layer: anyLayer}, large: map[int]*Set{}}
	w.write(e.tree, nil)
	if w.full {
		return nil, ErrFormatTooLong
	}
	return compile(source{text: string(w.text), layer: layer}, w.large)
}

// subject is a field, with its index if it has one, as the left side of a comparison.
type subject struct {
	field Field
	index int32
	err   error // the index is out of bounds
}

// compare makes the test "subject op v".
func (s subject) compare(op Op, neg bool, v Value) Expr {
	if s.err != nil {
		return Expr{err: s.err}
	}
	t := &Test{Field: s.field, Index: s.index, Op: op, Neg: neg, Value: v}
	return Expr{tree: &expr{kind: exprTest, test: t}}
}

// in makes the test that the subject lies in one of the ranges.
func (s subject) in(ranges ...Range) Expr {
	if s.err != nil {
		return Expr{err: s.err}
	}
	t := &Test{Field: s.field, Index: s.index, Op: OpEq}
	set := NewSet(ranges)
	if len(set.Ranges) == 0 {
		return False
	}
	t.inSet(set.Ranges)
	return Expr{tree: &expr{kind: exprTest, test: t}}
}

// Number is a field with unsigned values, or an element of a packet or payload.
type Number[T ~uint8 | ~uint16 | ~uint32 | ~uint64] struct{ subject subject }

func valueOf[T ~uint8 | ~uint16 | ~uint32 | ~uint64](v T) Value { return Value{Lo: uint64(v)} }

// Eq holds if the value is v.
func (n Number[T]) Eq(v T) Expr { return n.subject.compare(OpEq, false, valueOf(v)) }

// Ne holds if the field has a value and it is not v.
func (n Number[T]) Ne(v T) Expr { return n.subject.compare(OpNe, false, valueOf(v)) }

// Lt holds if the value is less than v.
func (n Number[T]) Lt(v T) Expr { return n.subject.compare(OpLt, false, valueOf(v)) }

// Le holds if the value is v or less.
func (n Number[T]) Le(v T) Expr { return n.subject.compare(OpLe, false, valueOf(v)) }

// Gt holds if the value is greater than v.
func (n Number[T]) Gt(v T) Expr { return n.subject.compare(OpGt, false, valueOf(v)) }

// Ge holds if the value is v or greater.
func (n Number[T]) Ge(v T) Expr { return n.subject.compare(OpGe, false, valueOf(v)) }

// Between holds if the value lies between first and last, both included; never if last < first.
func (n Number[T]) Between(first, last T) Expr {
	return n.subject.in(Range{First: valueOf(first), Last: valueOf(last)})
}

// In holds if the value is one of values.
func (n Number[T]) In(values ...T) Expr {
	ranges := make([]Range, len(values))
	for i, v := range values {
		ranges[i] = Range{First: valueOf(v), Last: valueOf(v)}
	}
	return n.subject.in(ranges...)
}

// Signed is a field whose values may be negative.
type Signed[T ~int16 | ~int64] struct{ subject subject }

func (n Signed[T]) compare(op Op, v T) Expr {
	if v < 0 {
		return n.subject.compare(op, true, Value{Lo: -uint64(int64(v))})
	}
	return n.subject.compare(op, false, Value{Lo: uint64(v)})
}

// Eq holds if the value is v.
func (n Signed[T]) Eq(v T) Expr { return n.compare(OpEq, v) }

// Ne holds if the value is not v.
func (n Signed[T]) Ne(v T) Expr { return n.compare(OpNe, v) }

// Lt holds if the value is less than v.
func (n Signed[T]) Lt(v T) Expr { return n.compare(OpLt, v) }

// Le holds if the value is v or less.
func (n Signed[T]) Le(v T) Expr { return n.compare(OpLe, v) }

// Gt holds if the value is greater than v.
func (n Signed[T]) Gt(v T) Expr { return n.compare(OpGt, v) }

// Ge holds if the value is v or greater.
func (n Signed[T]) Ge(v T) Expr { return n.compare(OpGe, v) }

// Between holds if the value lies between first and last, both included; never if last < first.
func (n Signed[T]) Between(first, last T) Expr { return n.Ge(first).And(n.Le(last)) }

// In holds if the value is one of values.
func (n Signed[T]) In(values ...T) Expr {
	if len(values) == 0 {
		return False
	}
	e := n.Eq(values[0])
	for _, v := range values[1:] {
		e = e.Or(n.Eq(v))
	}
	return e
}

// Addr is a field with addresses: of IPv4, of IPv6, or of both. Addresses without a value, with a
// zone, or of a family that the field does not have are errors of the expression. For fields of both
// families an IPv4 address and its IPv6-mapped form are the same.
type Addr struct{ subject subject }

// value returns an address as the field has it.
func (f Addr) value(a netip.Addr) (Value, error) {
	kind := f.subject.field.info().kind
	switch {
	case !a.IsValid() || a.Zone() != "",
		kind == KindIPv4 && !a.Unmap().Is4(),
		kind == KindIPv6 && a.Is4():
		return Value{}, fmt.Errorf("filter: %v is no address for %v", a, f.subject.field)
	}
	ip := a.As16()
	return valueFromBytes(ip), nil
}

func valueFromBytes(ip [16]byte) (v Value) {
	for i := range 8 {
		v.Hi = v.Hi<<8 | uint64(ip[i])
		v.Lo = v.Lo<<8 | uint64(ip[8+i])
	}
	return v
}

func (f Addr) compare(op Op, a netip.Addr) Expr {
	v, err := f.value(a)
	if err != nil {
		return Expr{err: err}
	}
	return f.subject.compare(op, false, v)
}

// Eq holds if the address is a.
func (f Addr) Eq(a netip.Addr) Expr { return f.compare(OpEq, a) }

// Ne holds if the field has a value and it is not a.
func (f Addr) Ne(a netip.Addr) Expr { return f.compare(OpNe, a) }

// Lt holds if the address is below a.
func (f Addr) Lt(a netip.Addr) Expr { return f.compare(OpLt, a) }

// Le holds if the address is a or below.
func (f Addr) Le(a netip.Addr) Expr { return f.compare(OpLe, a) }

// Gt holds if the address is above a.
func (f Addr) Gt(a netip.Addr) Expr { return f.compare(OpGt, a) }

// Ge holds if the address is a or above.
func (f Addr) Ge(a netip.Addr) Expr { return f.compare(OpGe, a) }

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
	return f.subject.in(Range{First: from, Last: to})
}

// In holds if the address lies in one of the prefixes. Bits behind a prefix are ignored.
func (f Addr) In(prefixes ...netip.Prefix) Expr {
	ranges := make([]Range, len(prefixes))
	for i, p := range prefixes {
		if !p.IsValid() {
			return Expr{err: fmt.Errorf("filter: %v is no prefix for %v", p, f.subject.field)}
		}
		first, err := f.value(p.Masked().Addr())
		if err != nil {
			return Expr{err: err}
		}
		host := hostMask(p.Addr().BitLen() - p.Bits())
		ranges[i] = Range{First: first, Last: Value{Hi: first.Hi | host.Hi, Lo: first.Lo | host.Lo}}
	}
	return f.subject.in(ranges...)
}

// OneOf holds if the address is one of addrs.
func (f Addr) OneOf(addrs ...netip.Addr) Expr {
	ranges := make([]Range, len(addrs))
	for i, a := range addrs {
		v, err := f.value(a)
		if err != nil {
			return Expr{err: err}
		}
		ranges[i] = Range{First: v, Last: v}
	}
	return f.subject.in(ranges...)
}

// elementOf makes the subject of an index field, i elements (or bytes) from the start, or for negative i
// from the end (specification: filter-language.md 4).
func elementOf(f Field, i int, inBytes bool) subject {
	size := f.info().elem
	if !inBytes && i >= -maxOffset && i <= maxOffset {
		i *= size
	}
	if i > maxOffset-size || i < 0 && i > -size || i < -maxOffset {
		return subject{err: fmt.Errorf("filter: the index of %v is out of bounds", f)}
	}
	return subject{field: f, index: int32(i)}
}

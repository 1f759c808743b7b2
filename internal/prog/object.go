package prog

import (
	"errors"
	"strings"

	"github.com/opendivert/divert/packet"
)

// Sizes of compiled filters (specification: filter-language.md 7).
const (
	maxObjectTests = 256 // tests of a filter that the original compiles
	maxDriverTests = 255 // tests of a filter that its driver accepts
)

// ObjectMagic starts every object string (specification: filter-object.md 4.1).
const ObjectMagic = "@WinDiv_"

// The digits of numbers in object strings: base 32, most significant digit first. The last digit
// of a number comes from an alphabet of its own, so numbers need no separators
// (specification: filter-object.md 4.2).
const (
	innerDigits = "0123456789ABCDEFGHIJKLMNOPQRSTUV"
	finalDigits = "WXYZabcdefghijklmnopqrstuvwxyz+="
)

// The most digits of each kind of number, leading zeros included (specification: filter-object.md 4.4).
const (
	digitsVersion = 4
	digitsSmall   = 2 // counts, fields, operators, targets
	digitsSign    = 1
	digitsWord    = 7 // 32-bit arguments
)

// objectIndexBias makes the byte offsets of index fields non-negative in object strings.
const objectIndexBias = 65535

// ipv4Prefix is the upper part of ::ffff:0:0/96, to which the IPv4 addresses of the language belong.
const ipv4Prefix = 0xFFFF << 32

// objectArgs returns the number of 32-bit words of a literal, up to four, in the object form of a test.
func objectArgs(f Field) int {
	switch info := f.Info(); {
	case info.Kind == KindIPv6, info.Kind == KindAddr:
		return 4
	case info.Wide && info.Kind != KindIPv4: // endpointId, parentEndpointId, timestamp
		return 2
	}
	return 1
}

// The errors of programs and their binary forms.
var (
	ErrTooLong   = errors.New("the compiled filter has more than 256 tests")
	ErrMalformed = errors.New("the compiled filter is malformed")
)

// ParseObject reads an object string: a compiled filter as text (specification: filter-object.md 4). Nothing may follow
// the object, not even a NUL. The only error is ErrMalformed. strict selects the dialect in which the program is printed.
//
// As in the original, ParseObject checks neither the layer of the fields nor the range of the literals. DriverCheck does
// that; Eval reports a field of another layer when it executes its test.
func ParseObject(s string, layer packet.Layer, strict bool) (*Program, error) {
	rest, found := strings.CutPrefix(s, ObjectMagic)
	r := objectReader{rest: rest, bad: !found}
	if version := r.number(digitsVersion); version != 0 {
		r.bad = true
	}
	count := r.number(digitsSmall)
	if r.bad || count < 1 || count > maxObjectTests {
		return nil, ErrMalformed
	}
	tests := make([]Test, count)
	for i := range tests {
		tests[i] = r.test(i, len(tests))
		if r.bad {
			return nil, ErrMalformed
		}
	}
	if r.rest != "" {
		return nil, ErrMalformed
	}
	return New(layer, tests, strict), nil
}

// objectReader reads the parts of an object string. After the first violation bad is set and every
// number is zero.
type objectReader struct {
	rest string
	bad  bool
}

// byte takes the next byte, 0 at the end.
func (r *objectReader) byte() byte {
	if r.rest == "" {
		return 0
	}
	c := r.rest[0]
	r.rest = r.rest[1:]
	return c
}

// number reads a 32-bit number of at most the given count of digits.
func (r *objectReader) number(digits int) uint32 {
	var n uint32
	for ; digits > 0 && !r.bad; digits-- {
		if n>>27 != 0 { // the next digit would shift bits out
			break
		}
		c := r.byte()
		if d := strings.IndexByte(finalDigits, c); d >= 0 {
			return n<<5 | uint32(d)
		}
		d := strings.IndexByte(innerDigits, c)
		if d < 0 {
			break
		}
		n = n<<5 | uint32(d)
	}
	r.bad = true
	return 0
}

// test reads instruction i of count.
func (r *objectReader) test(i, count int) Test {
	if r.byte() != '_' {
		r.bad = true
	}
	field, op, neg := r.number(digitsSmall), r.number(digitsSmall), r.number(digitsSign)
	if field >= uint32(NumSpecFields) || op > uint32(OpGe) || neg > 1 {
		r.bad = true
		return Test{}
	}
	t := Test{Field: Field(field), Op: Op(op), Neg: neg == 1}
	var args [4]uint32
	for k := range objectArgs(t.Field) {
		args[k] = r.number(digitsWord)
	}
	t.Value = valueFromWords(args)
	switch info := t.Field.Info(); {
	case info.Kind == KindIPv4:
		t.Value.Lo |= ipv4Prefix
	case info.Elem != 0:
		t.Index = int32(r.number(digitsWord) - objectIndexBias)
	}
	t.Succ, t.Fail = r.target(i, count), r.target(i, count)
	return t
}

// target reads a target of instruction i of count.
func (r *objectReader) target(i, count int) Target {
	switch r.byte() {
	case 'A':
		return Accept
	case 'X':
		return Reject
	case 'L':
		if n := int(r.number(digitsSmall)); n > i && n < count {
			return Target(n)
		}
	}
	r.bad = true
	return Reject
}

// Object returns the object string of the program: printable ASCII without line breaks, which ParseObject and every
// WinDivert 2.2 understand (specification: filter-object.md 4). Programs of the extended dialect are lowered first
// (Lower); a *LowerError names a test without an object form. More than 256 tests are ErrTooLong.
//
// As in the original, the object omits words that its tests never read (the upper words of 32-bit literals). And as in
// the original, which counts in 8 bits, a program of exactly 256 tests that was compiled in the strict dialect becomes
// "@WinDiv_WW", which no reader accepts.
func (p *Program) Object() (string, error) {
	if p.hasLargeSet() {
		return "", ErrTooLong
	}
	p, err := p.Lower()
	if err != nil {
		return "", err
	}
	if len(p.tests) > maxObjectTests {
		return "", ErrTooLong
	}
	count := len(p.tests)
	if p.strict {
		count = int(uint8(count))
	}
	b := make([]byte, 0, len(ObjectMagic)+4+24*count)
	b = append(b, ObjectMagic...)
	b = appendObjectNumber(b, 0)
	b = appendObjectNumber(b, uint32(count))
	for i := range p.tests[:count] {
		b = appendObjectTest(b, &p.tests[i])
	}
	return string(b), nil
}

// hasLargeSet reports whether one set alone becomes more tests than fit into an object, and there is no other obstacle.
// It saves writing out tests that would be useless.
func (p *Program) hasLargeSet() bool {
	large := false
	for i := range p.tests {
		t := &p.tests[i]
		if t.Field >= NumSpecFields || t.Named != nil {
			return false // Lower has a better error
		}
		large = large || t.Set != nil && len(t.Set.Ranges) > maxObjectTests && len(comparable(t)) > maxObjectTests
	}
	return large
}

func appendObjectTest(b []byte, t *Test) []byte {
	b = append(b, '_')
	b = appendObjectNumber(b, uint32(t.Field))
	b = appendObjectNumber(b, uint32(t.Op))
	var neg uint32
	if t.Neg {
		neg = 1
	}
	b = appendObjectNumber(b, neg)
	args := wordsOf(t.Value)
	for _, arg := range args[:objectArgs(t.Field)] {
		b = appendObjectNumber(b, arg)
	}
	if t.Field.Info().Elem != 0 {
		b = appendObjectNumber(b, uint32(t.Index)+objectIndexBias)
	}
	b = appendObjectTarget(b, t.Succ)
	return appendObjectTarget(b, t.Fail)
}

func appendObjectTarget(b []byte, t Target) []byte {
	switch t {
	case Accept:
		return append(b, 'A')
	case Reject:
		return append(b, 'X')
	}
	return appendObjectNumber(append(b, 'L'), uint32(t))
}

// appendObjectNumber appends n in as few digits as possible.
func appendObjectNumber(b []byte, n uint32) []byte {
	shift := 0
	for n>>shift>>5 != 0 {
		shift += 5
	}
	for ; shift > 0; shift -= 5 {
		b = append(b, innerDigits[n>>shift&31])
	}
	return append(b, finalDigits[n&31])
}

// wordsOf returns the four 32-bit words of v, the least significant first.
func wordsOf(v Value) [4]uint32 {
	return [4]uint32{uint32(v.Lo), uint32(v.Lo >> 32), uint32(v.Hi), uint32(v.Hi >> 32)}
}

// valueFromWords is the inverse of wordsOf.
func valueFromWords(w [4]uint32) Value {
	return Value{
		Hi: uint64(w[3])<<32 | uint64(w[2]),
		Lo: uint64(w[1])<<32 | uint64(w[0]),
	}
}

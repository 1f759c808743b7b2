package filter

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/opendivert/divert/internal/addrtext"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// This file has the parts of the extended dialect only: sets, prefixes, and the refusal of comparisons that cannot be
// intended.

// possible returns the least and the greatest value of a field on a layer.
func possible(f prog.Field, layer packet.Layer) (lo, hi prog.Bound) {
	info := f.Info()
	switch {
	case info.Boolean:
		return prog.Bound{}, prog.BoundOf(1)
	case f == prog.FieldEvent && layer < packet.NumLayers:
		first, last := prog.EventsOf(layer)
		return prog.BoundOf(uint64(first)), prog.BoundOf(uint64(last))
	}
	return info.DrvLo, info.DrvHi
}

// isConstant reports whether a field's value is known without a packet. Comparisons of constants may be false: that is
// another way to write false.
func isConstant(f prog.Field) bool {
	return f == prog.FieldZero || f == prog.FieldTrue || f == prog.FieldFalse
}

// check refuses a comparison that can never hold. literal is the token of the right side, its sign
// included.
func (p *parser) check(t *prog.Test, subject, literal token) *Error {
	v := prog.Bound{Neg: t.Neg, Mag: t.Value}
	if v.Neg && v.Mag == (prog.Value{}) && t.Field.Info().Kind == prog.KindSigned {
		t.Neg, v.Neg = false, false // -0 is 0
	}
	if err := p.checkValue(t.Field, subject, literal, v); err != nil {
		return err
	}
	if !isNever(t, p.layer) {
		return nil
	}
	msg := fmt.Sprintf("%s is never true", quote(p.text[subject.pos:literal.end]))
	if p.negated {
		msg = fmt.Sprintf("the opposite of %s is never true", quote(p.text[subject.pos:literal.end]))
	}
	return p.at(ErrOutOfRange, subject.pos, literal.end, msg, rangeHint(t.Field, p.layer))
}

// isNever reports whether a comparison with a value that the field can have never holds.
func isNever(t *prog.Test, layer packet.Layer) bool {
	v := prog.Bound{Neg: t.Neg, Mag: t.Value}
	lo, hi := possible(t.Field, layer)
	return !isConstant(t.Field) && foldRange(t.Op, v.Compare(lo), v.Compare(hi)) == alwaysFalse
}

// isPossible reports whether a field can have a value.
func isPossible(f prog.Field, layer packet.Layer, v prog.Bound) bool {
	lo, hi := possible(f, layer)
	if f == prog.FieldLength {
		lo = prog.Bound{} // length > 10 is true, not an error
	}
	return v.Compare(lo) >= 0 && v.Compare(hi) <= 0
}

// checkValue refuses values that are impossible for the field.
func (p *parser) checkValue(f prog.Field, subject, literal token, v prog.Bound) *Error {
	kind := f.Info().Kind
	wrongFamily := kind == prog.KindIPv6 && literal.form == formIPv4
	if !wrongFamily && isPossible(f, p.layer, v) {
		return nil
	}
	text, name := shortened(p.text[literal.pos:literal.end]), shortened(p.text[subject.pos:subject.end])
	var msg string
	hint := rangeHint(f, p.layer)
	switch {
	case wrongFamily:
		msg = fmt.Sprintf("%s is an IPv6 address, %s an IPv4 address", name, text)
		hint = "use " + otherFamily[f].String()
	case kind == prog.KindIPv4 && literal.form == formIPv6 && !v.Neg:
		msg = fmt.Sprintf("%s is an IPv4 address, %s an IPv6 address", name, text)
		hint = "use " + otherFamily[f].String()
	case kind == prog.KindIPv4 && !v.Neg:
		msg = fmt.Sprintf("%s is an IPv4 address, %s is not", name, text)
	case literal.form == formIPv4 || literal.form == formIPv6:
		msg = fmt.Sprintf("%s is an address, %s takes no addresses", text, name)
	default:
		msg = impossible(name, text)
	}
	return p.at(ErrOutOfRange, literal.pos, literal.end, msg, hint)
}

// impossible is the message about an impossible value of a field.
func impossible(name, value string) string { return fmt.Sprintf("%s can never be %s", name, value) }

// otherFamily maps fields to those with the same meaning in the other IP version.
var otherFamily = map[prog.Field]prog.Field{
	prog.FieldIPSrcAddr: prog.FieldIPv6SrcAddr, prog.FieldIPv6SrcAddr: prog.FieldIPSrcAddr,
	prog.FieldIPDstAddr: prog.FieldIPv6DstAddr, prog.FieldIPv6DstAddr: prog.FieldIPDstAddr,
}

// rangeHint names the values of a field.
func rangeHint(f prog.Field, layer packet.Layer) string {
	lo, hi := possible(f, layer)
	switch kind := f.Info().Kind; {
	case f == prog.FieldEvent && layer < packet.NumLayers:
		return fmt.Sprintf("layer %s has the events %s", layer, eventNames(layer))
	case isConstant(f):
		return "it is a constant, 0 or 1"
	case kind == prog.KindBool:
		return "it is 0 or 1; write the name alone, or with \"not\""
	case kind == prog.KindIPv6 || kind == prog.KindAddr:
		return "its values are addresses"
	default:
		return "its values go from " + boundText(lo, kind) + " to " + boundText(hi, kind)
	}
}

// eventNames lists the events of a layer.
func eventNames(layer packet.Layer) string {
	first, last := prog.EventsOf(layer)
	names := first.String()
	for e := first + 1; e <= last; e++ {
		names += ", " + e.String()
	}
	return names
}

// boundText returns the end of a range as it is written in filters.
func boundText(b prog.Bound, kind prog.Kind) string {
	text := strconv.FormatUint(b.Mag.Lo, 10)
	if kind == prog.KindIPv4 || kind == prog.KindIPv6 || kind == prog.KindAddr {
		text = addrOf(b.Mag, kind == prog.KindIPv4).String()
	}
	if b.Neg {
		return "-" + text
	}
	return text
}

// addrOf returns a value as an address; with unmap, a mapped address becomes an IPv4 one.
func addrOf(v prog.Value, unmap bool) netip.Addr {
	w := addrtext.Words{uint32(v.Lo), uint32(v.Lo >> 32), uint32(v.Hi), uint32(v.Hi >> 32)}
	a := netip.AddrFrom16(w.As16())
	if unmap {
		a = a.Unmap()
	}
	return a
}

// putSet turns t into a test for the values of the ranges, or against them, as its operator says; a single value needs no
// set.
func putSet(t *prog.Test, ranges []prog.Range) {
	set := prog.NewSet(ranges)
	if len(set.Ranges) == 1 && set.Ranges[0].First == set.Ranges[0].Last {
		t.Value = set.Ranges[0].First
		return
	}
	t.Value = prog.Value{}
	t.Set = set
	if t.Op == prog.OpEq {
		t.Op = prog.OpIn
	} else {
		t.Op = prog.OpNotIn
	}
}

// prefixComparison parses the prefix length behind the literal of a comparison; the slash is the
// current token.
func (p *parser) prefixComparison(t *prog.Test, subject, literal token) bool {
	if t.Op != prog.OpEq && t.Op != prog.OpNe {
		return p.refuse(p.at(ErrBadPrefix, p.tok.pos, p.tok.end, "a prefix has no order",
			"compare prefixes with == or != only"))
	}
	r, ok := p.prefix(t.Field, subject, literal, t.Neg)
	if ok {
		t.Neg = false
		putSet(t, []prog.Range{r})
	}
	return ok
}

// refuse records an error and returns false.
func (p *parser) refuse(err *Error) bool {
	p.err = err
	return false
}

// prefix parses the prefix length behind the address in literal; the slash is the current token.
func (p *parser) prefix(f prog.Field, subject, literal token, negative bool) (r prog.Range, ok bool) {
	kind := f.Info().Kind
	isAddress := literal.form == formIPv4 || literal.form == formIPv6
	if kind != prog.KindIPv4 && kind != prog.KindIPv6 && kind != prog.KindAddr || !isAddress || negative {
		return r, p.refuse(p.at(ErrBadPrefix, p.tok.pos, p.tok.end, "a prefix length belongs to an address",
			"as in ip.SrcAddr == 10.0.0.0/8"))
	}
	if err := p.checkValue(f, subject, literal, prog.Bound{Mag: literal.value}); err != nil {
		return r, p.refuse(err)
	}
	p.advance()
	if p.tok.kind != tokNumber {
		return r, p.refuse(p.unexpected(wantPrefix))
	}
	longest := uint64(128)
	if literal.form == formIPv4 {
		longest = 32
	}
	if p.tok.form != formDecimal || p.tok.value.Compare(prog.Value{Lo: longest}) > 0 {
		return r, p.refuse(p.at(ErrBadPrefix, p.tok.pos, p.tok.end,
			"there is no prefix length "+quote(p.text[p.tok.pos:p.tok.end]),
			fmt.Sprintf("it goes from 0 to %d here", longest)))
	}
	host := hostMask(int(longest - p.tok.value.Lo))
	first := prog.Value{Hi: literal.value.Hi &^ host.Hi, Lo: literal.value.Lo &^ host.Lo}
	if first != literal.value {
		masked := netip.PrefixFrom(addrOf(first, literal.form == formIPv4), int(p.tok.value.Lo))
		return r, p.refuse(p.at(ErrBadPrefix, literal.pos, p.tok.end,
			"bits are set behind the prefix in "+quote(p.text[literal.pos:p.tok.end]),
			fmt.Sprintf("the prefix is %s", masked)))
	}
	p.advance()
	return prog.Range{First: first, Last: prog.Value{Hi: first.Hi | host.Hi, Lo: first.Lo | host.Lo}}, true
}

// hostMask returns the value of n ones, n at most 128.
func hostMask(n int) prog.Value {
	if n <= 64 {
		return prog.Value{Lo: 1<<n - 1}
	}
	return prog.Value{Hi: 1<<(n-64) - 1, Lo: 1<<64 - 1}
}

// membership parses "in" or "not in" and the set behind it.
func (p *parser) membership(t *prog.Test, subject token) bool {
	t.Op = prog.OpEq
	if not := p.tok; not.kind == tokNot {
		p.advance()
		if p.tok.kind != tokIn {
			p.tok = not
			return p.refuse(p.unexpected(wantEnd))
		}
		t.Op = prog.OpNe
	}
	p.advance()
	p.last.op = 0
	if p.tok.kind == tokNamed {
		return p.named(t, subject)
	}
	if !p.take(tokOpenSet, wantOpenSet) {
		return false
	}
	var ranges []prog.Range
	for {
		if p.tok.kind == tokCloseSet && len(ranges) > 0 {
			break
		}
		r, ok := p.element(t.Field, subject)
		if !ok {
			return false
		}
		ranges = append(ranges, r)
		if p.tok.kind == tokComma {
			p.advance()
		} else if p.tok.kind != tokCloseSet {
			return p.refuse(p.unexpected(wantCloseSet))
		}
	}
	p.advance()
	putSet(t, ranges)
	return true
}

// element parses an element of a set: a value, a range or a prefix.
func (p *parser) element(f prog.Field, subject token) (r prog.Range, ok bool) {
	if p.tok.kind == tokMinus {
		return r, p.refuse(p.negativeElement(f, subject))
	}
	if p.tok.kind != tokNumber {
		err := p.unexpected(wantElement)
		if p.tok.kind == tokCloseSet {
			err.Kind, err.Msg = ErrBadSet, "the set is empty"
		}
		return r, p.refuse(err)
	}
	first := p.tok
	p.advance()
	if p.tok.kind == tokSlash {
		return p.prefix(f, subject, first, false)
	}
	if err := p.checkValue(f, subject, first, prog.Bound{Mag: first.value}); err != nil {
		return r, p.refuse(err)
	}
	if p.tok.kind != tokMinus {
		return prog.Range{First: first.value, Last: first.value}, true
	}
	p.advance()
	last := p.tok
	if last.kind != tokNumber {
		return r, p.refuse(p.unexpected(wantNumber))
	}
	if err := p.checkValue(f, subject, last, prog.Bound{Mag: last.value}); err != nil {
		return r, p.refuse(err)
	}
	p.advance()
	if err := p.checkEnds(f, first, last); err != nil {
		return r, p.refuse(err)
	}
	return prog.Range{First: first.value, Last: last.value}, true
}

// checkEnds refuses a range that is empty or whose ends are of different families.
func (p *parser) checkEnds(f prog.Field, first, last token) *Error {
	ipv4 := func(t token) bool { return t.value.Hi == 0 && t.value.Lo>>32 == 0xFFFF }
	if f.Info().Kind == prog.KindAddr && ipv4(first) != ipv4(last) {
		return p.at(ErrBadSet, first.pos, last.end,
			"range "+quote(p.text[first.pos:last.end])+" goes from one IP version to the other",
			"write a range for each of them")
	}
	if first.value.Compare(last.value) > 0 {
		return p.at(ErrBadSet, first.pos, last.end,
			"range "+quote(p.text[first.pos:last.end])+" ends before it starts", "put the lower end first")
	}
	return nil
}

// negativeElement makes an error of an element with a sign, which is the current token.
func (p *parser) negativeElement(f prog.Field, subject token) *Error {
	sign := p.tok
	p.advance()
	if p.tok.kind != tokNumber {
		return p.unexpected(wantNumber)
	}
	literal := p.tok
	literal.pos = sign.pos
	v := prog.Bound{Neg: true, Mag: literal.value}
	if err := p.checkValue(f, subject, literal, v); err != nil {
		return err
	}
	return p.at(ErrBadSet, literal.pos, literal.end, "sets have no negative values",
		"compare them one by one: "+shortened(p.text[subject.pos:subject.end])+" == "+shortened(p.text[literal.pos:literal.end])+" or …")
}

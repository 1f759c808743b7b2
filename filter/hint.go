package filter

import (
	"fmt"
	"strings"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// expectation is the kind of token that the parser expected.
type expectation uint8

const (
	wantField expectation = iota
	wantNumber
	wantIndex
	wantIndexNumber
	wantCloseIndex
	wantClose
	wantColon
	wantEnd
	wantOpenSet
	wantElement
	wantCloseSet
	wantPrefix
	wantNameTest
	wantName
	wantNames
)

var expectationTexts = [...]string{
	wantField:       "a test was expected",
	wantNumber:      "a number or address was expected",
	wantIndex:       "an index in brackets was expected",
	wantIndexNumber: "a number was expected in the index",
	wantCloseIndex:  `"]" was expected`,
	wantClose:       `")" was expected`,
	wantColon:       `":" was expected`,
	wantEnd:         `"and", "or" or the end was expected`,
	wantOpenSet:     `"{" or the name of a set was expected after "in"`,
	wantElement:     "a value or a range was expected in the set",
	wantCloseSet:    `"," or "}" was expected`,
	wantPrefix:      "a prefix length was expected",
	wantNameTest:    `"==", "!=" or "in" was expected`,
	wantName:        "a name in quotes was expected",
	wantNames:       `"{" was expected after "in"`,
}

// hintStrictSets is for sets in the strict dialect.
const hintStrictSets = "sets, as in {80, 443}, belong to the extended dialect; in this one join comparisons with \"or\""

// hintNamed is for errors in the name of a set.
const hintNamed = "a named set stands behind in: remoteAddr in @blocked; its name is of letters, digits, _, - and ."

const hintUseSets = "sets are shorter and faster: tcp.DstPort in {80, 443, 8000-8999}"

// unexpected makes a syntax error of the current token.
func (p *parser) unexpected(want expectation) *Error {
	if p.tok.kind == tokBad {
		return p.lexer.err
	}
	msg := "unexpected " + quote(p.text[p.tok.pos:p.tok.end]) + ", " + expectationTexts[want]
	switch {
	case p.tok.kind == tokEnd && p.end == 0:
		msg = "the filter is empty"
	case p.tok.kind == tokEnd:
		msg = "the filter ends where " + expectationTexts[want]
	}
	return p.at(ErrUnexpectedToken, p.tok.pos, p.tok.end, msg, p.hint(want))
}

// hint advises on the current token, which the parser did not expect.
func (p *parser) hint(want expectation) string {
	if p.tok.kind == tokMacro && want != wantEnd {
		return p.macroHint()
	}
	switch want {
	case wantField:
		return p.fieldHint()
	case wantNumber:
		return p.numberHint()
	case wantIndex:
		return "as in " + shortened(p.text[p.last.start:p.end]) + "[0]"
	case wantClose:
		if p.tok.kind == tokEnd {
			return "a parenthesis is not closed"
		}
		return p.endHint()
	case wantColon:
		return "a conditional is written (a? b: c)"
	case wantEnd:
		return p.endHint()
	case wantElement:
		if p.tok.kind == tokCloseSet {
			return "a set needs at least one element"
		}
		if p.tok.kind == tokNamed {
			return "a named set stands without braces: " + p.membershipText()
		}
		return "as in {80, 443, 8000-8999}"
	case wantNameTest:
		return p.nameHint()
	case wantNames:
		return "as in " + shortened(p.text[p.last.start:p.last.field]) + ` in {"` + exampleName(p.last.start, p) + `", …}`
	case wantOpenSet:
		return "as in " + shortened(p.text[p.last.start:p.last.field]) + " in {80, 443, 8000-8999}, or in @ports"
	}
	return ""
}

// membershipText is a test whether the field read last is in the named set that is the current token.
func (p *parser) membershipText() string {
	return shortened(p.text[p.last.start:p.last.field]) + " in " + shortened(p.text[p.tok.pos:p.tok.end])
}

// macroHint names the layers of a macro.
func (p *parser) macroHint() string {
	name := p.text[p.tok.pos:p.tok.end]
	var layers prog.Layers
	for _, m := range words[name].macros {
		layers |= m.layers
	}
	return name + " exists at " + layers.String() + " only"
}

// fieldHint advises where a test was expected.
func (p *parser) fieldHint() string {
	text := shortened(p.text[p.tok.pos:p.tok.end])
	switch p.tok.kind {
	case tokEnd:
		if p.end == 0 {
			return "true matches everything"
		}
		return ""
	case tokNamed:
		return "a set stands behind a field: remoteAddr in " + text
	case tokText:
		return "a name stands behind a field: iface == " + text
	case tokNumber:
		return p.lonelyNumberHint(text)
	case tokOpen:
		return "\"not\" before a parenthesis belongs to the extended dialect; in this one write (expression? false: true)"
	case tokClose:
		return "the parentheses are empty or the test before is not complete"
	}
	return ""
}

// mirrored are the operators with their sides exchanged.
var mirrored = [...]string{prog.OpEq: "==", prog.OpNe: "!=", prog.OpLt: ">", prog.OpLe: ">=", prog.OpGt: "<", prog.OpGe: "<="}

// lonelyNumberHint advises on a number where a test was expected.
func (p *parser) lonelyNumberHint(text string) string {
	ahead := p.lexer
	op := ahead.next()
	if o, isRelation := relations[op.kind]; isRelation {
		if f := ahead.next(); f.kind == tokField {
			return fmt.Sprintf("put the field first: %s %s %s", p.text[f.pos:f.end], mirrored[o], text)
		}
	}
	switch {
	case text == "TRUE":
		return "the test that always holds is true"
	case text == "FALSE":
		return "the test that never holds is false"
	case p.last.op == 0:
		return "a test starts with a field, as in tcp.DstPort == 80"
	}
	hint := "repeat the field: " + shortened(p.text[p.last.start:p.last.op]) + " " + text
	if p.dialect == Extended {
		hint += ", or use a set: " + shortened(p.text[p.last.start:p.last.field]) + " in {…, " + text + "}"
	}
	return hint
}

// misspelt are misspellings of operators, without white space: in the wrong order, as in other languages, or with spaces.
var misspelt = map[string]string{
	"=<": "<=", "<==": "<=", "<=": "<=", "=>": ">=", ">==": ">=", ">=": ">=",
	"<>": "!=", "><": "!=", "=!": "!=", "==!": "!=", "!==": "!=", "===": "==", "==": "==",
}

// numberHint advises where the right side of a comparison was expected.
func (p *parser) numberHint() string {
	text := p.text[p.tok.pos:p.tok.end]
	switch p.tok.kind {
	case tokField:
		if text == "true" || text == "false" {
			return "as a number it is " + strings.ToUpper(text)
		}
		return "fields can be compared with numbers and addresses only"
	case tokNamed:
		return "write " + p.membershipText()
	case tokText:
		return "iface and process are compared with names, nothing else is"
	case tokOpenSet:
		return "write " + shortened(p.text[p.last.start:p.last.field]) + " in {…}"
	case tokEq, tokLt, tokGt, tokNot:
		written := strings.Join(strings.Fields(p.text[p.last.field:p.tok.end]), "")
		if op, ok := misspelt[written]; ok {
			return "the operator is " + op
		}
	}
	return ""
}

// endHint advises where a test is complete and neither "and", "or" nor ")" follows.
func (p *parser) endHint() string {
	switch p.tok.kind {
	case tokNumber:
		if p.last.op == 0 && p.tok.end-p.last.start <= longestQuote {
			test := p.text[p.last.start:p.end] + " == " + p.text[p.tok.pos:p.tok.end]
			if _, err := Compile(test, p.lexer.layer, p.dialect); err == nil {
				return "is an operator missing? " + test
			}
		}
	case tokClose:
		return "there is no open parenthesis"
	case tokField, tokNot, tokOpen:
		return "is \"and\" or \"or\" missing?"
	case tokQuestion:
		return "a conditional needs its own parentheses: (a? b: c)"
	case tokColon:
		return "a colon belongs to a conditional: (a? b: c)"
	case tokOpenIndex:
		return "this field has no index"
	case tokMark:
		return "a number ends in b in an index only, as in packet[16b]"
	case tokEq, tokNe, tokLt, tokLe, tokGt, tokGe:
		return "comparisons cannot be chained; join them with \"and\""
	case tokComma, tokMinus:
		if p.dialect == Extended {
			return "several values or a range need a set, as in tcp.DstPort in {80, 443, 8000-8999}"
		}
	}
	return ""
}

// objectHint advises on an object string that cannot be read.
func objectHint(s string) string {
	switch {
	case !strings.HasPrefix(s, prog.ObjectMagic):
		if n := nameLength(s[1:]); n > 0 {
			return "a set stands behind a field: remoteAddr in " + shortened(s[:1+n]) +
				"; text that starts with @ is a compiled filter object, and those start with " + prog.ObjectMagic
		}
		return "text that starts with @ is a compiled filter object, and those start with " + prog.ObjectMagic
	case s == prog.ObjectMagic+"WW": // the original's count of 256 (specification: filter-object.md 4.3)
		return "WinDivert writes this for a filter of 256 tests, and nothing can read it; 255 is the most"
	}
	return "text that starts with " + prog.ObjectMagic + " is a compiled filter object, and this one is damaged: compile the filter again"
}

// indexOutOfBounds makes an error at token t about an index.
func (p *parser) indexOutOfBounds(t, number token, size int) *Error {
	e := p.at(ErrIndexOutOfBounds, number.pos, number.end,
		"index "+quote(p.text[number.pos:number.end])+" is out of bounds",
		fmt.Sprintf("byte offsets go from 0 to %d, from the end of the data from %d to %d",
			maxOffset-size, size, maxOffset))
	if p.dialect == Strict {
		e.Pos = uint32(t.pos)
	}
	return e
}

// illegal makes an error about the character at l.i, which starts no token.
func (l *lexer) illegal() *Error {
	end := l.i + 1
	for end < len(l.text) && l.text[end]&0xC0 == 0x80 {
		end++ // the rest of a character in UTF-8
	}
	c := l.text[l.i:end]
	e := l.at(ErrBadToken, l.i, end, "illegal character "+quote(c), l.characterHint(c))
	if l.dialect == Strict {
		e.Pos = uint32(l.i + 1)
	}
	return e
}

// characterHint advises on an illegal character.
func (l *lexer) characterHint(c string) string {
	switch c {
	case "&":
		return "\"and\" is written && or and"
	case "|":
		return "\"or\" is written || or or"
	case "\"":
		return "names in quotes belong to the extended dialect; in this one nothing is quoted"
	case "'":
		if l.dialect == Strict {
			return "nothing is quoted in filters"
		}
		return `names stand in double quotes, as in iface == "eth0"; nothing else is quoted`
	case "@":
		return "a compiled filter must start with @ at the very first byte"
	case "{", "}", ",":
		return hintStrictSets
	case "/":
		return "prefixes, as in 10.0.0.0/8, belong to the extended dialect; in this one compare with both ends"
	}
	return ""
}

// longWord makes an error of a word of more than 39 characters at start.
func (l *lexer) longWord(start int) *Error {
	end := start
	for end < len(l.text) && (isWordByte(l.text[end]) || l.text[end] == ':') {
		end++
	}
	return l.at(ErrBadToken, start, end, "word "+quote(l.text[start:end])+" is too long",
		"words have at most 39 characters")
}

// strayMark makes an error of a b that belongs to no number.
func (l *lexer) strayMark(start, end int) *Error {
	return l.at(ErrBadToken, start, end, "unknown word \"b\"",
		"the b of a byte offset follows the number directly, as in packet[16b]")
}

// foreignField returns the error and the hint about a field that the layer lacks.
func foreignField(f prog.Field, layer packet.Layer, d Dialect) (msg, hint string) {
	info := f.Info()
	hint = fmt.Sprintf("%s exists at %s", f, info.In(d == Strict))
	switch {
	case f.OfProcess() && layer == packet.LayerForward:
		hint = "forwarded packets belong to no process of this host; " + hint
	case info.In(d == Strict) == 0:
		hint = fmt.Sprintf("%s exists in the extended dialect only, at %s", f, info.More)
	case !info.Layers.Has(layer) && info.More.Has(layer):
		hint += "; in the extended dialect also at " + info.More.String()
	}
	return fmt.Sprintf("%s does not exist at layer %s", f, layer), hint
}

// unknownWord makes an error about a word that is not in the language.
func (l *lexer) unknownWord(start, end int) *Error {
	s := l.text[start:end]
	hint := withValue(s, l.text[end:], l.layer, l.dialect)
	if hint == "" {
		hint = suggest(s, l.layer, l.dialect)
	}
	if l.dialect == Strict && strings.EqualFold(s, "in") {
		hint = hintStrictSets
	}
	if l.dialect == Strict && l.swallowedColon(start, end) {
		hint = "a colon right behind a word belongs to the extended dialect; in this one put a space before it"
	}
	return l.at(ErrBadToken, start, end, "unknown word "+quote(s), hint)
}

// swallowedColon reports whether the extended dialect would end the word at a colon in it.
func (l *lexer) swallowedColon(start, end int) bool {
	extended := *l
	extended.dialect, extended.mark = Extended, token{}
	_, ok := extended.split(start, end)
	return ok
}

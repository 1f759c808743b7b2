package filter

import (
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// tokenKind is the kind of a token.
type tokenKind uint8

const (
	tokEnd    tokenKind = iota
	tokBad              // not a token; the lexer's error has the reason
	tokField            // field, true or false
	tokMacro            // macro that the layer does not have
	tokNumber           // number, address, or macro of the layer
	tokMark             // the b of packet[16b]
	tokAnd
	tokOr
	tokNot
	tokIn // extended dialect only
	tokOpen
	tokClose
	tokOpenIndex
	tokCloseIndex
	tokMinus
	tokQuestion
	tokColon
	tokEq
	tokNe
	tokLt
	tokLe
	tokGt
	tokGe
	tokOpenSet  // extended dialect only
	tokCloseSet // extended dialect only
	tokComma    // extended dialect only
	tokSlash    // extended dialect only
	tokNamed    // extended dialect only: @ and the name of a set
	tokText     // extended dialect only: a name in quotes
)

// literalForm is the notation of a number.
type literalForm uint8

const (
	formDecimal literalForm = iota
	formHex
	formIPv4
	formIPv6
	formMacro
)

// token is a token with its place text[pos:end].
type token struct {
	kind     tokenKind
	form     literalForm // tokNumber
	field    prog.Field  // tokField
	value    prog.Value  // tokNumber
	text     string      // tokText: the text between the quotes, without the backslashes
	pos, end int
}

// relations are the comparison operators by token.
var relations = map[tokenKind]prog.Op{
	tokEq: prog.OpEq, tokNe: prog.OpNe, tokLt: prog.OpLt, tokLe: prog.OpLe, tokGt: prog.OpGt, tokGe: prog.OpGe,
}

// flipped are the operators of negated tests.
var flipped = [...]prog.Op{
	prog.OpEq: prog.OpNe, prog.OpNe: prog.OpEq, prog.OpLt: prog.OpGe, prog.OpGe: prog.OpLt, prog.OpGt: prog.OpLe, prog.OpLe: prog.OpGt, prog.OpIn: prog.OpNotIn, prog.OpNotIn: prog.OpIn,
}

// macro is a name for a number. (Specification: filter-language.md 3.1.)
type macro struct {
	name   string
	value  uint64
	layers prog.Layers // layers where it may be used; onAll: also nonexistent ones
}

// macros are the macros for numbers of protocols and for constants; makeWords adds the names of layers and events.
var macros = [...]macro{
	{"TRUE", 1, prog.OnAll},
	{"FALSE", 0, prog.OnAll},
	{"TCP", 6, prog.OnAll},
	{"UDP", 17, prog.OnAll},
	{"ICMP", 1, prog.OnAll},
	{"ICMPV6", 58, prog.OnAll},
}

// word is the meaning of a reserved word.
type word struct {
	kind   tokenKind  // tokField, tokMacro, tokAnd, tokOr, tokNot or tokIn
	field  prog.Field // tokField
	macros []macro    // tokMacro; a name may stand for different numbers on different layers
}

// words are all reserved words; only the extended dialect reserves "in".
var words = makeWords()

func makeWords() map[string]word {
	m := map[string]word{
		"and": {kind: tokAnd}, "or": {kind: tokOr}, "not": {kind: tokNot}, "in": {kind: tokIn},
	}
	for f := range prog.Field(prog.NumFields) {
		info := f.Info()
		if _, taken := m[info.Name]; taken || info.Name == "" {
			continue // no field, or one of ours that shares its name with a field of the specification
		}
		m[info.Name] = word{kind: tokField, field: f}
	}
	add := func(c macro) {
		w := m[c.name]
		w.kind = tokMacro
		w.macros = append(w.macros, c)
		m[c.name] = w
	}
	for _, c := range macros {
		add(c)
	}
	for l := range packet.NumLayers {
		add(macro{l.String(), uint64(l), prog.OnAll})
	}
	for e := range packet.Event(packet.NumEvents) {
		add(macro{e.String(), uint64(e), prog.EventLayers(e)})
	}
	return m
}

// extendedField returns the extended dialect's version of a field of the specification, which has the meaning of its
// name.
func extendedField(f prog.Field, layer packet.Layer) prog.Field {
	events := layer == packet.LayerFlow || layer == packet.LayerSocket
	switch {
	case f == prog.FieldIPv6FlowLabel:
		return prog.FieldFlowLabel
	case f == prog.FieldIP && events:
		return prog.FieldFamilyIP
	case f == prog.FieldIPv6 && events:
		return prog.FieldFamilyIPv6
	}
	return f
}

// macroValue returns the number that a macro stands for on a layer.
func macroValue(w word, layer packet.Layer) (uint64, bool) {
	for _, c := range w.macros {
		if c.layers == prog.OnAll || c.layers.Has(layer) {
			return c.value, true
		}
	}
	return 0, false
}

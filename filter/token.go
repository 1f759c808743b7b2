package filter

import "github.com/opendivert/divert/packet"

// tokenKind is the kind of a token.
type tokenKind uint8

const (
	tokEnd    tokenKind = iota
	tokBad              // not a token at all; the lexer's error tells why
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
)

// literalForm is how a number was written.
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
	field    Field       // tokField
	value    Value       // tokNumber
	pos, end int
}

// relations are the comparison operators by token.
var relations = map[tokenKind]Op{
	tokEq: OpEq, tokNe: OpNe, tokLt: OpLt, tokLe: OpLe, tokGt: OpGt, tokGe: OpGe,
}

// flipped are the operators of negated tests.
var flipped = [...]Op{
	OpEq: OpNe, OpNe: OpEq, OpLt: OpGe, OpGe: OpLt, OpGt: OpLe, OpLe: OpGt, OpIn: OpNotIn, OpNotIn: OpIn,
}

// macro is a name for a number. (Specification: filter-language.md 3.1.)
type macro struct {
	name   string
	value  uint64
	layers layerMask // where it may be used; onAll: also for layers that do not exist
}

// macros are all macros. A name may stand for different numbers on different layers.
var macros = [...]macro{
	{"TRUE", 1, onAll},
	{"FALSE", 0, onAll},
	{"TCP", 6, onAll},
	{"UDP", 17, onAll},
	{"ICMP", 1, onAll},
	{"ICMPV6", 58, onAll},
	{"NETWORK", uint64(packet.LayerNetwork), onAll},
	{"NETWORK_FORWARD", uint64(packet.LayerForward), onAll},
	{"FLOW", uint64(packet.LayerFlow), onAll},
	{"SOCKET", uint64(packet.LayerSocket), onAll},
	{"REFLECT", uint64(packet.LayerReflect), onAll},
	{"PACKET", uint64(packet.EventPacket), onPackets},
	{"ESTABLISHED", uint64(packet.EventFlowEstablished), onFlow},
	{"DELETED", uint64(packet.EventFlowDeleted), onFlow},
	{"BIND", uint64(packet.EventSocketBind), onSocket},
	{"CONNECT", uint64(packet.EventSocketConnect), onSocket},
	{"LISTEN", uint64(packet.EventSocketListen), onSocket},
	{"ACCEPT", uint64(packet.EventSocketAccept), onSocket},
	{"CLOSE", uint64(packet.EventSocketClose), onSocket},
	{"OPEN", uint64(packet.EventReflectOpen), onReflect},
	{"CLOSE", uint64(packet.EventReflectClose), onReflect},
}

// word is what a reserved word means.
type word struct {
	kind   tokenKind // tokField, tokMacro, tokAnd, tokOr, tokNot or tokIn
	field  Field     // tokField
	macros []macro   // tokMacro
}

// words are all reserved words. "in" is one in the extended dialect only.
var words = makeWords()

func makeWords() map[string]word {
	m := map[string]word{
		"and": {kind: tokAnd}, "or": {kind: tokOr}, "not": {kind: tokNot}, "in": {kind: tokIn},
	}
	for f := range numFields {
		info := &fieldTable[f]
		if _, taken := m[info.name]; taken || info.name == "" {
			continue // no field, or one of ours that shares its name with one of the specification
		}
		m[info.name] = word{kind: tokField, field: Field(f)}
	}
	for i, c := range macros {
		w := m[c.name]
		w.kind = tokMacro
		w.macros = append(w.macros, macros[i])
		m[c.name] = w
	}
	return m
}

// extendedField returns what a field of the specification becomes in the extended dialect, where it means
// what its name says.
func extendedField(f Field, layer Layer) Field {
	events := layer == packet.LayerFlow || layer == packet.LayerSocket
	switch {
	case f == FieldIPv6FlowLabel:
		return FieldFlowLabel
	case f == FieldIP && events:
		return FieldFamilyIP
	case f == FieldIPv6 && events:
		return FieldFamilyIPv6
	}
	return f
}

// macroValue returns the number a macro stands for on a layer.
func macroValue(w word, layer Layer) (uint64, bool) {
	for _, c := range w.macros {
		if c.layers == onAll || c.layers.has(layer) {
			return c.value, true
		}
	}
	return 0, false
}

package filter

import (
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// FieldKind is the kind of a field's values.
type FieldKind uint8

// The kinds of fields.
const (
	KindNumber = FieldKind(prog.KindNumber) // unsigned number
	KindBool   = FieldKind(prog.KindBool)   // 0 or 1
	KindSigned = FieldKind(prog.KindSigned) // number that may be negative
	KindIPv4   = FieldKind(prog.KindIPv4)   // IPv4 address
	KindIPv6   = FieldKind(prog.KindIPv6)   // IPv6 address
	KindAddr   = FieldKind(prog.KindAddr)   // address of either family, IPv4 ones mapped (::ffff:a.b.c.d)
	KindBytes  = FieldKind(prog.KindBytes)  // element of a byte sequence, written with an index: packet16[2]
	KindName   = FieldKind(prog.KindName)   // name, written in quotes: "eth0"
)

// String returns the kind in words.
func (k FieldKind) String() string { return prog.Kind(k).String() }

// FieldInfo describes a field of the language, for documentation and completion.
type FieldInfo struct {
	Name   string
	Kind   FieldKind
	Layers []packet.Layer // the layers that have the field in the extended dialect
	Min    string         // the least value, in the notation of filters; "" for KindName, whose values have no order
	Max    string         // the greatest value; the same
	Size   int            // KindBytes: size of an element in bytes; otherwise 0
	Doc    string         // the meaning, a few words in English
}

// Fields describes all fields of the language in the order of the specification's table, true
// and false last. The slice is the caller's own.
func Fields() []FieldInfo {
	var all []FieldInfo
	for f := range prog.Field(prog.NumFields) {
		if name := f.Info().Name; name == "" || words[name].field != f {
			continue // no field, or another meaning of a name already listed
		}
		all = append(all, describe(f))
	}
	return all
}

func describe(f prog.Field) FieldInfo {
	info := f.Info()
	d := FieldInfo{Name: info.Name, Kind: FieldKind(info.Kind), Size: info.Elem, Doc: info.Doc}
	for l := range packet.NumLayers {
		if info.In(false).Has(l) {
			d.Layers = append(d.Layers, l)
		}
	}
	lo, hi := possible(f, packet.NumLayers)
	switch f {
	case prog.FieldTrue, prog.FieldFalse:
		lo, hi = info.Lo, info.Hi
	case prog.FieldIPv6FlowLabel:
		d.Doc = prog.FieldFlowLabel.Info().Doc
	}
	if info.Kind == prog.KindName {
		return d
	}
	d.Min, d.Max = boundText(lo, info.Kind), boundText(hi, info.Kind)
	return d
}

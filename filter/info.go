package filter

import "github.com/opendivert/divert/packet"

// FieldInfo describes a field of the language, for documentation and completion.
type FieldInfo struct {
	Field  Field // what Compile makes of the name in the extended dialect; FieldZero for true and false
	Name   string
	Kind   FieldKind
	Layers []Layer // the layers that have the field in the extended dialect
	Min    string  // the least value, as it is written in filters
	Max    string  // the greatest value
	Size   int     // KindBytes: size of an element in bytes; otherwise 0
	Doc    string  // what the field is, a few words in English
}

// Fields describes all fields of the language in the order of the specification's table, true
// and false last. The slice is the caller's own.
func Fields() []FieldInfo {
	var all []FieldInfo
	for f := range numFields {
		info := &fieldTable[f]
		if words[info.name].field != Field(f) || info.name == "" {
			continue // no field, or another meaning of a name that was there already
		}
		all = append(all, describe(Field(f)))
	}
	return all
}

func describe(f Field) FieldInfo {
	info := f.info()
	d := FieldInfo{Field: f, Name: info.name, Kind: info.kind, Size: info.elem, Doc: info.doc}
	for l := range packet.NumLayers {
		if info.in(Extended).has(l) {
			d.Layers = append(d.Layers, l)
		}
	}
	lo, hi := possible(f, packet.NumLayers)
	switch {
	case f == fieldTrue || f == fieldFalse:
		d.Field, lo, hi = FieldZero, info.lo, info.hi
	case f == FieldIPv6FlowLabel:
		d.Field, d.Doc = FieldFlowLabel, FieldFlowLabel.info().doc
	}
	d.Min, d.Max = boundText(lo, info.kind), boundText(hi, info.kind)
	return d
}

// Len returns the number of tests of the program, at least 1.
func (p *Program) Len() int { return len(p.tests) }

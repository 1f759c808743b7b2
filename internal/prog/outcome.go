package prog

import (
	"slices"

	"github.com/opendivert/divert/packet"
)

// Outcomes reports whether a program can accept anything, and whether it can reject anything, as far as its tests alone
// show: "tcp and udp" accepts nothing, because a packet has one transport header. A result of false is certain, true is
// not. A long program is not analysed: both results are true.
func (p *Program) Outcomes() (accepts, rejects bool) {
	if len(p.tests) > maxOutcomes {
		return true, true
	}
	at := make([]*knowledge, len(p.tests)) // the facts at the entry of each test; nil: unreachable
	at[0] = &knowledge{shapes: allShapes}
	lead := func(t Target, k *knowledge) {
		switch {
		case k == nil || k.shapes == 0:
		case t == Accept:
			accepts = true
		case t == Reject:
			rejects = true
		case at[t] == nil:
			at[t] = k
		default:
			at[t] = at[t].join(k)
		}
	}
	for i := range p.tests { // jumps only go forward
		if at[i] == nil {
			continue
		}
		t := &p.tests[i]
		holds, fails := at[i].decide(t, p)
		lead(t.Succ, holds)
		lead(t.Fail, fails)
		at[i] = nil
	}
	return accepts, rejects
}

// maxOutcomes is the most tests of a program to analyse.
const maxOutcomes = 1000

// knowledge has the facts about a packet at a place of a program.
type knowledge struct {
	shapes shapes
	known  []interval // by place, ascending
}

// place is a field, or an element of one.
type place struct {
	field Field
	index int32
}

// interval is the fact that the value of a field lies between two values, if the packet has the field.
type interval struct {
	place
	Range
}

func (p place) compare(q place) int {
	if p.field != q.field {
		return int(p.field) - int(q.field)
	}
	return int(p.index) - int(q.index)
}

// shapes is a set of possible combinations of headers and direction of a packet: a bit for each.
type shapes uint16

// The shapes. Each family has four, and each of those goes in or out.
const (
	shapeTCP4 shapes = 1 << iota
	shapeUDP4
	shapeICMP4
	shapeOther4
	shapeTCP6
	shapeUDP6
	shapeICMP6
	shapeOther6

	outward   = 8 // distance of outbound shapes from inbound ones, in bits
	inShapes  = 1<<outward - 1
	allShapes = shapes(1<<(2*outward) - 1)
)

// both returns shapes in both directions.
func both(s shapes) shapes { return s | s<<outward }

// shapesOf maps a header field to the shapes with that header.
var shapesOf = map[Field]shapes{
	FieldIP:       both(shapeTCP4 | shapeUDP4 | shapeICMP4 | shapeOther4),
	FieldIPv6:     both(shapeTCP6 | shapeUDP6 | shapeICMP6 | shapeOther6),
	FieldTCP:      both(shapeTCP4 | shapeTCP6),
	FieldUDP:      both(shapeUDP4 | shapeUDP6),
	FieldICMP:     both(shapeICMP4),
	FieldICMPv6:   both(shapeICMP6),
	FieldInbound:  inShapes,
	FieldOutbound: allShapes &^ inShapes,
}

// having returns the shapes with the header, or the direction, of a field; ok is false for other fields.
func having(f Field, layer packet.Layer) (s shapes, ok bool) {
	if layer != packet.LayerNetwork && layer != packet.LayerForward {
		return 0, false // events have other sources for these
	}
	s, ok = shapesOf[f]
	return s, ok
}

// header returns the shapes in which a field can exist.
func header(f Field, layer packet.Layer) shapes {
	if layer != packet.LayerNetwork && layer != packet.LayerForward {
		return allShapes
	}
	if at, ok := HeaderBits(f); ok {
		return shapesOf[at.Header]
	}
	switch f {
	case FieldIPv6SrcAddr, FieldIPv6DstAddr, FieldIPv6FlowLabel:
		return shapesOf[FieldIPv6]
	case FieldTCPPayloadLength, FieldTCPPayload, FieldTCPPayload16, FieldTCPPayload32:
		return shapesOf[FieldTCP]
	case FieldUDPPayloadLength, FieldUDPPayload, FieldUDPPayload16, FieldUDPPayload32:
		return shapesOf[FieldUDP]
	}
	return allShapes
}

// decide returns the facts when a test holds and when it fails; nil where that is impossible.
func (k *knowledge) decide(t *Test, p *Program) (holds, fails *knowledge) {
	if t.Field == FieldZero && t.Op <= OpGe {
		if satisfies(Value{}, t) {
			return k, nil
		}
		return nil, k
	}
	if s, ok := having(t.Field, p.layer); ok && t.Op <= OpGe {
		var can, cannot shapes
		for _, v := range []struct {
			value  Value
			shapes shapes
		}{{Value{Lo: 1}, s}, {Value{}, ^s}} {
			if satisfies(v.value, t) {
				can |= v.shapes
			} else {
				cannot |= v.shapes
			}
		}
		return k.within(can), k.within(cannot)
	}
	can := header(t.Field, p.layer)
	fails = k
	if k.shapes&can == 0 {
		return nil, k
	}
	holds = k.within(can)
	if t.Neg || t.Field.Info().Kind == KindSigned || p.strict && !t.Field.Info().Wide {
		return holds, fails // values with another kind of comparison
	}
	was := holds.of(t)
	now, ok := narrowed(was, t)
	if !ok {
		return nil, k
	}
	holds = holds.with(t, now)
	if k.shapes&^can == 0 && t.Op <= OpGe && always(t) {
		if rest, ok := narrowed(was, opposite(t)); ok {
			fails = k.with(t, rest)
		} else {
			fails = nil
		}
	}
	return holds, fails
}

// always reports whether every packet with the header has the field.
func always(t *Test) bool {
	f := t.Field
	return f >= FieldIPHdrLength && f <= FieldUDPPayloadLength || f == FieldLength
}

// opposite is a test that holds for the values for which t does not.
func opposite(t *Test) *Test {
	o := *t
	o.Op = [...]Op{OpEq: OpNe, OpNe: OpEq, OpLt: OpGe, OpLe: OpGt, OpGt: OpLe, OpGe: OpLt}[t.Op]
	return &o
}

// satisfies reports whether a value passes the comparison of a test.
func satisfies(v Value, t *Test) bool {
	order := v.Compare(t.Value)
	if t.Neg && t.Value != (Value{}) {
		order = 1
	}
	switch t.Op {
	case OpEq:
		return order == 0
	case OpNe:
		return order != 0
	case OpLt:
		return order < 0
	case OpLe:
		return order <= 0
	case OpGt:
		return order > 0
	}
	return order >= 0
}

// narrowed returns the part of a range for which a test holds, false if there is none.
func narrowed(r Range, t *Test) (Range, bool) {
	v := t.Value
	switch t.Op {
	case OpEq:
		r = Range{First: highest(r.First, v), Last: lowest(r.Last, v)}
	case OpNe:
		if r.First == v && r.Last == v {
			return r, false
		}
		if r.First == v {
			r.First = v.Next()
		} else if r.Last == v {
			r.Last = v.Prev()
		}
	case OpLt:
		if v == (Value{}) {
			return r, false
		}
		r.Last = lowest(r.Last, v.Prev())
	case OpLe:
		r.Last = lowest(r.Last, v)
	case OpGt:
		if v == maxValue {
			return r, false
		}
		r.First = highest(r.First, v.Next())
	case OpGe:
		r.First = highest(r.First, v)
	case OpIn:
		if t.Set == nil || len(t.Set.Ranges) == 0 {
			return r, t.Set == nil // a set with unknown elements may contain any value
		}
		r = Range{First: highest(r.First, t.Set.Ranges[0].First), Last: lowest(r.Last, t.Set.Ranges[len(t.Set.Ranges)-1].Last)}
	}
	return r, r.First.Compare(r.Last) <= 0
}

func lowest(a, b Value) Value {
	if a.Compare(b) < 0 {
		return a
	}
	return b
}

func highest(a, b Value) Value {
	if a.Compare(b) > 0 {
		return a
	}
	return b
}

func (k *knowledge) within(s shapes) *knowledge {
	if k.shapes&s == 0 {
		return nil
	}
	return &knowledge{k.shapes & s, k.known}
}

func placeOf(t *Test) place { return place{t.Field, t.Index} }

func (k *knowledge) find(p place) (int, bool) {
	return slices.BinarySearchFunc(k.known, p, func(i interval, p place) int { return i.compare(p) })
}

// of returns the range of the values of a test's field.
func (k *knowledge) of(t *Test) Range {
	if i, ok := k.find(placeOf(t)); ok {
		return k.known[i].Range
	}
	return Range{Last: maxValue}
}

// with returns the knowledge with another range for the field of a test.
func (k *knowledge) with(t *Test, r Range) *knowledge {
	i, ok := k.find(placeOf(t))
	list := slices.Clone(k.known)
	if ok {
		list[i].Range = r
	} else {
		list = slices.Insert(list, i, interval{placeOf(t), r})
	}
	return &knowledge{k.shapes, list}
}

// join returns the facts that hold where two paths meet.
func (k *knowledge) join(o *knowledge) *knowledge {
	j := &knowledge{shapes: k.shapes | o.shapes}
	for _, i := range k.known {
		if at, ok := o.find(i.place); ok {
			r := o.known[at].Range
			j.known = append(j.known, interval{i.place, Range{First: lowest(i.First, r.First), Last: highest(i.Last, r.Last)}})
		}
	}
	return j
}

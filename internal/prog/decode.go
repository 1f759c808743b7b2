package prog

import "github.com/opendivert/divert/packet"

// origin is the source of a field's value for the interpreter.
type origin uint8

// The origins.
const (
	fromWord     origin = iota // bits of an aligned 32-bit word of a header
	fromPresent                // whether a header is there
	fromElement                // bytes at an offset from the start or end of a region
	fromComputed               // 32-bit value of the packet or address: state.value
	fromWide                   // 128-bit value of the packet or address: state.wideValue
	fromProcess                // the process of a packet, if the caller knows it
	fromFlow                   // the counts of a packet's flow, if the caller knows them
	fromNowhere                // the field does not exist on the layer: evaluation ends in an error
)

// base is a header, or a region, whose offset in the packet the interpreter knows.
type base uint8

const (
	baseIPv4 base = iota
	baseIPv6
	baseICMP
	baseICMPv6
	baseTCP
	baseUDP
	basePacket // always present: the whole buffer
)

// check is a way to compare a value.
type check uint8

const (
	checkRange   check = iota // lo <= value <= lo+span
	checkBitmap               // in bitmaps[set]
	checkSet32                // in sets[set]
	checkWide                 // fromWide: in ranges[set:set+1]
	checkWideSet              // fromWide: in wideSets[set]
	checkNamed                // in named[set], of values of all sizes
)

// instr is a test in the interpreter's form. Operators and signs are all reduced to one question, whether the value lies
// in a range or set, or to its opposite; so the loop has no switch on operators.
type instr struct {
	origin origin
	check  check
	base   base
	shift  uint8
	invert bool  // the test holds if the value is outside the range or set: exchanges hit and miss
	slot   uint8 // see slotBit
	size   uint8 // fromElement: bytes of the element
	field  Field
	set    uint32 // index of the range or set, for all checks but checkRange
	mask   uint32
	off    int32 // fromWord: byte offset in the header; fromElement: byte offset, negative from the end
	lo     uint32
	span   uint32

	slotBit uint32 // bit of the slot that remembers the value during an evaluation: 1<<slot, 0 without a slot
}

// step is a place of the program in the interpreter's loop: the data that most tests need, close together.
type step struct {
	lo, span uint32 // of a check for a range

	hit, miss uint32 // the next step, or Accept or Reject, if the value is in the range or set, and if it is not

	slotBit  uint32 // as in instr
	rangeBit uint32 // slotBit if the check is checkRange, else 0
	instr    uint32 // index of the instruction
	slot     uint8
	flow     stepFlow
}

// stepFlow marks steps that the loop can take on a short path.
type stepFlow uint8

const (
	hitNext  stepFlow = 1 << iota // hit is the step behind this one
	missNext                      // miss is the step behind this one
	failHits                      // if there is no value, hit is next, not miss
)

// accepted is the end of an evaluation that matches: Accept in the interpreter's form.
const accepted = ^uint32(0)

// code is the interpreter's form of a program.
type code struct {
	instrs   []instr // of each test, and behind them of tests joined into one
	steps    []step  // as many as there are tests
	bitmaps  []*bitmap
	sets     []set32
	ranges   []Range
	wideSets []*Set
	named    []*Members
}

// presence maps a protocol field to its header.
var presence = map[Field]base{
	FieldIP: baseIPv4, FieldIPv6: baseIPv6, FieldICMP: baseICMP,
	FieldICMPv6: baseICMPv6, FieldTCP: baseTCP, FieldUDP: baseUDP,
}

// leastList is the number of consecutive tests of one field that become a set: looking up a set takes longer than
// comparing with a range.
const leastList = 4

// New makes a program of tests, which it keeps: they must not be changed any more. strict means that they are of the
// strict dialect. All programs are made here.
func New(layer packet.Layer, tests []Test, strict bool) *Program {
	p := &Program{layer: layer, tests: tests, strict: strict}
	if wide, same := p.Without(Field.OfFlow); !same {
		p.uncounted = wide
	}
	p.code.instrs = make([]instr, len(tests))
	p.code.steps = make([]step, len(tests))
	slots := make(map[slotKey]uint8)
	for i := range tests {
		in := p.decode(&tests[i])
		if in.origin != fromWide {
			key := slotKey{tests[i].Field, in.off}
			slot, known := slots[key]
			if !known && len(slots) < numSlots {
				slot, known = uint8(len(slots)), true
				slots[key] = slot
			}
			if known {
				in.slot, in.slotBit = slot, 1<<slot
			}
		}
		p.code.instrs[i] = in
	}
	for i, t := range gatherSets(tests, leastList) {
		n := i
		if t.Set != tests[i].Set { // a list was joined
			in := p.decode(&t)
			in.slot, in.slotBit = p.code.instrs[i].slot, p.code.instrs[i].slotBit
			n = len(p.code.instrs)
			p.code.instrs = append(p.code.instrs, in)
		}
		p.code.steps[i] = p.code.instrs[n].step(n, i, t.Succ, t.Fail)
	}
	return p
}

// step returns the step at a place of the program that executes in, the instruction n.
func (in *instr) step(n, at int, succ, fail Target) step {
	st := step{
		lo: in.lo, span: in.span, slot: in.slot, slotBit: in.slotBit,
		instr: uint32(n), hit: uint32(succ), miss: uint32(fail),
	}
	if in.check == checkRange {
		st.rangeBit = in.slotBit
	}
	if in.invert {
		st.hit, st.miss = st.miss, st.hit
		st.flow |= failHits
	}
	if st.hit == uint32(at+1) {
		st.flow |= hitNext
	}
	if st.miss == uint32(at+1) {
		st.flow |= missNext
	}
	return st
}

// slotKey identifies tests of the same value.
type slotKey struct {
	field Field
	off   int32
}

// decode turns a test into the form of the interpreter.
func (p *Program) decode(t *Test) instr {
	in := instr{field: t.Field, mask: ^uint32(0)}
	info := t.Field.Info()
	packets := OnPackets.Has(p.layer)
	header, isPresence := presence[t.Field]
	switch {
	case t.Field == FieldProcessID && packets:
		in.origin = fromProcess
	case t.Field.OfFlow() && packets && t.Op <= OpNotIn:
		in.origin = fromFlow
	case !info.In(false).Has(p.layer) || t.Op > OpNotIn:
		in.origin = fromNowhere
		return in
	case info.bits.width != 0:
		in.origin, in.base, in.off, in.shift = fromWord, presence[info.Base], info.bits.off, info.bits.shift
		in.mask = uint32(1<<info.bits.width - 1)
	case isPresence && packets:
		in.origin, in.base = fromPresent, header
	case info.Elem != 0:
		in.origin, in.base, in.off, in.size = fromElement, basePacket, t.Index, uint8(info.Elem)
		if info.Base != FieldZero {
			in.base = presence[info.Base]
		}
	case isWide(t.Field):
		in.origin = fromWide
		p.decodeWide(&in, t)
		return in
	default:
		in.origin = fromComputed
	}
	p.decodeNarrow(&in, t)
	return in
}

// isWide reports whether the interpreter handles values of the field in 128 bits: fields that the language compares so,
// except IPv4 addresses (their upper bits never vary), and signed ones.
func isWide(f Field) bool {
	info := f.Info()
	return info.Wide && info.Kind != KindIPv4 || info.Kind == KindSigned
}

// decodeNarrow sets the check of a test whose values have 32 bits.
func (p *Program) decodeNarrow(in *instr, t *Test) {
	bounds := Range{Last: Value{Lo: 0xFFFF_FFFF}}
	if t.Field.Info().Kind == KindIPv4 {
		bounds = Range{First: boundIPv4Lo.Mag, Last: boundIPv4Hi.Mag}
	}
	if t.Op == OpIn || t.Op == OpNotIn {
		in.invert = t.Op == OpNotIn
		if t.Named != nil {
			p.decodeNamed(in, t)
			return
		}
		p.decodeSet(in, clip(t.Set.Ranges, bounds), t.Field.Info().DrvHi.Mag)
		return
	}
	lit := t.Value
	if bounds.First == (Value{}) {
		lit = Value{Lo: lit.Lo & 0xFFFF_FFFF} // the original compares no more
	}
	// A literal outside the values of the field, or a negative one, is below or above them all.
	// (Specification: filter-language.md 6.)
	never, always := in.setRange(0, ^uint32(0), true), in.setRange(0, ^uint32(0), false)
	switch below, above := t.Neg || lit.Less(bounds.First), bounds.Last.Less(lit); {
	case below && (t.Op == OpNe || t.Op == OpGt || t.Op == OpGe),
		above && !below && (t.Op == OpNe || t.Op == OpLt || t.Op == OpLe):
		*in = always
	case below, above:
		*in = never
	default:
		r, invert := acceptedBy(t.Op, lit)
		r = clip([]Range{r}, bounds)[0] // not empty: both contain the literal
		*in = in.setRange(uint32(r.First.Lo), uint32(r.Last.Lo), invert)
	}
}

// setRange returns the instruction with the check for values from lo to hi.
func (in *instr) setRange(lo, hi uint32, invert bool) instr {
	out := *in
	out.check, out.lo, out.span, out.invert = checkRange, lo, hi-lo, invert
	return out
}

// acceptedBy returns the values for which "value op lit" holds as a range, or, with invert set, the values for which it
// does not hold. The literal is always in the range.
func acceptedBy(op Op, lit Value) (r Range, invert bool) {
	switch op {
	case OpEq, OpNe:
		return Range{First: lit, Last: lit}, op == OpNe
	case OpLe, OpGt:
		return Range{Last: lit}, op == OpGt
	default: // OpGe, OpLt
		return Range{First: lit, Last: maxValue}, op == OpLt
	}
}

// decodeSet sets the check for a set of 32-bit values of a field with values up to limit.
func (p *Program) decodeSet(in *instr, ranges []Range, limit Value) {
	switch {
	case len(ranges) == 0:
		*in = in.setRange(0, ^uint32(0), !in.invert)
	case len(ranges) == 1:
		*in = in.setRange(uint32(ranges[0].First.Lo), uint32(ranges[0].Last.Lo), in.invert)
	case !(Value{Lo: 0xFFFF}).Less(limit) && len(ranges) > 8: // faster than a search from 8 ranges on
		m := new(bitmap)
		for _, r := range clip(ranges, Range{Last: Value{Lo: 0xFFFF}}) {
			m.add(uint32(r.First.Lo), uint32(r.Last.Lo))
		}
		in.check, in.set = checkBitmap, uint32(len(p.code.bitmaps))
		p.code.bitmaps = append(p.code.bitmaps, m)
	default:
		in.check, in.set = checkSet32, uint32(len(p.code.sets))
		p.code.sets = append(p.code.sets, newSet32(ranges))
	}
}

// decodeNamed sets the check for a named set.
func (p *Program) decodeNamed(in *instr, t *Test) {
	in.check, in.set = checkNamed, uint32(len(p.code.named))
	p.code.named = append(p.code.named, t.Named.Members)
}

// decodeWide sets the check of a test whose values have more than 32 bits or a sign.
func (p *Program) decodeWide(in *instr, t *Test) {
	if t.Named != nil {
		in.invert = t.Op == OpNotIn
		p.decodeNamed(in, t)
		return
	}
	if t.Op == OpIn || t.Op == OpNotIn {
		ranges := make([]Range, len(t.Set.Ranges))
		for i, r := range t.Set.Ranges {
			ranges[i] = Range{First: orderKey(t.Field, false, r.First), Last: orderKey(t.Field, false, r.Last)}
		}
		in.check, in.invert = checkWideSet, t.Op == OpNotIn
		in.set = uint32(len(p.code.wideSets))
		p.code.wideSets = append(p.code.wideSets, NewSet(ranges))
		return
	}
	lit := t.Value
	if !t.Field.Info().Wide {
		lit = Value{Lo: lit.Lo & 0xFFFF_FFFF}
	}
	r, invert := acceptedBy(t.Op, orderKey(t.Field, t.Neg, lit))
	if t.Neg && t.Field.Info().Kind != KindSigned { // below all values
		r, invert = Range{Last: maxValue}, t.Op == OpEq || t.Op == OpLt || t.Op == OpLe
	}
	in.check, in.invert, in.set = checkWide, invert, uint32(len(p.code.ranges))
	p.code.ranges = append(p.code.ranges, r)
}

// orderKey returns a number that orders values of a field as the language does: in signed fields, negative zero lies
// between -1 and 0 (specification: filter-language.md 5).
func orderKey(f Field, neg bool, mag Value) Value {
	if f.Info().Kind != KindSigned {
		return mag
	}
	// Magnitudes beyond 2^64 are greater than all values of any field.
	if mag.Hi != 0 {
		mag = Value{Hi: 1}
	}
	const zero = 1 << 63 // the upper word of the key of 0
	if neg {
		return Value{Hi: zero - 1 - mag.Hi, Lo: ^mag.Lo}
	}
	return Value{Hi: zero + mag.Hi, Lo: mag.Lo}
}

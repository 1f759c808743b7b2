package prog

import (
	"strconv"
	"strings"

	"github.com/opendivert/divert/internal/addrtext"
	"github.com/opendivert/divert/packet"
)

// opTexts are the operators as the formatter writes them (specification: filter-object.md 5.2).
var opTexts = [...]string{OpEq: "=", OpNe: "!=", OpLt: "<", OpLe: "<=", OpGt: ">", OpGe: ">=", OpIn: "in", OpNotIn: "not in"}

// String returns the operator as filters spell it.
func (op Op) String() string {
	if int(op) < len(opTexts) {
		return opTexts[op]
	}
	return "Op(" + strconv.Itoa(int(op)) + ")"
}

// style is the notation of a program's tests.
type style struct {
	layer  packet.Layer // whose events have names, or anyLayer
	strict bool         // for the strict dialect
}

// anyLayer stands for all layers.
const anyLayer packet.Layer = 255

func (p *Program) style() style { return style{p.layer, p.strict} }

// appendTest appends a test as text.
func (s style) appendTest(b []byte, t *Test) []byte {
	if t.Op == OpIn || t.Op == OpNotIn {
		return s.appendSetTest(b, t)
	}
	info := t.Field.Info()
	if info.Boolean && t.Op <= OpNe && t.Value.Hi == 0 && t.Value.Lo <= 1 {
		// The sign is ignored here, as in the original: "loopback = -1" becomes "loopback".
		if (t.Op == OpEq) != (t.Value.Lo == 1) {
			b = append(b, "not "...)
		}
		return append(b, info.Name...)
	}
	if !s.strict && t.Field == FieldEvent && t.Value == (Value{}) &&
		(t.Op == OpNe || t.Op == OpEq && !isEventOf(0, s.layer)) {
		// The extended dialect accepts the bare test, but not an invalid event number.
		if t.Op == OpEq {
			b = append(b, "not "...)
		}
		return append(b, info.Name...)
	}
	b = appendFieldName(b, t)
	b = append(b, ' ')
	b = append(b, t.Op.String()...)
	b = append(b, ' ')
	if t.Neg && info.Elem == 0 { // in the original, literals of index fields lose their sign
		b = append(b, '-')
	}
	return s.appendLiteral(b, t.Field, t.Value)
}

// appendFieldName appends the field of a test with its index, always in bytes.
func appendFieldName(b []byte, t *Test) []byte {
	b = append(b, t.Field.String()...)
	if t.Field.Info().Elem != 0 {
		b = append(b, '[')
		b = strconv.AppendInt(b, int64(t.Index), 10)
		b = append(b, 'b', ']')
	}
	return b
}

// inHex holds the fields, besides the index fields, whose literals are written in hexadecimal.
var inHex = [NumFields]bool{
	FieldIPID: true, FieldIPChecksum: true, FieldTCPChecksum: true, FieldUDPChecksum: true,
	FieldICMPChecksum: true, FieldICMPv6Checksum: true,
}

// appendLiteral appends a literal in the style of its field (specification: filter-object.md 5.2).
func (s style) appendLiteral(b []byte, f Field, v Value) []byte {
	switch info := f.Info(); {
	case f == FieldProcess:
		return appendNameOf(b, v)
	case info.Kind == KindIPv4:
		return addrtext.AppendIPv4(b, uint32(v.Lo))
	case info.Kind == KindIPv6 && !s.strict && v.IsMapped():
		// The original writes these as IPv4 addresses, which the extended dialect refuses here.
		return addrtext.AppendIPv4(append(b, "::ffff:"...), uint32(v.Lo))
	case info.Kind == KindIPv6 || info.Kind == KindAddr:
		return addrtext.AppendIPv6(b, wordsOf(v))
	case f == FieldLayer && v.Hi == 0 && v.Lo < uint64(packet.NumLayers):
		return append(b, packet.Layer(v.Lo).String()...)
	case f == FieldEvent && v.Hi == 0 && isEventOf(v.Lo, s.layer):
		return append(b, packet.Event(v.Lo).String()...)
	case info.Elem != 0:
		return appendHex(b, Value{Lo: v.Lo & 0xFFFF_FFFF})
	case inHex[f]:
		return appendHex(b, v)
	}
	return appendDecimal(b, v)
}

func appendHex(b []byte, v Value) []byte {
	b = append(b, "0x"...)
	if v.Hi == 0 {
		return strconv.AppendUint(b, v.Lo, 16)
	}
	b = strconv.AppendUint(b, v.Hi, 16)
	low := strconv.FormatUint(v.Lo, 16)
	b = append(b, strings.Repeat("0", 16-len(low))...)
	return append(b, low...)
}

// appendDecimal appends all 128 bits of v in decimal.
func appendDecimal(b []byte, v Value) []byte {
	const digits = 19 // the most decimal digits that fit into 64 bits
	const unit = 1e19
	if v.Hi == 0 {
		return strconv.AppendUint(b, v.Lo, 10)
	}
	upper, lower := v.Divide(unit)
	b = appendDecimal(b, upper)
	low := strconv.FormatUint(lower, 10)
	b = append(b, strings.Repeat("0", digits-len(low))...)
	return append(b, low...)
}

// appendSetTest appends a test of a set: as a comparison with a prefix where possible, else with all elements.
func (s style) appendSetTest(b []byte, t *Test) []byte {
	if t.Named != nil && t.Named.Interface {
		op := OpEq
		if t.Op == OpNotIn {
			op = OpNe
		}
		b = append(append(appendFieldName(b, t), ' '), op.String()...)
		return appendName(append(b, ' '), t.Named.Name)
	}
	if t.Named != nil {
		b = append(appendFieldName(b, t), ' ')
		b = append(append(b, t.Op.String()...), " @"...)
		return append(b, t.Named.Name...)
	}
	ranges := t.Set.Ranges
	if len(ranges) == 1 && ranges[0].First != ranges[0].Last {
		if bits, ok := prefixOf(t.Field, ranges[0]); ok {
			op := OpEq
			if t.Op == OpNotIn {
				op = OpNe
			}
			b = appendFieldName(b, t)
			b = append(b, ' ')
			b = append(b, op.String()...)
			b = append(b, ' ')
			return s.appendPrefix(b, t.Field, ranges[0].First, bits)
		}
	}
	b = appendFieldName(b, t)
	b = append(b, ' ')
	b = append(b, t.Op.String()...)
	b = append(b, " {"...)
	for i, r := range byFamily(t.Field, ranges) {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = s.appendRange(b, t.Field, r)
	}
	return append(b, '}')
}

// byFamily splits ranges of addresses of either family at the ends of the IPv4 addresses: the notation has no range from
// one family to the other.
func byFamily(f Field, ranges []Range) []Range {
	if f.Info().Kind != KindAddr {
		return ranges
	}
	return SplitFamilies(ranges...)
}

// SplitFamilies splits ranges of addresses at the ends of the IPv4 addresses.
func SplitFamilies(ranges ...Range) []Range {
	var split []Range
	for _, r := range ranges {
		split = append(split, clip([]Range{r}, Range{Last: boundIPv4Lo.Mag.Prev()})...)
		split = append(split, clip([]Range{r}, Range{First: boundIPv4Lo.Mag, Last: boundIPv4Hi.Mag})...)
		split = append(split, clip([]Range{r}, Range{First: boundIPv4Hi.Mag.Next(), Last: maxValue})...)
	}
	return split
}

// AddressesText returns a range of addresses, of one family, as an element of a set.
func AddressesText(r Range) string {
	b := style{layer: anyLayer}.appendRange(nil, FieldLocalAddr, r)
	return string(b)
}

// appendRange appends an element of a set in its shortest form.
func (s style) appendRange(b []byte, f Field, r Range) []byte {
	if r.First == r.Last {
		return s.appendLiteral(b, f, r.First)
	}
	if bits, ok := prefixOf(f, r); ok {
		return s.appendPrefix(b, f, r.First, bits)
	}
	b = s.appendLiteral(b, f, r.First)
	b = append(b, '-')
	return s.appendLiteral(b, f, r.Last)
}

// prefixOf returns the length of the address prefix that has exactly the addresses of the range.
func prefixOf(f Field, r Range) (length int, ok bool) {
	kind := f.Info().Kind
	if kind != KindIPv4 && kind != KindIPv6 && kind != KindAddr {
		return 0, false
	}
	// The bits in which the ends differ must be exactly the lowest ones, and zero in the first.
	diff := Value{Hi: r.First.Hi ^ r.Last.Hi, Lo: r.First.Lo ^ r.Last.Lo}
	host := diff.BitLen()
	if diff.Next() != bitValue(host) || r.First.Hi&diff.Hi != 0 || r.First.Lo&diff.Lo != 0 {
		return 0, false
	}
	if kind != KindIPv6 && r.First.IsMapped() { // printed as IPv4
		return 32 - host, host <= 32
	}
	return 128 - host, true
}

func (s style) appendPrefix(b []byte, f Field, v Value, length int) []byte {
	b = append(s.appendLiteral(b, f, v), '/')
	return strconv.AppendInt(b, int64(length), 10)
}

package prog

import (
	"encoding/binary"
	"fmt"

	"github.com/opendivert/divert/packet"
)

// InstructionSize is the size of an instruction in its binary form, in bytes.
const InstructionSize = 24

// Parts of the binary form (specification: filter-object.md 1).
const (
	fieldBits    = 11 // low bits of the first 16; the others are the operator
	targetAccept = 0x7FFE
	targetReject = 0x7FFF
	negBit       = 1 << 16 // in the second 32-bit word, above the failure target
)

// AppendInstructions appends the program in the original driver's form: 24 bytes a test, little-endian (specification:
// filter-object.md 1). Programs of the extended dialect are lowered first. Errors are *LowerError, and ErrTooLong beyond
// 256 tests; b is then returned unchanged. The driver accepts fewer programs than this can write, see DriverCheck.
func (p *Program) AppendInstructions(b []byte) ([]byte, error) {
	p, err := p.Lower()
	if err != nil {
		return b, err
	}
	if len(p.tests) > maxObjectTests {
		return b, ErrTooLong
	}
	for i := range p.tests {
		b = appendInstruction(b, &p.tests[i])
	}
	return b, nil
}

func appendInstruction(b []byte, t *Test) []byte {
	args := wordsOf(t.Value)
	if t.Field.Info().Elem != 0 {
		args[1] = uint32(t.Index)
	}
	second := uint32(binaryTarget(t.Fail))
	if t.Neg {
		second |= negBit
	}
	le := binary.LittleEndian
	b = le.AppendUint16(b, uint16(t.Field)|uint16(t.Op)<<fieldBits)
	b = le.AppendUint16(b, binaryTarget(t.Succ))
	b = le.AppendUint32(b, second)
	for _, arg := range args {
		b = le.AppendUint32(b, arg)
	}
	return b
}

func binaryTarget(t Target) uint16 {
	switch t {
	case Accept:
		return targetAccept
	case Reject:
		return targetReject
	}
	return uint16(t)
}

// ParseInstructions reads the output of AppendInstructions. It demands 1 to 256 whole instructions with existing fields
// and operators, forward jumps that stay inside, and zero reserved bits; anything else is ErrMalformed. It does not check
// the layer of the fields and the range of the literals.
func ParseInstructions(b []byte, layer packet.Layer) (*Program, error) {
	count := len(b) / InstructionSize
	if len(b)%InstructionSize != 0 || count < 1 || count > maxObjectTests {
		return nil, ErrMalformed
	}
	tests := make([]Test, count)
	for i := range tests {
		t, ok := parseInstruction(b[i*InstructionSize:], i, count)
		if !ok {
			return nil, ErrMalformed
		}
		tests[i] = t
	}
	return New(layer, tests, false), nil
}

// parseInstruction reads instruction i of count.
func parseInstruction(b []byte, i, count int) (t Test, ok bool) {
	le := binary.LittleEndian
	first, second := le.Uint16(b), le.Uint32(b[4:])
	field, op := first&(1<<fieldBits-1), first>>fieldBits
	if field >= uint16(NumSpecFields) || op > uint16(OpGe) || second>>17 != 0 {
		return Test{}, false
	}
	t = Test{Field: Field(field), Op: Op(op), Neg: second&negBit != 0}
	var args [4]uint32
	for k := range args {
		args[k] = le.Uint32(b[8+4*k:])
	}
	if t.Field.Info().Elem != 0 {
		t.Index, args[1] = int32(args[1]), 0
	}
	t.Value = valueFromWords(args)
	var succOK, failOK bool
	t.Succ, succOK = parseTarget(le.Uint16(b[2:]), i, count)
	t.Fail, failOK = parseTarget(uint16(second), i, count)
	return t, succOK && failOK
}

func parseTarget(n uint16, i, count int) (t Target, ok bool) {
	switch n {
	case targetAccept:
		return Accept, true
	case targetReject:
		return Reject, true
	}
	return Target(n), int(n) > i && int(n) < count
}

// A DriverError is the reason why the original's driver would refuse a program.
type DriverError struct {
	Test   int // index of the test in the lowered program, -1 for the program as a whole
	Field  Field
	Layer  packet.Layer
	Reason string // a clause without a full stop
}

func (e *DriverError) Error() string {
	if e.Test < 0 {
		return fmt.Sprintf("filter: the driver accepts no filter with %s", e.Reason)
	}
	return fmt.Sprintf("filter: test %d: the driver accepts no test of %v at %v with %s",
		e.Test, e.Field, e.Layer, e.Reason)
}

// maxDriverIndex is the greatest byte offset, from either end, that the driver accepts.
const maxDriverIndex = 65575

// DriverCheck checks that the original's driver would accept the program; otherwise it returns a *DriverError
// (specification: windows-driver.md 6, api.md 5.1). Programs of the extended dialect are lowered first; a test without an
// original form is a *LowerError. Unreachable tests count too.
func (p *Program) DriverCheck() error {
	p, err := p.Lower()
	if err != nil {
		return err
	}
	if n := len(p.tests); n > maxDriverTests {
		return &DriverError{Test: -1, Layer: p.layer, Reason: fmt.Sprintf("%d tests, at most %d", n, maxDriverTests)}
	}
	for i := range p.tests {
		t := &p.tests[i]
		if reason := driverRefuses(t, p.layer); reason != "" {
			return &DriverError{Test: i, Field: t.Field, Layer: p.layer, Reason: reason}
		}
	}
	return nil
}

// driverRefuses returns the driver's objection to a test, or "".
func driverRefuses(t *Test, layer packet.Layer) string {
	info := t.Field.Info()
	lit := Bound{Neg: t.Neg, Mag: t.Value}
	if info.Elem != 0 {
		switch {
		case t.Neg:
			return "a negative literal"
		case t.Index < -maxDriverIndex || t.Index > maxDriverIndex:
			return "such an index"
		case t.Value.Hi != 0:
			return "such a literal"
		}
		lit.Mag.Lo &= 0xFFFF_FFFF // the index is sent instead of its upper half
	}
	switch {
	case !info.Layers.Has(layer):
		return "a field of other layers"
	case lit == Bound{Neg: true}:
		return "negative zero"
	case lit.Compare(info.DrvLo) < 0 || lit.Compare(info.DrvHi) > 0:
		return "a literal outside its range"
	case t.Field == FieldEvent && !isEventOf(t.Value.Lo, layer):
		return "an event of other layers"
	}
	return ""
}

// Hints are the kinds of items that a program may match: an item of a kind whose bit is clear certainly does not match.
// The values are the filter flags of the driver (specification: filter-object.md 3).
type Hints uint64

// The hints.
const (
	HintInbound       Hints = 1 << (4 + iota) // NETWORK, NETWORK_FORWARD
	HintOutbound                              // NETWORK, NETWORK_FORWARD
	HintIP                                    // all layers but REFLECT
	HintIPv6                                  // all layers but REFLECT
	HintFlowDeleted                           // FLOW
	HintSocketBind                            // SOCKET
	HintSocketConnect                         // SOCKET
	HintSocketListen                          // SOCKET
	HintSocketAccept                          // SOCKET
	HintSocketClose                           // SOCKET
)

// assumption is the assumption that a field has a value.
type assumption struct {
	field Field
	value uint32
}

// hintRules list for each hint the assumptions under each of which the program must be able to accept.
var hintRules = []struct {
	hint   Hints
	layers Layers
	under  []assumption
}{
	{HintInbound, OnPackets, []assumption{{FieldInbound, 1}, {FieldOutbound, 0}}},
	{HintOutbound, OnPackets, []assumption{{FieldOutbound, 1}, {FieldInbound, 0}}},
	{HintIP, OnTraffic, []assumption{{FieldIP, 1}, {FieldIPv6, 0}}},
	{HintIPv6, OnTraffic, []assumption{{FieldIPv6, 1}, {FieldIP, 0}}},
	{HintFlowDeleted, OnFlow, []assumption{{FieldEvent, uint32(packet.EventFlowDeleted)}}},
	{HintSocketBind, OnSocket, []assumption{{FieldEvent, uint32(packet.EventSocketBind)}}},
	{HintSocketConnect, OnSocket, []assumption{{FieldEvent, uint32(packet.EventSocketConnect)}}},
	{HintSocketListen, OnSocket, []assumption{{FieldEvent, uint32(packet.EventSocketListen)}}},
	{HintSocketAccept, OnSocket, []assumption{{FieldEvent, uint32(packet.EventSocketAccept)}}},
	{HintSocketClose, OnSocket, []assumption{{FieldEvent, uint32(packet.EventSocketClose)}}},
}

// Hints returns the capture hints of the program, 0 if it can match nothing. They consider one field at a time, so they
// may include too much: "ip.DstAddr == 1.2.3.4" has the hint for IPv6.
func (p *Program) Hints() Hints {
	var h Hints
	if !p.mayAccept(assumption{FieldZero, 0}) {
		return 0
	}
	for _, rule := range hintRules {
		set := rule.layers.Has(p.layer)
		for _, a := range rule.under {
			set = set && p.mayAccept(a)
		}
		if set {
			h |= rule.hint
		}
	}
	return h
}

// mayAccept reports whether the program may accept anything under the assumption.
func (p *Program) mayAccept(a assumption) bool {
	may := make([]bool, len(p.tests))
	outcome := func(t Target) bool {
		if t >= 0 {
			return may[t]
		}
		return t == Accept
	}
	for i := len(p.tests) - 1; i >= 0; i-- {
		t := &p.tests[i]
		succ, fail := outcome(t.Succ), outcome(t.Fail)
		switch {
		case succ == fail:
			may[i] = succ
		case !a.settles(t):
			may[i] = true
		case holdsNarrow(t, a.value):
			may[i] = succ
		default:
			may[i] = fail
		}
	}
	return may[0]
}

// settles reports whether the assumption decides the test. The families of the extended dialect count as the fields of
// their names.
func (a assumption) settles(t *Test) bool {
	field := t.Field
	switch field {
	case FieldFamilyIP:
		field = FieldIP
	case FieldFamilyIPv6:
		field = FieldIPv6
	}
	return field == a.field && !t.Neg && t.Value.Hi == 0 && t.Value.Lo>>32 == 0
}

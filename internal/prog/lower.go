package prog

import (
	"fmt"

	"github.com/opendivert/divert/packet"
)

// A LowerError is the reason why a program of the extended dialect has no form in the original instructions.
type LowerError struct {
	Test  int // index of the test in Program.Tests
	Field Field
	Layer packet.Layer
	Named *Named // the test's named set, if that is the reason
}

func (e *LowerError) Error() string {
	if e.Named != nil {
		return fmt.Sprintf("filter: test %d: the instructions of WinDivert 2.2 cannot express the %v", e.Test, e.Named)
	}
	return fmt.Sprintf("filter: test %d: the instructions of WinDivert 2.2 cannot express %v at %v",
		e.Test, e.Field, e.Layer)
}

// Lower returns a program of the same meaning that uses only tests of the original's instructions, or p itself if it
// already does. Sets become chains of comparisons; the families ip and ipv6 at FLOW and SOCKET become comparisons of
// localAddr with the range of mapped addresses. The result may have more tests than fit into an object. For tests that
// cannot be expressed (the true flow label, named sets) Lower fails with a *LowerError.
func (p *Program) Lower() (*Program, error) {
	chains := make([][]Test, len(p.tests))
	same := true
	for i := range p.tests {
		t := &p.tests[i]
		chain, ok := lowerTest(t, p.layer)
		if !ok {
			return nil, &LowerError{Test: i, Field: t.Field, Layer: p.layer, Named: t.Named}
		}
		same = same && chain == nil
		chains[i] = chain
	}
	if same {
		return p, nil
	}

	return p.replace(p.layer, chains), nil
}

// replace returns a program of a layer with the tests of p replaced by chains; a test without a chain stays.
func (p *Program) replace(layer packet.Layer, chains [][]Test) *Program {
	// The start of each test of p in the result.
	start := make([]Target, len(p.tests))
	n := 0
	for i, chain := range chains {
		start[i] = Target(n)
		n += max(1, len(chain))
	}
	entry := func(t Target) Target { return start[t] }
	tests := make([]Test, 0, n)
	for i, chain := range chains {
		outer := p.tests[i]
		if chain == nil {
			chain = []Test{outer}
			chain[0].Succ, chain[0].Fail = chainSucc, chainFail
		}
		for _, t := range chain {
			at := len(tests)
			t.Succ = link(t.Succ, at, outer.Succ, outer.Fail, entry)
			t.Fail = link(t.Fail, at, outer.Succ, outer.Fail, entry)
			tests = append(tests, t)
		}
	}
	return New(layer, tests, p.strict)
}

// Targets inside a chain: the targets of the replaced test, or the next test of the chain.
const (
	chainSucc Target = -3 - iota
	chainFail
	chainNext
)

// link resolves the target of a test of a chain that will have the given index in the result. succ and fail are the
// targets of the replaced test; entry returns the start of the replacement of a target that is not a verdict.
func link(t Target, index int, succ, fail Target, entry func(Target) Target) Target {
	switch t {
	case chainNext:
		return Target(index + 1)
	case chainSucc:
		t = succ
	case chainFail:
		t = fail
	}
	if t >= 0 {
		return entry(t)
	}
	return t
}

// lowerTest returns the chain that replaces a test, nil if the test may stay; ok is false if there is none.
func lowerTest(t *Test, layer packet.Layer) (chain []Test, ok bool) {
	switch {
	case (t.Field == FieldFamilyIP || t.Field == FieldFamilyIPv6) && t.Field.Info().Layers.Has(layer):
		return lowerFamily(t), true
	case t.Field >= NumSpecFields, t.Named != nil:
		return nil, false
	case t.Op == OpIn:
		return lowerIn(t), true
	case t.Op == OpNotIn:
		return lowerNotIn(t), true
	}
	return nil, true
}

// lowerIn writes a set as comparisons. The ranges are ascending, so a value below one of them is in none.
func lowerIn(t *Test) []Test {
	var chain []Test
	for _, r := range comparable(t) {
		if r.First == r.Last {
			chain = append(chain, compare(t, OpEq, r.First, chainSucc, chainNext))
			continue
		}
		chain = append(chain,
			compare(t, OpGe, r.First, chainNext, chainFail),
			compare(t, OpLe, r.Last, chainSucc, chainNext))
	}
	if len(chain) == 0 {
		return []Test{{Field: FieldZero, Value: Value{Lo: 1}, Succ: chainSucc, Fail: chainFail}}
	}
	chain[len(chain)-1].Fail = chainFail
	return chain
}

// lowerNotIn writes the complement of a set as comparisons. An unavailable value must still fail, so every way to success
// runs through a test of the field that holds.
func lowerNotIn(t *Test) []Test {
	var chain []Test
	for _, r := range comparable(t) {
		if r.First == r.Last {
			chain = append(chain, compare(t, OpNe, r.First, chainNext, chainFail))
			continue
		}
		chain = append(chain,
			compare(t, OpLt, r.First, chainSucc, chainNext),
			compare(t, OpGt, r.Last, chainNext, chainFail))
	}
	if len(chain) == 0 { // any value that is available
		return []Test{
			compare(t, OpGe, Value{}, chainSucc, chainNext),
			compare(t, OpLt, Value{}, chainSucc, chainFail),
		}
	}
	chain[len(chain)-1].Succ = chainSucc
	return chain
}

// comparable returns the parts of the test's set that literals of the field can express.
func comparable(t *Test) []Range {
	switch info := t.Field.Info(); {
	case info.Kind == KindIPv4:
		return clip(t.Set.Ranges, Range{First: boundIPv4Lo.Mag, Last: boundIPv4Hi.Mag})
	case !info.Wide:
		return clip(t.Set.Ranges, Range{Last: boundU32.Mag})
	case objectArgs(t.Field) == 2:
		return clip(t.Set.Ranges, Range{Last: boundU64.Mag})
	}
	return t.Set.Ranges
}

// compare returns a test of the same field as t.
func compare(t *Test, op Op, v Value, succ, fail Target) Test {
	return Test{Field: t.Field, Index: t.Index, Op: op, Value: v, Succ: succ, Fail: fail}
}

// lowerFamily writes a test of the family of an event as comparisons: IPv4 addresses are those of ::ffff:0:0/96
// (specification: api.md 2.1).
func lowerFamily(t *Test) []Test {
	onMapped, onOther := chainFail, chainFail
	if holdsNarrow(t, 1) {
		onMapped = chainSucc
	}
	if holdsNarrow(t, 0) {
		onOther = chainSucc
	}
	if t.Field == FieldFamilyIPv6 {
		onMapped, onOther = onOther, onMapped
	}
	if onMapped == onOther {
		return []Test{{Field: FieldZero, Succ: onMapped, Fail: onMapped}}
	}
	address := &Test{Field: FieldLocalAddr}
	return []Test{
		compare(address, OpGe, boundIPv4Lo.Mag, chainNext, onOther),
		compare(address, OpLe, boundIPv4Hi.Mag, onMapped, onOther),
	}
}

// holdsNarrow reports whether a test of a 32-bit field holds for the value v.
func holdsNarrow(t *Test, v uint32) bool {
	lit := uint32(t.Value.Lo)
	switch t.Op {
	case OpEq:
		return v == lit && !t.Neg
	case OpNe:
		return v != lit || t.Neg
	case OpLt:
		return v < lit && !t.Neg
	case OpLe:
		return v <= lit && !t.Neg
	case OpGt:
		return v > lit || t.Neg
	case OpGe:
		return v >= lit || t.Neg
	case OpIn:
		return t.Set.Contains(Value{Lo: uint64(v)})
	default:
		return !t.Set.Contains(Value{Lo: uint64(v)})
	}
}

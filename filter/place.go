package filter

import (
	"github.com/opendivert/divert/internal/prog"
)

// maxStrictTests is the most tests of a compiled filter of the strict dialect.
const maxStrictTests = 256

// place returns the tests of a program for a syntax tree; it is not ok if there are more than limit.
func place(root *node, limit int) (tests []prog.Test, ok bool) {
	p := placer{limit: limit}
	entry := p.place(root, prog.Accept, prog.Reject)
	if p.full {
		return nil, false
	}
	return p.emit(entry), true
}

// placer turns a syntax tree into tests, from right to left, each with its targets. (Specification: filter-object.md
// 2.1.)
type placer struct {
	limit int
	tests []prog.Test // in the order they were placed: the last one of the filter first
	full  bool        // there are more than limit
}

// place places a node that continues at succ if it holds and at fail if not, and returns its entry. Non-negative targets
// are indices into p.tests.
func (p *placer) place(n *node, succ, fail prog.Target) prog.Target {
	switch n.kind {
	case nodeAnd:
		for i := len(n.parts) - 1; i >= 0; i-- {
			succ = p.place(n.parts[i], succ, fail)
		}
		return succ
	case nodeOr:
		for i := len(n.parts) - 1; i >= 0; i-- {
			fail = p.place(n.parts[i], succ, fail)
		}
		return fail
	case nodeCond:
		otherwise := p.place(n.parts[2], succ, fail)
		then := p.place(n.parts[1], succ, fail)
		return p.place(n.parts[0], then, otherwise)
	case nodeNot:
		// A test of an absent field fails, and so does its opposite. Exchanging the continuations instead of the
		// operators gives the true negation.
		return p.place(n.parts[0], fail, succ)
	}
	return p.placeTest(n.test, succ, fail)
}

func (p *placer) placeTest(t prog.Test, succ, fail prog.Target) prog.Target {
	switch outcome := fold(&t); {
	case outcome == unfolded:
	case t.Field.Info().Base != prog.FieldZero:
		// In the original a test that cannot hold becomes "the header is absent"
		// (specification: filter-language.md 5).
		t = prog.Test{Field: t.Field.Info().Base, Op: prog.OpEq, Value: prog.Value{Lo: uint64(outcome)}}
	case outcome == alwaysTrue:
		return succ
	default:
		return fail
	}
	if len(p.tests) == p.limit {
		p.full = true
		return fail
	}
	if t.Field.Info().Elem > 0 {
		t.Value.Lo &= 0xFFFFFFFF // in the compiled form the offset takes the place of the other half
	}
	t.Succ, t.Fail = succ, fail
	p.tests = append(p.tests, t)
	return prog.Target(len(p.tests) - 1)
}

// emit returns the tests reachable from entry, in the order of their execution. (Specification: filter-object.md 2.2.)
func (p *placer) emit(entry prog.Target) []prog.Test {
	if entry < 0 {
		return []prog.Test{{Field: prog.FieldZero, Op: prog.OpEq, Succ: entry, Fail: entry}}
	}
	moved := func(t prog.Target) prog.Target {
		if t < 0 {
			return t
		}
		return entry - t
	}
	tests := make([]prog.Test, entry+1)
	for i := range tests {
		t := p.tests[int(entry)-i]
		t.Succ, t.Fail = moved(t.Succ), moved(t.Fail)
		tests[i] = t
	}
	return tests
}

// outcome is the result of a test as far as it is known without a packet.
type outcome int8

const (
	unfolded    outcome = -1
	alwaysFalse outcome = 0
	alwaysTrue  outcome = 1
)

// fold compares the literal of a test with the range of its field. (Specification:
// filter-language.md 5.)
func fold(t *prog.Test) outcome {
	info := t.Field.Info()
	if !info.Folds {
		return unfolded
	}
	if t.Op == prog.OpIn || t.Op == prog.OpNotIn {
		return foldSet(t)
	}
	v := prog.Bound{Neg: t.Neg, Mag: t.Value}
	return foldRange(t.Op, v.Compare(info.Lo), v.Compare(info.Hi))
}

// foldRange folds a test whose literal compares to the ends of the field's range like lo and hi.
func foldRange(op prog.Op, lo, hi int) outcome {
	switch op {
	case prog.OpEq:
		return fixed(lo < 0 || hi > 0, lo == 0 && hi == 0)
	case prog.OpNe:
		return fixed(lo == 0 && hi == 0, lo < 0 || hi > 0)
	case prog.OpLt:
		return fixed(lo <= 0, hi > 0)
	case prog.OpLe:
		return fixed(lo < 0, hi >= 0)
	case prog.OpGt:
		return fixed(hi >= 0, lo < 0)
	case prog.OpGe:
		return fixed(hi > 0, lo <= 0)
	}
	return unfolded
}

func fixed(never, always bool) outcome {
	switch {
	case never:
		return alwaysFalse
	case always:
		return alwaysTrue
	}
	return unfolded
}

// foldSet folds set tests of the constant fields, which must not remain. All others stay unchanged.
func foldSet(t *prog.Test) outcome {
	info := t.Field.Info()
	if info.Lo != info.Hi {
		return unfolded
	}
	if t.Set.Contains(info.Lo.Mag) == (t.Op == prog.OpIn) {
		return alwaysTrue
	}
	return alwaysFalse
}

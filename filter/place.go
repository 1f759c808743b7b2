package filter

// maxStrictTests is how many tests a compiled filter of the strict dialect may have.
const maxStrictTests = 256

// placer turns a syntax tree into tests, from right to left, each with the places where the
// evaluation goes on. (Specification: filter-object.md 2.1.)
type placer struct {
	limit int
	tests []Test // in the order they were placed: the last one of the filter first
	full  bool   // there were more than limit
}

// place places a node that continues at succ if it holds and at fail if not, and returns where it is
// entered. Non-negative targets are indices into p.tests.
func (p *placer) place(n *node, succ, fail Target) Target {
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
		// A test of an absent field fails as its opposite does. Changing the continuations, not the
		// operators, gives the true negation.
		return p.place(n.parts[0], fail, succ)
	}
	return p.placeTest(n.test, succ, fail)
}

func (p *placer) placeTest(t Test, succ, fail Target) Target {
	switch outcome := fold(&t); {
	case outcome == unfolded:
	case t.Field.info().base != FieldZero:
		// In the original a test that cannot hold becomes "the header is absent"
		// (specification: filter-language.md 5).
		t = Test{Field: t.Field.info().base, Op: OpEq, Value: Value{Lo: uint64(outcome)}}
	case outcome == alwaysTrue:
		return succ
	default:
		return fail
	}
	if len(p.tests) == p.limit {
		p.full = true
		return fail
	}
	if t.Field.info().elem > 0 {
		t.Value.Lo &= 0xFFFFFFFF // the compiled form has the offset in the place of the other half
	}
	t.Succ, t.Fail = succ, fail
	p.tests = append(p.tests, t)
	return Target(len(p.tests) - 1)
}

// emit returns the tests of the program that is entered at entry, in the order of their execution.
// (Specification: filter-object.md 2.2.)
func (p *placer) emit(entry Target) []Test {
	if entry < 0 {
		return []Test{{Field: FieldZero, Op: OpEq, Succ: entry, Fail: entry}}
	}
	moved := func(t Target) Target {
		if t < 0 {
			return t
		}
		return entry - t
	}
	tests := make([]Test, entry+1)
	for i := range tests {
		t := p.tests[int(entry)-i]
		t.Succ, t.Fail = moved(t.Succ), moved(t.Fail)
		tests[i] = t
	}
	return tests
}

// outcome is what is known of a test before there is a packet.
type outcome int8

const (
	unfolded    outcome = -1
	alwaysFalse outcome = 0
	alwaysTrue  outcome = 1
)

// fold compares the literal of a test with the range of its field. (Specification:
// filter-language.md 5.)
func fold(t *Test) outcome {
	info := t.Field.info()
	if !info.folds {
		return unfolded
	}
	if t.Op == OpIn || t.Op == OpNotIn {
		return foldSet(t)
	}
	v := bound{neg: t.Neg, mag: t.Value}
	return foldRange(t.Op, v.compare(info.lo), v.compare(info.hi))
}

// foldRange folds a test whose literal compares to the ends of the field's range like lo and hi.
func foldRange(op Op, lo, hi int) outcome {
	switch op {
	case OpEq:
		return fixed(lo < 0 || hi > 0, lo == 0 && hi == 0)
	case OpNe:
		return fixed(lo == 0 && hi == 0, lo < 0 || hi > 0)
	case OpLt:
		return fixed(lo <= 0, hi > 0)
	case OpLe:
		return fixed(lo < 0, hi >= 0)
	case OpGt:
		return fixed(hi >= 0, lo < 0)
	case OpGe:
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

// foldSet folds set tests of the constant fields, which must not remain. All others stay as they are.
func foldSet(t *Test) outcome {
	info := t.Field.info()
	if info.lo != info.hi {
		return unfolded
	}
	if t.Set.Contains(info.lo.mag) == (t.Op == OpIn) {
		return alwaysTrue
	}
	return alwaysFalse
}

// compare returns -1, 0 or 1 as b is less than, equal to or greater than c. Negative zero is less
// than zero, as in the original.
func (b bound) compare(c bound) int {
	switch {
	case b.neg && !c.neg:
		return -1
	case !b.neg && c.neg:
		return 1
	case b.neg:
		return c.mag.Compare(b.mag)
	}
	return b.mag.Compare(c.mag)
}

package prog

import (
	"encoding/binary"
	"slices"

	"github.com/opendivert/divert/packet"
)

// Strict reports whether the program was compiled in the strict dialect.
func (p *Program) Strict() bool { return p.strict }

// MatchesAll reports whether the program is the constant true.
func (p *Program) MatchesAll() bool {
	t := &p.tests[0]
	return t.Succ == Accept && t.Fail == Accept
}

// Widen returns a program that the original's driver accepts (DriverCheck) and that matches every item that p matches,
// perhaps more; exact means that it matches no others. Parts beyond the driver's abilities are left open: tests without a
// form in the driver go both ways if their header is there, long sets become fewer, larger ranges, and everything past
// 255 tests counts as a match.
func (p *Program) Widen() (wide *Program, exact bool) {
	if lowered, err := p.Lower(); err == nil && lowered.DriverCheck() == nil {
		return lowered, true
	}
	tests := gatherSets(p.tests, 2)
	for limit := maxDriverTests / 2; limit > 0; limit /= 2 {
		w := widener{layer: p.layer, tests: tests, ranges: limit, most: maxDriverTests}
		if w.explore(); !w.cut {
			return w.program(), false
		}
	}
	w := widener{layer: p.layer, tests: tests, ranges: 1, most: maxDriverTests}
	w.explore()
	return w.program(), false
}

// Without returns a program that does not test the fields for which unknown returns true, and that matches every item
// that p matches with any values of them, if the fields' header is there; exact means that p does not test them either.
// It is for a place where the values are still unknown. Everything past twice the length of p counts as a match.
func (p *Program) Without(unknown func(Field) bool) (wide *Program, exact bool) {
	if !slices.ContainsFunc(p.tests, func(t Test) bool { return unknown(t.Field) }) {
		return p, true
	}
	w := widener{layer: p.layer, tests: p.tests, unknown: unknown, most: 2*len(p.tests) + 16}
	w.explore()
	return w.program(), false
}

// Gathered returns tests of the same meaning, at the same places, in which lists such as "port == 1 or port == 2 or …"
// and their opposites have become sets. A joined list replaces its first test; its other tests stay, but become
// unreachable. The tests are copies; their sets may be the program's own, so do not write to them.
func (p *Program) Gathered() []Test { return gatherSets(p.tests, leastList) }

// gatherSets joins lists such as "port == 1 or port == 2 or …" and their opposites, of at least least tests, into sets.
// The first test of a list takes in the others, which become unreachable.
func gatherSets(tests []Test, least int) []Test {
	refs := make([]int, len(tests))
	for i := range tests {
		for _, t := range [...]Target{tests[i].Succ, tests[i].Fail} {
			if t >= 0 {
				refs[t]++
			}
		}
	}
	out := slices.Clone(tests)
	for i := 0; i < len(out); i++ {
		first := &out[i]
		ranges, positive, ok := listed(first)
		ranges = slices.Clip(ranges) // they may be a set's own
		last := i
		for ok && last+1 < len(out) && refs[last+1] == 1 {
			more, same, isList := listed(&out[last+1])
			if !isList || same != positive || !continues(&out[last], &out[last+1], Target(last+1), positive) {
				break
			}
			ranges = append(ranges, more...)
			last++
		}
		if last-i+1 < least {
			continue
		}
		first.Op, first.Value, first.Set = OpIn, Value{}, NewSet(ranges)
		if !positive {
			first.Op = OpNotIn
		}
		first.Succ, first.Fail = out[last].Succ, out[last].Fail
		i = last
	}
	return out
}

// listed returns the values that a test is for, or against, if it can be an element of a list. They may be those of its
// set: do not write to them.
func listed(t *Test) (ranges []Range, positive, ok bool) {
	info := t.Field.Info()
	switch {
	case t.Named != nil:
		return nil, false, false
	case t.Op == OpIn || t.Op == OpNotIn:
		return t.Set.Ranges, t.Op == OpIn, true
	case t.Op > OpNe || t.Neg || info.Kind == KindSigned || info.Kind == KindBool:
		return nil, false, false
	}
	v := Bound{Mag: t.Value}
	inRange := v.Compare(info.DrvLo) >= 0 && v.Compare(info.DrvHi) <= 0
	return []Range{{First: t.Value, Last: t.Value}}, t.Op == OpEq, inRange
}

// continues reports whether b, which has the index at, continues the list of a.
func continues(a, b *Test, at Target, positive bool) bool {
	if a.Field != b.Field || a.Index != b.Index {
		return false
	}
	if positive {
		return a.Fail == at && a.Succ == b.Succ
	}
	return a.Succ == at && a.Fail == b.Fail
}

// A widener builds the wider program. Where a test can go both ways the evaluation continues at two places at once and
// accepts if it accepts at one of them. The sets of such places are the states of the new program, as in the construction
// of a deterministic automaton.
type widener struct {
	layer  packet.Layer
	tests  []Test
	ranges int // most ranges of a set to write as comparisons
	most   int // most tests of the new program

	unknown func(Field) bool // the argument of Without; nil for Widen

	states []*wideState
	byKey  map[string]Target // states, as indices into states
	size   int               // tests of all states so far
	cut    bool              // not all states had room: some count as a match
}

// wideState is a state: its first test decides the continuation.
type wideState struct {
	places   []Target // ascending, without duplicates
	chain    []Test   // its replacement; the targets are chainSucc, chainFail and chainNext
	yes, no  Target   // states, as indices into states, or Accept or Reject
	start    Target   // start of the chain in the program
	explored bool
}

// explore finds the states reachable from the program's start, in an order in which jumps go forward.
func (w *widener) explore() {
	w.byKey = make(map[string]Target)
	entry := w.state([]Target{0})
	if entry < 0 {
		w.states = []*wideState{{chain: []Test{{Field: FieldZero, Succ: chainSucc, Fail: chainFail}}, yes: entry, no: entry, explored: true}}
		return
	}
	for s := w.next(); s != nil; s = w.next() {
		if w.size+len(s.chain) > w.most {
			w.cut = true
			s.chain = nil // references to it become Accept
			s.explored = true
			continue
		}
		w.size += len(s.chain)
		yes, no := w.outcomes(s.places)
		s.explored = true
		s.yes, s.no = w.state(yes), w.state(no)
	}
}

// next returns the state to explore next: the one with the foremost test, to which no further state can lead.
func (w *widener) next() *wideState {
	var first *wideState
	for _, s := range w.states {
		if !s.explored && (first == nil || s.places[0] < first.places[0]) {
			first = s
		}
	}
	return first
}

// state returns the state of a set of places, which may be the same as another set's, and makes one if necessary. It
// takes over the argument.
func (w *widener) state(places []Target) Target {
	for {
		places = normal(places)
		switch {
		case len(places) == 0:
			return Reject
		case places[0] == Accept:
			return Accept
		}
		chain := w.chain(&w.tests[places[0]])
		if chain != nil {
			yes, no := w.outcomes(places)
			if !slices.Equal(yes, no) {
				return w.intern(places, chain)
			}
		}
		// The test's result makes no difference, or is unknown.
		t := &w.tests[places[0]]
		places = append(slices.Clone(places[1:]), t.Succ, t.Fail)
	}
}

// normal sorts places in place and removes those that add nothing: duplicates, Reject, and all others next to Accept.
func normal(places []Target) []Target {
	slices.Sort(places)
	places = slices.Compact(places)
	if len(places) > 0 && places[0] == Reject {
		places = places[1:]
	}
	if len(places) > 0 && places[0] == Accept {
		places = places[:1]
	}
	return places
}

// intern returns the state of normalised places.
func (w *widener) intern(places []Target, chain []Test) Target {
	key := make([]byte, 0, 4*len(places))
	for _, p := range places {
		key = binary.LittleEndian.AppendUint32(key, uint32(p))
	}
	if s, known := w.byKey[string(key)]; known {
		return s
	}
	s := Target(len(w.states))
	w.byKey[string(key)] = s
	w.states = append(w.states, &wideState{places: places, chain: chain})
	return s
}

// outcomes returns the places after the first test of places, if its chain succeeds and if it fails. Even then the test's
// own result may be uncertain: see coarse.
func (w *widener) outcomes(places []Target) (yes, no []Target) {
	t, rest := &w.tests[places[0]], places[1:]
	to := func(targets ...Target) []Target {
		return normal(append(slices.Clone(rest), targets...))
	}
	switch coarse := w.isCoarse(t); {
	case coarse && t.Op == OpNotIn:
		return to(t.Fail), to(t.Succ, t.Fail)
	case coarse || w.exact(t) == nil:
		return to(t.Succ, t.Fail), to(t.Fail)
	default:
		return to(t.Succ), to(t.Fail)
	}
}

// chain returns the tests that stand for a test in the driver, nil if none can: the test itself as comparisons; or one
// that is certain in one of its outcomes, see coarse; or, since tests fail where their header is absent, one for that
// header.
func (w *widener) chain(t *Test) []Test {
	if w.isCoarse(t) {
		return lowerIn(w.coarse(t))
	}
	if chain := w.exact(t); chain != nil {
		return chain
	}
	header := Test{Field: t.Field.Info().Base, Op: OpNe, Succ: chainSucc, Fail: chainFail}
	if header.Field == FieldZero || w.unknown == nil && driverRefuses(&header, w.layer) != "" {
		return nil
	}
	return []Test{header}
}

// exact returns the exact form of a test for the driver, nil if there is none.
func (w *widener) exact(t *Test) []Test {
	if w.unknown != nil {
		if w.unknown(t.Field) {
			return nil
		}
		same := *t
		same.Succ, same.Fail = chainSucc, chainFail
		return []Test{same}
	}
	chain, ok := lowerTest(t, w.layer)
	if !ok {
		return nil
	}
	if chain == nil {
		chain = []Test{*t}
		chain[0].Succ, chain[0].Fail = chainSucc, chainFail
	}
	for i := range chain {
		if driverRefuses(&chain[i], w.layer) != "" {
			return nil
		}
	}
	return chain
}

// isCoarse reports whether a test's set has more ranges than may become comparisons.
func (w *widener) isCoarse(t *Test) bool {
	return w.unknown == nil && t.Named == nil && (t.Op == OpIn || t.Op == OpNotIn) && t.Field < NumSpecFields && len(comparable(t)) > w.ranges &&
		driverRefuses(&Test{Field: t.Field, Index: t.Index, Value: comparable(t)[0].First}, w.layer) == ""
}

// coarse returns a test that is certain in one of its outcomes. A value outside the fewer ranges that enclose a set is
// outside the set. A value in the greatest ranges of a set is in it: for a test against the set, that is the certain
// outcome.
func (w *widener) coarse(t *Test) *Test {
	ranges := comparable(t)
	if t.Op == OpIn {
		ranges = enclose(ranges, w.ranges)
	} else {
		ranges = greatest(ranges, w.ranges)
	}
	return &Test{Field: t.Field, Index: t.Index, Op: OpIn, Set: &Set{Ranges: ranges}}
}

// enclose returns n ranges that contain all of the ranges, with the narrowest gaps closed.
func enclose(ranges []Range, n int) []Range {
	gaps := make([]Value, 0, len(ranges)-1)
	for i := 1; i < len(ranges); i++ {
		gaps = append(gaps, ranges[i].First.Minus(ranges[i-1].Last))
	}
	order := ascending(len(gaps), func(i int) Value { return gaps[i] })
	open := make([]bool, len(gaps))
	for _, i := range order[len(gaps)-(n-1):] {
		open[i] = true
	}
	out := []Range{ranges[0]}
	for i, r := range ranges[1:] {
		if open[i] {
			out = append(out, r)
		} else {
			out[len(out)-1].Last = r.Last
		}
	}
	return out
}

// greatest returns the n widest of the ranges, in their order.
func greatest(ranges []Range, n int) []Range {
	order := ascending(len(ranges), func(i int) Value { return ranges[i].Last.Minus(ranges[i].First) })
	chosen := slices.Clone(order[len(order)-n:])
	slices.Sort(chosen)
	out := make([]Range, 0, n)
	for _, i := range chosen {
		out = append(out, ranges[i])
	}
	return out
}

// ascending returns the numbers below n in the order of their values.
func ascending(n int, value func(int) Value) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return value(a).Compare(value(b)) })
	return order
}

// program writes the states out.
func (w *widener) program() *Program {
	order := make([]*wideState, 0, len(w.states))
	for _, s := range w.states {
		if len(s.chain) > 0 {
			order = append(order, s)
		}
	}
	slices.SortStableFunc(order, func(a, b *wideState) int {
		if len(a.places) == 0 || len(b.places) == 0 {
			return 0
		}
		return int(a.places[0] - b.places[0])
	})
	n := Target(0)
	for _, s := range order {
		s.start = n
		n += Target(len(s.chain))
	}
	tests := make([]Test, 0, n)
	for _, s := range order {
		for _, t := range s.chain {
			at := len(tests)
			t.Succ = link(t.Succ, at, s.yes, s.no, w.entry)
			t.Fail = link(t.Fail, at, s.yes, s.no, w.entry)
			tests = append(tests, t)
		}
	}
	if len(tests) == 0 {
		tests = []Test{{Field: FieldZero, Succ: Accept, Fail: Accept}}
	}
	return New(w.layer, tests, false)
}

// entry returns the start of the chain of a state.
func (w *widener) entry(t Target) Target {
	if to := w.states[t]; len(to.chain) > 0 {
		return to.start
	}
	return Accept
}

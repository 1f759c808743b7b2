package prog

import (
	"fmt"
	"strings"

	"github.com/opendivert/divert/packet"
)

// A Step is one executed test of an evaluation.
type Step struct {
	Index   int    // of the test in Program.Tests
	Test    Test   // the test
	Text    string // the test in the notation of filters
	Present bool   // the field has a value
	Neg     bool   // the value is negative
	Value   Value  // the value, or its magnitude if it is negative
	Result  bool   // the test holds; without a value it never does
	Next    Target // the next test, or the end

	style style
}

// String returns the step as a line: the test, the value, the result and the next step.
func (s Step) String() string {
	return fmt.Sprintf("%3d  %s  [%s]  %v → %s", s.Index, s.Text, s.ValueText(), s.Result, s.Next)
}

// ValueText returns the value in the notation of filters, or "absent".
func (s Step) ValueText() string {
	if !s.Present {
		return "absent"
	}
	var b []byte
	if s.Neg {
		b = append(b, '-')
	}
	return string(s.style.appendLiteral(b, s.Test.Field, s.Value))
}

// String returns "accept", "reject" or the index of a test.
func (t Target) String() string {
	switch t {
	case Accept:
		return "accept"
	case Reject:
		return "reject"
	}
	return fmt.Sprint(int(t))
}

// Explain evaluates like Eval and returns each executed test with its value, in the order of execution. The result is
// Next of the last step. The errors are those of Eval; with a *FieldError, the steps before it are returned.
func (p *Program) Explain(b []byte, a *packet.Address) ([]Step, error) {
	s, err := p.prepare(b, a)
	if err != nil {
		return nil, err
	}
	var steps []Step
	for pc := Target(0); pc >= 0; {
		in := &p.code.instrs[pc]
		if in.origin == fromNowhere || in.origin == fromProcess || in.origin == fromFlow || in.field == FieldProcess && OnPackets.Has(p.layer) {
			return steps, p.fieldError(int(pc))
		}
		step := Step{Index: int(pc), Test: p.tests[pc], style: p.style()}
		step.Text = string(p.style().appendTest(nil, &step.Test))
		step.Neg, step.Value, step.Present = s.look(in)
		step.Result, pc = p.step(&s, pc)
		step.Next = pc
		steps = append(steps, step)
	}
	return steps, nil
}

// step executes the test at pc alone and returns its result and its next test.
func (p *Program) step(s *state, pc Target) (result bool, next Target) {
	in := &p.code.instrs[pc]
	switch f := s.decide(&p.code, in); {
	case f == foundHit && !in.invert, f == foundMiss && in.invert:
		return true, p.tests[pc].Succ
	}
	return false, p.tests[pc].Fail
}

// look returns the value for the test in, as sign and magnitude.
func (s *state) look(in *instr) (neg bool, v Value, ok bool) {
	if in.origin == fromWide {
		if v, ok = s.wideValue(in.field); in.field.Info().Kind == KindSigned {
			neg, v = fromOrderKey(v)
		}
		return neg, v, ok
	}
	n, f := s.fetch(in)
	v.Lo = uint64(n)
	if in.field.Info().Kind == KindIPv4 {
		v.Lo |= ipv4Prefix
	}
	return false, v, f == foundHit
}

// fromOrderKey is the inverse of orderKey for signed fields.
func fromOrderKey(key Value) (neg bool, mag Value) {
	if key.Hi>>63 != 0 {
		return false, Value{Hi: key.Hi &^ (1 << 63), Lo: key.Lo}
	}
	return true, Value{Hi: 1<<63 - 1 - key.Hi, Lo: ^key.Lo}
}

// Listing returns the program for people: a line for each test with its number and its targets.
func (p *Program) Listing() string {
	texts, widest := make([]string, len(p.tests)), 0
	for i := range p.tests {
		texts[i] = string(p.style().appendTest(nil, &p.tests[i]))
		widest = max(widest, min(len(texts[i]), 60))
	}
	var b strings.Builder
	for i, text := range texts {
		t := &p.tests[i]
		if t.Succ == t.Fail {
			fmt.Fprintf(&b, "%4d  %-*s  always %v\n", i, widest, text, t.Succ)
			continue
		}
		fmt.Fprintf(&b, "%4d  %-*s  yes: %-6v  no: %v\n", i, widest, text, t.Succ, t.Fail)
	}
	return b.String()
}

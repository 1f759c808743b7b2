package filter

import (
	"fmt"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Step is one executed test of an evaluation.
type Step struct {
	Index  int    // number of the test in the program, as in Listing
	Test   string // the test as filters write it
	Value  string // the value of its field as filters write it, "absent" if it has none
	Result bool   // the test holds; without a value it never does
	Next   int    // number of the next test; negative if this was the last

	end prog.Target
}

// String returns the step as a line: the test, the value, the result and the next step.
func (s Step) String() string {
	return fmt.Sprintf("%3d  %s  [%s]  %v → %s", s.Index, s.Test, s.Value, s.Result, s.end)
}

// Explain evaluates like Eval and also returns each executed test with its value, in the order of execution. The errors
// are those of Eval; with ErrNoValue, steps holds the steps before it.
func (p *Program) Explain(b []byte, a *packet.Address) (steps []Step, matched bool, err error) {
	all, err := p.program().Explain(b, a)
	for i := range all {
		s := &all[i]
		steps = append(steps, Step{
			Index: s.Index, Test: s.Text, Value: s.ValueText(), Result: s.Result, Next: int(max(s.Next, -1)), end: s.Next,
		})
	}
	return steps, err == nil && all[len(all)-1].Next == prog.Accept, err
}

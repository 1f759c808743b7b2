package impair

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Phase is a period with rules of its own.
type Phase struct {
	Name  string        // for people
	For   time.Duration // 1 ms or more; 0, in the last phase only: until the run ends
	Rules []Rule        // a packet meets the first one that matches it; without rules all packets go on
}

// The limits of schedules.
const (
	minPhase  = time.Millisecond
	maxPhase  = 365 * 24 * time.Hour
	maxPhases = 10_000
	maxRules  = math.MaxUint16
)

// phase is a Phase prepared for use.
type phase struct {
	end   int64 // since the schedule began
	rules []*rule
}

// rule is a Rule prepared for use.
type rule struct {
	Rule
	number  uint16          // in its phase
	phased  bool            // there are several phases
	program *filter.Program // nil: all packets in its direction
	chances chances
	shapers map[uint64]*shaper // by direction or interface
	stats   RuleStats
}

// A RuleError is an error in a rule.
type RuleError struct {
	Phase, Rule int // numbered from 0
	Err         error

	phases bool  // there are several
	place  place // in the file that the rule comes from
}

// Error returns the place of the rule and the error in it.
func (e *RuleError) Error() string {
	switch {
	case e.InFile():
		return fmt.Sprintf("%v: %v", e.place, e.Err)
	case e.phases:
		return fmt.Sprintf("phase %d, rule %d: %v", e.Phase+1, e.Rule+1, e.Err)
	}
	return fmt.Sprintf("rule %d: %v", e.Rule+1, e.Err)
}

// InFile reports whether the rule comes from ParseSchedule, so that Error tells its place there.
func (e *RuleError) InFile() bool { return e.place.line != 0 }

// Unwrap returns the error without the place.
func (e *RuleError) Unwrap() error { return e.Err }

// plan is a schedule prepared for use.
type plan struct {
	phases []phase
	rules  []*rule // of all phases
	repeat bool
	filter *filter.Program // for the handle: matches if any rule does

	processes bool          // a rule needs the process of a packet
	parsed    packet.Parsed // parse of the packet in match
}

// newPlan checks a schedule and prepares it.
func newPlan(phases []Phase, repeat bool, layer packet.Layer, dialect filter.Dialect) (*plan, error) {
	p := &plan{repeat: repeat}
	var end int64
	if len(phases) > maxPhases {
		return nil, fmt.Errorf("%d phases are too many (at most %d)", len(phases), maxPhases)
	}
	var texts []string
	for n, ph := range phases {
		last := n == len(phases)-1
		switch {
		case ph.For == 0 && (!last || repeat):
			return nil, fmt.Errorf("phase %d has no time; only the last one may, if the phases are not repeated", n+1)
		case ph.For != 0 && (ph.For < minPhase || ph.For > maxPhase):
			return nil, fmt.Errorf("phase %d: a time of %v is out of range (%v to %v)", n+1, ph.For, minPhase, maxPhase)
		case len(ph.Rules) > maxRules:
			return nil, fmt.Errorf("phase %d: %d rules are too many (at most %d)", n+1, len(ph.Rules), maxRules)
		}
		if end += int64(ph.For); ph.For == 0 || end < 0 {
			end = math.MaxInt64
		}
		ready := phase{end: end}
		for i := range ph.Rules {
			r, text, err := newRule(&ph.Rules[i], i, layer, dialect)
			if err != nil {
				return nil, &RuleError{n, i, err, len(phases) > 1, ph.Rules[i].place}
			}
			r.phased = len(phases) > 1
			r.stats.Phase, r.stats.Rule, r.stats.Filter = n, i, text
			ready.rules = append(ready.rules, r)
			p.rules = append(p.rules, r)
			texts = append(texts, text)
		}
		p.phases = append(p.phases, ready)
	}
	if len(p.rules) == 0 {
		return nil, errors.New("there is no rule")
	}
	if len(p.phases) == 1 && len(p.rules) == 1 {
		p.rules[0].program = nil // the handle decides already
		p.rules[0].Direction = Both
	}
	sets := false
	for _, r := range p.rules {
		if r.program == nil {
			continue
		}
		sets = sets || len(r.program.Sets()) > 0
		for _, t := range (*prog.Program)(r.program).Tests() {
			if t.Field.OfFlow() {
				return nil, p.wrong(r, fmt.Errorf("filter: %v works with a single rule only: with several the handle also counts what other rules match", t.Field))
			}
			p.processes = p.processes || t.Field.OfProcess()
		}
	}
	var err error
	p.filter, err = union(texts, sets, layer, dialect)
	return p, err
}

// wrong makes an error about a rule.
func (p *plan) wrong(r *rule, err error) error {
	return &RuleError{r.stats.Phase, r.stats.Rule, err, r.phased, r.place}
}

// bind gives the rules' filters the handle's knowledge: its named sets, and the indexes of interfaces.
func (p *plan) bind(h *divert.Handle) error {
	follower := engine.FollowerOf(h)
	for _, r := range p.rules {
		if r.program == nil {
			continue
		}
		sets := map[string]*filter.Set{}
		for _, name := range r.program.Sets() {
			s, err := h.Set(name)
			if err != nil {
				return p.wrong(r, err)
			}
			sets[name] = s
		}
		bound, err := r.program.WithSets(sets)
		if err != nil {
			return p.wrong(r, err)
		}
		own := (*prog.Program)(bound).OwnInterfaces()
		if names := bound.Interfaces(); len(names) > 0 {
			err = divert.ErrNotSupported
			if follower != nil {
				err = follower.Follow(own)
			}
			if err != nil {
				return p.wrong(r, fmt.Errorf("filter: iface == %s: %w", filter.QuoteName(names[0]), err))
			}
		}
		r.program = (*filter.Program)(own)
	}
	return nil
}

// newRule prepares a rule; text is its filter with its direction.
func newRule(given *Rule, number int, layer packet.Layer, dialect filter.Dialect) (_ *rule, text string, err error) {
	r := &rule{Rule: *given, number: uint16(number), shapers: map[uint64]*shaper{}}
	if err := r.check(); err != nil {
		return nil, "", err
	}
	r.chances = chancesOf(&r.Rule)
	text = strings.TrimSpace(r.Filter)
	if text == "" {
		text = "true"
	}
	if r.program, err = filter.Compile(text, layer, dialect); err != nil {
		return nil, "", err
	}
	if text == "true" {
		r.program = nil
	}
	switch {
	case r.Direction == Both:
	case layer == packet.LayerForward:
		return nil, "", settingErrorf("direction", "packets that are forwarded go neither out nor in; use ifIdx in the filter")
	case text == "true":
		text = directionFields[r.Direction]
	case strings.HasPrefix(text, "@"):
		return nil, "", settingErrorf("direction", "it cannot be joined with a compiled filter; write that as text")
	default:
		text = directionFields[r.Direction] + " and (" + text + ")"
	}
	return r, text, nil
}

// directionFields are the directions in the filter language.
var directionFields = [...]string{Out: "outbound", In: "inbound"}

// union compiles a filter that matches if any of the filters does. With sets it has the named sets of all.
func union(texts []string, sets bool, layer packet.Layer, dialect filter.Dialect) (*filter.Program, error) {
	seen := map[string]bool{}
	var different []string
	for _, text := range texts {
		if !seen[text] {
			seen[text] = true
			different = append(different, text)
		}
	}
	switch {
	case seen["true"] && !sets:
		return filter.Compile("true", layer, dialect)
	case len(different) == 1:
		return filter.Compile(different[0], layer, dialect)
	}
	for _, text := range different {
		if strings.HasPrefix(text, "@") {
			return nil, errors.New("a compiled filter cannot be joined with others; write it as text")
		}
	}
	p, err := filter.Compile("("+strings.Join(different, ") or (")+")", layer, dialect)
	if err != nil {
		return nil, fmt.Errorf("the filters of all rules together: %w", err)
	}
	return p, nil
}

// at returns the phase at a time, and its end; ok is false when all have passed.
func (p *plan) at(now int64) (number int, end int64, ok bool) {
	var begun int64
	if cycle := p.phases[len(p.phases)-1].end; p.repeat {
		begun = now - now%cycle
	}
	for n := range p.phases {
		end := p.phases[n].end
		if now-begun < end {
			if end == math.MaxInt64 {
				return n, end, true
			}
			return n, begun + end, true
		}
	}
	return len(p.phases), math.MaxInt64, false
}

// end returns the end of the last phase, and false if there is none.
func (p *plan) end() (time.Duration, bool) {
	end := p.phases[len(p.phases)-1].end
	return time.Duration(end), !p.repeat && end != math.MaxInt64
}

// match returns the first rule of a phase for a packet that the handle has received, nil if there is none.
func (p *plan) match(ph *phase, pkt *packet.Packet) (*rule, error) {
	parsed := false
	for _, r := range ph.rules {
		if r.Direction != Both && (r.Direction == Out) != pkt.Addr.Outbound {
			continue
		}
		if r.program == nil {
			return r, nil
		}
		if !parsed && !p.parsed.Parse(pkt.Data) {
			return nil, p.wrong(r, fmt.Errorf("its filter cannot be decided here: %w", prog.ErrNotPacket))
		}
		parsed = true
		known := prog.Known{Process: pkt.Addr.Network().ProcessID, HasProcess: p.processes}
		ok, err := (*prog.Program)(r.program).EvalParsed(pkt.Data, &p.parsed, &pkt.Addr, known)
		if err != nil {
			return nil, p.wrong(r, fmt.Errorf("its filter cannot be decided here: %w", err))
		}
		if ok {
			return r, nil
		}
	}
	return nil, nil
}

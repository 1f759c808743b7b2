package order

import "fmt"

// MaxHandles and MaxPackets limit a scenario.
const (
	MaxHandles = 3
	MaxPackets = 3
)

// Kind is a handle's treatment of packets that match.
type Kind uint8

// The kinds.
const (
	Divert Kind = iota // they wait for a verdict, which is always to go on
	Sniff              // they are copied
	Drop               // they end
)

// Classes is a set of packets: bit c stands for those of class c. A filter is the set that it matches.
type Classes uint8

func (c Classes) has(class uint8) bool { return c>>class&1 != 0 }

// End is how a handle's life ends.
type End uint8

// The ends. Exploring a handle that ends also covers one that stays: the end may come after everything else.
const (
	Close End = iota
	Kill      // at any moment after its key is reserved
)

// Handle is the life of a handle: it opens with the first filter, changes to the others, and ends.
type Handle struct {
	Kind     Kind
	Priority int8
	Filters  []Classes // at least one, at most two
	End      End
}

// Packet is a packet that is sent once.
type Packet struct {
	Class uint8
	From  int8 // the handle that injects it, or Host
}

// Host sends the packets that no handle injects.
const Host = -1

// Scenario has the handles and packets whose steps interleave.
type Scenario struct {
	Handles []Handle
	Packets []Packet
	Fault   Fault

	watch func(Event) // set by Walk, else nil
}

// Event is something that happens to a packet.
type Event struct {
	Packet int
	Fate   Fate
	Handle int // that the packet meets, or at which it ends
}

// Fate is a kind of event.
type Fate uint8

// The fates.
const (
	Meets   Fate = iota // a handle: it waits there, is copied or dropped
	Arrives             // behind all handles
	IsLost              // dropped, or with the process that had it in its queue
)

func (sc *Scenario) tell(p *pkt, f Fate, h int) {
	if sc.watch != nil {
		sc.watch(Event{int(p.spec), f, h})
	}
}

// Fault is a rule of the engine that is broken on purpose.
type Fault uint8

// The faults.
const (
	NoFault         Fault = iota
	RepeatUnmarked        // a verdict sets no cursor
	AcceptAtOnce          // a verdict lets a packet leave the chain
	CursorExclusive       // a handle's own cursor does not count as served by it
	OldestFirst           // among equal priorities the oldest has the highest key
	KeyTwice              // a key is chosen without a look at who else is opening
	RuleAtTheEnd          // a rule goes behind all others
	SwapFirst             // a filter's program is swapped before the rules are wide enough
	StaleGate             // a gate is made when the third handle comes, and stays so
	NoSettle              // Close does not wait for the walks that may have matched
	CloseDrops            // Close drops waiting packets
	BuryNothing           // the rules of the dead stay
	ForgottenFilter       // Close leaves the program in force
	InjectUnmarked        // an injected packet has no cursor
	KeepCursor            // the last rule does not take the cursor out
	numFaults
)

var faultNames = [numFaults]string{"none", "verdict without cursor", "accept at once", "own cursor not served", "oldest first", "key twice",
	"rule at the end", "program before rules", "stale gate", "no settling", "close drops", "nobody buried", "close keeps the filter",
	"injection without cursor", "cursor stays"}

func (f Fault) String() string { return faultNames[f] }

// Faults returns all faults but none.
func Faults() (all []Fault) {
	for f := NoFault + 1; f < numFaults; f++ {
		all = append(all, f)
	}
	return all
}

// phase is how far a handle has come.
type phase uint8

const (
	unborn phase = iota
	reserved
	open
	widened // SetFilter: the rules are wide enough for both filters
	swapped // SetFilter: the program is the new one
	cleared // Close: nothing matches any more
	settled // Close: no walk is under way that may have matched
	unbound // Close: the queue has gone
	closed  // the rules have gone
	dead    // killed; the rules stand
	buried  // killed; the rules have gone
)

// noFilter stands for a filter that matches nothing.
const noFilter = 0xFF

// alive reports whether the handle's process still works for it.
func (p phase) alive() bool { return p >= reserved && p <= unbound }

// serves reports whether the handle's user may expect packets: Open has returned and nothing ended it.
func (p phase) serves() bool { return p >= open && p <= swapped }

// handle is the state of a handle.
type handle struct {
	phase   phase
	key     uint8
	born    uint8 // counts up with each key that is reserved: the greater, the newer
	filter  uint8 // the number of the filter in force, or noFilter
	changed bool  // somebody has seen the new filter, or SetFilter has returned
}

// table is the state that a walk reads at its beginning: the rules.
type table struct {
	rules [MaxHandles]int8 // handles in the order of their rules, -1 behind the last
	terms [MaxHandles]Classes
	gated bool
	gate  Classes
}

// where is where a packet is.
type where uint8

const (
	unsent  where = iota
	walking       // before the rule at
	matched       // the rule at has matched; the packet is on its way to the queue
	waiting       // in the queue of the handle at
	arrived
	lost
)

// pkt is the state of a packet.
type pkt struct {
	spec   uint8
	where  where
	at     uint8
	cursor uint8 // 0: none; else one more than the key
	owed   uint8 // handles that were open and matched all the way
	met    uint8
	before uint8 // handles that were cleared, or buried, since the walk began
	after  uint8 // handles whose new filter others had seen when the walk began
	excuse bool  // a dead handle's rule has led it past those below
	walk   table
}

// state is a state of a scenario.
type state struct {
	handles [MaxHandles]handle
	packets [MaxPackets]pkt
	table   table
	births  uint8
}

func (sc *Scenario) start() (s state) {
	for i := range s.table.rules {
		s.table.rules[i] = -1
	}
	for i := range sc.Packets {
		s.packets[i].spec = uint8(i)
	}
	return s
}

// above reports whether packets meet handle a before handle b (specification: api.md; the newest of equals first).
func (sc *Scenario) above(s *state, a, b int) bool {
	pa, pb := sc.Handles[a].Priority, sc.Handles[b].Priority
	return pa > pb || pa == pb && s.handles[a].born > s.handles[b].born
}

// program returns the packets that a handle's program matches at the moment.
func (sc *Scenario) program(s *state, h int) Classes {
	if s.handles[h].filter == noFilter || s.handles[h].phase < open {
		return 0
	}
	return sc.Handles[h].Filters[s.handles[h].filter]
}

// newKey chooses a key as rules.newKey does. Each priority has four keys.
func (sc *Scenario) newKey(s *state, h int) uint8 {
	const subs = 4
	base := uint8(sc.Handles[h].Priority) * subs
	next, least := base, base+subs-1
	for g := range sc.Handles {
		o := &s.handles[g]
		there := o.phase >= reserved && o.phase < closed || o.phase == dead
		if sc.Fault == KeyTwice {
			there = there && o.phase != reserved
		}
		if there && o.key/subs == base/subs {
			next, least = max(next, o.key+1), min(least, o.key-1)
		}
	}
	if sc.Fault == OldestFirst {
		return least
	}
	return next
}

// enter puts a handle's rule into the table, before the first of a lower key.
func (sc *Scenario) enter(s *state, h int, terms Classes) {
	sc.leave(s, h)
	t := &s.table
	t.terms[h] = terms
	n, at := 0, 0
	for ; n < MaxHandles && t.rules[n] >= 0; n++ {
		if sc.Fault == RuleAtTheEnd || s.handles[t.rules[n]].key > s.handles[h].key {
			at = n + 1
		}
	}
	copy(t.rules[at+1:], t.rules[at:n])
	t.rules[at] = int8(h)
	sc.setGate(t)
}

// leave takes a handle's rule out.
func (sc *Scenario) leave(s *state, h int) {
	t := &s.table
	n := 0
	for _, r := range t.rules {
		if r >= 0 && int(r) != h {
			t.rules[n] = r
			n++
		}
	}
	for ; n < MaxHandles; n++ {
		t.rules[n] = -1
	}
	t.terms[h] = 0
}

// setGate makes the gate, which a table of three handles has.
func (sc *Scenario) setGate(t *table) {
	if sc.Fault == StaleGate && t.gated {
		return
	}
	t.gated, t.gate = t.rules[MaxHandles-1] >= 0, 0
	if t.gated {
		t.gate = t.terms[0] | t.terms[1] | t.terms[2]
	}
}

// served reports whether a cursor says that a handle has had the packet.
func (sc *Scenario) served(p *pkt, key uint8) bool {
	if p.cursor == 0 {
		return false
	}
	if sc.Fault == CursorExclusive {
		return p.cursor-1 < key
	}
	return p.cursor-1 <= key
}

// violation is a promise that does not hold.
func violation(p *pkt, format string, a ...any) error {
	return fmt.Errorf("packet %d: "+format, append([]any{p.spec}, a...)...)
}

// begin lets a packet enter the chain, for the first time or again.
func (sc *Scenario) begin(s *state, p *pkt) error {
	p.where, p.at, p.walk, p.before, p.after = walking, 0, s.table, 0, 0
	for h := range sc.Handles {
		if s.handles[h].changed {
			p.after |= 1 << h
		}
	}
	class := sc.Packets[p.spec].Class
	if p.walk.gated && !p.walk.gate.has(class) {
		for h := range sc.Handles {
			if err := sc.decided(s, p, h, false); err != nil {
				return err
			}
		}
		return sc.leaveChain(s, p)
	}
	return sc.skip(s, p)
}

// skip goes past the rules that do not ask their program.
func (sc *Scenario) skip(s *state, p *pkt) error {
	class := sc.Packets[p.spec].Class
	for ; p.at < MaxHandles && p.walk.rules[p.at] >= 0; p.at++ {
		h := int(p.walk.rules[p.at])
		if sc.served(p, s.handles[h].key) {
			continue
		}
		if p.walk.terms[h].has(class) {
			return nil
		}
		if err := sc.decided(s, p, h, false); err != nil {
			return err
		}
	}
	return sc.leaveChain(s, p)
}

// leaveChain ends a walk behind the last rule.
func (sc *Scenario) leaveChain(s *state, p *pkt) error {
	if sc.Fault != KeepCursor {
		p.cursor = 0
	}
	return sc.arrive(s, p)
}

// decided checks that a filter changes at one moment: packets that come after somebody had the new filter meet the new one too.
func (sc *Scenario) decided(s *state, p *pkt, h int, matches bool) error {
	o := &s.handles[h]
	filters := sc.Handles[h].Filters
	if len(filters) < 2 || !o.phase.serves() || p.met>>h&1 != 0 {
		return nil
	}
	class := sc.Packets[p.spec].Class
	was, is := filters[0].has(class), filters[1].has(class)
	switch {
	case was == is:
	case matches == is && o.phase != open:
		o.changed = true
	case matches != is && p.after>>h&1 != 0:
		return violation(p, "handle %d decides by its old filter, and others have met the new one", h)
	}
	return nil
}

// meet notes that a handle sees a packet.
func (sc *Scenario) meet(s *state, p *pkt, h int) error {
	if p.met>>h&1 != 0 {
		return violation(p, "meets handle %d twice", h)
	}
	if s.handles[h].phase == closed {
		return violation(p, "meets handle %d, which is closed", h)
	}
	for g := range sc.Handles {
		if p.met>>g&1 != 0 && !sc.above(s, g, h) {
			return violation(p, "meets handle %d behind handle %d", h, g)
		}
	}
	if from := int(sc.Packets[p.spec].From); from >= 0 && !sc.above(s, from, h) {
		return violation(p, "was injected by handle %d and meets handle %d", from, h)
	}
	p.met |= 1 << h
	sc.tell(p, Meets, h)
	return nil
}

// lose ends a packet at a handle.
func (sc *Scenario) lose(s *state, p *pkt, h int) error {
	if sc.Handles[h].Kind != Drop && s.handles[h].phase != dead {
		return violation(p, "is lost at handle %d, which neither drops nor was killed", h)
	}
	sc.tell(p, IsLost, h)
	p.end(lost)
	return nil
}

// arrive ends a packet's way behind all handles.
func (sc *Scenario) arrive(s *state, p *pkt) error {
	if p.cursor != 0 && !p.excuse {
		return violation(p, "leaves with its cursor")
	}
	for h := range sc.Handles {
		if p.owed>>h&1 != 0 && p.met>>h&1 == 0 && !p.excuse {
			return violation(p, "arrives without having met handle %d", h)
		}
		if p.owed>>h&1 != 0 && sc.Handles[h].Kind == Drop && !p.excuse {
			return violation(p, "arrives in spite of handle %d, which drops it", h)
		}
	}
	sc.tell(p, Arrives, 0)
	p.end(arrived)
	return nil
}

// end forgets state that does not matter any more.
func (p *pkt) end(w where) { *p = pkt{spec: p.spec, where: w} }

// step is one thing that may happen next.
type step struct {
	actor int // a handle, or MaxHandles and more: a packet
	what  string
}

func (t step) String() string {
	if t.actor < MaxHandles {
		return fmt.Sprintf("handle %d: %s", t.actor, t.what)
	}
	return fmt.Sprintf("packet %d: %s", t.actor-MaxHandles, t.what)
}

// each calls f with every state that may follow, and with the promise that the step breaks, if any. If a step and the others
// cannot affect each other, now or later, each tries that step alone.
func (sc *Scenario) each(s *state, f func(step, *state, error)) {
	for i := range sc.Packets {
		if sc.fixed(s, &s.packets[i]) {
			sc.packetSteps(s, i, f)
			return
		}
	}
	for h := range sc.Handles {
		if sc.private(s, h) {
			sc.handleSteps(s, h, f)
			return
		}
	}
	for h := range sc.Handles {
		sc.handleSteps(s, h, f)
	}
	for i := range sc.Packets {
		sc.packetSteps(s, i, f)
	}
}

// fixed reports whether the next step of a packet is at a handle that has ended.
func (sc *Scenario) fixed(s *state, p *pkt) bool {
	if p.where != walking && p.where != matched {
		return false
	}
	ph := s.handles[p.walk.rules[p.at]].phase
	return ph == closed || ph == dead || ph == buried
}

// private reports whether a handle's next step concerns nobody else.
func (sc *Scenario) private(s *state, h int) bool {
	if sc.Handles[h].End == Kill {
		return false
	}
	ph := s.handles[h].phase
	return ph == cleared && !s.settling(h) || ph == settled && !s.queued(h) && sc.Fault != NoSettle && sc.Fault != ForgottenFilter
}

// settling reports whether walks are under way that began before the handle was cleared.
func (s *state) settling(h int) bool {
	return s.any(func(p *pkt) bool { return p.before>>h&1 != 0 })
}

// queued reports whether packets wait in the handle's queue.
func (s *state) queued(h int) bool {
	return s.any(func(p *pkt) bool { return p.where == waiting && int(p.at) == h })
}

// handleSteps calls f with the steps that a handle may take next.
func (sc *Scenario) handleSteps(s *state, h int, f func(step, *state, error)) {
	spec := &sc.Handles[h]
	do := func(what string, change func(n *state, o *handle)) {
		n := *s
		change(&n, &n.handles[h])
		f(step{h, what}, &n, nil)
	}
	switch p := s.handles[h].phase; {
	case p == unborn:
		do("reserves its key", func(n *state, o *handle) {
			o.key = sc.newKey(n, h)
			n.births++
			o.born, o.phase = n.births, reserved
		})
	case p == reserved:
		do("is open", func(n *state, o *handle) {
			o.phase = open
			sc.enter(n, h, spec.Filters[0])
		})
	case p == open && sc.mayChange(s, h):
		do("begins to change its filter", func(n *state, o *handle) {
			n.disown(h, func(p *pkt) bool { return !spec.Filters[1].has(sc.Packets[p.spec].Class) })
			if o.phase = widened; sc.Fault == SwapFirst {
				o.filter++
				return
			}
			sc.enter(n, h, spec.Filters[0]|spec.Filters[1])
		})
	case p == widened:
		do("swaps its program", func(n *state, o *handle) {
			if o.phase = swapped; sc.Fault == SwapFirst {
				sc.enter(n, h, spec.Filters[0]|spec.Filters[1])
				return
			}
			o.filter++
		})
	case p == swapped:
		do("has another filter", func(n *state, o *handle) {
			o.phase, o.changed = open, true
			sc.enter(n, h, spec.Filters[1])
		})
	case p == cleared && !s.settling(h):
		do("has settled", func(n *state, o *handle) { o.phase = settled })
	case p == settled && !s.queued(h):
		do("gives its queue back", func(n *state, o *handle) { o.phase = unbound })
	case p == unbound:
		do("is closed", func(n *state, o *handle) {
			o.phase = closed
			if sc.Fault != ForgottenFilter {
				sc.leave(n, h)
				sc.setGate(&n.table)
			}
		})
	case p == dead:
		do("is buried", func(n *state, o *handle) {
			o.phase = buried
			n.mark(h) // these may still meet the rule
			if sc.Fault != BuryNothing {
				sc.leave(n, h)
				sc.setGate(&n.table)
			}
		})
	}
	if spec.End == Close && s.handles[h].phase == open {
		do("begins to close", func(n *state, o *handle) {
			o.phase = cleared
			if sc.Fault != ForgottenFilter {
				o.filter = noFilter
			}
			n.disown(h, func(*pkt) bool { return true })
			if sc.Fault != NoSettle {
				n.mark(h)
			}
		})
	}
	if spec.End == Kill && s.handles[h].phase.alive() {
		do("is killed", func(n *state, o *handle) {
			if o.phase = dead; s.handles[h].phase == reserved {
				o.filter = noFilter
			}
			n.disown(h, func(*pkt) bool { return true })
			for i := range n.packets {
				if q := &n.packets[i]; q.where == waiting && int(q.at) == h {
					_ = sc.lose(n, q, h) // it was killed
				}
			}
		})
	}
}

// mayChange reports whether a handle has another filter to change to.
func (sc *Scenario) mayChange(s *state, h int) bool {
	return int(s.handles[h].filter)+1 < len(sc.Handles[h].Filters)
}

// mark marks the walks that are under way as ones that began before a handle's change.
func (s *state) mark(h int) {
	for i := range s.packets {
		if p := &s.packets[i]; p.where == walking || p.where == matched {
			p.before |= 1 << h
		}
	}
}

// any reports whether f holds for at least one packet.
func (s *state) any(f func(*pkt) bool) bool {
	for i := range s.packets {
		if f(&s.packets[i]) {
			return true
		}
	}
	return false
}

// disown releases a handle from its duty to the packets for which f holds.
func (s *state) disown(h int, f func(*pkt) bool) {
	for i := range s.packets {
		if f(&s.packets[i]) {
			s.packets[i].owed &^= 1 << h
		}
	}
}

// owes returns the handles that a packet must meet if they do not change.
func (sc *Scenario) owes(s *state, spec Packet) (owed uint8) {
	for h := range sc.Handles {
		o := &s.handles[h]
		if !o.phase.serves() || spec.From >= 0 && !sc.above(s, int(spec.From), h) {
			continue
		}
		filters := sc.Handles[h].Filters
		all := filters[min(int(o.filter), len(filters)-1)]
		if o.phase != open {
			all = filters[0] & filters[1]
		}
		if all.has(spec.Class) {
			owed |= 1 << h
		}
	}
	return owed
}

// packetSteps calls f with the steps that a packet may take next.
func (sc *Scenario) packetSteps(s *state, i int, f func(step, *state, error)) {
	do := func(what string, change func(n *state, p *pkt) error) {
		n := *s
		p := &n.packets[i]
		err := change(&n, p)
		if p.where != walking && p.where != matched {
			p.before, p.walk, p.after = 0, table{}, 0
		}
		f(step{MaxHandles + int(p.spec), what}, &n, err)
	}
	now := &s.packets[i]
	spec := sc.Packets[now.spec]
	switch now.where {
	case unsent:
		if spec.From >= 0 && !s.handles[spec.From].phase.serves() {
			return
		}
		do("is sent", func(n *state, p *pkt) error {
			p.owed = sc.owes(n, spec)
			if spec.From >= 0 && sc.Fault != InjectUnmarked {
				p.cursor = n.handles[spec.From].key + 1
			}
			return sc.begin(n, p)
		})
	case walking:
		do("asks a program", func(n *state, p *pkt) error { return sc.ask(n, p) })
	case matched:
		do("goes to the queue", func(n *state, p *pkt) error { return sc.queue(n, p) })
	case waiting:
		h := int(now.at)
		ph := s.handles[h].phase
		if !ph.serves() && ph != settled {
			return
		}
		if ph == settled && sc.Fault == CloseDrops {
			do("is dropped", func(n *state, p *pkt) error { return sc.lose(n, p, h) })
			return
		}
		do("goes on", func(n *state, p *pkt) error {
			switch sc.Fault {
			case AcceptAtOnce:
				return sc.arrive(n, p)
			case RepeatUnmarked:
			default:
				p.cursor = n.handles[h].key + 1
			}
			return sc.begin(n, p)
		})
	}
}

// ask asks the program of the rule that a walk has come to.
func (sc *Scenario) ask(s *state, p *pkt) error {
	h := int(p.walk.rules[p.at])
	matches := sc.program(s, h).has(sc.Packets[p.spec].Class)
	if err := sc.decided(s, p, h, matches); err != nil {
		return err
	}
	if matches {
		switch sc.Handles[h].Kind {
		case Divert:
			p.where = matched
			return nil
		case Sniff:
			if s.handles[h].phase != dead { // nobody is there to see the copy
				if err := sc.meet(s, p, h); err != nil {
					return err
				}
			}
		case Drop:
			return sc.drop(s, p, h)
		}
	}
	p.at++
	return sc.skip(s, p)
}

// queue puts a packet into the queue of a handle; without a queue it leaves the chain (NFQUEUE's bypass).
func (sc *Scenario) queue(s *state, p *pkt) error {
	h := int(p.walk.rules[p.at])
	if ph := s.handles[h].phase; ph >= unbound {
		return sc.bypass(s, p, h)
	}
	if err := sc.meet(s, p, h); err != nil {
		return err
	}
	p.where, p.at = waiting, uint8(h)
	return nil
}

// bypass lets a packet leave the chain at the rule of a handle whose queue has gone. Until a killed handle's rules have gone
// too, that is how it fails open.
func (sc *Scenario) bypass(s *state, p *pkt, h int) error {
	ph := s.handles[h].phase
	p.excuse = p.excuse || ph == dead || ph == buried && p.before>>h&1 != 0
	return sc.arrive(s, p)
}

// drop ends a packet at a handle that drops; a dead one's rule lets it leave the chain.
func (sc *Scenario) drop(s *state, p *pkt, h int) error {
	if ph := s.handles[h].phase; ph == dead || ph == buried {
		return sc.bypass(s, p, h)
	}
	if err := sc.meet(s, p, h); err != nil {
		return err
	}
	for g := range sc.Handles {
		if p.owed>>g&1 != 0 && p.met>>g&1 == 0 && sc.above(s, g, h) {
			return violation(p, "is dropped by handle %d before it has met handle %d", h, g)
		}
	}
	return sc.lose(s, p, h)
}

package order

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
)

// Broken is a promise that does not hold, with the steps that show it.
type Broken struct {
	Promise error
	Steps   []string
}

func (b *Broken) Error() string {
	return fmt.Sprintf("%v, after:\n\t%s", b.Promise, strings.Join(b.Steps, "\n\t"))
}

func (b *Broken) Unwrap() error { return b.Promise }

// ErrTooLarge means that a scenario has more states than were allowed.
var ErrTooLarge = errors.New("the scenario has more states than that")

// explorer goes through the states of a scenario, depth first.
type explorer struct {
	sc    *Scenario
	seen  map[uint64]struct{} // hashes: among ten million states, two collide with a probability of about 3e-6
	seed  maphash.Seed
	most  int
	steps []string
}

// Explore tries every interleaving of a scenario's steps, each state once. It returns the number of states; the error is a
// *Broken or ErrTooLarge.
func Explore(sc *Scenario, most int) (states int, err error) {
	e := &explorer{sc: sc, seen: map[uint64]struct{}{}, seed: maphash.MakeSeed(), most: most}
	s := sc.start()
	err = e.from(&s)
	return len(e.seen), err
}

// from explores the states that may follow a state.
func (e *explorer) from(s *state) (err error) {
	e.canonical(s)
	key := maphash.Comparable(e.seed, *s)
	if _, seen := e.seen[key]; seen {
		return nil
	}
	if len(e.seen) >= e.most {
		return ErrTooLarge
	}
	e.seen[key] = struct{}{}
	moved := false
	e.sc.each(s, func(t step, n *state, broken error) {
		moved = true
		if err != nil {
			return
		}
		e.steps = append(e.steps, t.String())
		if broken != nil {
			err = &Broken{broken, slices.Clone(e.steps)}
		} else {
			err = e.from(n)
		}
		e.steps = e.steps[:len(e.steps)-1]
	})
	if err == nil && !moved {
		err = e.ended(s)
	}
	return err
}

// ended checks a state in which nothing can happen any more.
func (e *explorer) ended(s *state) error {
	for h := range e.sc.Handles {
		if p := s.handles[h].phase; p != closed && p != buried {
			return &Broken{fmt.Errorf("handle %d never ends", h), slices.Clone(e.steps)}
		}
	}
	for i := range e.sc.Packets {
		if w := s.packets[i].where; w != arrived && w != lost && w != unsent {
			return &Broken{violation(&s.packets[i], "never arrives"), slices.Clone(e.steps)}
		}
	}
	return nil
}

// canonical turns states that differ only in which of several equal packets is where into one state.
func (e *explorer) canonical(s *state) {
	n := len(e.sc.Packets)
	for i := 1; i < n; i++ {
		for j := i; j > 0 && e.sc.Packets[s.packets[j-1].spec] == e.sc.Packets[s.packets[j].spec] && less(&s.packets[j], &s.packets[j-1]); j-- {
			s.packets[j-1], s.packets[j] = s.packets[j], s.packets[j-1]
			s.packets[j-1].spec, s.packets[j].spec = s.packets[j].spec, s.packets[j-1].spec
		}
	}
}

// less orders the states of packets.
func less(a, b *pkt) bool {
	for _, d := range [...]int{int(a.where) - int(b.where), int(a.at) - int(b.at), int(a.cursor) - int(b.cursor), int(a.owed) - int(b.owed),
		int(a.met) - int(b.met), int(a.before) - int(b.before), int(a.after) - int(b.after), b2i(a.excuse) - b2i(b.excuse), a.walk.compare(&b.walk)} {
		if d != 0 {
			return d < 0
		}
	}
	return false
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (t *table) compare(o *table) int {
	for i := range t.rules {
		if d := int(t.rules[i]) - int(o.rules[i]); d != 0 {
			return d
		}
		if d := int(t.terms[i]) - int(o.terms[i]); d != 0 {
			return d
		}
	}
	return int(t.gate) - int(o.gate)
}

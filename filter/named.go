package filter

import (
	"fmt"

	"github.com/opendivert/divert/internal/prog"
)

// MaxName is how long the name of a set may be, in bytes.
const MaxName = 63

// nameLength returns how many bytes at the start of a text can be part of a set's name. A point at the end is none of it.
func nameLength(text string) int {
	n := 0
	for n < len(text) && (text[n] == '-' || isWordByte(text[n])) {
		n++
	}
	for n > 0 && text[n-1] == '.' {
		n--
	}
	return n
}

// ValidName reports whether a set may have the name: letters, digits, _, - and points, MaxName at most, no point at the end.
func ValidName(name string) bool {
	return name != "" && nameLength(name) == len(name) && len(name) <= MaxName
}

// namedSet is a named set of a filter that is being compiled.
type namedSet struct {
	*prog.Named
	first string // the field that it was first used with
}

// named parses the name of a set behind "in", which is the current token.
func (p *parser) named(t *prog.Test, subject token) bool {
	name := p.text[p.tok.pos+1 : p.tok.end]
	field := shortened(p.text[subject.pos:subject.end])
	if !t.Field.TakesNamed() {
		return p.refuse(p.at(ErrBadSet, subject.pos, p.tok.end, notForSets(field), hintNotForSets(t.Field)))
	}
	set := p.sets[name]
	if set == nil {
		set = &namedSet{&prog.Named{Name: name, Members: prog.NewMembers(t.Field.HasAddresses())}, field}
		if p.sets == nil {
			p.sets = make(map[string]*namedSet)
		}
		p.sets[name] = set
	}
	if set.Members.Addresses() != t.Field.HasAddresses() {
		return p.refuse(p.at(ErrBadSet, p.tok.pos, p.tok.end, otherKind(set.Named, set.first, field), hintOtherKind))
	}
	p.advance()
	putNamed(t, set.Named)
	return true
}

// putNamed turns t into a test for the members of a named set. The operator says whether t is for them or against.
func putNamed(t *prog.Test, n *prog.Named) {
	t.Named = n
	if t.Op == prog.OpEq {
		t.Op = prog.OpIn
	} else {
		t.Op = prog.OpNotIn
	}
}

// notForSets says that a field is not looked up in named sets, and hintNotForSets what to do.
func notForSets(field string) string { return field + " is not looked up in named sets" }

func hintNotForSets(f prog.Field) string {
	switch f.Info().Kind {
	case prog.KindName:
		return "write the names themselves: " + f.String() + " in {…}"
	case prog.KindBool:
		return "it is 0 or 1; write the name alone, or with \"not\""
	}
	return "its values are names; compare it with them"
}

// otherKind says that a set is used for addresses and for numbers.
func otherKind(n *prog.Named, first, field string) string {
	return fmt.Sprintf("@%s is a set of %v here, because of %s; %s is something else", n.Name, n.Members, first, field)
}

const hintOtherKind = "a set has addresses or numbers; use two sets"

// bindNames gives the named sets of tests that were built empty members, each name the same.
func bindNames(tests []prog.Test) error {
	sets, interfaces := map[string]*namedSet{}, map[string]*prog.Named{}
	for i := range tests {
		t := &tests[i]
		switch {
		case t.Named == nil:
			continue
		case t.Named.Interface:
			if interfaces[t.Named.Name] == nil {
				interfaces[t.Named.Name] = newInterface(t.Named.Name)
			}
			t.Named = interfaces[t.Named.Name]
			continue
		}
		name, addresses := t.Named.Name, t.Field.HasAddresses()
		set := sets[name]
		if set == nil {
			set = &namedSet{&prog.Named{Name: name, Members: prog.NewMembers(addresses)}, t.Field.String()}
			sets[name] = set
		}
		if set.Members.Addresses() != addresses {
			return testError(ErrBadSet, t, otherKind(set.Named, set.first, t.Field.String()), hintOtherKind)
		}
		t.Named = set.Named
	}
	return nil
}

package filter

import (
	"fmt"

	"github.com/opendivert/divert/internal/prog"
)

// MaxName is the greatest length of a set's name, in bytes.
const MaxName = 63

// nameLength returns the length of the set name at the start of a text, in bytes. A point at the end is not part of it.
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

// ValidName reports whether a set may have the name: letters, digits, _, - and points, at most MaxName bytes, no point at
// the end.
func ValidName(name string) bool {
	return name != "" && nameLength(name) == len(name) && len(name) <= MaxName
}

// namedSet is a named set of a filter that is being compiled.
type namedSet struct {
	*prog.Named
	first string // the field of its first test
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

// putNamed turns t into a test for the members of a named set, or against them, as its operator says.
func putNamed(t *prog.Test, n *prog.Named) {
	t.Named = n
	if t.Op == prog.OpEq {
		t.Op = prog.OpIn
	} else {
		t.Op = prog.OpNotIn
	}
}

// notForSets is the message about a field that cannot be looked up in named sets, hintNotForSets the hint.
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

// otherKind is the message about a set that is used for both addresses and numbers.
func otherKind(n *prog.Named, first, field string) string {
	return fmt.Sprintf("@%s is a set of %v here, because of %s; %s is something else", n.Name, n.Members, first, field)
}

const hintOtherKind = "a set has addresses or numbers; use two sets"

// bindNames gives the named sets of tests built in Go empty members: the same for each occurrence of a name.
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

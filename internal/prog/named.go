package prog

import "github.com/opendivert/divert/internal/radix"

// Members are the values of a named set: addresses, with IPv4 ones mapped, or numbers. They change while programs look
// values up in them.
type Members struct {
	addresses bool // not numbers
	values    *radix.Set
}

// NewMembers returns an empty set.
func NewMembers(addresses bool) *Members { return &Members{addresses, radix.New()} }

// Addresses reports whether the members are addresses; otherwise they are numbers.
func (m *Members) Addresses() bool { return m.addresses }

// Values returns the values of the members: addresses as they are, numbers as NumberMember returns them.
func (m *Members) Values() *radix.Set { return m.values }

// String names the kind of the members.
func (m *Members) String() string {
	if m.addresses {
		return "addresses"
	}
	return "numbers"
}

// Named is a set that a filter names. With Interface it is the interface of that name, as a set of its index: empty until
// SetInterface fills it.
type Named struct {
	Name      string
	Members   *Members
	Interface bool
}

// String returns the set's description for errors.
func (n *Named) String() string {
	if n.Interface {
		return "interface " + string(appendName(nil, n.Name))
	}
	return "set @" + n.Name
}

// SetInterface sets the index of the interface with the name; 0: none.
func (n *Named) SetInterface(index uint32) error {
	if index == 0 {
		return n.Members.values.Replace(nil)
	}
	v := NumberMember(uint64(index))
	return n.Members.values.Replace([]radix.Range{{First: v, Last: v}})
}

// NumberMember returns the value of a number in a set of numbers. 32-bit numbers are where IPv4 addresses are in sets of
// addresses, where a look-up is shortest.
func NumberMember(n uint64) radix.Value {
	if n>>32 != 0 {
		return radix.Value{Hi: 1, Lo: n}
	}
	return radix.Value{Lo: ipv4Prefix | n}
}

// NumberOf is the inverse of NumberMember.
func NumberOf(v radix.Value) uint64 {
	if v.Hi != 0 {
		return v.Lo
	}
	return v.Lo &^ ipv4Prefix
}

// NumberRanges returns the values of all numbers from first to last.
func NumberRanges(first, last uint64) []radix.Range {
	const greatest = 1<<32 - 1
	if first > greatest || last <= greatest {
		return []radix.Range{{First: NumberMember(first), Last: NumberMember(last)}}
	}
	return []radix.Range{
		{First: NumberMember(first), Last: NumberMember(greatest)},
		{First: NumberMember(greatest + 1), Last: NumberMember(last)},
	}
}

// HasAddresses reports whether a field's values are addresses.
func (f Field) HasAddresses() bool {
	k := f.Info().Kind
	return k == KindIPv4 || k == KindIPv6 || k == KindAddr
}

// TakesNamed reports whether a field can be looked up in a named set. Flags, and the fields whose values are names, cannot.
func (f Field) TakesNamed() bool {
	return f.Info().Kind != KindBool && f.Info().Kind != KindName && f != FieldEvent && f != FieldLayer
}

// Named returns the named sets of the program, each once, in the order of their first test.
func (p *Program) Named() []*Named { return p.asked(false) }

// Interfaces returns the interfaces named by the program, each once, in the order of their first test.
func (p *Program) Interfaces() []*Named { return p.asked(true) }

// asked returns the named sets, or the interfaces.
func (p *Program) asked(interfaces bool) []*Named {
	var named []*Named
	seen := map[string]bool{}
	for i := range p.tests {
		if n := p.tests[i].Named; n != nil && n.Interface == interfaces && !seen[n.Name] {
			seen[n.Name] = true
			named = append(named, n)
		}
	}
	return named
}

// Bind returns the program with other members in its named sets, as the function members returns them; nil leaves a set
// unchanged. The kinds must be those of the program's sets.
func (p *Program) Bind(members func(*Named) *Members) *Program { return p.bind(p.Named(), members) }

// OwnInterfaces returns the program with its own sets for its interfaces, so that it is independent of other users of p;
// p itself if it names none.
func (p *Program) OwnInterfaces() *Program {
	return p.bind(p.Interfaces(), func(*Named) *Members { return NewMembers(false) })
}

func (p *Program) bind(named []*Named, members func(*Named) *Members) *Program {
	type key struct {
		name        string
		isInterface bool
	}
	bound := map[key]*Named{}
	for _, n := range named {
		if m := members(n); m != nil && m != n.Members {
			bound[key{n.Name, n.Interface}] = &Named{n.Name, m, n.Interface}
		}
	}
	if len(bound) == 0 {
		return p
	}
	tests := append([]Test(nil), p.tests...)
	for i := range tests {
		if n := tests[i].Named; n != nil && bound[key{n.Name, n.Interface}] != nil {
			tests[i].Named = bound[key{n.Name, n.Interface}]
		}
	}
	return New(p.layer, tests, p.strict)
}

// acceptsNamed reports whether a value, in the form of acceptsWide, is in the named set of in.
func (c *code) acceptsNamed(in *instr, v Value) bool {
	m := c.named[in.set]
	if m.addresses {
		return m.values.Contains(v)
	}
	if in.field.Info().Kind == KindSigned {
		neg, mag := fromOrderKey(v)
		if neg {
			return false
		}
		v = mag
	}
	return m.values.Contains(NumberMember(v.Lo))
}

package prog

import "github.com/opendivert/divert/internal/radix"

// Members are the values of a named set: addresses, of IPv4 mapped ones, or numbers. They change while programs look
// values up in them.
type Members struct {
	addresses bool // not numbers
	values    *radix.Set
}

// NewMembers returns an empty set.
func NewMembers(addresses bool) *Members { return &Members{addresses, radix.New()} }

// Addresses reports whether the members are addresses, and not numbers.
func (m *Members) Addresses() bool { return m.addresses }

// Values returns the values of the members: of addresses they are these, of numbers see NumberMember.
func (m *Members) Values() *radix.Set { return m.values }

// String says what the members are.
func (m *Members) String() string {
	if m.addresses {
		return "addresses"
	}
	return "numbers"
}

// Named is a set that a filter has by its name.
type Named struct {
	Name    string
	Members *Members
}

// NumberMember returns the value that a number has in a set of numbers. Those of 32 bits stand where the IPv4 addresses
// are among addresses, where a look-up is shortest.
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

// NumberRanges returns the values that all numbers from first to last have.
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
	return f.Info().Kind != KindBool && f != FieldEvent && f != FieldLayer
}

// Named returns the named sets of the program, each once, in the order in which they come.
func (p *Program) Named() []*Named {
	var named []*Named
	seen := map[string]bool{}
	for i := range p.tests {
		if n := p.tests[i].Named; n != nil && !seen[n.Name] {
			seen[n.Name] = true
			named = append(named, n)
		}
	}
	return named
}

// Bind returns the program with other members in its named sets, those that members returns; nil leaves a set as it is.
// Their kinds are those of the program's.
func (p *Program) Bind(members func(*Named) *Members) *Program {
	bound := map[string]*Named{}
	for _, n := range p.Named() {
		if m := members(n); m != nil && m != n.Members {
			bound[n.Name] = &Named{n.Name, m}
		}
	}
	if len(bound) == 0 {
		return p
	}
	tests := append([]Test(nil), p.tests...)
	for i := range tests {
		if n := tests[i].Named; n != nil && bound[n.Name] != nil {
			tests[i].Named = bound[n.Name]
		}
	}
	return New(p.layer, tests, p.strict)
}

// acceptsNamed reports whether a value is in the named set of in, as acceptsWide has it.
func (c *code) acceptsNamed(in *instr, v Value) bool {
	m := c.named[in.set]
	if m.addresses {
		return m.values.Contains(radix.Value(v))
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

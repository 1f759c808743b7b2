package filter

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/radix"
)

// Set is a set of addresses or of numbers. Filters of the extended dialect look values up in it by its name:
//
//	remoteAddr in @blocked and tcp.DstPort not in @ports
//
// It may change while handles work with it: every change is in force with the next packet, takes microseconds and needs
// no new program, and a look-up costs the same whatever the set's size. Several filters and handles of a program can
// share one. Compile makes an empty one for each name in a filter (Program.Set); Program.WithSets replaces it.
//
// A set consists of values, not of the elements that were added: it has every value added, and none removed since, even
// one added as part of something larger. So keep addresses that come and go in a set of their own, beside the set with
// the networks that stay: "remoteAddr in @networks or remoteAddr in @offenders". IPv4 addresses are their IPv6-mapped
// forms here, ::ffff:0:0/96, as everywhere in filters; so ::/0 includes them.
//
// It takes about 140 bytes for an IPv4 prefix and 250 for an IPv6 prefix that lies apart from others, less for
// neighbours; during an exchange for a larger one, twice that. The last filter, handle and variable that refers to it
// keeps it alive. All methods may be called by several goroutines at once; look-ups never wait. Look-ups may see a change
// of several elements half done, except one by Replace.
type Set prog.Members

func (s *Set) members() *prog.Members { return (*prog.Members)(s) }
func (s *Set) values() *radix.Set     { return s.members().Values() }

// NewAddressSet returns an empty set of addresses, of IPv4 and of IPv6.
func NewAddressSet() *Set { return (*Set)(prog.NewMembers(true)) }

// NewNumberSet returns an empty set of numbers of up to 64 bits: ports, lengths, process ids.
func NewNumberSet() *Set { return (*Set)(prog.NewMembers(false)) }

// HasAddresses reports whether s is a set of addresses; otherwise it is a set of numbers.
func (s *Set) HasAddresses() bool { return s.members().Addresses() }

// ErrSetKind is the error for an element of the wrong kind: an address for a set of numbers, or a number for a set of
// addresses.
var ErrSetKind = errors.New("filter: the set is of another kind")

// Element is an element of sets: an address, a range of addresses or a prefix; or a number or a range of numbers. The
// zero Element is in error, and the functions below say which others are. Err returns the error, and so do the methods of
// Set.
type Element struct {
	first, last radix.Value // numbers are in Lo
	addresses   bool
	err         error
	valid       bool
}

// Address returns an element of one address. It is in error if the address has a zone or is the zero Addr.
func Address(a netip.Addr) Element { return AddressRange(a, a) }

// AddressRange returns the element of all addresses from first to last, both included. It is in error if last < first, if
// they are of different families, or if one has a zone.
func AddressRange(first, last netip.Addr) Element {
	switch {
	case !first.IsValid() || !last.IsValid():
		return Element{err: errors.New("there is no address")}
	case first.Zone() != "" || last.Zone() != "":
		return Element{err: fmt.Errorf("the address %v has a zone; sets know none", first)}
	}
	switch first, last = first.Unmap(), last.Unmap(); {
	case first.Is4() != last.Is4():
		return Element{err: fmt.Errorf("the range %v-%v goes from one IP version to the other; write a range for each of them", first, last)}
	case last.Less(first):
		return Element{err: fmt.Errorf("the range %v-%v ends before it starts; put the lower end first", first, last)}
	}
	return Element{first: valueOfAddress(first), last: valueOfAddress(last), addresses: true, valid: true}
}

// Prefix returns the element of all addresses of a prefix. It is in error if the prefix is invalid or has bits set behind
// its length: netip.Prefix.Masked clears them.
func Prefix(p netip.Prefix) Element {
	switch {
	case !p.IsValid():
		return Element{err: errors.New("there is no prefix")}
	case p != p.Masked():
		return Element{err: fmt.Errorf("bits are set behind the prefix in %v; the prefix is %v", p, p.Masked())}
	}
	first, host := valueOfAddress(p.Addr()), hostMask(p.Addr().BitLen()-p.Bits())
	return Element{first: first, last: radix.Value{Hi: first.Hi | host.Hi, Lo: first.Lo | host.Lo}, addresses: true, valid: true}
}

// NumberElement returns the element of one number.
func NumberElement(n uint64) Element { return NumberRange(n, n) }

// NumberRange returns the element of all numbers from first to last, both included. It is in error if last < first.
func NumberRange(first, last uint64) Element {
	if last < first {
		return Element{err: fmt.Errorf("the range %d-%d ends before it starts; put the lower end first", first, last)}
	}
	return Element{first: radix.Value{Lo: first}, last: radix.Value{Lo: last}, valid: true}
}

func valueOfAddress(a netip.Addr) radix.Value { return valueFromBytes(a.As16()) }

// Err returns the error of the element, or nil.
func (e Element) Err() error {
	switch {
	case e.err != nil:
		return fmt.Errorf("filter: %w", e.err)
	case !e.valid:
		return errors.New("filter: an element of a set is empty")
	}
	return nil
}

// String returns the element in the notation of set files; an element in error becomes the error in angle brackets.
func (e Element) String() string {
	if err := e.Err(); err != nil {
		return "<" + err.Error() + ">"
	}
	if !e.addresses {
		if e.first == e.last {
			return fmt.Sprint(e.first.Lo)
		}
		return fmt.Sprintf("%d-%d", e.first.Lo, e.last.Lo)
	}
	return prog.AddressesText(prog.Range{First: prog.Value(e.first), Last: prog.Value(e.last)})
}

// ranges returns the values of elements.
func (s *Set) ranges(elements []Element) ([]radix.Range, error) {
	ranges := make([]radix.Range, 0, len(elements))
	for i := range elements {
		e := &elements[i]
		if err := e.Err(); err != nil {
			return nil, err
		}
		switch {
		case e.addresses != s.HasAddresses():
			return nil, fmt.Errorf("%w: %v in a set of %v", ErrSetKind, e, s.members())
		case e.addresses:
			ranges = append(ranges, radix.Range{First: e.first, Last: e.last})
		default:
			ranges = append(ranges, prog.NumberRanges(e.first.Lo, e.last.Lo)...)
		}
	}
	return ranges, nil
}

// change applies a change to elements.
func (s *Set) change(apply func(...radix.Range) error, elements []Element) error {
	ranges, err := s.ranges(elements)
	if err != nil {
		return err
	}
	if err := apply(ranges...); err != nil {
		return fmt.Errorf("filter: %w", err)
	}
	return nil
}

// Add adds elements. It adds nothing if it fails: with ErrSetKind or the error of an element, with ErrSetFull, or because
// the system has no memory for more. Once in a while a larger set replaces the memory, which takes tens of milliseconds
// for 100,000 elements; Grow avoids that.
func (s *Set) Add(elements ...Element) error { return s.change(s.values().Add, elements) }

// Remove removes the values of elements, however they were added; values not in the set are no error. It fails as Add
// does, because the rest of a larger element needs room, and then removes nothing.
func (s *Set) Remove(elements ...Element) error { return s.change(s.values().Remove, elements) }

// Replace makes the elements the only ones, in one step: each look-up meets the old set or the new one. It fails as Add
// does, and the old set stays.
func (s *Set) Replace(elements []Element) error {
	return s.change(func(r ...radix.Range) error { return s.values().Replace(r) }, elements)
}

// ErrSetFull is the error of a change that would make a set too large: 33,554,432 nodes, which is about 20 million IPv4
// addresses or 10 million IPv6 prefixes that lie apart. Two sets hold twice that: "remoteAddr in @a or remoteAddr in @b".
var ErrSetFull = radix.ErrFull

// Grow makes room for this many more elements, so that adding them needs no larger memory.
func (s *Set) Grow(elements int) error {
	if elements < 0 {
		return fmt.Errorf("filter: a set cannot grow by %d", elements)
	}
	return s.values().Grow(2 * elements)
}

// Contains reports whether an address is in a set of addresses. It allocates nothing.
func (s *Set) Contains(a netip.Addr) bool {
	return s.HasAddresses() && a.IsValid() && s.values().Contains(valueOfAddress(a))
}

// ContainsNumber reports whether a number is in a set of numbers. It allocates nothing.
func (s *Set) ContainsNumber(n uint64) bool {
	return !s.HasAddresses() && s.values().Contains(prog.NumberMember(n))
}

// All returns the values of the set at the start of the iteration, in ascending order, as the fewest possible elements:
// ranges that lie apart.
func (s *Set) All() iter.Seq[Element] {
	return func(yield func(Element) bool) {
		for r := range s.values().Ranges {
			for e := range s.elements(r) {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// elements returns a range of values as elements.
func (s *Set) elements(r radix.Range) iter.Seq[Element] {
	return func(yield func(Element) bool) {
		if !s.HasAddresses() {
			yield(Element{first: radix.Value{Lo: prog.NumberOf(r.First)}, last: radix.Value{Lo: prog.NumberOf(r.Last)}, valid: true})
			return
		}
		for _, part := range prog.SplitFamilies(prog.Range{First: prog.Value(r.First), Last: prog.Value(r.Last)}) {
			if !yield(Element{first: part.First, last: part.Last, addresses: true, valid: true}) {
				return
			}
		}
	}
}

// Sets returns the names of the named sets of the filter, in the order of their first test.
func (p *Program) Sets() []string {
	var names []string
	for _, n := range p.program().Named() {
		names = append(names, n.Name)
	}
	return names
}

// Set returns a named set of the filter, nil if it has none of that name.
func (p *Program) Set(name string) *Set {
	for _, n := range p.program().Named() {
		if n.Name == name {
			return (*Set)(n.Members)
		}
	}
	return nil
}

// WithSets returns the program with the given sets in place of its own of the same names; it keeps the others. Names that
// the filter lacks are ignored. It fails with ErrSetKind if a set is of another kind than the filter needs.
func (p *Program) WithSets(sets map[string]*Set) (*Program, error) {
	for _, n := range p.program().Named() {
		if s := sets[n.Name]; s != nil && s.HasAddresses() != n.Members.Addresses() {
			return nil, fmt.Errorf("%w: @%s is to have %v, not %v", ErrSetKind, n.Name, n.Members, s.members())
		}
	}
	bound := p.program().Bind(func(n *prog.Named) *prog.Members { return sets[n.Name].members() })
	return (*Program)(bound), nil
}

package divert

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opendivert/divert/filter"
)

// WithSet gives the filter's named set, as in "remoteAddr in @name", the members of s. Handles with the same set share
// it. Without WithSet the handle has an empty set, see Handle.Set. Open fails with ErrInvalid if the filter has no set of
// that name, and with filter.ErrSetKind if it needs a set of the other kind.
func WithSet(name string, s *filter.Set) Option {
	return func(o *options) {
		switch {
		case s == nil:
			o.wrong = fmt.Errorf("%w: the set @%s is nil; filter.NewAddressSet and filter.NewNumberSet make one", ErrInvalid, name)
		case o.sets == nil:
			o.sets = map[string]*filter.Set{name: s}
		default:
			o.sets[name] = s
		}
	}
}

// Set returns a named set of the handle's filter, so that the program can change it: the set given by WithSet, or an
// initially empty one. It stays the handle's set of that name when SetFilter sets another filter, even one without it.
// Set fails with ErrInvalid if no filter of the handle has had a set of that name.
func (h *Handle) Set(name string) (*filter.Set, error) {
	if h.engine == nil {
		return nil, opError("set", errUnopened)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sets[name]; s != nil {
		return s, nil
	}
	return nil, opError("set", noSuchSet(name, slices.Sorted(maps.Keys(h.sets))))
}

// noSuchSet is the error for a set name that the filter lacks.
func noSuchSet(name string, names []string) error {
	has := "no named set; one is written as remoteAddr in @" + name
	if len(names) > 0 {
		has = "@" + strings.Join(names, ", @")
	}
	return fmt.Errorf("%w: the filter has no set @%s; it has %s", ErrInvalid, name, has)
}

// withSets returns the program with the sets from the options.
func (o *options) withSets(p *filter.Program) (*filter.Program, error) {
	names := p.Sets()
	for _, name := range slices.Sorted(maps.Keys(o.sets)) {
		if !slices.Contains(names, name) {
			return nil, noSuchSet(name, names)
		}
	}
	return p.WithSets(o.sets)
}

// keepSets notes the sets of a filter now in force. Sets of other names stay.
func (h *Handle) keepSets(p *filter.Program) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range p.Sets() {
		if h.sets == nil {
			h.sets = make(map[string]*filter.Set)
		}
		h.sets[name] = p.Set(name)
	}
}

// heldSets returns the sets of the handle. The map must not be changed.
func (h *Handle) heldSets() map[string]*filter.Set {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.sets)
}

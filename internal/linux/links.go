//go:build linux

package linux

import (
	"github.com/opendivert/divert/internal/linux/links"
	"github.com/opendivert/divert/internal/prog"
)

// followLinks keeps the interfaces that a filter names known, beside those of the filter in force.
func (h *handle) followLinks(p *prog.Program) error {
	if len(p.Interfaces()) == 0 {
		return nil
	}
	if h.links == nil {
		err := h.ns.Do(func() (err error) {
			h.links, err = links.Open()
			return err
		})
		if err != nil {
			return err
		}
	}
	return h.links.Follow(p)
}

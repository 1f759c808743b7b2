//go:build linux

package linux

import (
	"net"

	"github.com/opendivert/divert/internal/linux/life"
	"github.com/opendivert/divert/internal/linux/links"
	"github.com/opendivert/divert/internal/prog"
)

// Follow implements engine.Follower.
func (h *handle) Follow(p *prog.Program) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.life.Is(life.Closed) {
		return net.ErrClosed
	}
	if err := h.followLinks(p); err != nil {
		return err
	}
	h.beside = append(h.beside, p)
	return nil
}

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

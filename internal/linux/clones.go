//go:build linux

package linux

import (
	"errors"
	"os"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/rules"
)

// conntrackPath is there in a network namespace if the kernel has connection tracking.
const conntrackPath = "/proc/sys/net/netfilter/nf_conntrack_count"

// checkClones prepares the handle's programs to leave packets alone that the queue would drop, see codegen.CloneCheck. Where
// programs cannot see which those are, or the kernel tracks no connections yet, such packets are lost and counted as lost.
func (h *handle) checkClones() error {
	if !h.source.Wants().Queued || !kernel.AtLeast(kernel.Version{Major: 6, Minor: 11}) || !mayPerfmon() {
		return nil
	}
	var there error
	if err := h.ns.Do(func() error {
		_, there = os.Stat(conntrackPath)
		return nil
	}); err != nil || errors.Is(there, os.ErrNotExist) {
		return err
	}
	check, err := codegen.FindCloneCheck()
	if err != nil {
		return nil
	}
	if h.clones, err = codegen.NewClones(); err != nil {
		return err
	}
	h.cloneCheck = check
	return nil
}

// clonesCome reports whether packets of a chain can be clones whose connection is new: where packets come in, nothing
// is tracked yet.
func clonesCome(c rules.Chain) bool { return c == rules.Outbound || c == rules.Forward }

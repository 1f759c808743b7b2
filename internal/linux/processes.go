//go:build linux

package linux

import (
	"fmt"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/processes"
	"github.com/opendivert/divert/internal/linux/processmap"
	"github.com/opendivert/divert/internal/linux/rights"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// testsProcess reports whether a filter of packets asks for their process.
func testsProcess(p *prog.Program) bool {
	return p.Layer() == packet.LayerNetwork && p.Asks(prog.Field.OfProcess)
}

// wantsProcess reports whether a handle with the filter needs the processes of packets.
func (h *handle) wantsProcess(p *prog.Program) bool {
	return h.layer == packet.LayerNetwork && (h.cfg.Processes || testsProcess(p))
}

// tellsProcess reports whether the handle's addresses have the process.
func (h *handle) tellsProcess(p *prog.Program) bool {
	return h.wantsProcess(p) && h.cfg.Flags&engine.FlagDrop == 0
}

// noProcess says that the process of a packet cannot be known, and what would help.
func noProcess(err error) error {
	return fmt.Errorf("%w (%w): only eBPF programs on the root of a cgroup2 file system know it: %w",
		engine.ErrNoProcess, engine.ErrNotSupported, rights.Refusal(err))
}

// refuseProcess returns why the interpreter cannot serve a filter, nil if it can.
func (h *handle) refuseProcess(p *prog.Program) error {
	if !h.wantsProcess(p) {
		return nil
	}
	return noProcess(fmt.Errorf("this handle has the %s", h.decider))
}

// processesFor returns the processes for a filter: the ones that the handle has, or new ones, or nil if it needs
// none.
func (h *handle) processesFor(p *prog.Program) (*processes.Processes, error) {
	switch {
	case !h.wantsProcess(p):
		return nil, nil
	case h.processes != nil:
		return h.processes, nil
	}
	var ps *processes.Processes
	err := h.ns.Do(func() (err error) {
		ps, err = processes.Open()
		return err
	})
	if err != nil {
		if !mayPerfmon() {
			err = fmt.Errorf("without CAP_PERFMON they may not ask who is running: %w", err)
		}
		return nil, noProcess(err)
	}
	return ps, nil
}

// keepProcesses makes ps those of the handle and lets go of others.
func (h *handle) keepProcesses(ps *processes.Processes) error {
	before := h.processes
	h.processes = ps
	if before != ps {
		h.useNames()
	}
	if before == nil || before == ps {
		return nil
	}
	return before.Close()
}

// useNames fills in the names of processes in addresses, if addresses have processes.
func (h *handle) useNames() {
	if h.tellsProcess(h.filter) {
		h.names.Use(h.processes)
	} else {
		h.names.Use(nil)
	}
}

// processMaps returns the maps for filter programs, nil if there are none.
func processMaps(ps *processes.Processes) *processmap.Maps {
	if ps == nil {
		return nil
	}
	return ps.Maps()
}

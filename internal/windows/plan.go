package windows

import (
	"errors"
	"fmt"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// plan is the way to execute a filter.
//
// Exact: the driver can express the filter (at most 255 tests, with sets as comparisons) and decides alone; packets that
// do not match never leave the kernel.
//
// Judged: the driver gets a wider filter, which matches at least the same packets, and the interpreter decides about the
// packets it delivers. A packet that does not match goes back unchanged; a copy is discarded. This serves filters with
// too many tests, those with ipv6.FlowLabel, whose true value the driver cannot see, and all filters on a handle that
// asks for the interpreter.
//
// Judging needs packets that can go back. This excludes handles that drop, handles that receive nothing, and the layer
// SOCKET without Sniff: a refused call stays refused.
type plan struct {
	program      *prog.Program // the handle's filter
	judged       bool          // the interpreter decides after the driver
	open         bool          // the driver's filter matches everything
	instructions []byte        // for the driver
	hints        uint64        // the filter flags for the driver
	flags        uint64        // the handle's flags for the driver
}

// planFor decides how to execute a filter.
func planFor(cfg *engine.Config, p *prog.Program) (*plan, error) {
	layer := p.Layer()
	if packets(layer) && (usesProcess(p) || cfg.Processes) {
		return nil, fmt.Errorf("%w (%w): the Windows driver tells it at the layers FLOW and SOCKET only", engine.ErrNoProcess, engine.ErrNotSupported)
	}
	for _, t := range p.Tests() {
		if t.Field == prog.FieldProcess || t.Field == prog.FieldInterface {
			return nil, fmt.Errorf("filters by name (%v) are %w on Windows, whose driver knows numbers: compare %v", t.Field, engine.ErrNotSupported,
				map[prog.Field]prog.Field{prog.FieldProcess: prog.FieldProcessID, prog.FieldInterface: prog.FieldIfIdx}[t.Field])
		}
	}
	if cfg.Hang.After != 0 {
		return nil, fmt.Errorf("the Windows driver lets packets wait for the program, whatever it does: to pass or drop them when it hangs is %w", engine.ErrNotSupported)
	}
	if cfg.FailOpen && cfg.Flags&engine.FlagSniff == 0 {
		return nil, fmt.Errorf("the Windows driver drops what its queue has no room for: fail-open is %w", engine.ErrNotSupported)
	}
	wide, exact := p.Widen()
	// Flows are counted here, so all packets must come.
	if (cfg.Mode == engine.ModeInterpret || p.CountsFlows()) && cfg.Flags&(engine.FlagDrop|engine.FlagSendOnly) == 0 {
		wide, exact = prog.Constant(layer, true), false
	}
	pl := &plan{program: p, open: wide.MatchesAll(), flags: cfg.Flags}
	if !exact {
		if err := pl.judge(cfg, layer); err != nil {
			return nil, err
		}
	}
	var err error
	if pl.instructions, err = wide.AppendInstructions(nil); err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrInvalid, err)
	}
	pl.hints = uint64(wide.Hints())
	return pl, nil
}

// judge makes the plan judged, if the interpreter may decide.
func (pl *plan) judge(cfg *engine.Config, layer packet.Layer) error {
	pl.judged = true
	reason := pl.program.DriverCheck()
	if pl.program.Strict() && reason != nil {
		return fmt.Errorf("%w: %w", engine.ErrInvalid, reason) // like the original
	}
	if reason == nil {
		reason = errors.New("the interpreter was asked for")
	}
	way := ""
	switch {
	case cfg.Mode == engine.ModeKernel:
		way = "in the kernel"
	case cfg.Flags&engine.FlagDrop != 0:
		way = "for a handle that drops"
	case cfg.Flags&engine.FlagSendOnly != 0:
		way = "for a handle that only sends"
	case layer == packet.LayerSocket && cfg.Flags&engine.FlagSniff == 0:
		way = "for a handle that blocks socket calls"
	}
	if way != "" {
		return fmt.Errorf("the Windows driver cannot carry out this filter %s: %w (%w)", way, engine.ErrNotSupported, reason)
	}
	if pl.reinjects(cfg) {
		pl.flags &^= engine.FlagRecvOnly // the driver must let us send packets that do not match
	}
	return nil
}

// reinjects reports whether packets that do not match have to go back.
func (pl *plan) reinjects(cfg *engine.Config) bool {
	return pl.judged && packets(pl.program.Layer()) && cfg.Flags&engine.FlagSniff == 0
}

// packets reports whether a layer's items are packets.
func packets(l packet.Layer) bool { return l == packet.LayerNetwork || l == packet.LayerForward }

// usesProcess reports whether a program tests the process of a packet.
func usesProcess(p *prog.Program) bool {
	for _, t := range p.Tests() {
		if t.Field.OfProcess() {
			return true
		}
	}
	return false
}

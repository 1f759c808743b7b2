//go:build linux

package sockets

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/packet"
)

// hook is a place in the kernel at which a program of a handle runs.
type hook struct {
	name   string
	kind   ebpf.ProgramType
	attach ebpf.AttachType
	// build emits the program. It reports false if the filter leaves it nothing to do.
	build func(g *generator) (bool, error)
}

// generator generates the program of one hook.
type generator struct {
	builder
	filter  *filter.Program
	flags   uint64 // of the handle
	cookie  uint64 // of the network namespace
	decider codegen.EventDecider
}

// sniffs reports whether the handle refuses nothing.
func (g *generator) sniffs() bool { return g.flags&engine.FlagSniff != 0 }

// drops reports whether the handle refuses without telling.
func (g *generator) drops() bool { return g.flags&engine.FlagDrop != 0 }

// can reports whether the filter can match an event, in either direction.
func (g *generator) can(e packet.Event) (bool, error) {
	for _, inbound := range [...]bool{false, true} {
		if inbound != (e == packet.EventSocketAccept) && g.filter.Layer() == packet.LayerSocket {
			continue // only ACCEPT is inbound
		}
		var scratch codegen.EventDecider
		_, outcome, err := scratch.Decide(g.filter, codegen.EventHook{Event: e, Inbound: inbound})
		if outcome != codegen.Never || err != nil {
			return true, err
		}
	}
	return false, nil
}

// needs reports whether the filter can match any of the events.
func (g *generator) needs(events ...packet.Event) (bool, error) {
	for _, e := range events {
		if yes, err := g.can(e); yes || err != nil {
			return yes, err
		}
	}
	return false, nil
}

// decide lets the operation pass unless the filter matches the record. It reports false, and emits nothing,
// if that is so for every record.
func (g *generator) decide(h codegen.EventHook) (bool, error) {
	code, outcome, err := g.decider.Decide(g.filter, h)
	if err != nil || outcome == codegen.Never {
		return false, err
	}
	g.setByte(codegen.EventKind, int64(h.Event))
	if outcome == codegen.Depends {
		g.emit(code...)
		g.allowIf(asm.JEq, asm.R0, 0)
	}
	return true, nil
}

// conclude ends a program behind a decision that matched: the operation is told and refused, as the
// handle's flags want it. undo is emitted before the refusal.
func (g *generator) conclude(undo func()) {
	switch {
	case g.sniffs():
		g.tell()
		g.leave(allow)
		return
	case g.drops():
		g.count(counterDropped)
	default:
		g.builder.flags(flagRefused, 0)
		g.tell()
	}
	if undo != nil {
		undo()
	}
	g.refuse()
}

// usesLocal reports whether a filter asks for the local address or port.
func usesLocal(p *filter.Program) bool {
	for _, t := range p.Tests() {
		if t.Field == filter.FieldLocalAddr || t.Field == filter.FieldLocalPort {
			return true
		}
	}
	return false
}

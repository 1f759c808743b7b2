//go:build linux

package eventprog

import (
	"slices"

	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/eventmap"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// generator generates the program of one hook.
type generator struct {
	cgprog.Builder
	parts      asm.Instructions // of a program that has parts, see operations
	filter     *prog.Program
	flags      uint64 // of the handle
	cookie     uint64 // of the network namespace
	inode      uint32 // of the same, for programs that cannot get the cookie
	generation uint16 // of the filter, see loadPeer
	decider    codegen.EventDecider
	early      func()   // emitted when the storage of a socket has been found, before the record begins
	owed       []func() // parts of the record that are only wanted if the filter matches
}

// sniffs reports whether the handle refuses nothing.
func (g *generator) sniffs() bool { return g.flags&engine.FlagSniff != 0 }

// drops reports whether the handle refuses without a record.
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
	if g.asksForTime() {
		g.Stamp()
	}
	if outcome == codegen.Depends {
		g.Emit(code...)
		g.AllowIf(asm.JEq, asm.R0, 0)
	}
	g.SetByte(codegen.EventKind, int64(h.Event))
	g.settle()
	return true, nil
}

// asksForTime reports whether the filter asks for the time.
func (g *generator) asksForTime() bool { return g.uses(prog.FieldTimestamp) }

// usesLocal reports whether the filter asks for the local address or port.
func (g *generator) usesLocal() bool { return g.uses(prog.FieldLocalAddr, prog.FieldLocalPort) }

// uses reports whether the filter has a test of one of the fields.
func (g *generator) uses(fields ...prog.Field) bool {
	return g.filter.Asks(func(f prog.Field) bool { return slices.Contains(fields, f) })
}

// keeps reports whether anything has to be remembered of sockets from one event to the next.
func (g *generator) keeps() (bool, error) {
	if g.filter.Layer() == packet.LayerFlow || !opsKnowWho() {
		return true, nil
	}
	if yes, err := g.needs(packet.EventSocketAccept, packet.EventSocketClose); yes || err != nil {
		return yes, err
	}
	return g.refusesLate()
}

// opsKnowWho reports whether programs of sock_ops may ask for the running process and its name.
func opsKnowWho() bool { return cgprog.SockOpsProcess.Has() && cgprog.SockOpsName.Has() }

// refusesLate reports whether the handle may refuse something when it is too late for the kernel to do it.
func (g *generator) refusesLate() (bool, error) {
	if g.sniffs() {
		return false, nil
	}
	late, err := g.can(packet.EventSocketListen)
	if err == nil && !late && g.usesLocal() {
		late, err = g.can(packet.EventSocketConnect)
	}
	return late, err
}

// start starts the record of an event of a socket, with its endpoint and the running process where the hook knows it. At a hook
// that may refuse, operations that were refused already pass. It reports whether the record is kept; if not, parts that the
// filter does not ask for are written after a match.
func (g *generator) start(sock int16, mayRefuse bool) (bool, error) {
	keeps, err := g.keeps()
	now := func(f func()) { f() }
	later := func(f func()) { g.owed = append(g.owed, f) }
	when := map[bool]func(func()){true: now, false: later}
	g.owed = nil
	if mayRefuse {
		when[keeps](g.UnlessRefused)
	}
	if keeps {
		g.storage(sock, true)
		if g.early != nil {
			g.early()
		}
		g.recall()
	} else {
		g.blank()
	}
	when[keeps || g.uses(prog.FieldEndpointID)](g.Cookie)
	if sock != cgprog.OpsSock || cgprog.SockOpsProcess.Has() {
		when[keeps || g.uses(prog.FieldProcessID)](g.Process)
	}
	if sock != cgprog.OpsSock || cgprog.SockOpsName.Has() {
		when[keeps || g.uses(prog.FieldProcess)](g.Name)
	}
	return keeps, err
}

// settle emits the code that completes the record.
func (g *generator) settle() {
	for _, f := range g.owed {
		f()
	}
	g.owed = nil
}

// tell sends the record to user space.
func (g *generator) tell() {
	if !g.asksForTime() {
		g.Stamp()
	}
	told := g.NewLabel()
	g.Emit(cgprog.MapPtr(asm.R1, eventmap.RingMap))
	g.Point(asm.R2, codegen.EventFrame)
	g.Emit(
		asm.Mov.Imm(asm.R3, codegen.EventSize),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(),
	)
	g.JumpImm64(asm.JEq, asm.R0, 0, told)
	g.count(eventmap.CounterLost)
	g.Mark(told)
}

// conclude ends a program behind a decision that matched: it reports the operation and refuses it, as the handle's flags say.
// undo is emitted before the refusal.
func (g *generator) conclude(undo func()) {
	switch {
	case g.sniffs():
		g.tell()
		g.Leave(cgprog.Allow)
		return
	case g.drops():
		g.count(eventmap.CounterDropped)
	default:
		g.setFlags(eventmap.FlagRefused, 0)
		g.tell()
	}
	if undo != nil {
		undo()
	}
	g.refuse()
}

//go:build linux

package eventprog

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/eventmap"
	"github.com/opendivert/divert/packet"
)

// flowPrograms are the programs of the layer FLOW.
var flowPrograms = []Program{
	{cgprog.Hook{Name: "create", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCGroupInetSockCreate}, (*generator).create},
	{cgprog.Hook{Name: "owner4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet4Connect}, (*generator).owner},
	{cgprog.Hook{Name: "owner6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet6Connect}, (*generator).owner},
	{cgprog.Hook{Name: "tcp", Kind: ebpf.SockOps, Attach: ebpf.AttachCGroupSockOps}, operations(
		part{cgprog.OpTCPListen, (*generator).listener},
		part{cgprog.OpActiveEstablished, func(g *generator) (bool, error) { return g.established(false) }},
		part{cgprog.OpPassiveEstablished, func(g *generator) (bool, error) { return g.established(true) }},
		part{cgprog.OpState, (*generator).ended})},
	{cgprog.Hook{Name: "release", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCgroupInetSockRelease}, (*generator).released},
	{cgprog.Hook{Name: "in", Kind: ebpf.CGroupSKB, Attach: ebpf.AttachCGroupInetIngress}, func(g *generator) (bool, error) { return g.datagram(true) }},
	{cgprog.Hook{Name: "out", Kind: ebpf.CGroupSKB, Attach: ebpf.AttachCGroupInetEgress}, func(g *generator) (bool, error) { return g.datagram(false) }},
}

// owner remembers who connects a socket.
func (g *generator) owner() (bool, error) {
	g.Begin(g.cookie)
	g.storage(cgprog.AddrSock, true)
	g.owned(true)
	return true, nil
}

// listener remembers the process that listens.
func (g *generator) listener() (bool, error) {
	g.Begin(g.cookie)
	g.storage(cgprog.OpsSock, true)
	// Connections learn their parent from here.
	g.Emit(
		asm.Mov.Reg(asm.R1, bpfasm.Context),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(regStorage, eventmap.Body(codegen.EventEndpoint), asm.R0, asm.DWord),
	)
	if !cgprog.SockOpsProcess.Has() {
		g.Leave(cgprog.Allow)
		return true, nil
	}
	g.owned(cgprog.SockOpsName.Has())
	return true, nil
}

// owned makes the running process that of the socket, and its name too, if the hook knows that.
func (g *generator) owned(named bool) {
	g.Emit(
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.StoreMem(regStorage, eventmap.Body(codegen.EventProcess), asm.R0, asm.Word),
	)
	if named {
		g.Emit(
			asm.Mov.Reg(asm.R1, regStorage),
			asm.Add.Imm(asm.R1, int32(eventmap.Body(codegen.EventName))),
			asm.Mov.Imm(asm.R2, codegen.NameSize),
			asm.FnGetCurrentComm.Call(),
		)
	}
	g.Leave(cgprog.Allow)
}

// established runs when a connection of TCP is established.
func (g *generator) established(inbound bool) (bool, error) {
	g.Begin(g.cookie)
	g.storage(cgprog.OpsSock, true)
	g.recall()
	if inbound {
		g.descend()
	} else {
		g.Cookie()
		g.TCPSides(true)
	}
	g.keep()
	return g.flow(inbound, cgprog.ProtoTCP)
}

// flow ends a program that has found a new flow. User space owns the table of flows: the program reports those for which the
// filter matches either event.
func (g *generator) flow(inbound bool, protocol uint8) (bool, error) {
	if g.asksForTime() {
		g.Stamp()
	}
	opened, err := g.answer(codegen.EventHook{Event: packet.EventFlowEstablished, Inbound: inbound, Protocol: protocol})
	if err != nil {
		return false, err
	}
	if opened {
		g.Emit(
			asm.Mul.Imm32(asm.R0, eventmap.FlagMatched),
			asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventFlags), asm.Word),
			asm.Or.Reg32(asm.R1, asm.R0),
			asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventFlags), asm.R1, asm.Word),
		)
	}
	closed, err := g.answerDeleted(codegen.EventHook{Event: packet.EventFlowDeleted, Inbound: inbound, Protocol: protocol})
	if err != nil || !opened && !closed {
		return false, err
	}
	if closed {
		tell := g.NewLabel()
		g.JumpImm64(asm.JNE, asm.R0, 0, tell)
		g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventFlags), asm.Word))
		g.AllowUnlessSet(asm.R1, eventmap.FlagMatched)
		g.Mark(tell)
		g.storedFlags(eventmap.FlagTracked, 0)
		if protocol == cgprog.ProtoTCP {
			g.WatchState()
		}
	} else {
		g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventFlags), asm.Word))
		g.AllowUnlessSet(asm.R1, eventmap.FlagMatched)
	}
	g.SetByte(codegen.EventKind, int64(packet.EventFlowEstablished))
	if inbound {
		g.setFlags(eventmap.FlagInbound, 0)
	}
	g.tell()
	g.Leave(cgprog.Allow)
	return true, nil
}

// answer leaves in R0 whether the filter matches the record. It reports false, and emits nothing, if it
// matches none.
func (g *generator) answer(h codegen.EventHook) (bool, error) {
	code, outcome, err := g.decider.Decide(g.filter, h)
	switch {
	case err != nil || outcome == codegen.Never:
		return false, err
	case outcome == codegen.Always:
		g.Emit(asm.Mov.Imm(asm.R0, 1))
	default:
		g.Emit(code...)
	}
	return true, nil
}

// answerDeleted is answer for DELETED when the flow begins, when nobody knows yet at what time it will end.
func (g *generator) answerDeleted(h codegen.EventHook) (bool, error) {
	if !g.asksForTime() {
		return g.answer(h)
	}
	_, outcome, err := g.decider.Decide(g.filter, h)
	if err != nil || outcome == codegen.Never {
		return false, err
	}
	g.Emit(asm.Mov.Imm(asm.R0, 1))
	return true, nil
}

// ended runs when a connection of TCP is over.
func (g *generator) ended() (bool, error) {
	g.ends()
	g.storage(cgprog.OpsSock, false)
	return g.end()
}

// released runs when a process closes a socket. Connections of TCP live on for a while.
func (g *generator) released() (bool, error) {
	g.Begin(g.cookie)
	g.storage(cgprog.InContext, false)
	g.Emit(asm.LoadMem(asm.R1, regStorage, eventmap.Body(codegen.EventProtocol), asm.Byte))
	g.AllowIf(asm.JEq, asm.R1, cgprog.ProtoTCP)
	return g.end()
}

// end reports that the flows of the socket are over, if user space knows any.
func (g *generator) end() (bool, error) {
	tracked, err := g.can(packet.EventFlowDeleted)
	if !tracked || err != nil {
		return false, err
	}
	g.Emit(asm.LoadMem(asm.R1, regStorage, eventmap.Body(codegen.EventFlags), asm.Word))
	g.AllowUnlessSet(asm.R1, eventmap.FlagTracked)
	g.storedFlags(0, eventmap.FlagTracked)
	g.recall()
	g.setFlags(eventmap.FlagEnd, 0)
	g.SetByte(codegen.EventKind, int64(packet.EventFlowDeleted))
	g.tell()
	g.Leave(cgprog.Allow)
	return true, nil
}

// datagram runs for each packet of a socket other than of TCP.
func (g *generator) datagram(inbound bool) (bool, error) {
	wanted, err := g.needs(packet.EventFlowEstablished, packet.EventFlowDeleted)
	if !wanted || err != nil {
		return false, err
	}
	g.traffic(asm.JEq, cgprog.ProtoTCP)
	g.recall()
	g.Cookie()
	g.packet(inbound)
	g.AllowIf(asm.JEq, asm.R8, cgprog.ProtoTCP)
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(regStorage, eventmap.Body(codegen.EventEndpoint), asm.R1, asm.DWord),
		asm.StoreMem(regStorage, eventmap.Body(codegen.EventProtocol), asm.R8, asm.Byte),
	)
	g.flowKey()
	g.Stamp()
	first := g.NewLabel()
	g.LookUp(eventmap.FlowsMap, frameKey)
	g.JumpImm64(asm.JEq, asm.R0, 0, first)
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventTime), asm.DWord),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	)
	g.Leave(cgprog.Allow)
	g.Mark(first)
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventTime), asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameValue, asm.R1, asm.DWord),
	)
	g.Update(eventmap.FlowsMap, frameKey, frameValue, cgprog.UpdateAny)
	return g.flow(inbound, 0)
}

// flowKey makes the key of the map of flows.
func (g *generator) flowKey() {
	at := int16(frameKey)
	for _, f := range [...]int16{
		codegen.EventEndpoint, codegen.EventLocal, codegen.EventLocal + 8, codegen.EventRemote, codegen.EventRemote + 8,
	} {
		g.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(f), asm.DWord),
			asm.StoreMem(bpfasm.Frame, at, asm.R1, asm.DWord),
		)
		at += 8
	}
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventLocalPort), asm.Word), // both
		asm.StoreMem(bpfasm.Frame, at, asm.R1, asm.Word),
		asm.StoreMem(bpfasm.Frame, at+4, asm.R8, asm.Word),
	)
}

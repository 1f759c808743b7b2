//go:build linux

package sockets

import (
	"encoding/binary"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/packet"
)

// flowHooks are the hooks of the layer FLOW.
var flowHooks = []hook{
	{"create", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate, "", (*generator).create},
	{"owner4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, "", (*generator).owner},
	{"owner6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect, "", (*generator).owner},
	{"tcp", ebpf.SockOps, ebpf.AttachCGroupSockOps, "", operations(
		part{opTCPListen, (*generator).listener},
		part{opActiveEstablished, func(g *generator) (bool, error) { return g.established(false) }},
		part{opPassiveEstablished, func(g *generator) (bool, error) { return g.established(true) }},
		part{opState, (*generator).ended})},
	{"release", ebpf.CGroupSock, ebpf.AttachCgroupInetSockRelease, "", (*generator).released},
	{"in", ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress, "", func(g *generator) (bool, error) { return g.datagram(true) }},
	{"out", ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress, "", func(g *generator) (bool, error) { return g.datagram(false) }},
}

// owner remembers who connects a socket.
func (g *generator) owner() (bool, error) {
	g.begin(g.cookie)
	g.storage(addrSock, true)
	g.owned()
	return true, nil
}

// listener remembers who listens.
func (g *generator) listener() (bool, error) {
	g.begin(g.cookie)
	g.storage(opsSock, true)
	// Connections find out who the parent is from here.
	g.emit(
		asm.Mov.Reg(asm.R1, regContext),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(regStorage, body(codegen.EventEndpoint), asm.R0, asm.DWord),
	)
	if !sockOpsProcess() {
		g.leave(allow)
		return true, nil
	}
	g.owned()
	return true, nil
}

// owned makes the running process that of the socket.
func (g *generator) owned() {
	g.emit(
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.StoreMem(regStorage, body(codegen.EventProcess), asm.R0, asm.Word),
	)
	g.leave(allow)
}

// established runs when a connection of TCP is established.
func (g *generator) established(inbound bool) (bool, error) {
	g.begin(g.cookie)
	g.storage(opsSock, true)
	g.recall()
	if inbound {
		g.descend()
	} else {
		g.builder.cookie()
		g.tcpSides(true)
	}
	g.keep()
	return g.flow(inbound, protoTCP)
}

// flow ends a program that has found a new flow. User space owns the table of flows: it is told of those
// for which the filter matches either event.
func (g *generator) flow(inbound bool, protocol uint8) (bool, error) {
	if g.asksForTime() {
		g.stamp()
	}
	opened, err := g.answer(codegen.EventHook{Event: packet.EventFlowEstablished, Inbound: inbound, Protocol: protocol})
	if err != nil {
		return false, err
	}
	if opened {
		g.emit(
			asm.Mul.Imm32(asm.R0, flagMatched),
			asm.LoadMem(asm.R1, regFrame, record(codegen.EventFlags), asm.Word),
			asm.Or.Reg32(asm.R1, asm.R0),
			asm.StoreMem(regFrame, record(codegen.EventFlags), asm.R1, asm.Word),
		)
	}
	closed, err := g.answerDeleted(codegen.EventHook{Event: packet.EventFlowDeleted, Inbound: inbound, Protocol: protocol})
	if err != nil || !opened && !closed {
		return false, err
	}
	if closed {
		tell := g.newLabel()
		g.emit(
			asm.JNE.Imm(asm.R0, 0, tell),
			asm.LoadMem(asm.R1, regFrame, record(codegen.EventFlags), asm.Word),
		)
		g.allowUnlessSet(asm.R1, flagMatched)
		g.mark(tell)
		g.storedFlags(flagTracked, 0)
		if protocol == protoTCP {
			g.watchState()
		}
	} else {
		g.emit(asm.LoadMem(asm.R1, regFrame, record(codegen.EventFlags), asm.Word))
		g.allowUnlessSet(asm.R1, flagMatched)
	}
	g.setByte(codegen.EventKind, int64(packet.EventFlowEstablished))
	if inbound {
		g.builder.flags(flagInbound, 0)
	}
	g.tell()
	g.leave(allow)
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
		g.emit(asm.Mov.Imm(asm.R0, 1))
	default:
		g.emit(code...)
	}
	return true, nil
}

// answerDeleted is answer for DELETED when the flow begins. Of the time when it will end nothing is known.
func (g *generator) answerDeleted(h codegen.EventHook) (bool, error) {
	if !g.asksForTime() {
		return g.answer(h)
	}
	_, outcome, err := g.decider.Decide(g.filter, h)
	if err != nil || outcome == codegen.Never {
		return false, err
	}
	g.emit(asm.Mov.Imm(asm.R0, 1))
	return true, nil
}

// ended runs when a connection of TCP is over.
func (g *generator) ended() (bool, error) {
	g.ends()
	g.storage(opsSock, false)
	return g.end()
}

// released runs when a process closes a socket. Connections of TCP live on for a while.
func (g *generator) released() (bool, error) {
	g.begin(g.cookie)
	g.storage(inContext, false)
	g.emit(asm.LoadMem(asm.R1, regStorage, body(codegen.EventProtocol), asm.Byte))
	g.allowIf(asm.JEq, asm.R1, protoTCP)
	return g.end()
}

// end tells that the flows of the socket are over, if user space knows any.
func (g *generator) end() (bool, error) {
	tracked, err := g.can(packet.EventFlowDeleted)
	if !tracked || err != nil {
		return false, err
	}
	g.emit(asm.LoadMem(asm.R1, regStorage, body(codegen.EventFlags), asm.Word))
	g.allowUnlessSet(asm.R1, flagTracked)
	g.storedFlags(0, flagTracked)
	g.recall()
	g.builder.flags(flagEnd, 0)
	g.setByte(codegen.EventKind, int64(packet.EventFlowDeleted))
	g.tell()
	g.leave(allow)
	return true, nil
}

// datagram runs for each packet of a socket other than of TCP.
func (g *generator) datagram(inbound bool) (bool, error) {
	wanted, err := g.needs(packet.EventFlowEstablished, packet.EventFlowDeleted)
	if !wanted || err != nil {
		return false, err
	}
	g.traffic(asm.JEq, protoTCP)
	g.recall()
	g.builder.cookie()
	g.packet(inbound)
	g.allowIf(asm.JEq, asm.R8, protoTCP)
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(regStorage, body(codegen.EventEndpoint), asm.R1, asm.DWord),
		asm.StoreMem(regStorage, body(codegen.EventProtocol), asm.R8, asm.Byte),
	)
	g.flowKey()
	g.stamp()
	first := g.newLabel()
	g.emit(mapPtr(asm.R1, flowsMap))
	g.point(asm.R2, frameKey)
	g.emit(
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, first),
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventTime), asm.DWord),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	)
	g.leave(allow)
	g.mark(first)
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventTime), asm.DWord),
		asm.StoreMem(regFrame, frameValue, asm.R1, asm.DWord),
		mapPtr(asm.R1, flowsMap),
	)
	g.point(asm.R2, frameKey)
	g.point(asm.R3, frameValue)
	g.emit(asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call())
	return g.flow(inbound, 0)
}

// Sizes of the key and the value of the map of flows. The key is endpoint, both addresses, both ports and
// the protocol; the value the time of the last packet.
const (
	flowKeySize   = 48
	flowValueSize = 8
)

// flowKey makes the key of the map of flows.
func (g *generator) flowKey() {
	at := int16(frameKey)
	for _, f := range [...]int16{
		codegen.EventEndpoint, codegen.EventLocal, codegen.EventLocal + 8, codegen.EventRemote, codegen.EventRemote + 8,
	} {
		g.emit(
			asm.LoadMem(asm.R1, regFrame, record(f), asm.DWord),
			asm.StoreMem(regFrame, at, asm.R1, asm.DWord),
		)
		at += 8
	}
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventLocalPort), asm.Word), // both
		asm.StoreMem(regFrame, at, asm.R1, asm.Word),
		asm.StoreMem(regFrame, at+4, asm.R8, asm.Word),
	)
}

// key returns the key of the record's flow.
func (r *Record) key() (k [flowKeySize]byte) {
	ne := binary.NativeEndian
	ne.PutUint64(k[0:], r.Data.EndpointID)
	for i, a := range [...][16]byte{r.Data.LocalAddr.As16(), r.Data.RemoteAddr.As16()} {
		ne.PutUint64(k[8+16*i:], binary.BigEndian.Uint64(a[0:]))
		ne.PutUint64(k[16+16*i:], binary.BigEndian.Uint64(a[8:]))
	}
	ne.PutUint16(k[40:], r.Data.LocalPort)
	ne.PutUint16(k[42:], r.Data.RemotePort)
	ne.PutUint32(k[44:], uint32(r.Data.Protocol))
	return k
}

// LastSeen returns when the last packet of a flow without connection was seen, and whether the kernel still
// remembers.
func (s *Source) LastSeen(r *Record) (at int64, ok bool) {
	key := r.key()
	err := s.maps[flowsMap].Lookup(key[:], &at)
	return at, err == nil
}

// Forget makes the kernel tell of a flow without connection again when its next packet comes.
func (s *Source) Forget(r *Record) {
	key := r.key()
	_ = s.maps[flowsMap].Delete(key[:]) // it may be gone already
}

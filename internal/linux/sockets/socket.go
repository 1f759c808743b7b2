//go:build linux

package sockets

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/packet"
)

// socketHooks are the hooks of the layer SOCKET.
var socketHooks = []hook{
	{"create", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate, "", (*generator).create},
	{"bind4", ebpf.CGroupSock, ebpf.AttachCGroupInet4PostBind, "", func(g *generator) (bool, error) { return g.bind(afINET) }},
	{"bind6", ebpf.CGroupSock, ebpf.AttachCGroupInet6PostBind, "", func(g *generator) (bool, error) { return g.bind(afINET6) }},
	{"connect4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, "", func(g *generator) (bool, error) { return g.connect(afINET) }},
	{"connect6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect, "", func(g *generator) (bool, error) { return g.connect(afINET6) }},
	{"unbound4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, "", func(g *generator) (bool, error) { return g.connectUnbound(afINET) }},
	{"unbound6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect, "", func(g *generator) (bool, error) { return g.connectUnbound(afINET6) }},
	{"owner4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, "", (*generator).ownerTCP},
	{"owner6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect, "", (*generator).ownerTCP},
	{"contact4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, "", func(g *generator) (bool, error) { return g.contact(afINET, false) }},
	{"contact6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect, "", func(g *generator) (bool, error) { return g.contact(afINET6, false) }},
	{"send4", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP4Sendmsg, "", func(g *generator) (bool, error) { return g.contact(afINET, true) }},
	{"send6", ebpf.CGroupSockAddr, ebpf.AttachCGroupUDP6Sendmsg, "", func(g *generator) (bool, error) { return g.contact(afINET6, true) }},
	{"tcp", ebpf.SockOps, ebpf.AttachCGroupSockOps, "", operations(
		part{opTCPConnect, (*generator).connecting}, part{opTCPListen, (*generator).listen},
		part{opPassiveEstablished, (*generator).accept}, part{opState, (*generator).over})},
	{"release", ebpf.CGroupSock, ebpf.AttachCgroupInetSockRelease, "", (*generator).release},
	{"visit", ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress, "", (*generator).visit},
	{"syn", ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress, "", (*generator).syn},
	{"shut_in", ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress, "", (*generator).shut},
	{"shut_out", ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress, "", (*generator).shut},
}

// create remembers who made a socket.
func (g *generator) create() (bool, error) {
	if keeps, err := g.keeps(); !keeps || err != nil {
		return false, err
	}
	g.creation()
	return true, nil
}

// creation emits create.
func (g *generator) creation() {
	g.begin(g.cookie)
	g.storage(inContext, true)
	g.recall()
	g.builder.cookie()
	g.process()
	g.protocol(sockProtocol)
	master := g.newLabel()
	g.emit(
		asm.LoadMem(asm.R1, regContext, sockProtocol, asm.Word),
		asm.JEq.Imm(asm.R1, protoMPTCP, master), // it ends when its connections have
	)
	g.builder.flags(flagUser, 0)
	g.mark(master)
	g.keep()
	g.leave(allow)
}

// protoMPTCP is IPPROTO_MPTCP (linux/in.h).
const protoMPTCP = 262

// bind runs when a socket has been bound.
func (g *generator) bind(family int) (bool, error) {
	g.begin(g.cookie)
	keeps, err := g.start(inContext, true)
	if err != nil {
		return false, err
	}
	g.bindSide(family)
	if keeps {
		g.keep()
	}
	g.clearPair(codegen.EventRemote)
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketBind})
	if err != nil {
		return false, err
	}
	if !matches {
		g.leave(allow)
		return keeps, nil
	}
	g.conclude(func() {
		if keeps {
			g.emit(asm.StoreImm(regStorage, body(codegen.EventLocalPort), 0, asm.Half))
		}
	})
	return true, nil
}

// aboutToConnect starts the programs that run before a connect, of TCP or of the other protocols, and before
// a datagram is sent. It reports whether the record is kept.
func (g *generator) aboutToConnect(family int, tcp bool) (bool, error) {
	g.emit(asm.LoadMem(asm.R2, asm.R1, addrProtocol, asm.Word))
	if tcp {
		g.allowIf(asm.JNE, asm.R2, protoTCP)
	} else {
		g.allowIf(asm.JEq, asm.R2, protoTCP)
	}
	g.begin(g.cookie)
	keeps, err := g.start(addrSock, true)
	g.connectSides(family)
	return keeps, err
}

// connect refuses connections of TCP of which the local side is known, or not asked for.
func (g *generator) connect(family int) (bool, error) {
	if g.sniffs() {
		return false, nil
	}
	if _, err := g.aboutToConnect(family, true); err != nil {
		return false, err
	}
	if g.usesLocal() {
		g.allowUnlessLocal(true)
	}
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketConnect, Protocol: protoTCP})
	if matches {
		g.conclude(nil)
	}
	return matches, err
}

// connectUnbound refuses connections of TCP that match whatever the local side will be. The others of
// which it is not known yet are decided when it is, see connecting.
func (g *generator) connectUnbound(family int) (bool, error) {
	if g.sniffs() || !g.usesLocal() {
		return false, nil
	}
	if _, err := g.aboutToConnect(family, true); err != nil {
		return false, err
	}
	g.allowUnlessLocal(false)
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketConnect, Protocol: protoTCP, LocalUnknown: true})
	if matches {
		g.conclude(nil)
	}
	return matches, err
}

// allowUnlessLocal lets a connect pass unless the local side is known, or not known.
func (g *generator) allowUnlessLocal(known bool) {
	unknown, go_ := g.newLabel(), g.newLabel()
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventLocalPort), asm.Half),
		asm.JEq.Imm(asm.R1, 0, unknown),
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventLocal)+8, asm.DWord),
		asm.Mov.Reg32(asm.R2, asm.R1), // the lower half is enough: ::, ::ffff:0.0.0.0
		asm.JEq.Imm(asm.R2, 0, unknown),
	)
	if known {
		g.emit(asm.Ja.Label(go_))
		g.mark(unknown)
		g.leave(allow)
	} else {
		g.leave(allow)
		g.mark(unknown)
	}
	g.mark(go_)
}

// ownerTCP remembers who connects a socket of TCP, where that cannot be asked for later.
func (g *generator) ownerTCP() (bool, error) {
	if wanted, err := g.needs(packet.EventSocketConnect, packet.EventSocketClose); !wanted || err != nil || sockOpsProcess() {
		return false, err
	}
	return g.owner()
}

// contact runs before a socket other than of TCP is connected, and before a datagram is sent to an address.
// CONNECT is raised once for each peer of a socket. A peer that ACCEPT was raised for counts as known, but
// only handles that ask for ACCEPT too pay for knowing.
func (g *generator) contact(family int, send bool) (bool, error) {
	accepts, err := g.can(packet.EventSocketAccept)
	if err != nil {
		return false, err
	}
	last := accepts && send && family == afINET && g.generation != 0
	if last {
		g.early = func() { g.allowIfLastPeer(regContext, addrIP4, addrPort) }
	}
	keeps, err := g.aboutToConnect(family, false)
	if err != nil {
		return false, err
	}
	switch {
	case keeps && send:
		g.bound()
	case keeps:
		g.keep()
	}
	if accepts {
		g.settle()
		g.peer()
		if send {
			g.allowIfMet(last) // a refusal is told each time
		}
		if g.sniffs() {
			g.meet(peerMet)
			g.keepLastPeer(last)
		}
	}
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketConnect, NoTCP: true})
	if err != nil {
		return false, err
	}
	if !matches {
		if accepts && !g.sniffs() {
			g.meet(peerMet)
			g.keepLastPeer(last)
		}
		g.leave(allow)
		return keeps || accepts, nil
	}
	if !accepts && g.sniffs() {
		g.peer()
		if send {
			g.allowIfMet(false)
		}
		g.meet(peerMet)
	}
	g.conclude(func() {
		if keeps && !send {
			g.emit(asm.StoreImm(regStorage, body(codegen.EventRemotePort), 0, asm.Half))
		}
	})
	return true, nil
}

// bound remembers what a socket that sends is bound to, unless that is known: it has been given a port by
// now. The socket itself has no peer.
func (g *generator) bound() {
	known := g.newLabel()
	g.emit(
		asm.LoadMem(asm.R1, regStorage, body(codegen.EventLocalPort), asm.Half),
		asm.JNE.Imm(asm.R1, 0, known),
	)
	g.remember(codegen.EventEndpoint, codegen.EventLocal, codegen.EventLocal+8)
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventLocalPort), asm.Half),
		asm.StoreMem(regStorage, body(codegen.EventLocalPort), asm.R1, asm.Half),
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventProtocol), asm.Half), // and the family
		asm.StoreMem(regStorage, body(codegen.EventProtocol), asm.R1, asm.Half),
	)
	g.mark(known)
}

// remember copies fields of 8 bytes from the record to the storage.
func (g *generator) remember(fields ...int16) {
	for _, f := range fields {
		g.emit(
			asm.LoadMem(asm.R1, regFrame, record(f), asm.DWord),
			asm.StoreMem(regStorage, body(f), asm.R1, asm.DWord),
		)
	}
}

// Values of the map of peers.
const (
	peerMet     = 1
	peerRefused = 2
)

// peer makes the key of the map of peers: endpoint, remote address and remote port.
func (g *generator) peer() {
	for i, f := range [...]int16{codegen.EventEndpoint, codegen.EventRemote, codegen.EventRemote + 8} {
		g.emit(
			asm.LoadMem(asm.R1, regFrame, record(f), asm.DWord),
			asm.StoreMem(regFrame, frameKey+8*int16(i), asm.R1, asm.DWord),
		)
	}
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventRemotePort), asm.Half),
		asm.StoreMem(regFrame, frameKey+24, asm.R1, asm.DWord),
	)
}

// peerKeySize is the size of the key.
const peerKeySize = 32

// lookUpPeer leaves the value of the peer in R0, or goes to the label if it is not known.
func (g *generator) lookUpPeer(unknown string) {
	g.emit(mapPtr(asm.R1, peersMap))
	g.point(asm.R2, frameKey)
	g.emit(
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, unknown),
		asm.LoadMem(asm.R0, asm.R0, 0, asm.DWord),
	)
}

// allowIfMet lets pass what is sent to a peer that has been told of already, and may keep it as the last.
func (g *generator) allowIfMet(last bool) {
	first := g.newLabel()
	g.lookUpPeer(first)
	g.emit(asm.JNE.Imm(asm.R0, peerMet, first))
	g.keepLastPeer(last)
	g.leave(allow)
	g.mark(first)
}

// A socket mostly sends to the peer that it has sent to before, or received from. The storage has the last peer that is
// known and lets pass, if it is one of IPv4, in one word, so that several threads can write it: its address and its port
// in network byte order, and the generation of the filter that has decided.

// loadPeer leaves the word of the peer in R1, whose address and port stand in memory as the network has them.
func (g *generator) loadPeer(base asm.Register, address, port int16, portSize asm.Size) {
	g.emit(
		asm.LoadMem(asm.R1, base, address, asm.Word),
		asm.LSh.Imm(asm.R1, 32),
		asm.LoadMem(asm.R2, base, port, portSize),
		asm.LSh.Imm(asm.R2, 16),
		asm.Or.Reg(asm.R1, asm.R2),
		asm.Or.Imm(asm.R1, int32(g.generation)),
	)
}

// allowIfLastPeer lets pass what the last peer is sent by a socket whose local side is known.
func (g *generator) allowIfLastPeer(base asm.Register, address, port int16) {
	other := g.newLabel()
	g.loadPeer(base, address, port, asm.Word)
	g.emit(
		asm.LoadMem(asm.R2, regStorage, storedPeer, asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, other),
		asm.LoadMem(asm.R1, regStorage, body(codegen.EventLocalPort), asm.Half),
		asm.JEq.Imm(asm.R1, 0, other),
	)
	g.leave(allow)
	g.mark(other)
}

// keepLastPeer keeps the peer of the record, if that is wanted.
func (g *generator) keepLastPeer(wanted bool) {
	if !wanted {
		return
	}
	g.loadPeer(regContext, addrIP4, addrPort, asm.Word)
	g.emit(asm.StoreMem(regStorage, storedPeer, asm.R1, asm.DWord))
}

// meet notes that a peer is known.
func (g *generator) meet(value int32) {
	g.emit(
		asm.Mov.Imm(asm.R1, value),
		asm.StoreMem(regFrame, frameValue, asm.R1, asm.DWord),
		mapPtr(asm.R1, peersMap),
	)
	g.point(asm.R2, frameKey)
	g.point(asm.R3, frameValue)
	g.emit(asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call())
}

// Operations of sock_ops programs (linux/bpf.h, BPF_SOCK_OPS_*), and states of TCP.
const (
	opTCPConnect         = 3
	opActiveEstablished  = 4
	opPassiveEstablished = 5
	opState              = 10
	opTCPListen          = 11

	tcpSynSent = 2
	tcpClose   = 7
	tcpListen  = 10

	stateCallbacks = 1 << 2 // BPF_SOCK_OPS_STATE_CB_FLAG
)

// ends lets every change of a connection's state pass but its end.
func (g *generator) ends() {
	g.emit(asm.LoadMem(asm.R2, asm.R1, opsNewState, asm.Word))
	g.allowIf(asm.JNE, asm.R2, tcpClose)
	g.begin(g.cookie)
}

// watchOrphan asks for the changes of the connection's state if it is none that a process closes, and CLOSE is asked for.
func (g *generator) watchOrphan() error {
	if wanted, err := g.can(packet.EventSocketClose); !wanted || err != nil || g.drops() {
		return err
	}
	user := g.newLabel()
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventFlags), asm.Word),
		asm.And.Imm32(asm.R1, flagUser|flagPassive),
		asm.JEq.Imm(asm.R1, flagUser, user),
	)
	g.watchState()
	g.mark(user)
	return nil
}

// watchState asks for the changes of the connection's state, besides what others have asked for.
func (g *generator) watchState() {
	g.emit(
		asm.LoadMem(asm.R2, regContext, opsCallbacks, asm.Word),
		asm.Or.Imm32(asm.R2, stateCallbacks),
		asm.Mov.Reg(asm.R1, regContext),
		asm.FnSockOpsCbFlagsSet.Call(),
	)
}

// connecting runs when a connection of TCP has its local side and is about to send its SYN.
func (g *generator) connecting() (bool, error) {
	wanted, err := g.needs(packet.EventSocketConnect, packet.EventSocketClose)
	if !wanted || err != nil {
		return false, err
	}
	g.begin(g.cookie)
	keeps, err := g.start(opsSock, false)
	if err != nil {
		return false, err
	}
	g.tcpSides(true)
	if keeps {
		g.keep()
		if err := g.watchOrphan(); err != nil {
			return false, err
		}
	}
	if !g.sniffs() && !g.usesLocal() {
		g.leave(allow) // decided before
		return keeps, nil
	}
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketConnect, Protocol: protoTCP})
	if err != nil {
		return false, err
	}
	if matches {
		g.concludeLate()
	} else {
		g.leave(allow)
	}
	return keeps || matches, nil
}

// concludeLate ends a program behind a decision that matched, where the kernel does not ask: the socket's
// packets are dropped from now on, and user space destroys it.
func (g *generator) concludeLate() {
	if !g.sniffs() {
		g.storedFlags(flagBlocked, 0)
		g.builder.flags(flagRefused|flagDestroy, 0)
	}
	g.tell()
	g.leave(allow)
}

// listen runs when a socket of TCP begins to listen.
func (g *generator) listen() (bool, error) {
	wanted, err := g.needs(packet.EventSocketListen, packet.EventSocketAccept, packet.EventSocketClose)
	if !wanted || err != nil {
		return false, err
	}
	g.begin(g.cookie)
	keeps, err := g.start(opsSock, false)
	if err != nil {
		return false, err
	}
	g.tcpSides(false)
	g.clearPair(codegen.EventRemote)
	if keeps {
		g.keep()
		if err := g.watchOrphan(); err != nil {
			return false, err
		}
	}
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketListen, Protocol: protoTCP})
	if err != nil {
		return false, err
	}
	if matches {
		g.concludeLate()
	} else {
		g.leave(allow)
	}
	return keeps || matches, nil
}

// accept runs when an incoming connection of TCP is established. The storage is a copy of the listener's.
func (g *generator) accept() (bool, error) {
	wanted, err := g.needs(packet.EventSocketAccept, packet.EventSocketClose)
	if !wanted || err != nil {
		return false, err
	}
	g.begin(g.cookie)
	g.storage(opsSock, true)
	g.recall()
	g.descend()
	g.keep()
	if err := g.watchOrphan(); err != nil {
		return false, err
	}
	if !g.sniffs() {
		g.leave(allow) // decided before, see syn
		return true, nil
	}
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketAccept, Inbound: true, Protocol: protoTCP})
	if err != nil {
		return false, err
	}
	if matches {
		g.tell()
	}
	g.leave(allow)
	return true, nil
}

// descend makes the record of a listener that of its child.
func (g *generator) descend() {
	g.tcpSides(true)
	g.inherit()
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(regFrame, record(codegen.EventParent), asm.R1, asm.DWord),
	)
	g.builder.cookie()
	g.builder.flags(flagPassive, flagClosed|flagBlocked|flagTracked)
}

// over runs when a connection of TCP or a listener is over. It tells CLOSE for those that no process
// closes: children that were never accepted, and the connections of MPTCP sockets.
func (g *generator) over() (bool, error) {
	g.ends()
	g.storage(opsSock, false)
	g.recall()
	orphan := g.newLabel()
	g.emit(
		asm.LoadMem(asm.R1, regStorage, body(codegen.EventFlags), asm.Word),
		asm.JSet.Imm(asm.R1, flagPassive, orphan),
	)
	g.allowIfSet(asm.R1, flagUser)
	g.mark(orphan)
	return g.closing()
}

// release runs when a process closes a socket.
func (g *generator) release() (bool, error) {
	g.begin(g.cookie)
	g.known(inContext)
	g.recall()
	g.process()
	// A socket that has no port has released none.
	has := g.newLabel()
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventLocalPort), asm.Half),
		asm.JNE.Imm(asm.R1, 0, has),
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventRemotePort), asm.Half),
		asm.JNE.Imm(asm.R1, 0, has),
	)
	g.leave(allow)
	g.mark(has)
	return g.closing()
}

// closing tells CLOSE, once. It is never refused, and a handle that drops does not get it
// (specification: api.md 17).
func (g *generator) closing() (bool, error) {
	if g.drops() {
		return false, nil
	}
	g.emit(asm.LoadMem(asm.R1, regStorage, body(codegen.EventFlags), asm.Word))
	g.allowIfSet(asm.R1, flagClosed)
	g.storedFlags(flagClosed, 0)
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketClose})
	if matches {
		g.tell()
		g.leave(allow)
	}
	return matches, err
}

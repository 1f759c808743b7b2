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

// socketPrograms are the programs of the layer SOCKET.
var socketPrograms = []Program{
	{cgprog.Hook{Name: "create", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCGroupInetSockCreate}, (*generator).create},
	{cgprog.Hook{Name: "bind4", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCGroupInet4PostBind}, func(g *generator) (bool, error) { return g.bind(cgprog.INET) }},
	{cgprog.Hook{Name: "bind6", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCGroupInet6PostBind}, func(g *generator) (bool, error) { return g.bind(cgprog.INET6) }},
	{cgprog.Hook{Name: "connect4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet4Connect}, func(g *generator) (bool, error) { return g.connect(cgprog.INET) }},
	{cgprog.Hook{Name: "connect6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet6Connect}, func(g *generator) (bool, error) { return g.connect(cgprog.INET6) }},
	{cgprog.Hook{Name: "unbound4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet4Connect}, func(g *generator) (bool, error) { return g.connectUnbound(cgprog.INET) }},
	{cgprog.Hook{Name: "unbound6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet6Connect}, func(g *generator) (bool, error) { return g.connectUnbound(cgprog.INET6) }},
	{cgprog.Hook{Name: "owner4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet4Connect}, (*generator).ownerTCP},
	{cgprog.Hook{Name: "owner6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet6Connect}, (*generator).ownerTCP},
	{cgprog.Hook{Name: "contact4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet4Connect}, func(g *generator) (bool, error) { return g.contact(cgprog.INET, false) }},
	{cgprog.Hook{Name: "contact6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet6Connect}, func(g *generator) (bool, error) { return g.contact(cgprog.INET6, false) }},
	{cgprog.Hook{Name: "send4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupUDP4Sendmsg}, func(g *generator) (bool, error) { return g.contact(cgprog.INET, true) }},
	{cgprog.Hook{Name: "send6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupUDP6Sendmsg}, func(g *generator) (bool, error) { return g.contact(cgprog.INET6, true) }},
	{cgprog.Hook{Name: "tcp", Kind: ebpf.SockOps, Attach: ebpf.AttachCGroupSockOps}, operations(
		part{cgprog.OpTCPConnect, (*generator).connecting}, part{cgprog.OpTCPListen, (*generator).listen},
		part{cgprog.OpPassiveEstablished, (*generator).accept}, part{cgprog.OpState, (*generator).over})},
	{cgprog.Hook{Name: "release", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCgroupInetSockRelease}, (*generator).release},
	{cgprog.Hook{Name: "visit", Kind: ebpf.CGroupSKB, Attach: ebpf.AttachCGroupInetIngress}, (*generator).visit},
	{cgprog.Hook{Name: "syn", Kind: ebpf.CGroupSKB, Attach: ebpf.AttachCGroupInetIngress}, (*generator).syn},
	{cgprog.Hook{Name: "shut_in", Kind: ebpf.CGroupSKB, Attach: ebpf.AttachCGroupInetIngress}, (*generator).shut},
	{cgprog.Hook{Name: "shut_out", Kind: ebpf.CGroupSKB, Attach: ebpf.AttachCGroupInetEgress}, (*generator).shut},
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
	g.Begin(g.cookie)
	g.storage(cgprog.InContext, true)
	g.recall()
	g.Cookie()
	g.Process()
	g.Name()
	g.Protocol(cgprog.SockProtocol)
	master := g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.SockProtocol, asm.Word))
	g.JumpImm64(asm.JEq, asm.R1, cgprog.ProtoMPTCP, master) // it ends when its connections have
	g.setFlags(eventmap.FlagUser, 0)
	g.Mark(master)
	g.keep()
	g.Leave(cgprog.Allow)
}

// bind runs when a socket has been bound.
func (g *generator) bind(family int) (bool, error) {
	g.Begin(g.cookie)
	keeps, err := g.start(cgprog.InContext, true)
	if err != nil {
		return false, err
	}
	g.BindSide(family)
	if keeps {
		g.keep()
	}
	g.ClearPair(codegen.EventRemote)
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketBind})
	if err != nil {
		return false, err
	}
	if !matches {
		g.Leave(cgprog.Allow)
		return keeps, nil
	}
	g.conclude(func() {
		if keeps {
			g.Emit(asm.StoreImm(regStorage, eventmap.Body(codegen.EventLocalPort), 0, asm.Half))
		}
	})
	return true, nil
}

// aboutToConnect starts the programs that run before a connect, of TCP or of the other protocols, and before
// a datagram is sent. It reports whether the record is kept.
func (g *generator) aboutToConnect(family int, tcp bool) (bool, error) {
	g.Emit(asm.LoadMem(asm.R2, asm.R1, cgprog.AddrProtocol, asm.Word))
	if tcp {
		g.AllowIf(asm.JNE, asm.R2, cgprog.ProtoTCP)
	} else {
		g.AllowIf(asm.JEq, asm.R2, cgprog.ProtoTCP)
	}
	g.Begin(g.cookie)
	keeps, err := g.start(cgprog.AddrSock, true)
	g.ConnectSides(family)
	return keeps, err
}

// connect refuses connections of TCP whose local side is known, or not asked for.
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
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketConnect, Protocol: cgprog.ProtoTCP})
	if matches {
		g.conclude(nil)
	}
	return matches, err
}

// connectUnbound refuses TCP connections that match with any local side. Others without a local side are decided when they have
// one, see connecting.
func (g *generator) connectUnbound(family int) (bool, error) {
	if g.sniffs() || !g.usesLocal() {
		return false, nil
	}
	if _, err := g.aboutToConnect(family, true); err != nil {
		return false, err
	}
	g.allowUnlessLocal(false)
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketConnect, Protocol: cgprog.ProtoTCP, LocalUnknown: true})
	if matches {
		g.conclude(nil)
	}
	return matches, err
}

// allowUnlessLocal lets a connect pass unless its local side is known, or unknown if known is false.
func (g *generator) allowUnlessLocal(known bool) {
	unknown, go_ := g.NewLabel(), g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventLocalPort), asm.Half))
	g.JumpImm64(asm.JEq, asm.R1, 0, unknown)
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventLocal)+8, asm.DWord),
		asm.Mov.Reg32(asm.R2, asm.R1), // the lower half is enough: ::, ::ffff:0.0.0.0
	)
	g.JumpImm64(asm.JEq, asm.R2, 0, unknown)
	if known {
		g.Jump(go_)
		g.Mark(unknown)
		g.Leave(cgprog.Allow)
	} else {
		g.Leave(cgprog.Allow)
		g.Mark(unknown)
	}
	g.Mark(go_)
}

// ownerTCP remembers who connects a socket of TCP, where that cannot be asked for later.
func (g *generator) ownerTCP() (bool, error) {
	if wanted, err := g.needs(packet.EventSocketConnect, packet.EventSocketClose); !wanted || err != nil || opsKnowWho() {
		return false, err
	}
	return g.owner()
}

// contact runs before a socket other than of TCP is connected, and before a datagram is sent to an address. CONNECT is raised
// once for each peer of a socket. A peer that ACCEPT was raised for counts as known, but only handles that ask for ACCEPT too
// pay for that.
func (g *generator) contact(family int, send bool) (bool, error) {
	accepts, err := g.can(packet.EventSocketAccept)
	if err != nil {
		return false, err
	}
	last := accepts && send && family == cgprog.INET && g.generation != 0
	if last {
		g.early = func() { g.allowIfLastPeer(bpfasm.Context, cgprog.AddrIP4, cgprog.AddrPort) }
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
			g.allowIfMet(last) // a refusal is reported each time
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
		g.Leave(cgprog.Allow)
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
			g.Emit(asm.StoreImm(regStorage, eventmap.Body(codegen.EventRemotePort), 0, asm.Half))
		}
	})
	return true, nil
}

// bound records the local end of a socket that sends, unless it is known: it has been given a port by
// now. The socket itself has no peer.
func (g *generator) bound() {
	known := g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, regStorage, eventmap.Body(codegen.EventLocalPort), asm.Half))
	g.JumpImm64(asm.JNE, asm.R1, 0, known)
	g.remember(codegen.EventEndpoint, codegen.EventLocal, codegen.EventLocal+8)
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventLocalPort), asm.Half),
		asm.StoreMem(regStorage, eventmap.Body(codegen.EventLocalPort), asm.R1, asm.Half),
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventProtocol), asm.Half), // and the family
		asm.StoreMem(regStorage, eventmap.Body(codegen.EventProtocol), asm.R1, asm.Half),
	)
	g.Mark(known)
}

// remember copies fields of 8 bytes from the record to the storage.
func (g *generator) remember(fields ...int16) {
	for _, f := range fields {
		g.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(f), asm.DWord),
			asm.StoreMem(regStorage, eventmap.Body(f), asm.R1, asm.DWord),
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
		g.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(f), asm.DWord),
			asm.StoreMem(bpfasm.Frame, frameKey+8*int16(i), asm.R1, asm.DWord),
		)
	}
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventRemotePort), asm.Half),
		asm.StoreMem(bpfasm.Frame, frameKey+24, asm.R1, asm.DWord),
	)
}

// lookUpPeer leaves the value of the peer in R0, or goes to the label if it is not known.
func (g *generator) lookUpPeer(unknown bpfasm.Label) {
	g.LookUp(eventmap.PeersMap, frameKey)
	g.JumpImm64(asm.JEq, asm.R0, 0, unknown)
	g.Emit(asm.LoadMem(asm.R0, asm.R0, 0, asm.DWord))
}

// allowIfMet lets packets pass whose peer has been reported already, and may keep it as the last.
func (g *generator) allowIfMet(last bool) {
	first := g.NewLabel()
	g.lookUpPeer(first)
	g.JumpImm64(asm.JNE, asm.R0, peerMet, first)
	g.keepLastPeer(last)
	g.Leave(cgprog.Allow)
	g.Mark(first)
}

// A socket mostly sends to the peer that it has sent to before, or received from. The storage keeps the last IPv4 peer that is
// known and passes, in one word, so that several threads can write it: its address and its port in network byte order, and the
// generation of the filter that has decided.

// loadPeer leaves in R1 the word of the peer whose address and port stand in memory in network byte order.
func (g *generator) loadPeer(base asm.Register, address, port int16, portSize asm.Size) {
	g.Emit(
		asm.LoadMem(asm.R1, base, address, asm.Word),
		asm.LSh.Imm(asm.R1, 32),
		asm.LoadMem(asm.R2, base, port, portSize),
		asm.LSh.Imm(asm.R2, 16),
		asm.Or.Reg(asm.R1, asm.R2),
		asm.Or.Imm(asm.R1, int32(g.generation)),
	)
}

// allowIfLastPeer lets packets to the last peer pass if the socket's local side is known.
func (g *generator) allowIfLastPeer(base asm.Register, address, port int16) {
	other := g.NewLabel()
	g.loadPeer(base, address, port, asm.Word)
	g.Emit(asm.LoadMem(asm.R2, regStorage, eventmap.StoredPeer, asm.DWord))
	g.JumpReg(asm.JNE, asm.R1, asm.R2, other)
	g.Emit(asm.LoadMem(asm.R1, regStorage, eventmap.Body(codegen.EventLocalPort), asm.Half))
	g.JumpImm64(asm.JEq, asm.R1, 0, other)
	g.Leave(cgprog.Allow)
	g.Mark(other)
}

// keepLastPeer keeps the peer of the record, if that is wanted.
func (g *generator) keepLastPeer(wanted bool) {
	if !wanted {
		return
	}
	g.loadPeer(bpfasm.Context, cgprog.AddrIP4, cgprog.AddrPort, asm.Word)
	g.Emit(asm.StoreMem(regStorage, eventmap.StoredPeer, asm.R1, asm.DWord))
}

// meet notes that a peer is known.
func (g *generator) meet(value int32) {
	g.Emit(
		asm.Mov.Imm(asm.R1, value),
		asm.StoreMem(bpfasm.Frame, frameValue, asm.R1, asm.DWord),
	)
	g.Update(eventmap.PeersMap, frameKey, frameValue, cgprog.UpdateAny)
}

// ends lets every change of a connection's state pass but its end.
func (g *generator) ends() {
	g.Emit(asm.LoadMem(asm.R2, asm.R1, cgprog.OpsNewState, asm.Word))
	g.AllowIf(asm.JNE, asm.R2, cgprog.TCPClose)
	g.Begin(g.cookie)
}

// watchOrphan asks for the changes of the connection's state if no process will close it and the filter asks for CLOSE.
func (g *generator) watchOrphan() error {
	if wanted, err := g.can(packet.EventSocketClose); !wanted || err != nil || g.drops() {
		return err
	}
	user := g.NewLabel()
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventFlags), asm.Word),
		asm.And.Imm32(asm.R1, eventmap.FlagUser|eventmap.FlagPassive),
	)
	g.JumpImm64(asm.JEq, asm.R1, eventmap.FlagUser, user)
	g.WatchState()
	g.Mark(user)
	return nil
}

// connecting runs when a connection of TCP has its local side and is about to send its SYN.
func (g *generator) connecting() (bool, error) {
	wanted, err := g.needs(packet.EventSocketConnect, packet.EventSocketClose)
	if !wanted || err != nil {
		return false, err
	}
	g.Begin(g.cookie)
	keeps, err := g.start(cgprog.OpsSock, false)
	if err != nil {
		return false, err
	}
	g.TCPSides(true)
	if keeps {
		g.keep()
		if err := g.watchOrphan(); err != nil {
			return false, err
		}
	}
	if !g.sniffs() && !g.usesLocal() {
		g.Leave(cgprog.Allow) // decided before
		return keeps, nil
	}
	matches, err := g.decideLate(codegen.EventHook{Event: packet.EventSocketConnect, Protocol: cgprog.ProtoTCP})
	return keeps || matches, err
}

// decideLate ends a program with a decision that the kernel does not ask for, and reports whether the filter may match. If it does,
// the socket's packets are dropped from now on, and user space destroys it.
func (g *generator) decideLate(h codegen.EventHook) (matches bool, err error) {
	if matches, err = g.decide(h); err != nil {
		return false, err
	}
	if matches {
		if !g.sniffs() {
			g.storedFlags(eventmap.FlagBlocked, 0)
			g.setFlags(eventmap.FlagRefused|eventmap.FlagDestroy, 0)
		}
		g.tell()
	}
	g.Leave(cgprog.Allow)
	return matches, nil
}

// listen runs when a socket of TCP begins to listen.
func (g *generator) listen() (bool, error) {
	wanted, err := g.needs(packet.EventSocketListen, packet.EventSocketAccept, packet.EventSocketClose)
	if !wanted || err != nil {
		return false, err
	}
	g.Begin(g.cookie)
	keeps, err := g.start(cgprog.OpsSock, false)
	if err != nil {
		return false, err
	}
	g.TCPSides(false)
	g.ClearPair(codegen.EventRemote)
	if keeps {
		g.keep()
		if err := g.watchOrphan(); err != nil {
			return false, err
		}
	}
	matches, err := g.decideLate(codegen.EventHook{Event: packet.EventSocketListen, Protocol: cgprog.ProtoTCP})
	return keeps || matches, err
}

// accept runs when an incoming connection of TCP is established. The storage is a copy of the listener's.
func (g *generator) accept() (bool, error) {
	wanted, err := g.needs(packet.EventSocketAccept, packet.EventSocketClose)
	if !wanted || err != nil {
		return false, err
	}
	g.Begin(g.cookie)
	g.storage(cgprog.OpsSock, true)
	g.recall()
	g.descend()
	g.keep()
	if err := g.watchOrphan(); err != nil {
		return false, err
	}
	if !g.sniffs() {
		g.Leave(cgprog.Allow) // decided before, see syn
		return true, nil
	}
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketAccept, Inbound: true, Protocol: cgprog.ProtoTCP})
	if err != nil {
		return false, err
	}
	if matches {
		g.tell()
	}
	g.Leave(cgprog.Allow)
	return true, nil
}

// descend makes the record of a listener that of its child.
func (g *generator) descend() {
	g.TCPSides(true)
	g.inherit()
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventParent), asm.R1, asm.DWord),
	)
	g.Cookie()
	g.setFlags(eventmap.FlagPassive, eventmap.FlagClosed|eventmap.FlagBlocked|eventmap.FlagTracked)
}

// over runs when a connection of TCP or a listener is over. It raises CLOSE for those that no process closes: children that were
// never accepted, and the connections of MPTCP sockets.
func (g *generator) over() (bool, error) {
	g.ends()
	g.storage(cgprog.OpsSock, false)
	g.recall()
	orphan := g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, regStorage, eventmap.Body(codegen.EventFlags), asm.Word))
	g.JumpImm64(asm.JSet, asm.R1, eventmap.FlagPassive, orphan)
	g.AllowIfSet(asm.R1, eventmap.FlagUser)
	g.Mark(orphan)
	return g.closing()
}

// release runs when a process closes a socket.
func (g *generator) release() (bool, error) {
	g.Begin(g.cookie)
	g.known(cgprog.InContext)
	g.recall()
	g.Process()
	g.Name()
	// A socket that has no port has released none.
	has := g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventLocalPort), asm.Half))
	g.JumpImm64(asm.JNE, asm.R1, 0, has)
	g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventRemotePort), asm.Half))
	g.JumpImm64(asm.JNE, asm.R1, 0, has)
	g.Leave(cgprog.Allow)
	g.Mark(has)
	return g.closing()
}

// closing raises CLOSE, once. It is never refused, and a handle that drops does not get it (specification: api.md 17).
func (g *generator) closing() (bool, error) {
	if g.drops() {
		return false, nil
	}
	g.Emit(asm.LoadMem(asm.R1, regStorage, eventmap.Body(codegen.EventFlags), asm.Word))
	g.AllowIfSet(asm.R1, eventmap.FlagClosed)
	g.storedFlags(eventmap.FlagClosed, 0)
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketClose})
	if matches {
		g.tell()
		g.Leave(cgprog.Allow)
	}
	return matches, err
}

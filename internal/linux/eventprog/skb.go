//go:build linux

package eventprog

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/eventmap"
	"github.com/opendivert/divert/packet"
)

// traffic starts a program that runs for each packet of a socket, and lets packets pass for whose protocol the comparison holds.
// Where such programs cannot get the namespace, only its sockets have a storage, or are known as older ones.
func (g *generator) traffic(op asm.JumpOp, protocol int32) {
	g.Emit(
		asm.Mov.Reg(bpfasm.Context, asm.R1),
		asm.LoadMem(asm.R1, bpfasm.Context, cgprog.SkbSock, asm.DWord),
	)
	g.AllowIf(asm.JEq, asm.R1, 0)
	g.Emit(asm.FnSkFullsock.Call())
	g.AllowIf(asm.JEq, asm.R0, 0)
	g.Emit(asm.LoadMem(asm.R1, asm.R0, cgprog.SockProtocol, asm.Word))
	g.AllowIf(op, asm.R1, protocol)
	if cgprog.SkbNamespace.Has() {
		g.Emit(asm.Mov.Reg(asm.R1, bpfasm.Context))
		g.Begin(g.cookie)
	}
	g.known(cgprog.SkbSock)
}

// unlessStates lets packets pass whose socket is in none of the states of TCP.
func (g *generator) unlessStates(states ...int32) {
	stay := g.NewLabel()
	g.Emit(
		asm.Mov.Reg(bpfasm.Context, asm.R1),
		asm.LoadMem(asm.R1, bpfasm.Context, cgprog.SkbSock, asm.DWord),
	)
	g.AllowIf(asm.JEq, asm.R1, 0)
	g.Emit(asm.LoadMem(asm.R1, asm.R1, cgprog.SockState, asm.Word))
	for _, s := range states {
		g.JumpImm64(asm.JEq, asm.R1, s, stay)
	}
	g.Leave(cgprog.Allow)
	g.Mark(stay)
}

// shut drops the packets of sockets that were refused when it was too late to tell the application.
func (g *generator) shut() (bool, error) {
	if late, err := g.refusesLate(); !late || err != nil {
		return false, err
	}
	g.unlessStates(cgprog.TCPSynSent, cgprog.TCPListen) // it enters all other states by packets
	g.storage(cgprog.SkbSock, false)
	g.Emit(asm.LoadMem(asm.R1, regStorage, eventmap.Body(codegen.EventFlags), asm.Word))
	g.AllowUnlessSet(asm.R1, eventmap.FlagBlocked)
	g.Leave(cgprog.Refuse)
	return true, nil
}

// visit raises ACCEPT for the first datagram of a peer that the socket has not sent to.
func (g *generator) visit() (bool, error) {
	g.traffic(asm.JNE, cgprog.ProtoUDP)
	g.recall()
	g.packet(true)
	g.AllowIf(asm.JNE, asm.R8, cgprog.ProtoUDP)
	g.unlessLastSender()
	g.Cookie()
	g.peer()
	g.refuseOrAllowIfMet(g.keepLastSender)
	h := codegen.EventHook{Event: packet.EventSocketAccept, Inbound: true, Protocol: cgprog.ProtoUDP}
	if g.sniffs() {
		g.meet(peerMet)
		g.keepLastSender()
	}
	return g.incoming(h)
}

// unlessLastSender lets the packets of the last peer pass.
func (g *generator) unlessLastSender() {
	g.lastSender(func(other bpfasm.Label) {
		g.Emit(asm.LoadMem(asm.R2, regStorage, eventmap.StoredPeer, asm.DWord))
		g.JumpReg(asm.JNE, asm.R1, asm.R2, other)
		g.Leave(cgprog.Allow)
	})
}

// keepLastSender makes the sender of the packet the last peer.
func (g *generator) keepLastSender() {
	g.lastSender(func(bpfasm.Label) { g.Emit(asm.StoreMem(regStorage, eventmap.StoredPeer, asm.R1, asm.DWord)) })
}

// lastSender emits f, which finds the sender of the packet in R1, as loadPeer leaves it, or goes to the label behind f.
func (g *generator) lastSender(f func(other bpfasm.Label)) {
	if g.generation == 0 {
		return
	}
	other := g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventIPv6), asm.Byte))
	g.JumpImm64(asm.JNE, asm.R1, 0, other)
	g.loadPeer(bpfasm.Frame, framePacket+12, framePacket, asm.Half) // packet has left them there
	f(other)
	g.Mark(other)
}

// syn refuses incoming connections of TCP: it drops the packet, and its repetitions.
func (g *generator) syn() (bool, error) {
	if g.sniffs() {
		return false, nil
	}
	g.unlessStates(cgprog.TCPListen)
	g.Emit(asm.Mov.Reg(asm.R1, bpfasm.Context))
	g.traffic(asm.JNE, cgprog.ProtoTCP)
	g.recall()
	g.Cookie()
	g.packet(true)
	g.AllowIf(asm.JNE, asm.R8, cgprog.ProtoTCP)
	g.loadPacket(framePacket, tcpFlags+1)
	const syn, ack = 0x02, 0x10
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, framePacket+tcpFlags, asm.Byte),
		asm.And.Imm32(asm.R1, syn|ack),
	)
	g.AllowIf(asm.JNE, asm.R1, syn)
	g.peer()
	g.refuseOrAllowIfMet(nil)
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventParent), asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R1, 0), // it will never be
		asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.R1, asm.DWord),
	)
	return g.incoming(codegen.EventHook{Event: packet.EventSocketAccept, Inbound: true, Protocol: cgprog.ProtoTCP})
}

// tcpFlags is the offset of the flags in a TCP header (RFC 9293 3.1).
const tcpFlags = 13

// refuseOrAllowIfMet lets the packets of a peer that was decided on already go the same way. If onMet is not nil, the code
// that it emits runs before they pass.
func (g *generator) refuseOrAllowIfMet(onMet func()) {
	first, met := g.NewLabel(), g.NewLabel()
	g.lookUpPeer(first)
	g.JumpImm64(asm.JNE, asm.R0, peerRefused, met)
	g.Leave(cgprog.Refuse)
	g.Mark(met)
	if onMet != nil {
		onMet()
	}
	g.Leave(cgprog.Allow)
	g.Mark(first)
}

// incoming decides on ACCEPT where packets are dropped to refuse it.
func (g *generator) incoming(h codegen.EventHook) (bool, error) {
	matches, err := g.decide(h)
	if !matches || err != nil {
		return false, err
	}
	switch {
	case g.sniffs():
		g.tell()
		g.Leave(cgprog.Allow)
		return true, nil
	case g.drops():
		g.count(eventmap.CounterDropped)
	default:
		g.setFlags(eventmap.FlagRefused, 0)
		g.tell()
	}
	g.meet(peerRefused)
	g.Leave(cgprog.Refuse)
	return true, nil
}

// loadPacket copies n bytes of the packet, from the offset in R7, to the frame, or lets a packet that ends
// before pass.
func (g *generator) loadPacket(to int16, n int32) {
	g.Emit(asm.Mov.Reg(asm.R1, bpfasm.Context), asm.Mov.Reg(asm.R2, regOffset))
	g.Point(asm.R3, to)
	g.Emit(asm.Mov.Imm(asm.R4, n), asm.FnSkbLoadBytes.Call())
	g.AllowIf(asm.JSLT, asm.R0, 0)
}

// packet stores both sides of a packet and leaves its protocol in R8 and the offset of the transport header in R7. Later
// fragments pass: sockets neither send nor get them. IPv6 packets with more than maxExtensions extension headers pass a handle
// that refuses nothing, and no other.
func (g *generator) packet(inbound bool) {
	source, destination := codegen.EventLocal, codegen.EventRemote
	if inbound {
		source, destination = destination, source
	}
	six, join := g.NewLabel(), g.NewLabel()
	g.Emit(asm.Mov.Imm(regOffset, 0))
	g.loadPacket(framePacket, 20)
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, framePacket, asm.Byte),
		asm.Mov.Reg(regOffset, asm.R1),
		asm.RSh.Imm(asm.R1, 4),
	)
	g.JumpImm64(asm.JEq, asm.R1, 6, six)
	g.AllowIf(asm.JNE, asm.R1, 4)
	g.Emit(
		asm.And.Imm(regOffset, 15),
		asm.LSh.Imm(regOffset, 2),
		asm.LoadMem(asm.R1, bpfasm.Frame, framePacket+6, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.And.Imm(asm.R1, 0x1FFF),
	)
	g.AllowIf(asm.JNE, asm.R1, 0)
	g.Address4(bpfasm.Frame, framePacket+12, source)
	g.Address4(bpfasm.Frame, framePacket+16, destination)
	g.SetByte(codegen.EventIPv6, 0)
	g.Emit(asm.LoadMem(asm.R8, bpfasm.Frame, framePacket+9, asm.Byte))
	g.Jump(join)
	g.Mark(six)
	g.Emit(asm.Mov.Imm(regOffset, 20))
	g.loadPacket(framePacket+20, 20)
	g.Address6(bpfasm.Frame, framePacket+8, source)
	g.Address6(bpfasm.Frame, framePacket+24, destination)
	g.SetByte(codegen.EventIPv6, 1)
	g.Emit(
		asm.Mov.Imm(regOffset, 40),
		asm.LoadMem(asm.R8, bpfasm.Frame, framePacket+6, asm.Byte),
	)
	g.extensions(join)
	g.Mark(join)
	g.Emit(asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventProtocol), asm.R8, asm.Byte))
	g.packetPorts(inbound)
	g.Loopback(codegen.EventRemote)
}

// Extension headers of IPv6 (IANA).
const (
	protoHopByHop    = 0
	protoRouting     = 43
	protoFragment    = 44
	protoAH          = 51
	protoDestination = 60
	protoMobility    = 135
)

// maxExtensions is the most extension headers of IPv6 that are skipped. The verifier goes through the loop once for each.
const maxExtensions = 64

// extensions skips the extension headers (RFC 8200 4, RFC 4302 2.2, RFC 6275 6.1) from R7 on, the first one of the type in R8,
// and goes to end. It uses framePacket and frameValue.
func (g *generator) extensions(end bpfasm.Label) {
	next, pass, fragment, auth, passed := g.NewLabel(), g.NewLabel(), g.NewLabel(), g.NewLabel(), g.NewLabel()
	g.Emit(asm.Mov.Imm(asm.R1, 0), asm.StoreMem(bpfasm.Frame, frameValue, asm.R1, asm.DWord)) // how many were skipped
	g.Mark(next)
	for _, header := range [...]int32{protoHopByHop, protoRouting, protoFragment, protoAH, protoDestination, protoMobility} {
		g.JumpImm64(asm.JEq, asm.R8, header, pass)
	}
	g.Jump(end)
	g.Mark(pass)
	more := g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, frameValue, asm.DWord))
	g.JumpImm64(asm.JLT, asm.R1, maxExtensions, more)
	if g.sniffs() {
		g.Leave(cgprog.Allow)
	} else {
		g.Leave(cgprog.Refuse)
	}
	g.Mark(more)
	g.Emit(asm.Add.Imm(asm.R1, 1), asm.StoreMem(bpfasm.Frame, frameValue, asm.R1, asm.DWord))
	g.loadPacket(framePacket, 8)
	g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, framePacket+1, asm.Byte))
	g.JumpImm64(asm.JEq, asm.R8, protoFragment, fragment)
	g.JumpImm64(asm.JEq, asm.R8, protoAH, auth)
	g.Emit(asm.Add.Imm(asm.R1, 1), asm.LSh.Imm(asm.R1, 3))
	g.Jump(passed)
	g.Mark(auth)
	g.Emit(asm.Add.Imm(asm.R1, 2), asm.LSh.Imm(asm.R1, 2))
	g.Jump(passed)
	g.Mark(fragment)
	g.Emit(asm.Mov.Imm(asm.R1, 8))
	g.Mark(passed)
	g.Emit(asm.Add.Reg(regOffset, asm.R1), asm.LoadMem(asm.R8, bpfasm.Frame, framePacket, asm.Byte))
	g.Jump(next)
}

// packetPorts stores the ports of TCP and UDP. Other protocols have none, except that the identifier of
// an ICMP echo counts as the local one, as it does with the kernel's ping sockets.
func (g *generator) packetPorts(inbound bool) {
	source, destination := codegen.EventLocalPort, codegen.EventRemotePort
	if inbound {
		source, destination = destination, source
	}
	ports, end := g.NewLabel(), g.NewLabel()
	g.Emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventLocalPort), asm.R1, asm.Word), // both
	)
	g.JumpImm64(asm.JEq, asm.R8, cgprog.ProtoTCP, ports)
	g.JumpImm64(asm.JEq, asm.R8, cgprog.ProtoUDP, ports)
	g.echo(end)
	g.Jump(end)
	g.Mark(ports)
	g.loadPacket(framePacket, 4)
	for i, field := range [...]int16{source, destination} {
		g.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, framePacket+2*int16(i), asm.Half),
			asm.HostTo(asm.BE, asm.R1, asm.Half),
			asm.StoreMem(bpfasm.Frame, cgprog.Record(field), asm.R1, asm.Half),
		)
	}
	g.Mark(end)
}

// echo stores the identifier of an ICMP echo or its reply (RFC 792, RFC 4443 4).
func (g *generator) echo(end bpfasm.Label) {
	load, take := g.NewLabel(), g.NewLabel()
	g.JumpImm64(asm.JEq, asm.R8, cgprog.ProtoICMP, load)
	g.JumpImm64(asm.JNE, asm.R8, cgprog.ProtoICMPv6, end)
	g.Mark(load)
	g.loadPacket(framePacket, 8)
	g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, framePacket, asm.Byte))
	g.JumpImm64(asm.JEq, asm.R1, 0, take)
	g.JumpImm64(asm.JEq, asm.R1, 8, take)
	g.JumpImm64(asm.JEq, asm.R1, 128, take)
	g.JumpImm64(asm.JNE, asm.R1, 129, end)
	g.Mark(take)
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, framePacket+4, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventLocalPort), asm.R1, asm.Half),
	)
}

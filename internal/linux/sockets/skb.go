//go:build linux

package sockets

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/packet"
)

// traffic starts a program that runs for each packet of a socket, and lets those pass for whose protocol the
// comparison holds. Where the kernel does not tell such programs the namespace, only sockets of ours have a
// storage, or are known as older ones.
func (g *generator) traffic(op asm.JumpOp, protocol int32) {
	g.emit(
		asm.Mov.Reg(regContext, asm.R1),
		asm.LoadMem(asm.R1, regContext, skbSock, asm.DWord),
	)
	g.allowIf(asm.JEq, asm.R1, 0)
	g.emit(asm.FnSkFullsock.Call())
	g.allowIf(asm.JEq, asm.R0, 0)
	g.emit(asm.LoadMem(asm.R1, asm.R0, sockProtocol, asm.Word))
	g.allowIf(op, asm.R1, protocol)
	if skbNamespace() {
		g.emit(asm.Mov.Reg(asm.R1, regContext))
		g.begin(g.cookie)
	}
	g.known(skbSock)
}

// unlessStates lets the packets pass of sockets that are in none of the states of TCP.
func (g *generator) unlessStates(states ...int32) {
	stay := g.newLabel()
	g.emit(
		asm.Mov.Reg(regContext, asm.R1),
		asm.LoadMem(asm.R1, regContext, skbSock, asm.DWord),
	)
	g.allowIf(asm.JEq, asm.R1, 0)
	g.emit(asm.LoadMem(asm.R1, asm.R1, sockState, asm.Word))
	for _, s := range states {
		g.emit(asm.JEq.Imm(asm.R1, s, stay))
	}
	g.leave(allow)
	g.mark(stay)
}

// shut drops the packets of sockets that were refused when it was too late to tell the application.
func (g *generator) shut() (bool, error) {
	if late, err := g.refusesLate(); !late || err != nil {
		return false, err
	}
	g.unlessStates(tcpSynSent, tcpListen) // what else it becomes, it becomes by packets
	g.storage(skbSock, false)
	g.emit(asm.LoadMem(asm.R1, regStorage, body(codegen.EventFlags), asm.Word))
	g.allowUnlessSet(asm.R1, flagBlocked)
	g.leave(refuse)
	return true, nil
}

// visit raises ACCEPT for the first datagram of a peer that the socket has not sent to.
func (g *generator) visit() (bool, error) {
	g.traffic(asm.JNE, protoUDP)
	g.recall()
	g.packet(true)
	g.allowIf(asm.JNE, asm.R8, protoUDP)
	g.unlessLastSender()
	g.builder.cookie()
	g.peer()
	g.refuseOrAllowIfMet(g.keepLastSender)
	h := codegen.EventHook{Event: packet.EventSocketAccept, Inbound: true, Protocol: protoUDP}
	if g.sniffs() {
		g.meet(peerMet)
		g.keepLastSender()
	}
	return g.incoming(h)
}

// unlessLastSender lets the packets of the last peer pass.
func (g *generator) unlessLastSender() {
	g.lastSender(func(other string) {
		g.emit(
			asm.LoadMem(asm.R2, regStorage, storedPeer, asm.DWord),
			asm.JNE.Reg(asm.R1, asm.R2, other),
		)
		g.leave(allow)
	})
}

// keepLastSender makes the sender of the packet the last peer.
func (g *generator) keepLastSender() {
	g.lastSender(func(string) { g.emit(asm.StoreMem(regStorage, storedPeer, asm.R1, asm.DWord)) })
}

// lastSender emits f, which finds the sender of the packet in R1, as loadPeer leaves it, or goes to the label behind f.
func (g *generator) lastSender(f func(other string)) {
	if g.generation == 0 {
		return
	}
	other := g.newLabel()
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventIPv6), asm.Byte),
		asm.JNE.Imm(asm.R1, 0, other),
	)
	g.loadPeer(regFrame, framePacket+12, framePacket, asm.Half) // packet has left them there
	f(other)
	g.mark(other)
}

// syn refuses incoming connections of TCP: the packet is dropped, and those that repeat it.
func (g *generator) syn() (bool, error) {
	if g.sniffs() {
		return false, nil
	}
	g.unlessStates(tcpListen)
	g.emit(asm.Mov.Reg(asm.R1, regContext))
	g.traffic(asm.JNE, protoTCP)
	g.recall()
	g.builder.cookie()
	g.packet(true)
	g.allowIf(asm.JNE, asm.R8, protoTCP)
	g.loadPacket(framePacket, tcpFlags+1)
	const syn, ack = 0x02, 0x10
	g.emit(
		asm.LoadMem(asm.R1, regFrame, framePacket+tcpFlags, asm.Byte),
		asm.And.Imm32(asm.R1, syn|ack),
	)
	g.allowIf(asm.JNE, asm.R1, syn)
	g.peer()
	g.refuseOrAllowIfMet(nil)
	g.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(regFrame, record(codegen.EventParent), asm.R1, asm.DWord),
		asm.Mov.Imm(asm.R1, 0), // it will never be
		asm.StoreMem(regFrame, record(codegen.EventEndpoint), asm.R1, asm.DWord),
	)
	return g.incoming(codegen.EventHook{Event: packet.EventSocketAccept, Inbound: true, Protocol: protoTCP})
}

// tcpFlags is the offset of the flags in a TCP header (RFC 9293 3.1).
const tcpFlags = 13

// refuseOrAllowIfMet lets the packets of a peer that was decided on already go the same way. What onMet emits, if
// it is not nil, runs before they pass.
func (g *generator) refuseOrAllowIfMet(onMet func()) {
	first, met := g.newLabel(), g.newLabel()
	g.lookUpPeer(first)
	g.emit(asm.JNE.Imm(asm.R0, peerRefused, met))
	g.leave(refuse)
	g.mark(met)
	if onMet != nil {
		onMet()
	}
	g.leave(allow)
	g.mark(first)
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
		g.leave(allow)
		return true, nil
	case g.drops():
		g.count(counterDropped)
	default:
		g.builder.flags(flagRefused, 0)
		g.tell()
	}
	g.meet(peerRefused)
	g.leave(refuse)
	return true, nil
}

// loadPacket copies n bytes of the packet, from the offset in R7, to the frame, or lets a packet that ends
// before pass.
func (g *generator) loadPacket(to int16, n int32) {
	g.emit(asm.Mov.Reg(asm.R1, regContext), asm.Mov.Reg(asm.R2, regOffset))
	g.point(asm.R3, to)
	g.emit(asm.Mov.Imm(asm.R4, n), asm.FnSkbLoadBytes.Call())
	g.allowIf(asm.JSLT, asm.R0, 0)
}

// packet stores both sides of a packet and leaves its protocol in R8 and the offset of the transport
// header in R7. Packets that it cannot place pass: later fragments, which sockets neither send nor get. Of IPv6
// packets with more than maxExtensions extension headers it cannot tell what they are: those pass a handle that refuses
// nothing, and no other.
func (g *generator) packet(inbound bool) {
	source, destination := codegen.EventLocal, codegen.EventRemote
	if inbound {
		source, destination = destination, source
	}
	six, join := g.newLabel(), g.newLabel()
	g.emit(asm.Mov.Imm(regOffset, 0))
	g.loadPacket(framePacket, 20)
	g.emit(
		asm.LoadMem(asm.R1, regFrame, framePacket, asm.Byte),
		asm.Mov.Reg(regOffset, asm.R1),
		asm.RSh.Imm(asm.R1, 4),
		asm.JEq.Imm(asm.R1, 6, six),
	)
	g.allowIf(asm.JNE, asm.R1, 4)
	g.emit(
		asm.And.Imm(regOffset, 15),
		asm.LSh.Imm(regOffset, 2),
		asm.LoadMem(asm.R1, regFrame, framePacket+6, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.And.Imm(asm.R1, 0x1FFF),
	)
	g.allowIf(asm.JNE, asm.R1, 0)
	g.address4(regFrame, framePacket+12, source)
	g.address4(regFrame, framePacket+16, destination)
	g.setByte(codegen.EventIPv6, 0)
	g.emit(
		asm.LoadMem(asm.R8, regFrame, framePacket+9, asm.Byte),
		asm.Ja.Label(join),
	)
	g.mark(six)
	g.emit(asm.Mov.Imm(regOffset, 20))
	g.loadPacket(framePacket+20, 20)
	g.address6(regFrame, framePacket+8, source)
	g.address6(regFrame, framePacket+24, destination)
	g.setByte(codegen.EventIPv6, 1)
	g.emit(
		asm.Mov.Imm(regOffset, 40),
		asm.LoadMem(asm.R8, regFrame, framePacket+6, asm.Byte),
	)
	g.extensions(join)
	g.mark(join)
	g.emit(asm.StoreMem(regFrame, record(codegen.EventProtocol), asm.R8, asm.Byte))
	g.packetPorts(inbound)
	g.loopback(codegen.EventRemote)
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

// maxExtensions is how many extension headers of IPv6 are passed. The verifier goes through the loop once for each.
const maxExtensions = 64

// extensions passes the extension headers (RFC 8200 4, RFC 4302 2.2, RFC 6275 6.1) from R7 on, of which R8 tells the first,
// and goes to end. It uses framePacket and frameValue.
func (g *generator) extensions(end string) {
	next, pass, fragment, auth, passed := g.newLabel(), g.newLabel(), g.newLabel(), g.newLabel(), g.newLabel()
	g.emit(asm.Mov.Imm(asm.R1, 0), asm.StoreMem(regFrame, frameValue, asm.R1, asm.DWord)) // how many were passed
	g.mark(next)
	for _, header := range [...]int32{protoHopByHop, protoRouting, protoFragment, protoAH, protoDestination, protoMobility} {
		g.emit(asm.JEq.Imm(asm.R8, header, pass))
	}
	g.emit(asm.Ja.Label(end))
	g.mark(pass)
	more := g.newLabel()
	g.emit(
		asm.LoadMem(asm.R1, regFrame, frameValue, asm.DWord),
		asm.JLT.Imm(asm.R1, maxExtensions, more),
	)
	if g.sniffs() {
		g.leave(allow)
	} else {
		g.leave(refuse)
	}
	g.mark(more)
	g.emit(asm.Add.Imm(asm.R1, 1), asm.StoreMem(regFrame, frameValue, asm.R1, asm.DWord))
	g.loadPacket(framePacket, 8)
	g.emit(
		asm.LoadMem(asm.R1, regFrame, framePacket+1, asm.Byte),
		asm.JEq.Imm(asm.R8, protoFragment, fragment),
		asm.JEq.Imm(asm.R8, protoAH, auth),
		asm.Add.Imm(asm.R1, 1),
		asm.LSh.Imm(asm.R1, 3),
		asm.Ja.Label(passed),
	)
	g.mark(auth)
	g.emit(
		asm.Add.Imm(asm.R1, 2),
		asm.LSh.Imm(asm.R1, 2),
		asm.Ja.Label(passed),
	)
	g.mark(fragment)
	g.emit(asm.Mov.Imm(asm.R1, 8))
	g.mark(passed)
	g.emit(
		asm.Add.Reg(regOffset, asm.R1),
		asm.LoadMem(asm.R8, regFrame, framePacket, asm.Byte),
		asm.Ja.Label(next),
	)
}

// packetPorts stores the ports of TCP and UDP. Other protocols have none, except that the identifier of
// an ICMP echo counts as the local one, as it does with the kernel's ping sockets.
func (g *generator) packetPorts(inbound bool) {
	source, destination := codegen.EventLocalPort, codegen.EventRemotePort
	if inbound {
		source, destination = destination, source
	}
	ports, end := g.newLabel(), g.newLabel()
	g.emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(regFrame, record(codegen.EventLocalPort), asm.R1, asm.Word), // both
		asm.JEq.Imm(asm.R8, protoTCP, ports),
		asm.JEq.Imm(asm.R8, protoUDP, ports),
	)
	g.echo(end)
	g.emit(asm.Ja.Label(end))
	g.mark(ports)
	g.loadPacket(framePacket, 4)
	for i, field := range [...]int16{source, destination} {
		g.emit(
			asm.LoadMem(asm.R1, regFrame, framePacket+2*int16(i), asm.Half),
			asm.HostTo(asm.BE, asm.R1, asm.Half),
			asm.StoreMem(regFrame, record(field), asm.R1, asm.Half),
		)
	}
	g.mark(end)
}

// echo stores the identifier of an ICMP echo or its reply (RFC 792, RFC 4443 4).
func (g *generator) echo(end string) {
	load, take := g.newLabel(), g.newLabel()
	g.emit(
		asm.JEq.Imm(asm.R8, protoICMP, load),
		asm.JNE.Imm(asm.R8, protoICMPv6, end),
	)
	g.mark(load)
	g.loadPacket(framePacket, 8)
	g.emit(
		asm.LoadMem(asm.R1, regFrame, framePacket, asm.Byte),
		asm.JEq.Imm(asm.R1, 0, take),
		asm.JEq.Imm(asm.R1, 8, take),
		asm.JEq.Imm(asm.R1, 128, take),
		asm.JNE.Imm(asm.R1, 129, end),
	)
	g.mark(take)
	g.emit(
		asm.LoadMem(asm.R1, regFrame, framePacket+4, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(regFrame, record(codegen.EventLocalPort), asm.R1, asm.Half),
	)
}

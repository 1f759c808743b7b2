//go:build linux

package sockets

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/codegen"
)

// mapped precedes the 32 bits of an IPv4 address.
const mapped = 0xFFFF << 32

// Address families (linux/socket.h).
const (
	afINET  = 2
	afINET6 = 10
)

// address4 stores the IPv4 address at an offset of base, in network byte order, in a field of the record.
func (b *builder) address4(base asm.Register, from, field int16) {
	b.emit(
		asm.LoadMem(asm.R1, base, from, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Word),
		asm.LoadImm(asm.R2, mapped, asm.DWord),
		asm.Or.Reg(asm.R1, asm.R2),
		asm.Mov.Imm(asm.R2, 0),
		asm.StoreMem(regFrame, record(field), asm.R2, asm.DWord),
		asm.StoreMem(regFrame, record(field)+8, asm.R1, asm.DWord),
	)
}

// address6 is the same for an IPv6 address. Contexts give it in words of 4 bytes only.
func (b *builder) address6(base asm.Register, from, field int16) {
	for half := int16(0); half < 16; half += 8 {
		b.emit(
			asm.LoadMem(asm.R1, base, from+half, asm.Word),
			asm.HostTo(asm.BE, asm.R1, asm.Word),
			asm.LSh.Imm(asm.R1, 32),
			asm.LoadMem(asm.R2, base, from+half+4, asm.Word),
			asm.HostTo(asm.BE, asm.R2, asm.Word),
			asm.Or.Reg(asm.R1, asm.R2),
			asm.StoreMem(regFrame, record(field)+half, asm.R1, asm.DWord),
		)
	}
}

// family6 stores whether an event of an IPv6 socket is of IPv6: it is not if the address in the field is a
// mapped one. Then a local address of zeros is that of IPv4.
func (b *builder) family6(field int16) {
	six, end := b.newLabel(), b.newLabel()
	b.emit(
		asm.LoadMem(asm.R1, regFrame, record(field), asm.DWord),
		asm.JNE.Imm(asm.R1, 0, six),
		asm.LoadMem(asm.R1, regFrame, record(field)+8, asm.DWord),
		asm.RSh.Imm(asm.R1, 32),
		asm.JNE.Imm(asm.R1, 0xFFFF, six),
	)
	b.setByte(codegen.EventIPv6, 0)
	if field != codegen.EventLocal {
		b.emit(
			asm.LoadMem(asm.R1, regFrame, record(codegen.EventLocal)+8, asm.DWord),
			asm.JNE.Imm(asm.R1, 0, end),
			asm.LoadImm(asm.R1, mapped, asm.DWord),
			asm.StoreMem(regFrame, record(codegen.EventLocal)+8, asm.R1, asm.DWord),
		)
	}
	b.emit(asm.Ja.Label(end))
	b.mark(six)
	b.setByte(codegen.EventIPv6, 1)
	b.mark(end)
}

// loopback stores whether the address in the field is one of this host's that never leave it, or, if it is
// the remote one, the local one too.
func (b *builder) loopback(field int16) {
	yes, no, four, end := b.newLabel(), b.newLabel(), b.newLabel(), b.newLabel()
	b.emit(
		asm.LoadMem(asm.R1, regFrame, record(field), asm.DWord),
		asm.LoadMem(asm.R2, regFrame, record(field)+8, asm.DWord),
	)
	if field == codegen.EventRemote {
		other := b.newLabel()
		b.emit(
			asm.LoadMem(asm.R3, regFrame, record(codegen.EventLocal), asm.DWord),
			asm.JNE.Reg(asm.R1, asm.R3, other),
			asm.LoadMem(asm.R3, regFrame, record(codegen.EventLocal)+8, asm.DWord),
			asm.JEq.Reg(asm.R2, asm.R3, yes),
		)
		b.mark(other)
	}
	b.emit(
		asm.JNE.Imm(asm.R1, 0, no),
		asm.JNE.Imm(asm.R2, 1, four),
		asm.Ja.Label(yes),
	)
	b.mark(four)
	b.emit(
		asm.RSh.Imm(asm.R2, 24),
		asm.LoadImm(asm.R3, 0xFFFF7F, asm.DWord), // ::ffff:127.0.0.0/104
		asm.JEq.Reg(asm.R2, asm.R3, yes),
	)
	b.mark(no)
	b.setByte(codegen.EventLoopback, 0)
	b.emit(asm.Ja.Label(end))
	b.mark(yes)
	b.setByte(codegen.EventLoopback, 1)
	b.mark(end)
}

// Offsets in struct bpf_sock, bpf_sock_addr, bpf_sock_ops (linux/bpf.h).
const (
	sockProtocol = 12
	sockSrcIP4   = 24
	sockSrcIP6   = 28
	sockSrcPort  = 44 // host byte order
	sockState    = 72

	addrIP4      = 4
	addrIP6      = 8
	addrPort     = 24 // network byte order
	addrProtocol = 36

	opsOp         = 0
	opsNewState   = 8 // args[1] of STATE_CB
	opsFamily     = 20
	opsRemoteIP4  = 24
	opsLocalIP4   = 28
	opsRemoteIP6  = 32
	opsLocalIP6   = 48
	opsRemotePort = 64 // network byte order, the lower half zero
	opsLocalPort  = 68 // host byte order
	opsCallbacks  = 84
)

// bindSide stores what a socket is bound to, from struct bpf_sock in the context.
func (b *builder) bindSide(family int) {
	if family == afINET {
		b.address4(regContext, sockSrcIP4, codegen.EventLocal)
		b.setByte(codegen.EventIPv6, 0)
	} else {
		b.address6(regContext, sockSrcIP6, codegen.EventLocal)
		b.family6(codegen.EventLocal)
	}
	b.emit(
		asm.LoadMem(asm.R1, regContext, sockSrcPort, asm.Word),
		asm.StoreMem(regFrame, record(codegen.EventLocalPort), asm.R1, asm.Half),
	)
	b.protocol(sockProtocol)
	b.loopback(codegen.EventLocal)
}

// protocol stores the protocol from the context. The connections of an MPTCP socket are TCP.
func (b *builder) protocol(at int16) {
	b.emit(
		asm.LoadMem(asm.R1, regContext, at, asm.Word),
		asm.StoreMem(regFrame, record(codegen.EventProtocol), asm.R1, asm.Byte),
	)
}

// connectSides stores both sides of a socket that is about to be connected, or to send, from struct
// bpf_sock_addr in the context. The local side is zero as far as the socket is not bound.
func (b *builder) connectSides(family int) {
	b.emit(asm.LoadMem(asm.R7, regContext, addrSock, asm.DWord))
	if family == afINET {
		b.address4(asm.R7, sockSrcIP4, codegen.EventLocal)
		b.address4(regContext, addrIP4, codegen.EventRemote)
		b.setByte(codegen.EventIPv6, 0)
	} else {
		b.address6(asm.R7, sockSrcIP6, codegen.EventLocal)
		b.address6(regContext, addrIP6, codegen.EventRemote)
		b.family6(codegen.EventRemote)
	}
	b.emit(
		asm.LoadMem(asm.R1, asm.R7, sockSrcPort, asm.Word),
		asm.StoreMem(regFrame, record(codegen.EventLocalPort), asm.R1, asm.Half),
		asm.LoadMem(asm.R1, regContext, addrPort, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(regFrame, record(codegen.EventRemotePort), asm.R1, asm.Half),
	)
	b.protocol(addrProtocol)
	b.loopback(codegen.EventRemote)
}

// tcpSides stores both sides of a connection, or the local one of a listener, from struct bpf_sock_ops.
func (b *builder) tcpSides(remote bool) {
	six, end := b.newLabel(), b.newLabel()
	decisive := codegen.EventLocal
	if remote {
		decisive = codegen.EventRemote
	}
	b.emit(
		asm.LoadMem(asm.R1, regContext, opsFamily, asm.Word),
		asm.JNE.Imm(asm.R1, afINET, six),
	)
	b.address4(regContext, opsLocalIP4, codegen.EventLocal)
	if remote {
		b.address4(regContext, opsRemoteIP4, codegen.EventRemote)
	}
	b.setByte(codegen.EventIPv6, 0)
	b.emit(asm.Ja.Label(end))
	b.mark(six)
	b.address6(regContext, opsLocalIP6, codegen.EventLocal)
	if remote {
		b.address6(regContext, opsRemoteIP6, codegen.EventRemote)
	}
	b.family6(decisive)
	b.mark(end)
	b.emit(
		asm.LoadMem(asm.R1, regContext, opsLocalPort, asm.Word),
		asm.StoreMem(regFrame, record(codegen.EventLocalPort), asm.R1, asm.Half),
	)
	if remote {
		b.emit(
			asm.LoadMem(asm.R1, regContext, opsRemotePort, asm.Word),
			asm.HostTo(asm.BE, asm.R1, asm.Word),
			asm.StoreMem(regFrame, record(codegen.EventRemotePort), asm.R1, asm.Half),
		)
	}
	b.setByte(codegen.EventProtocol, protoTCP)
	b.loopback(decisive)
}

// Protocol numbers (IANA).
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

//go:build linux

package cgprog

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/codegen"
)

// Mapped precedes the 32 bits of an IPv4 address.
const Mapped = 0xFFFF << 32

// Address4 stores the IPv4 address at an offset of base, in network byte order, in a field of the record.
func (b *Builder) Address4(base asm.Register, from, field int16) {
	b.Emit(
		asm.LoadMem(asm.R1, base, from, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Word),
		asm.LoadImm(asm.R2, Mapped, asm.DWord),
		asm.Or.Reg(asm.R1, asm.R2),
		asm.Mov.Imm(asm.R2, 0),
		asm.StoreMem(bpfasm.Frame, Record(field), asm.R2, asm.DWord),
		asm.StoreMem(bpfasm.Frame, Record(field)+8, asm.R1, asm.DWord),
	)
}

// Address6 is the same for an IPv6 address. Contexts give it in words of 4 bytes only.
func (b *Builder) Address6(base asm.Register, from, field int16) {
	for half := int16(0); half < 16; half += 8 {
		b.Emit(
			asm.LoadMem(asm.R1, base, from+half, asm.Word),
			asm.HostTo(asm.BE, asm.R1, asm.Word),
			asm.LSh.Imm(asm.R1, 32),
			asm.LoadMem(asm.R2, base, from+half+4, asm.Word),
			asm.HostTo(asm.BE, asm.R2, asm.Word),
			asm.Or.Reg(asm.R1, asm.R2),
			asm.StoreMem(bpfasm.Frame, Record(field)+half, asm.R1, asm.DWord),
		)
	}
}

// Family6 stores whether an event of an IPv6 socket is of IPv6: it is not if the address in the field is a
// mapped one. Then a local address of zeros is that of IPv4.
func (b *Builder) Family6(field int16) {
	six, end := b.NewLabel(), b.NewLabel()
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, Record(field), asm.DWord))
	b.JumpImm64(asm.JNE, asm.R1, 0, six)
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, Record(field)+8, asm.DWord), asm.RSh.Imm(asm.R1, 32))
	b.JumpImm64(asm.JNE, asm.R1, 0xFFFF, six)
	b.SetByte(codegen.EventIPv6, 0)
	if field != codegen.EventLocal {
		b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, Record(codegen.EventLocal)+8, asm.DWord))
		b.JumpImm64(asm.JNE, asm.R1, 0, end)
		b.Emit(
			asm.LoadImm(asm.R1, Mapped, asm.DWord),
			asm.StoreMem(bpfasm.Frame, Record(codegen.EventLocal)+8, asm.R1, asm.DWord),
		)
	}
	b.Jump(end)
	b.Mark(six)
	b.SetByte(codegen.EventIPv6, 1)
	b.Mark(end)
}

// Loopback stores whether the address in the field is a loopback address or, if it is the remote one, equals the local one.
func (b *Builder) Loopback(field int16) {
	yes, no, four, end := b.NewLabel(), b.NewLabel(), b.NewLabel(), b.NewLabel()
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, Record(field), asm.DWord),
		asm.LoadMem(asm.R2, bpfasm.Frame, Record(field)+8, asm.DWord),
	)
	if field == codegen.EventRemote {
		other := b.NewLabel()
		b.Emit(asm.LoadMem(asm.R3, bpfasm.Frame, Record(codegen.EventLocal), asm.DWord))
		b.JumpReg(asm.JNE, asm.R1, asm.R3, other)
		b.Emit(asm.LoadMem(asm.R3, bpfasm.Frame, Record(codegen.EventLocal)+8, asm.DWord))
		b.JumpReg(asm.JEq, asm.R2, asm.R3, yes)
		b.Mark(other)
	}
	b.JumpImm64(asm.JNE, asm.R1, 0, no)
	b.JumpImm64(asm.JNE, asm.R2, 1, four)
	b.Jump(yes)
	b.Mark(four)
	b.Emit(
		asm.RSh.Imm(asm.R2, 24),
		asm.LoadImm(asm.R3, 0xFFFF7F, asm.DWord), // ::ffff:127.0.0.0/104
	)
	b.JumpReg(asm.JEq, asm.R2, asm.R3, yes)
	b.Mark(no)
	b.SetByte(codegen.EventLoopback, 0)
	b.Jump(end)
	b.Mark(yes)
	b.SetByte(codegen.EventLoopback, 1)
	b.Mark(end)
}

// BindSide stores the local end of a socket, from struct bpf_sock in the context.
func (b *Builder) BindSide(family int) {
	if family == INET {
		b.Address4(bpfasm.Context, SockSrcIP4, codegen.EventLocal)
		b.SetByte(codegen.EventIPv6, 0)
	} else {
		b.Address6(bpfasm.Context, SockSrcIP6, codegen.EventLocal)
		b.Family6(codegen.EventLocal)
	}
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Context, SockSrcPort, asm.Word),
		asm.StoreMem(bpfasm.Frame, Record(codegen.EventLocalPort), asm.R1, asm.Half),
	)
	b.Protocol(SockProtocol)
	b.Loopback(codegen.EventLocal)
}

// Protocol stores the protocol from the context. The connections of an MPTCP socket are TCP.
func (b *Builder) Protocol(at int16) {
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Context, at, asm.Word),
		asm.StoreMem(bpfasm.Frame, Record(codegen.EventProtocol), asm.R1, asm.Byte),
	)
}

// ConnectSides stores both sides of a socket that is about to be connected, or to send, from struct
// bpf_sock_addr in the context. The local side is zero as far as the socket is not bound.
func (b *Builder) ConnectSides(family int) {
	b.Emit(asm.LoadMem(asm.R7, bpfasm.Context, AddrSock, asm.DWord))
	if family == INET {
		b.Address4(asm.R7, SockSrcIP4, codegen.EventLocal)
		b.Address4(bpfasm.Context, AddrIP4, codegen.EventRemote)
		b.SetByte(codegen.EventIPv6, 0)
	} else {
		b.Address6(asm.R7, SockSrcIP6, codegen.EventLocal)
		b.Address6(bpfasm.Context, AddrIP6, codegen.EventRemote)
		b.Family6(codegen.EventRemote)
	}
	b.Emit(
		asm.LoadMem(asm.R1, asm.R7, SockSrcPort, asm.Word),
		asm.StoreMem(bpfasm.Frame, Record(codegen.EventLocalPort), asm.R1, asm.Half),
		asm.LoadMem(asm.R1, bpfasm.Context, AddrPort, asm.Word),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(bpfasm.Frame, Record(codegen.EventRemotePort), asm.R1, asm.Half),
	)
	b.Protocol(AddrProtocol)
	b.Loopback(codegen.EventRemote)
}

// TCPSides stores both sides of a connection, or the local one of a listener, from struct bpf_sock_ops.
func (b *Builder) TCPSides(remote bool) {
	six, end := b.NewLabel(), b.NewLabel()
	decisive := codegen.EventLocal
	if remote {
		decisive = codegen.EventRemote
	}
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, OpsFamily, asm.Word))
	b.JumpImm64(asm.JNE, asm.R1, INET, six)
	b.Address4(bpfasm.Context, OpsLocalIP4, codegen.EventLocal)
	if remote {
		b.Address4(bpfasm.Context, OpsRemoteIP4, codegen.EventRemote)
	}
	b.SetByte(codegen.EventIPv6, 0)
	b.Jump(end)
	b.Mark(six)
	b.Address6(bpfasm.Context, OpsLocalIP6, codegen.EventLocal)
	if remote {
		b.Address6(bpfasm.Context, OpsRemoteIP6, codegen.EventRemote)
	}
	b.Family6(decisive)
	b.Mark(end)
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Context, OpsLocalPort, asm.Word),
		asm.StoreMem(bpfasm.Frame, Record(codegen.EventLocalPort), asm.R1, asm.Half),
	)
	if remote {
		b.Emit(
			asm.LoadMem(asm.R1, bpfasm.Context, OpsRemotePort, asm.Word),
			asm.HostTo(asm.BE, asm.R1, asm.Word),
			asm.StoreMem(bpfasm.Frame, Record(codegen.EventRemotePort), asm.R1, asm.Half),
		)
	}
	b.SetByte(codegen.EventProtocol, ProtoTCP)
	b.Loopback(decisive)
}

// ClearPair stores zeros in an address of the record.
func (b *Builder) ClearPair(field int16) {
	b.Emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(bpfasm.Frame, Record(field), asm.R1, asm.DWord),
		asm.StoreMem(bpfasm.Frame, Record(field)+8, asm.R1, asm.DWord),
	)
}

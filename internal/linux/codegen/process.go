//go:build linux

package codegen

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/processmap"
)

// process stores the process of the packet, 0 if it has none or none is known.
//
// Most packets take one look-up. On the way out that is the cookie's; without a socket that is known, only
// packets that the kernel sends for TCP connections without a socket of their own, at the beginning or the end, have
// a process. On the way in it is both ends, then the local port with the addresses it may be bound to, in
// the order in which the kernel prefers them, and last the connections that have just been closed.
func (g *generator) process() {
	found, none := g.NewLabel(), g.NewLabel()
	if g.hook.Direction == Outbound {
		g.processByCookie(found, none)
	}
	g.processKey(none)
	g.processBy(processmap.FlowsMap, processmap.FlowProcess, found)
	g.processByPort(found)
	g.processByClosed(found, none)
	g.Mark(none)
	g.Emit(asm.LoadMem(asm.R1, regFrame, varZero, asm.DWord))
	g.Mark(found)
	g.Emit(asm.StoreMem(regFrame, varProcess, asm.R1, asm.Word))
}

// processName stores the name of the packet's process, zeros if none is known.
func (g *generator) processName() {
	unknown, end := g.NewLabel(), g.NewLabel()
	g.LookUp(processmap.NamesMap, varProcess)
	g.JumpImm64(asm.JEq, asm.R0, 0, unknown)
	g.Emit(
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord), asm.HostTo(asm.BE, asm.R1, asm.DWord),
		asm.LoadMem(asm.R2, asm.R0, 8, asm.DWord), asm.HostTo(asm.BE, asm.R2, asm.DWord),
	)
	g.Jump(end)
	g.Mark(unknown)
	g.Emit(asm.LoadMem(asm.R1, regFrame, varZero, asm.DWord), asm.Mov.Reg(asm.R2, asm.R1))
	g.Mark(end)
	g.Emit(
		asm.StoreMem(regFrame, varName, asm.R1, asm.DWord),
		asm.StoreMem(regFrame, varName+8, asm.R2, asm.DWord),
	)
}

// processByCookie goes to found with the process of the packet's socket in R1, or to none if another way to find it
// makes no sense.
func (g *generator) processByCookie(found, none label) {
	g.Emit(
		asm.Mov.Reg(asm.R1, regContext),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(regFrame, frameProcess, asm.R0, asm.DWord),
	)
	g.processBy(processmap.SocketsMap, processmap.SocketProcess, found)
	g.Emit(
		asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word),
		asm.And.Imm32(asm.R1, 1<<flagTCP),
	)
	g.JumpImm32(asm.JEq, asm.R1, 0, none)
}

// processBy looks the key at frameProcess up and goes to found with the word at an offset of the value in R1, if
// there is one.
func (g *generator) processBy(name string, offset int16, found label) {
	miss := g.NewLabel()
	g.LookUp(name, frameProcess)
	g.JumpImm64(asm.JEq, asm.R0, 0, miss)
	g.Emit(asm.LoadMem(asm.R1, asm.R0, offset, asm.Word))
	g.Jump(found)
	g.Mark(miss)
}

// processKey makes the key of the packet's flow, or goes to none if no socket can have it.
func (g *generator) processKey(none label) {
	echo, ports, end := g.NewLabel(), g.NewLabel(), g.NewLabel()
	g.Emit(asm.LoadMem(asm.R3, regFrame, varFlags, asm.Word))
	g.JumpImm32(asm.JSet, asm.R3, 1<<flagTCP|1<<flagUDP, ports)
	g.Emit(asm.And.Imm32(asm.R3, 1<<flagICMP|1<<flagICMPv6))
	g.JumpImm32(asm.JEq, asm.R3, 0, none)
	// In ICMP only the reply to an echo is for a process (RFC 792, RFC 4443 4.2).
	g.Emit(asm.LoadMem(asm.R1, regFrame, frameTransport, asm.Byte))
	g.JumpImm32(asm.JEq, asm.R1, 0, echo)
	g.JumpImm32(asm.JNE, asm.R1, 129, none)
	g.Mark(echo)
	g.Emit(
		asm.LoadMem(asm.R1, regFrame, frameTransport+4, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.LoadMem(asm.R2, regFrame, varZero, asm.DWord),
	)
	g.Jump(end)
	g.Mark(ports)
	g.Emit(
		asm.LoadMem(asm.R1, regFrame, varLocalPort, asm.Word),
		asm.LoadMem(asm.R2, regFrame, varRemotePort, asm.Word),
	)
	g.Mark(end)
	g.Emit(
		asm.StoreMem(regFrame, frameProcess+processmap.KeyLocalPort, asm.R1, asm.Word),
		asm.StoreMem(regFrame, frameProcess+processmap.KeyRemotePort, asm.R2, asm.DWord), // and zeros behind it
		asm.LoadMem(asm.R1, regFrame, varProtocol, asm.Word),
		asm.StoreMem(regFrame, frameProcess+processmap.KeyProtocol, asm.R1, asm.Word),
	)
	g.keyAddress(varLocalAddr, processmap.KeyLocal)
	g.keyAddress(varRemoteAddr, processmap.KeyRemote)
}

// keyAddress copies an address to the key.
func (g *generator) keyAddress(from, to int16) {
	for half := int16(0); half < 16; half += 8 {
		g.Emit(
			asm.LoadMem(asm.R1, regFrame, from+half, asm.DWord),
			asm.StoreMem(regFrame, frameProcess+to+half, asm.R1, asm.DWord),
		)
	}
}

// processByPort goes to found with the process of a socket that receives at the local end. On the way out only the answer to a
// SYN is sent in the name of such a socket.
func (g *generator) processByPort(found label) {
	end := g.NewLabel()
	if g.hook.Direction == Outbound {
		const tcpFlags, syn, ack = 13, 0x02, 0x10
		g.Emit(
			asm.LoadMem(asm.R1, regFrame, frameTransport+tcpFlags, asm.Byte),
			asm.And.Imm32(asm.R1, syn|ack),
		)
		g.JumpImm32(asm.JNE, asm.R1, syn|ack, end)
	}
	processmap.FindHolder(&g.Assembler, frameProcess, found)
	if g.hook.Family != IPv6 {
		six := g.NewLabel()
		g.Emit(asm.LoadMem(asm.R1, regFrame, frameProcess+processmap.KeyLocal, asm.DWord))
		g.JumpImm64(asm.JNE, asm.R1, 0, six)
		g.Emit(
			asm.LoadMem(asm.R1, regFrame, frameProcess+processmap.KeyLocal+8, asm.DWord),
			asm.RSh.Imm(asm.R1, 32),
		)
		g.JumpImm32(asm.JNE, asm.R1, 0xFFFF, six)
		g.Emit(
			asm.LoadImm(asm.R1, mappedPrefix, asm.DWord),
			asm.StoreMem(regFrame, frameProcess+processmap.KeyLocal+8, asm.R1, asm.DWord),
		)
		processmap.FindHolder(&g.Assembler, frameProcess, found)
		g.Mark(six)
	}
	// Sockets that are bound to :: receive IPv4 too.
	g.Emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(regFrame, frameProcess+processmap.KeyLocal, asm.R1, asm.DWord),
		asm.StoreMem(regFrame, frameProcess+processmap.KeyLocal+8, asm.R1, asm.DWord),
	)
	processmap.FindHolder(&g.Assembler, frameProcess, found)
	g.Mark(end)
}

// processByClosed goes to found with the process that had the connection, if it was closed a short time ago, else to
// none.
func (g *generator) processByClosed(found, none label) {
	if g.hook.Direction != Outbound { // there it is TCP
		g.Emit(
			asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word),
			asm.And.Imm32(asm.R1, 1<<flagTCP),
		)
		g.JumpImm32(asm.JEq, asm.R1, 0, none)
	}
	g.keyAddress(varLocalAddr, processmap.KeyLocal)
	g.LookUp(processmap.ClosedMap, frameProcess)
	g.JumpImm64(asm.JEq, asm.R0, 0, none)
	g.Emit(
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.FnKtimeGetNs.Call(),
		asm.LoadMem(asm.R1, asm.R8, processmap.ClosedUntil, asm.DWord),
	)
	g.JumpReg(asm.JGT, asm.R0, asm.R1, none)
	g.Emit(asm.LoadMem(asm.R1, asm.R8, processmap.ClosedProcess, asm.Word))
	g.Jump(found)
}

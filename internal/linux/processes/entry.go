//go:build linux

package processes

import (
	"time"

	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/processmap"
)

// find finds the socket of the record's endpoint, or ends the program if it is not known.
func (b *builder) find() {
	b.LookUp(processmap.SocketsMap, cgprog.Record(codegen.EventEndpoint))
	b.AllowIf(asm.JEq, asm.R0, 0)
	b.Emit(asm.Mov.Reg(regSocket, asm.R0))
}

// entry is find, but enters a socket that is not known, with the record's process. It ends the program if there is no room.
func (b *builder) entry(flags int64) {
	has := b.NewLabel()
	b.LookUp(processmap.SocketsMap, cgprog.Record(codegen.EventEndpoint))
	b.JumpImm64(asm.JNE, asm.R0, 0, has)
	b.Emit(asm.Mov.Imm(asm.R1, 0))
	for i := int16(0); i < int16(processmap.SocketSize); i += 8 {
		b.Emit(asm.StoreMem(bpfasm.Frame, frameSocket+i, asm.R1, asm.DWord))
	}
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventProcess), asm.Word),
		asm.StoreMem(bpfasm.Frame, frameSocket+processmap.SocketProcess, asm.R1, asm.Word),
		asm.StoreImm(bpfasm.Frame, frameSocket+processmap.SocketFlags, flags, asm.Word),
	)
	b.Update(processmap.SocketsMap, cgprog.Record(codegen.EventEndpoint), frameSocket, cgprog.UpdateNoExist)
	b.LookUp(processmap.SocketsMap, cgprog.Record(codegen.EventEndpoint))
	b.AllowIf(asm.JEq, asm.R0, 0)
	b.Mark(has)
	b.Emit(asm.Mov.Reg(regSocket, asm.R0))
}

// own makes the record's process that of the socket.
func (b *builder) own() {
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventProcess), asm.Word),
		asm.StoreMem(regSocket, processmap.SocketProcess, asm.R1, asm.Word),
	)
}

// name makes the name of the running thread that of the record's process.
func (b *builder) name() {
	b.Name()
	b.Update(processmap.NamesMap, cgprog.Record(codegen.EventProcess), cgprog.Record(codegen.EventName), cgprog.UpdateAny)
}

// setSocketFlag sets a flag of the socket.
func (b *builder) setSocketFlag(flag int32) {
	b.Emit(
		asm.LoadMem(asm.R1, regSocket, processmap.SocketFlags, asm.Word),
		asm.Or.Imm32(asm.R1, flag),
		asm.StoreMem(regSocket, processmap.SocketFlags, asm.R1, asm.Word),
	)
}

// forget takes the socket's entry away. regSocket must not be used any more.
func (b *builder) forget() {
	b.Remove(processmap.SocketsMap, cgprog.Record(codegen.EventEndpoint))
}

// portKey makes the key of the record's local end.
func (b *builder) portKey(protocol int32) {
	b.Emit(asm.Mov.Imm(asm.R1, protocol))
	b.portKeyOf(asm.R1)
}

// portKeyOf is portKey with the protocol in a register.
func (b *builder) portKeyOf(protocol asm.Register) {
	b.Emit(
		asm.StoreMem(bpfasm.Frame, frameSocketKey+processmap.KeyProtocol, protocol, asm.Word),
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventLocalPort), asm.Half),
		asm.StoreMem(bpfasm.Frame, frameSocketKey+processmap.KeyLocalPort, asm.R1, asm.Word),
	)
	b.keySide(codegen.EventLocal, processmap.KeyLocal)
}

// flowKey makes the key of the record's ends.
func (b *builder) flowKey(protocol int32) {
	b.Emit(asm.Mov.Imm(asm.R1, protocol))
	b.flowKeyOf(asm.R1)
}

// flowKeyOf is flowKey with the protocol in a register.
func (b *builder) flowKeyOf(protocol asm.Register) {
	b.portKeyOf(protocol)
	b.keySide(codegen.EventRemote, processmap.KeyRemote)
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventRemotePort), asm.Half),
		asm.StoreMem(bpfasm.Frame, frameSocketKey+processmap.KeyRemotePort, asm.R1, asm.Word),
		asm.StoreImm(bpfasm.Frame, frameSocketKey+processmap.KeyRemotePort+4, 0, asm.Word),
	)
}

// keySide copies an address of the record to the key.
func (b *builder) keySide(from, to int16) {
	for i := int16(0); i < 16; i += 8 {
		b.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(from)+i, asm.DWord),
			asm.StoreMem(bpfasm.Frame, frameSocketKey+to+i, asm.R1, asm.DWord),
		)
	}
}

// keepKey notes the key as one that the socket is entered with.
func (b *builder) keepKey(at, size int16) {
	for i := int16(0); i < size; i += 8 {
		b.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, frameSocketKey+i, asm.DWord),
			asm.StoreMem(regSocket, at+i, asm.R1, asm.DWord),
		)
	}
}

// recallKey restores a key that the socket is entered with, or goes to none.
func (b *builder) recallKey(at, size int16, none bpfasm.Label) {
	b.Emit(asm.LoadMem(asm.R1, regSocket, at+processmap.KeyLocalPort, asm.Word))
	b.JumpImm64(asm.JEq, asm.R1, 0, none)
	for i := int16(0); i < size; i += 8 {
		b.Emit(
			asm.LoadMem(asm.R1, regSocket, at+i, asm.DWord),
			asm.StoreMem(bpfasm.Frame, frameSocketKey+i, asm.R1, asm.DWord),
		)
	}
}

// loseKey notes that the socket is not entered with a key.
func (b *builder) loseKey(at int16) {
	b.Emit(asm.Mov.Imm(asm.R1, 0), asm.StoreMem(regSocket, at+processmap.KeyLocalPort, asm.R1, asm.Word))
}

// regHolders is the value of processmap.PortsMap.
const regHolders = asm.R8

// enterPort enters the socket under the key of its port, if it has one, and its process. If all places are taken, the socket is
// not entered.
func (b *builder) enterPort() {
	has, end := b.NewLabel(), b.NewLabel()
	b.recallKey(processmap.SocketPort, processmap.PortKeySize, end)
	b.LookUp(processmap.PortsMap, frameSocketKey)
	b.JumpImm64(asm.JNE, asm.R0, 0, has)
	b.Emit(asm.Mov.Imm(asm.R1, 0))
	for i := int16(0); i < processmap.PortSize; i += 8 {
		b.Emit(asm.StoreMem(bpfasm.Frame, frameSocketData+i, asm.R1, asm.DWord))
	}
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameSocketData+processmap.HolderCookie, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, regSocket, processmap.SocketProcess, asm.Word),
		asm.StoreMem(bpfasm.Frame, frameSocketData+processmap.HolderProcess, asm.R1, asm.Word),
	)
	b.Update(processmap.PortsMap, frameSocketKey, frameSocketData, cgprog.UpdateNoExist)
	b.JumpImm64(asm.JEq, asm.R0, 0, end)
	b.LookUp(processmap.PortsMap, frameSocketKey) // somebody else has entered it meanwhile
	b.JumpImm64(asm.JEq, asm.R0, 0, end)
	b.Mark(has)
	b.Emit(
		asm.Mov.Reg(regHolders, asm.R0),
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
		asm.LoadMem(asm.R2, regSocket, processmap.SocketProcess, asm.Word),
	)
	take := [processmap.Holders]bpfasm.Label{}
	for i := range take {
		take[i] = b.NewLabel()
		b.Emit(asm.LoadMem(asm.R3, regHolders, int16(i)*processmap.HolderSize+processmap.HolderCookie, asm.DWord))
		b.JumpReg(asm.JEq, asm.R3, asm.R1, take[i])
	}
	for i := range take {
		b.Emit(
			asm.Mov.Imm(asm.R0, 0), // the place must be free
			asm.Mov.Reg(asm.R3, asm.R1),
			exchange(regHolders, asm.R3, int16(i)*processmap.HolderSize+processmap.HolderCookie),
		)
		b.JumpImm64(asm.JEq, asm.R0, 0, take[i])
	}
	b.Jump(end)
	for i := range take {
		b.Mark(take[i])
		b.Emit(asm.StoreMem(regHolders, int16(i)*processmap.HolderSize+processmap.HolderProcess, asm.R2, asm.Word))
		b.Jump(end)
	}
	b.Mark(end)
}

// exchange stores src at an address if R0 stands there, and leaves the old value in R0 (since Linux 5.12). The
// library (v0.22) knows the operation but writes it without its number, so that it would add.
func exchange(address, src asm.Register, offset int16) asm.Instruction {
	const cmpxchg = 0xf1 // BPF_CMPXCHG
	ins := asm.CmpXchg.Mem(address, src, asm.DWord, offset)
	ins.Constant = cmpxchg
	return ins
}

// dropPort removes the socket from the key of its port. Another socket that is entered at the moment when the last one leaves
// may be lost.
func (b *builder) dropPort() {
	end := b.NewLabel()
	b.recallKey(processmap.SocketPort, processmap.PortKeySize, end)
	b.loseKey(processmap.SocketPort)
	b.LookUp(processmap.PortsMap, frameSocketKey)
	b.JumpImm64(asm.JEq, asm.R0, 0, end)
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
		asm.Mov.Imm(asm.R2, 0), // the others
		asm.Mov.Imm(asm.R4, 0),
	)
	for i := range int16(processmap.Holders) {
		other := b.NewLabel()
		at := i * processmap.HolderSize
		b.Emit(asm.LoadMem(asm.R3, asm.R0, at+processmap.HolderCookie, asm.DWord))
		b.JumpReg(asm.JNE, asm.R3, asm.R1, other)
		b.Emit(
			asm.StoreMem(asm.R0, at+processmap.HolderProcess, asm.R4, asm.Word), // no process, until the next socket has written its own
			asm.StoreMem(asm.R0, at+processmap.HolderCookie, asm.R4, asm.DWord),
			asm.Mov.Imm(asm.R3, 0),
		)
		b.Mark(other)
		b.Emit(asm.Or.Reg(asm.R2, asm.R3))
	}
	b.JumpImm64(asm.JNE, asm.R2, 0, end)
	b.Remove(processmap.PortsMap, frameSocketKey)
	b.Mark(end)
}

// enterFlow enters the socket under the key of its flow, if it has one, and its process.
func (b *builder) enterFlow() {
	end := b.NewLabel()
	b.recallKey(processmap.SocketFlow, processmap.FlowKeySize, end)
	b.Emit(
		asm.LoadMem(asm.R1, regSocket, processmap.SocketProcess, asm.Word),
		asm.StoreMem(bpfasm.Frame, frameSocketData+processmap.FlowProcess, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameSocketData+processmap.FlowCookie, asm.R1, asm.DWord),
	)
	b.Update(processmap.FlowsMap, frameSocketKey, frameSocketData, cgprog.UpdateAny)
	b.Mark(end)
}

// closedTime is how long a connection that was closed keeps its process, for the packets that its peer still sends and the kernel
// still answers: as long as the kernel itself remembers it (include/net/tcp.h, TCP_TIMEWAIT_LEN).
const closedTime = 60 * time.Second

// dropFlow removes the socket from the key of its flow. remember keeps the process for a while.
func (b *builder) dropFlow(remember bool) {
	other, end := b.NewLabel(), b.NewLabel()
	b.recallKey(processmap.SocketFlow, processmap.FlowKeySize, end)
	b.loseKey(processmap.SocketFlow)
	b.LookUp(processmap.FlowsMap, frameSocketKey)
	b.JumpImm64(asm.JEq, asm.R0, 0, other)
	b.Emit(
		asm.LoadMem(asm.R1, asm.R0, processmap.FlowCookie, asm.DWord),
		asm.LoadMem(asm.R2, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
	)
	b.JumpReg(asm.JNE, asm.R1, asm.R2, end) // a newer one
	b.Remove(processmap.FlowsMap, frameSocketKey)
	b.Mark(other)
	if remember {
		b.Emit(
			asm.FnKtimeGetNs.Call(),
			asm.LoadImm(asm.R1, int64(closedTime), asm.DWord),
			asm.Add.Reg(asm.R0, asm.R1),
			asm.StoreMem(bpfasm.Frame, frameSocketData+processmap.ClosedUntil, asm.R0, asm.DWord),
			asm.LoadMem(asm.R1, regSocket, processmap.SocketProcess, asm.Word),
			asm.StoreMem(bpfasm.Frame, frameSocketData+processmap.ClosedProcess, asm.R1, asm.DWord),
		)
		b.Update(processmap.ClosedMap, frameSocketKey, frameSocketData, cgprog.UpdateAny)
	}
	b.Mark(end)
}

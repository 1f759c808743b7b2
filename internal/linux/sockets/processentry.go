//go:build linux

package sockets

import (
	"time"

	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/codegen"
)

// lookUp leaves the address of the value for a key in the frame in R0, 0 if there is none.
func (b *builder) lookUp(name string, key int16) {
	b.emit(mapPtr(asm.R1, name))
	b.point(asm.R2, key)
	b.emit(asm.FnMapLookupElem.Call())
}

// update stores a value in the frame under a key in the frame.
func (b *builder) update(name string, key, value int16, flags int32) {
	b.emit(mapPtr(asm.R1, name))
	b.point(asm.R2, key)
	b.point(asm.R3, value)
	b.emit(asm.Mov.Imm(asm.R4, flags), asm.FnMapUpdateElem.Call())
}

// remove takes the entry for a key in the frame away.
func (b *builder) remove(name string, key int16) {
	b.emit(mapPtr(asm.R1, name))
	b.point(asm.R2, key)
	b.emit(asm.FnMapDeleteElem.Call())
}

// find finds the socket of the record's endpoint, or ends the program if it is not known.
func (b *processBuilder) find() {
	b.lookUp(codegen.SocketsMap, record(codegen.EventEndpoint))
	b.allowIf(asm.JEq, asm.R0, 0)
	b.emit(asm.Mov.Reg(regSocket, asm.R0))
}

// entry is find that enters a socket that is not known, with the record's process. It ends the program if there is no
// room.
func (b *processBuilder) entry(flags int64) {
	has := b.newLabel()
	b.lookUp(codegen.SocketsMap, record(codegen.EventEndpoint))
	b.emit(asm.JNE.Imm(asm.R0, 0, has), asm.Mov.Imm(asm.R1, 0))
	for i := int16(0); i < int16(codegen.SocketSize); i += 8 {
		b.emit(asm.StoreMem(regFrame, frameSocket+i, asm.R1, asm.DWord))
	}
	b.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventProcess), asm.Word),
		asm.StoreMem(regFrame, frameSocket+codegen.SocketProcess, asm.R1, asm.Word),
		asm.StoreImm(regFrame, frameSocket+codegen.SocketFlags, flags, asm.Word),
	)
	b.update(codegen.SocketsMap, record(codegen.EventEndpoint), frameSocket, updateNoExist)
	b.lookUp(codegen.SocketsMap, record(codegen.EventEndpoint))
	b.allowIf(asm.JEq, asm.R0, 0)
	b.mark(has)
	b.emit(asm.Mov.Reg(regSocket, asm.R0))
}

// own makes the record's process that of the socket.
func (b *processBuilder) own() {
	b.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventProcess), asm.Word),
		asm.StoreMem(regSocket, codegen.SocketProcess, asm.R1, asm.Word),
	)
}

// setSocketFlag sets a flag of the socket.
func (b *processBuilder) setSocketFlag(flag int32) {
	b.emit(
		asm.LoadMem(asm.R1, regSocket, codegen.SocketFlags, asm.Word),
		asm.Or.Imm32(asm.R1, flag),
		asm.StoreMem(regSocket, codegen.SocketFlags, asm.R1, asm.Word),
	)
}

// forget takes the socket's entry away. regSocket must not be used any more.
func (b *processBuilder) forget() {
	b.remove(codegen.SocketsMap, record(codegen.EventEndpoint))
}

// portKey makes the key of the record's local end.
func (b *processBuilder) portKey(protocol int32) {
	b.emit(asm.Mov.Imm(asm.R1, protocol))
	b.portKeyOf(asm.R1)
}

// portKeyOf is portKey with the protocol in a register.
func (b *processBuilder) portKeyOf(protocol asm.Register) {
	b.emit(
		asm.StoreMem(regFrame, frameSocketKey+codegen.KeyProtocol, protocol, asm.Word),
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventLocalPort), asm.Half),
		asm.StoreMem(regFrame, frameSocketKey+codegen.KeyLocalPort, asm.R1, asm.Word),
	)
	b.keySide(codegen.EventLocal, codegen.KeyLocal)
}

// flowKey makes the key of the record's ends.
func (b *processBuilder) flowKey(protocol int32) {
	b.emit(asm.Mov.Imm(asm.R1, protocol))
	b.flowKeyOf(asm.R1)
}

// flowKeyOf is flowKey with the protocol in a register.
func (b *processBuilder) flowKeyOf(protocol asm.Register) {
	b.portKeyOf(protocol)
	b.keySide(codegen.EventRemote, codegen.KeyRemote)
	b.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventRemotePort), asm.Half),
		asm.StoreMem(regFrame, frameSocketKey+codegen.KeyRemotePort, asm.R1, asm.Word),
		asm.StoreImm(regFrame, frameSocketKey+codegen.KeyRemotePort+4, 0, asm.Word),
	)
}

// keySide copies an address of the record to the key.
func (b *processBuilder) keySide(from, to int16) {
	for i := int16(0); i < 16; i += 8 {
		b.emit(
			asm.LoadMem(asm.R1, regFrame, record(from)+i, asm.DWord),
			asm.StoreMem(regFrame, frameSocketKey+to+i, asm.R1, asm.DWord),
		)
	}
}

// keepKey notes the key as one that the socket is entered with.
func (b *processBuilder) keepKey(at, size int16) {
	for i := int16(0); i < size; i += 8 {
		b.emit(
			asm.LoadMem(asm.R1, regFrame, frameSocketKey+i, asm.DWord),
			asm.StoreMem(regSocket, at+i, asm.R1, asm.DWord),
		)
	}
}

// recallKey makes the key one that the socket is entered with, or goes to none.
func (b *processBuilder) recallKey(at, size int16, none string) {
	b.emit(
		asm.LoadMem(asm.R1, regSocket, at+codegen.KeyLocalPort, asm.Word),
		asm.JEq.Imm(asm.R1, 0, none),
	)
	for i := int16(0); i < size; i += 8 {
		b.emit(
			asm.LoadMem(asm.R1, regSocket, at+i, asm.DWord),
			asm.StoreMem(regFrame, frameSocketKey+i, asm.R1, asm.DWord),
		)
	}
}

// loseKey notes that the socket is not entered with a key.
func (b *processBuilder) loseKey(at int16) {
	b.emit(asm.Mov.Imm(asm.R1, 0), asm.StoreMem(regSocket, at+codegen.KeyLocalPort, asm.R1, asm.Word))
}

// regHolders is the value of codegen.PortsMap.
const regHolders = asm.R8

// enterPort enters the socket under the key of its port, if it has one, and its process. Where all places are taken
// the socket stays without.
func (b *processBuilder) enterPort() {
	has, end := b.newLabel(), b.newLabel()
	b.recallKey(codegen.SocketPort, codegen.PortKeySize, end)
	b.lookUp(codegen.PortsMap, frameSocketKey)
	b.emit(asm.JNE.Imm(asm.R0, 0, has), asm.Mov.Imm(asm.R1, 0))
	for i := int16(0); i < codegen.PortSize; i += 8 {
		b.emit(asm.StoreMem(regFrame, frameSocketData+i, asm.R1, asm.DWord))
	}
	b.emit(
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(regFrame, frameSocketData+codegen.HolderCookie, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, regSocket, codegen.SocketProcess, asm.Word),
		asm.StoreMem(regFrame, frameSocketData+codegen.HolderProcess, asm.R1, asm.Word),
	)
	b.update(codegen.PortsMap, frameSocketKey, frameSocketData, updateNoExist)
	b.emit(asm.JEq.Imm(asm.R0, 0, end))
	b.lookUp(codegen.PortsMap, frameSocketKey) // somebody else has entered it meanwhile
	b.emit(asm.JEq.Imm(asm.R0, 0, end))
	b.mark(has)
	b.emit(
		asm.Mov.Reg(regHolders, asm.R0),
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventEndpoint), asm.DWord),
		asm.LoadMem(asm.R2, regSocket, codegen.SocketProcess, asm.Word),
	)
	take := [codegen.Holders]string{}
	for i := range take {
		take[i] = b.newLabel()
		b.emit(
			asm.LoadMem(asm.R3, regHolders, int16(i)*codegen.HolderSize+codegen.HolderCookie, asm.DWord),
			asm.JEq.Reg(asm.R3, asm.R1, take[i]),
		)
	}
	for i := range take {
		b.emit(
			asm.Mov.Imm(asm.R0, 0), // the place must be free
			asm.Mov.Reg(asm.R3, asm.R1),
			exchange(regHolders, asm.R3, int16(i)*codegen.HolderSize+codegen.HolderCookie),
			asm.JEq.Imm(asm.R0, 0, take[i]),
		)
	}
	b.emit(asm.Ja.Label(end))
	for i := range take {
		b.mark(take[i])
		b.emit(
			asm.StoreMem(regHolders, int16(i)*codegen.HolderSize+codegen.HolderProcess, asm.R2, asm.Word),
			asm.Ja.Label(end),
		)
	}
	b.mark(end)
}

// exchange stores src at an address if R0 stands there, and leaves what stood there in R0 (since Linux 5.12). The
// library (v0.22) knows the operation but writes it without its number, so that it would add.
func exchange(address, src asm.Register, offset int16) asm.Instruction {
	const cmpxchg = 0xf1 // BPF_CMPXCHG
	ins := asm.CmpXchg.Mem(address, src, asm.DWord, offset)
	ins.Constant = cmpxchg
	return ins
}

// dropPort takes the socket away from under the key of its port. If another socket is entered in the very moment in
// which the last one leaves, it may be lost.
func (b *processBuilder) dropPort() {
	end := b.newLabel()
	b.recallKey(codegen.SocketPort, codegen.PortKeySize, end)
	b.loseKey(codegen.SocketPort)
	b.lookUp(codegen.PortsMap, frameSocketKey)
	b.emit(
		asm.JEq.Imm(asm.R0, 0, end),
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventEndpoint), asm.DWord),
		asm.Mov.Imm(asm.R2, 0), // the others
		asm.Mov.Imm(asm.R4, 0),
	)
	for i := range int16(codegen.Holders) {
		other := b.newLabel()
		at := i * codegen.HolderSize
		b.emit(
			asm.LoadMem(asm.R3, asm.R0, at+codegen.HolderCookie, asm.DWord),
			asm.JNE.Reg(asm.R3, asm.R1, other),
			asm.StoreMem(asm.R0, at+codegen.HolderProcess, asm.R4, asm.Word), // nobody's, until the next one has written his
			asm.StoreMem(asm.R0, at+codegen.HolderCookie, asm.R4, asm.DWord),
			asm.Mov.Imm(asm.R3, 0),
		)
		b.mark(other)
		b.emit(asm.Or.Reg(asm.R2, asm.R3))
	}
	b.emit(asm.JNE.Imm(asm.R2, 0, end))
	b.remove(codegen.PortsMap, frameSocketKey)
	b.mark(end)
}

// enterFlow enters the socket under the key of its flow, if it has one, and its process.
func (b *processBuilder) enterFlow() {
	end := b.newLabel()
	b.recallKey(codegen.SocketFlow, codegen.FlowKeySize, end)
	b.emit(
		asm.LoadMem(asm.R1, regSocket, codegen.SocketProcess, asm.Word),
		asm.StoreMem(regFrame, frameSocketData+codegen.FlowProcess, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(regFrame, frameSocketData+codegen.FlowCookie, asm.R1, asm.DWord),
	)
	b.update(codegen.FlowsMap, frameSocketKey, frameSocketData, updateAny)
	b.mark(end)
}

// closedTime is how long a connection that was closed keeps its process, for what its peer still sends and the kernel
// still answers: as long as the kernel itself remembers it (include/net/tcp.h, TCP_TIMEWAIT_LEN).
const closedTime = 60 * time.Second

// dropFlow takes the socket away from under the key of its flow. remember keeps the process for a while.
func (b *processBuilder) dropFlow(remember bool) {
	other, end := b.newLabel(), b.newLabel()
	b.recallKey(codegen.SocketFlow, codegen.FlowKeySize, end)
	b.loseKey(codegen.SocketFlow)
	b.lookUp(codegen.FlowsMap, frameSocketKey)
	b.emit(
		asm.JEq.Imm(asm.R0, 0, other),
		asm.LoadMem(asm.R1, asm.R0, codegen.FlowCookie, asm.DWord),
		asm.LoadMem(asm.R2, regFrame, record(codegen.EventEndpoint), asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, end), // a newer one
	)
	b.remove(codegen.FlowsMap, frameSocketKey)
	b.mark(other)
	if remember {
		b.emit(
			asm.FnKtimeGetNs.Call(),
			asm.LoadImm(asm.R1, int64(closedTime), asm.DWord),
			asm.Add.Reg(asm.R0, asm.R1),
			asm.StoreMem(regFrame, frameSocketData+codegen.ClosedUntil, asm.R0, asm.DWord),
			asm.LoadMem(asm.R1, regSocket, codegen.SocketProcess, asm.Word),
			asm.StoreMem(regFrame, frameSocketData+codegen.ClosedProcess, asm.R1, asm.DWord),
		)
		b.update(codegen.ClosedMap, frameSocketKey, frameSocketData, updateAny)
	}
	b.mark(end)
}

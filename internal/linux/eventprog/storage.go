//go:build linux

package eventprog

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/eventmap"
)

// The stack frame below the record of the event (codegen.EventFrame): offsets from R10.
const (
	frameBody   = codegen.EventFrame + codegen.EventEndpoint // the contents of the socket's storage
	frameKey    = codegen.EventFrame - eventmap.FlowKeySize  // key of a map
	frameValue  = frameKey - eventmap.FlowValueSize          // value of a map
	framePacket = codegen.EventScratch - 40                  // headers of a packet, below what decisions use
)

// Registers. Decisions use R0 to R5, R7 and R8.
const (
	regOffset  = asm.R7 // of the transport header, until the decision
	regStorage = asm.R9 // the storage of the socket
)

// storage finds the storage of the socket, makes it if that is asked for, and lets the operation pass
// if there is none.
func (g *generator) storage(sock int16, create bool) {
	flags := int32(0)
	if create {
		flags = cgprog.StorageCreate
	}
	g.LoadStorage(eventmap.StorageMap, sock, asm.Mov.Imm(asm.R3, 0), flags)
	g.AllowIf(asm.JEq, asm.R0, 0)
	g.Emit(asm.Mov.Reg(regStorage, asm.R0))
}

// known finds the storage of a socket, or makes it from the facts about an older one. Operations of other
// sockets pass.
func (g *generator) known(sock int16) {
	has := g.NewLabel()
	g.LoadStorage(eventmap.StorageMap, sock, asm.Mov.Imm(asm.R3, 0), 0)
	g.JumpImm64(asm.JNE, asm.R0, 0, has)
	g.Emit(
		asm.Mov.Reg(asm.R1, bpfasm.Context),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(bpfasm.Frame, frameKey, asm.R0, asm.DWord),
	)
	g.LookUp(eventmap.KnownMap, frameKey)
	g.AllowIf(asm.JEq, asm.R0, 0)
	g.Emit(asm.Mov.Reg(asm.R7, asm.R0))
	g.LoadStorage(eventmap.StorageMap, sock, asm.Mov.Reg(asm.R3, asm.R7), cgprog.StorageCreate)
	g.AllowIf(asm.JEq, asm.R0, 0)
	g.Mark(has)
	g.Emit(asm.Mov.Reg(regStorage, asm.R0))
}

// recall starts the record with the known facts about the socket.
func (g *generator) recall() {
	for i := int16(0); i < eventmap.BodySize; i += 8 {
		g.Emit(
			asm.LoadMem(asm.R1, regStorage, i, asm.DWord),
			asm.StoreMem(bpfasm.Frame, frameBody+i, asm.R1, asm.DWord),
		)
	}
}

// blank starts the record with nothing.
func (g *generator) blank() {
	g.Emit(asm.Mov.Imm(asm.R1, 0))
	for i := int16(0); i < eventmap.BodySize; i += 8 {
		g.Emit(asm.StoreMem(bpfasm.Frame, frameBody+i, asm.R1, asm.DWord))
	}
}

// keep stores the record as the known facts about the socket.
func (g *generator) keep() {
	for i := int16(0); i < eventmap.BodySize; i += 8 {
		g.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, frameBody+i, asm.DWord),
			asm.StoreMem(regStorage, i, asm.R1, asm.DWord),
		)
	}
}

// setFlags changes the record's flags.
func (g *generator) setFlags(set, clear uint32) {
	at := cgprog.Record(codegen.EventFlags)
	g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, at, asm.Word))
	if clear != 0 {
		g.Emit(asm.And.Imm32(asm.R1, int32(^clear)))
	}
	if set != 0 {
		g.Emit(asm.Or.Imm32(asm.R1, int32(set)))
	}
	g.Emit(asm.StoreMem(bpfasm.Frame, at, asm.R1, asm.Word))
}

// storedFlags changes the flags in the storage.
func (g *generator) storedFlags(set, clear uint32) {
	at := eventmap.Body(codegen.EventFlags)
	g.Emit(
		asm.LoadMem(asm.R1, regStorage, at, asm.Word),
		asm.And.Imm32(asm.R1, int32(^clear)),
		asm.Or.Imm32(asm.R1, int32(set)),
		asm.StoreMem(regStorage, at, asm.R1, asm.Word),
	)
}

// count adds one to a counter.
func (g *generator) count(counter int16) {
	g.Emit(
		asm.LoadMapValue(asm.R1, 0, 0).WithReference(eventmap.CountersMap),
		asm.Mov.Imm(asm.R2, 1),
		asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, counter),
	)
}

// refuse refuses the operation with EACCES, and ends.
func (g *generator) refuse() {
	if !g.Modifies {
		g.Emit(asm.Mov.Imm(asm.R1, -cgprog.EACCES), asm.FnSetRetval.Call())
	}
	g.Leave(cgprog.Refuse)
}

// inherit makes the record of a child that has no storage of its own begin with its listener's, if that is
// an older one. The record has both sides.
func (g *generator) inherit() {
	found, end := g.NewLabel(), g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord))
	g.JumpImm64(asm.JNE, asm.R1, 0, end)
	g.Emit(
		asm.LoadMem(asm.R1, bpfasm.Context, cgprog.OpsLocalPort, asm.Word),
		asm.StoreMem(bpfasm.Frame, frameKey+16, asm.R1, asm.DWord),
	)
	// The listener has the address, or any address, of either family.
	for _, addr := range [...]func(){
		func() { g.keyAddress(codegen.EventLocal) },
		func() { g.keyConstant(0, 0) },
		func() { g.keyConstant(0, cgprog.Mapped) },
	} {
		addr()
		g.LookUp(eventmap.ListenersMap, frameKey)
		g.JumpImm64(asm.JNE, asm.R0, 0, found)
	}
	g.Jump(end)
	g.Mark(found)
	for _, f := range [...]struct {
		field int16
		size  asm.Size
	}{
		{codegen.EventEndpoint, asm.DWord}, {codegen.EventProcess, asm.Word}, {codegen.EventFlags, asm.Word},
		{codegen.EventName, asm.DWord}, {codegen.EventName + 8, asm.DWord},
	} {
		g.Emit(
			asm.LoadMem(asm.R1, asm.R0, eventmap.Body(f.field), f.size),
			asm.StoreMem(bpfasm.Frame, cgprog.Record(f.field), asm.R1, f.size),
		)
	}
	g.Mark(end)
}

// keyAddress copies an address of the record to the key.
func (g *generator) keyAddress(field int16) {
	for i := int16(0); i < 16; i += 8 {
		g.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(field)+i, asm.DWord),
			asm.StoreMem(bpfasm.Frame, frameKey+i, asm.R1, asm.DWord),
		)
	}
}

// keyConstant stores an address in the key.
func (g *generator) keyConstant(upper, lower int64) {
	g.Emit(
		asm.LoadImm(asm.R1, upper, asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameKey, asm.R1, asm.DWord),
		asm.LoadImm(asm.R1, lower, asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameKey+8, asm.R1, asm.DWord),
	)
}

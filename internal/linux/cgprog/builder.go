//go:build linux

package cgprog

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/codegen"
)

// Record returns the offset of a field of the record (codegen.EventTime and so on) within the frame.
func Record(field int16) int16 { return codegen.EventFrame + field }

// Allow is the result of programs that lets an operation or a packet go on; Refuse is the other.
const (
	Refuse = 0
	Allow  = 1
)

// EACCES is the error of refused operations (asm-generic/errno-base.h).
const EACCES = 13

// Builder collects the instructions of a program.
type Builder struct {
	bpfasm.Assembler

	// Modifies says that the program runs in the place of a function of the kernel: its verdict is 0 or an errno.
	Modifies bool
}

// Leave ends the program.
func (b *Builder) Leave(verdict int32) {
	if b.Modifies {
		verdict = map[int32]int32{Allow: 0, Refuse: -EACCES}[verdict]
	}
	b.Emit(asm.Mov.Imm(asm.R0, verdict), asm.Return())
}

// AllowIf lets the operation go on, and ends, if the comparison of all 64 bits with a constant holds.
func (b *Builder) AllowIf(op asm.JumpOp, r asm.Register, value int32) {
	stay := b.NewLabel()
	b.JumpImm64(inverse[op], r, value, stay)
	b.Leave(Allow)
	b.Mark(stay)
}

var inverse = map[asm.JumpOp]asm.JumpOp{
	asm.JEq: asm.JNE, asm.JNE: asm.JEq,
	asm.JSLT: asm.JSGE, asm.JSGE: asm.JSLT,
}

// AllowUnlessSet lets the operation go on, and ends, unless one of the bits is set.
func (b *Builder) AllowUnlessSet(r asm.Register, bits int32) {
	stay := b.NewLabel()
	b.JumpImm64(asm.JSet, r, bits, stay)
	b.Leave(Allow)
	b.Mark(stay)
}

// AllowIfSet lets the operation go on, and ends, if one of the bits is set.
func (b *Builder) AllowIfSet(r asm.Register, bits int32) {
	set, stay := b.NewLabel(), b.NewLabel()
	b.JumpImm64(asm.JSet, r, bits, set)
	b.Jump(stay)
	b.Mark(set)
	b.Leave(Allow)
	b.Mark(stay)
}

// Begin saves the context and lets traffic of other network namespaces than that of the cookie pass.
func (b *Builder) Begin(cookie uint64) {
	ours := b.NewLabel()
	b.Emit(
		asm.Mov.Reg(bpfasm.Context, asm.R1),
		asm.FnGetNetnsCookie.Call(),
		asm.LoadImm(asm.R1, int64(cookie), asm.DWord),
	)
	b.JumpReg(asm.JEq, asm.R0, asm.R1, ours)
	b.Leave(Allow)
	b.Mark(ours)
}

// MapPtr loads a map into a register, by the name that Load finds it by.
func MapPtr(r asm.Register, name string) asm.Instruction {
	return asm.LoadMapPtr(r, 0).WithReference(name)
}

// Point leaves the address of a place in the frame in a register.
func (b *Builder) Point(r asm.Register, at int16) {
	b.Emit(asm.Mov.Reg(r, bpfasm.Frame), asm.Add.Imm(r, int32(at)))
}

// Flags of Update (BPF_ANY and BPF_NOEXIST of linux/bpf.h).
const (
	UpdateAny     = 0
	UpdateNoExist = 1
)

// Update stores a value in the frame under a key in the frame.
func (b *Builder) Update(name string, key, value int16, flags int32) {
	b.Emit(MapPtr(asm.R1, name))
	b.Point(asm.R2, key)
	b.Point(asm.R3, value)
	b.Emit(asm.Mov.Imm(asm.R4, flags), asm.FnMapUpdateElem.Call())
}

// Remove removes the entry for a key in the frame.
func (b *Builder) Remove(name string, key int16) {
	b.Emit(MapPtr(asm.R1, name))
	b.Point(asm.R2, key)
	b.Emit(asm.FnMapDeleteElem.Call())
}

// StorageCreate is BPF_SK_STORAGE_GET_F_CREATE (linux/bpf.h): a socket without storage gets one.
const StorageCreate = 1

// LoadStorage leaves the socket's storage in a map in R0, 0 if there is none. The socket is a member of the context, or
// InContext. The instruction initial leaves in R3 the address of a new storage's first content, or 0 for zeros. Operations
// without a socket pass.
func (b *Builder) LoadStorage(name string, sock int16, initial asm.Instruction, flags int32) {
	if sock == InContext {
		b.Emit(asm.Mov.Reg(asm.R2, bpfasm.Context))
	} else {
		b.Emit(asm.LoadMem(asm.R2, bpfasm.Context, sock, asm.DWord))
		if sock != AddrSock {
			b.AllowIf(asm.JEq, asm.R2, 0)
		}
	}
	b.Emit(MapPtr(asm.R1, name), initial, asm.Mov.Imm(asm.R4, flags), asm.FnSkStorageGet.Call())
}

// Stamp stores the time.
func (b *Builder) Stamp() {
	b.Emit(asm.FnKtimeGetNs.Call(), asm.StoreMem(bpfasm.Frame, Record(codegen.EventTime), asm.R0, asm.DWord))
}

// Cookie stores the socket's cookie as the endpoint.
func (b *Builder) Cookie() {
	b.Emit(
		asm.Mov.Reg(asm.R1, bpfasm.Context),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(bpfasm.Frame, Record(codegen.EventEndpoint), asm.R0, asm.DWord),
	)
}

// Process stores the id of the running process.
func (b *Builder) Process() {
	b.Emit(
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.StoreMem(bpfasm.Frame, Record(codegen.EventProcess), asm.R0, asm.Word),
	)
}

// Name stores the name of the running thread, which is that of its process unless it has given itself another.
func (b *Builder) Name() {
	b.Point(asm.R1, Record(codegen.EventName))
	b.Emit(asm.Mov.Imm(asm.R2, codegen.NameSize), asm.FnGetCurrentComm.Call())
}

// SetByte stores a constant in a byte of the record.
func (b *Builder) SetByte(field int16, v int64) {
	b.Emit(asm.StoreImm(bpfasm.Frame, Record(field), v, asm.Byte))
}

// UnlessRefused lets the operation pass if a program before this one has refused it: it is hidden
// from handles of lower priority (specification: api.md 13).
func (b *Builder) UnlessRefused() {
	b.Emit(asm.FnGetRetval.Call())
	b.AllowIf(asm.JNE, asm.R0, 0)
}

// WatchState asks for the changes of the connection's state, besides the callbacks that other programs asked for.
func (b *Builder) WatchState() {
	b.Emit(
		asm.LoadMem(asm.R2, bpfasm.Context, OpsCallbacks, asm.Word),
		asm.Or.Imm32(asm.R2, stateCallbacks),
		asm.Mov.Reg(asm.R1, bpfasm.Context),
		asm.FnSockOpsCbFlagsSet.Call(),
	)
}

// stateCallbacks is BPF_SOCK_OPS_STATE_CB_FLAG (linux/bpf.h).
const stateCallbacks = 1 << 2

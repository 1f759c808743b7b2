//go:build linux

package sockets

import (
	"fmt"

	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/codegen"
)

// The stack frame below the record of the event (codegen.EventFrame): offsets from R10.
const (
	frameRecord = codegen.EventFrame
	frameBody   = frameRecord + codegen.EventEndpoint // what is kept in the storage of the socket
	bodySize    = codegen.EventSize - codegen.EventEndpoint
	storedPeer  = bodySize       // behind the body in the storage: see loadPeer
	storedSize  = storedPeer + 8 // of the storage

	frameKey    = frameRecord - flowKeySize // key of a map
	frameValue  = frameKey - flowValueSize  // value of a map
	framePacket = frameValue - 40           // headers of a packet
)

// Registers. Decisions use R0 to R5, R7 and R8.
const (
	regContext = asm.R6
	regOffset  = asm.R7 // of the transport header, until the decision
	regStorage = asm.R9 // the storage of the socket
	regFrame   = asm.R10
)

// body returns the offset of a field of the record within the storage of a socket.
func body(field int16) int16 { return field - codegen.EventEndpoint }

// record returns the offset of a field of the record within the frame.
func record(field int16) int16 { return frameRecord + field }

// Bits of the record's flags, of which those of the socket stay in its storage.
const (
	flagUser    = 1 << iota // the socket was made by a process, and ends with sock_release
	flagPassive             // the socket is a child of a listener
	flagClosed              // CLOSE was told
	flagBlocked             // packets of the socket are dropped
	flagTracked             // user space knows flows of the socket
	flagRefused = 1 << (10 + iota)
	flagDestroy // user space is to destroy the socket
	flagMatched // FLOW: the filter matches ESTABLISHED
	flagEnd     // FLOW: the flows of the socket are over; the record has no more than the endpoint
	flagInbound // FLOW: the other side began
)

// allow is what the programs return to let an operation or a packet go on; refuse is the other.
const (
	refuse = 0
	allow  = 1
)

// builder collects the instructions of a program. Jumps are by name.
type builder struct {
	asm.Instructions
	names int
	next  string // label of the next instruction

	modifies bool // the program's verdict is what a function of the kernel returns: 0 or an errno
}

func (b *builder) emit(ins ...asm.Instruction) {
	for _, i := range ins {
		if b.next != "" {
			i = i.WithSymbol(b.next)
			b.next = ""
		}
		b.Instructions = append(b.Instructions, i)
	}
}

func (b *builder) newLabel() string {
	b.names++
	return fmt.Sprintf("l%d", b.names)
}

// mark places a label before the next instruction.
func (b *builder) mark(label string) {
	if b.next != "" {
		b.emit(asm.Mov.Reg(asm.R0, asm.R0).WithSymbol(b.next)) // two labels cannot stand at one instruction
		b.next = ""
	}
	b.next = label
}

// leave ends the program.
func (b *builder) leave(verdict int32) {
	if b.modifies {
		verdict = map[int32]int32{allow: 0, refuse: -eacces}[verdict]
	}
	b.emit(asm.Mov.Imm(asm.R0, verdict), asm.Return())
}

// allowIf lets the operation go on, and ends, if the comparison with a constant holds.
func (b *builder) allowIf(op asm.JumpOp, r asm.Register, value int32) {
	stay := b.newLabel()
	b.emit(inverse[op].Imm(r, value, stay))
	b.leave(allow)
	b.mark(stay)
}

var inverse = map[asm.JumpOp]asm.JumpOp{
	asm.JEq: asm.JNE, asm.JNE: asm.JEq,
	asm.JSLT: asm.JSGE, asm.JSGE: asm.JSLT,
}

// allowUnlessSet lets the operation go on, and ends, unless one of the bits is set.
func (b *builder) allowUnlessSet(r asm.Register, bits int32) {
	stay := b.newLabel()
	b.emit(asm.JSet.Imm(r, bits, stay))
	b.leave(allow)
	b.mark(stay)
}

// allowIfSet lets the operation go on, and ends, if one of the bits is set.
func (b *builder) allowIfSet(r asm.Register, bits int32) {
	set, stay := b.newLabel(), b.newLabel()
	b.emit(asm.JSet.Imm(r, bits, set), asm.Ja.Label(stay))
	b.mark(set)
	b.leave(allow)
	b.mark(stay)
}

// begin saves the context and lets everything pass that is of another network namespace.
func (b *builder) begin(cookie uint64) {
	ours := b.newLabel()
	b.emit(
		asm.Mov.Reg(regContext, asm.R1),
		asm.FnGetNetnsCookie.Call(),
		asm.LoadImm(asm.R1, int64(cookie), asm.DWord),
		asm.JEq.Reg(asm.R0, asm.R1, ours),
	)
	b.leave(allow)
	b.mark(ours)
}

// mapPtr loads a map into a register, by name.
func mapPtr(r asm.Register, name string) asm.Instruction {
	return asm.LoadMapPtr(r, 0).WithReference(name)
}

// point leaves the address of a place in the frame in a register.
func (b *builder) point(r asm.Register, at int16) {
	b.emit(asm.Mov.Reg(r, regFrame), asm.Add.Imm(r, int32(at)))
}

// Where the contexts of the programs have the socket (linux/bpf.h); inContext is for contexts that are one.
const (
	inContext = -1
	addrSock  = 64  // struct bpf_sock_addr
	opsSock   = 184 // struct bpf_sock_ops
	skbSock   = 168 // struct __sk_buff
)

// storage finds the storage of the socket, makes it if that is asked for, and lets the operation pass
// if there is none.
func (b *builder) storage(sock int16, create bool) {
	flags := int32(0)
	if create {
		flags = storageCreate
	}
	b.loadStorage(sock, asm.Mov.Imm(asm.R3, 0), flags)
	b.allowIf(asm.JEq, asm.R0, 0)
	b.emit(asm.Mov.Reg(regStorage, asm.R0))
}

// storageCreate is BPF_SK_STORAGE_GET_F_CREATE.
const storageCreate = 1

// loadStorage leaves the storage of the socket in R0, 0 if there is none. What initial leaves in R3 is what a
// new one begins with. Operations without a socket pass.
func (b *builder) loadStorage(sock int16, initial asm.Instruction, flags int32) {
	if sock == inContext {
		b.emit(asm.Mov.Reg(asm.R2, regContext))
	} else {
		b.emit(asm.LoadMem(asm.R2, regContext, sock, asm.DWord))
		if sock != addrSock {
			b.allowIf(asm.JEq, asm.R2, 0)
		}
	}
	b.emit(
		mapPtr(asm.R1, storageMap),
		initial,
		asm.Mov.Imm(asm.R4, flags),
		asm.FnSkStorageGet.Call(),
	)
}

// recall starts the record with what is known of the socket.
func (b *builder) recall() {
	for i := int16(0); i < bodySize; i += 8 {
		b.emit(
			asm.LoadMem(asm.R1, regStorage, i, asm.DWord),
			asm.StoreMem(regFrame, frameBody+i, asm.R1, asm.DWord),
		)
	}
}

// blank starts the record with nothing.
func (b *builder) blank() {
	b.emit(asm.Mov.Imm(asm.R1, 0))
	for i := int16(0); i < bodySize; i += 8 {
		b.emit(asm.StoreMem(regFrame, frameBody+i, asm.R1, asm.DWord))
	}
}

// stamp stores the time.
func (b *builder) stamp() {
	b.emit(asm.FnKtimeGetNs.Call(), asm.StoreMem(regFrame, record(codegen.EventTime), asm.R0, asm.DWord))
}

// keep makes the record what is known of the socket.
func (b *builder) keep() {
	for i := int16(0); i < bodySize; i += 8 {
		b.emit(
			asm.LoadMem(asm.R1, regFrame, frameBody+i, asm.DWord),
			asm.StoreMem(regStorage, i, asm.R1, asm.DWord),
		)
	}
}

// cookie stores the socket's cookie as the endpoint.
func (b *builder) cookie() {
	b.emit(
		asm.Mov.Reg(asm.R1, regContext),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(regFrame, record(codegen.EventEndpoint), asm.R0, asm.DWord),
	)
}

// process stores the id of the running process.
func (b *builder) process() {
	b.emit(
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.StoreMem(regFrame, record(codegen.EventProcess), asm.R0, asm.Word),
	)
}

// setByte stores a constant in a byte of the record.
func (b *builder) setByte(field int16, v int64) {
	b.emit(asm.StoreImm(regFrame, record(field), v, asm.Byte))
}

// flags changes the record's flags.
func (b *builder) flags(set, clear uint32) {
	b.emit(asm.LoadMem(asm.R1, regFrame, record(codegen.EventFlags), asm.Word))
	if clear != 0 {
		b.emit(asm.And.Imm32(asm.R1, int32(^clear)))
	}
	if set != 0 {
		b.emit(asm.Or.Imm32(asm.R1, int32(set)))
	}
	b.emit(asm.StoreMem(regFrame, record(codegen.EventFlags), asm.R1, asm.Word))
}

// storedFlags changes the flags in the storage.
func (b *builder) storedFlags(set, clear uint32) {
	at := body(codegen.EventFlags)
	b.emit(
		asm.LoadMem(asm.R1, regStorage, at, asm.Word),
		asm.And.Imm32(asm.R1, int32(^clear)),
		asm.Or.Imm32(asm.R1, int32(set)),
		asm.StoreMem(regStorage, at, asm.R1, asm.Word),
	)
}

// clearPair stores zeros in an address of the record.
func (b *builder) clearPair(field int16) {
	b.emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(regFrame, record(field), asm.R1, asm.DWord),
		asm.StoreMem(regFrame, record(field)+8, asm.R1, asm.DWord),
	)
}

// unlessRefused lets the operation pass if a program before this one has refused it: it is hidden
// from handles of lower priority (specification: api.md 13).
func (b *builder) unlessRefused() {
	b.emit(asm.FnGetRetval.Call())
	b.allowIf(asm.JNE, asm.R0, 0)
}

// count adds one to a counter.
func (b *builder) count(counter int16) {
	b.emit(
		asm.LoadMapValue(asm.R1, 0, 0).WithReference(countersMap),
		asm.Mov.Imm(asm.R2, 1),
		asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, counter),
	)
}

// Counters, by their place in the value of the map of counters.
const (
	counterLost    = 0 // records for which the ring had no room
	counterDropped = 8 // operations refused without a record
	countersSize   = 16
)

// eacces is what refused operations fail with (asm-generic/errno-base.h).
const eacces = 13

// refuse refuses the operation with EACCES.
func (b *builder) refuse() {
	if !b.modifies {
		b.emit(asm.Mov.Imm(asm.R1, -eacces), asm.FnSetRetval.Call())
	}
	b.leave(refuse)
}

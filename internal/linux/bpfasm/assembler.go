//go:build linux

package bpfasm

import "github.com/cilium/ebpf/asm"

// Context is the register in which programs keep their context, which the kernel hands them in R1. Calls leave it alone.
const Context = asm.R6

// Frame is the register that points to the end of the stack frame. Programs cannot change it.
const Frame = asm.R10

// Label is a place in the code that jumps lead to. Zero is no label.
type Label int

// Assembler collects the instructions of a program, or of a function of one, and resolves the jumps between them. The zero
// Assembler is empty and ready; it belongs to one goroutine.
type Assembler struct {
	code   []instruction
	labels Label   // the last label handed out
	cuts   []int   // indices into code before which an island may stand
	marks  []Label // labels that wait for the next instruction
}

// instruction is one instruction, the labels that stand before it and the label it jumps to.
type instruction struct {
	asm.Instruction
	at     []Label
	target Label
}

// NewLabel returns a label that stands nowhere yet. Link fails if a jump leads to it and it was never marked.
func (a *Assembler) NewLabel() Label {
	a.labels++
	return a.labels
}

// Mark places labels before the next instruction.
func (a *Assembler) Mark(labels ...Label) { a.marks = append(a.marks, labels...) }

// Cut allows an island before the next instruction. Code that is longer than a jump reaches needs cuts; an island costs
// programs without long jumps nothing.
func (a *Assembler) Cut() { a.cuts = append(a.cuts, len(a.code)) }

// Emit adds instructions. Those that jump by a distance of their own, as linked code does, must stay within one call.
func (a *Assembler) Emit(instructions ...asm.Instruction) {
	for _, ins := range instructions {
		a.code = append(a.code, instruction{Instruction: ins, at: a.marks})
		a.marks = nil
	}
}

// Jump goes to a label.
func (a *Assembler) Jump(to Label) {
	a.jumpTo(asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Ja)}, to)
}

// JumpImm32 compares the low 32 bits of dst with imm and goes to a label if op holds.
func (a *Assembler) JumpImm32(op asm.JumpOp, dst asm.Register, imm uint32, to Label) {
	a.jumpTo(asm.Instruction{
		OpCode:   asm.OpCode(asm.Jump32Class).SetJumpOp(op).SetSource(asm.ImmSource),
		Dst:      dst,
		Constant: int64(int32(imm)),
	}, to)
}

// JumpImm64 compares all 64 bits of dst with imm, extended by its sign, and goes to a label if op holds.
func (a *Assembler) JumpImm64(op asm.JumpOp, dst asm.Register, imm int32, to Label) {
	a.jumpTo(asm.Instruction{
		OpCode:   asm.OpCode(asm.JumpClass).SetJumpOp(op).SetSource(asm.ImmSource),
		Dst:      dst,
		Constant: int64(imm),
	}, to)
}

// JumpReg compares all 64 bits of two registers and goes to a label if op holds.
func (a *Assembler) JumpReg(op asm.JumpOp, dst, src asm.Register, to Label) {
	a.jumpTo(asm.Instruction{
		OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(op).SetSource(asm.RegSource),
		Dst:    dst,
		Src:    src,
	}, to)
}

func (a *Assembler) jumpTo(ins asm.Instruction, to Label) {
	a.Emit(ins)
	a.code[len(a.code)-1].target = to
}

// Branches counts the conditional jumps to labels.
func (a *Assembler) Branches() int {
	n := 0
	for i := range a.code {
		if a.code[i].target != 0 && a.code[i].OpCode.JumpOp() != asm.Ja {
			n++
		}
	}
	return n
}

// LookUp leaves the address of the value for a key in R0, 0 if the map has no such key. The key stands in the frame, at an
// offset that is negative.
func (a *Assembler) LookUp(theMap string, key int16) {
	a.Emit(
		asm.LoadMapPtr(asm.R1, 0).WithReference(theMap),
		asm.Mov.Reg(asm.R2, Frame),
		asm.Add.Imm(asm.R2, int32(key)),
		asm.FnMapLookupElem.Call(),
	)
}

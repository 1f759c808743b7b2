//go:build linux

package codegen

import (
	"math"
	"slices"

	"github.com/cilium/ebpf/asm"
)

// A label is a place in the code that jumps lead to. Zero is no label.
type label int

// assembler collects instructions and resolves jumps between them.
//
// The offset of a jump has 16 bits, and a filter may have thousands of tests. Where the code may be
// cut (see cut) the layout therefore puts islands: unconditional jumps that pass on what would not
// reach its target. Backward jumps must be short; only loops in the parser use them.
type assembler struct {
	code   []instruction
	labels label   // the last label handed out
	cuts   []int   // indices into code before which an island may stand
	marks  []label // labels that wait for the next instruction
}

// instruction is one instruction, the labels that stand before it and the label it jumps to.
type instruction struct {
	asm.Instruction
	at     []label
	target label
}

func (a *assembler) newLabel() label {
	a.labels++
	return a.labels
}

// mark places labels before the next instruction.
func (a *assembler) mark(labels ...label) { a.marks = append(a.marks, labels...) }

// cut allows an island before the next instruction.
func (a *assembler) cut() { a.cuts = append(a.cuts, len(a.code)) }

func (a *assembler) emit(instructions ...asm.Instruction) {
	for _, ins := range instructions {
		a.code = append(a.code, instruction{Instruction: ins, at: a.marks})
		a.marks = nil
	}
}

// jump goes to a label.
func (a *assembler) jump(to label) {
	a.emitJump(asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Ja)}, to)
}

// jumpImm compares the low 32 bits of dst with imm and goes to a label if op holds.
func (a *assembler) jumpImm(op asm.JumpOp, dst asm.Register, imm uint32, to label) {
	a.emitJump(asm.Instruction{
		OpCode:   asm.OpCode(asm.Jump32Class).SetJumpOp(op).SetSource(asm.ImmSource),
		Dst:      dst,
		Constant: int64(int32(imm)),
	}, to)
}

// jumpReg compares all 64 bits of two registers and goes to a label if op holds.
func (a *assembler) jumpReg(op asm.JumpOp, dst, src asm.Register, to label) {
	a.emitJump(asm.Instruction{
		OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(op).SetSource(asm.RegSource),
		Dst:    dst,
		Src:    src,
	}, to)
}

func (a *assembler) emitJump(ins asm.Instruction, to label) {
	a.emit(ins)
	a.code[len(a.code)-1].target = to
}

// maxWaiting is how many branches a program may have for all their far sides to wait in the
// verifier at once: BPF_COMPLEXITY_LIMIT_JMP_SEQ, 8,192, less a margin for those of loops.
const maxWaiting = 8192 - 1024

// MaxTests is how many tests a program may have, when lists have become sets and what the hook knows has fallen away. The
// tests of a long filter have a branch each, of which all may wait; the parser has fewer than 168.
const MaxTests = maxWaiting - 168

// branches counts the conditional jumps.
func (a *assembler) branches() int {
	n := 0
	for i := range a.code {
		if a.code[i].target != 0 && a.code[i].OpCode.JumpOp() != asm.Ja {
			n++
		}
	}
	return n
}

// width is the number of 8-byte slots of an instruction.
func width(ins *asm.Instruction) int {
	if ins.OpCode.IsDWordLoad() {
		return 2
	}
	return 1
}

// grown is at most how many slots an instruction has when the kernel has rewritten it. The kernel refuses a program
// when a jump reaches too far after that (bpf_adj_branches in kernel/bpf/core.c).
func grown(ins *asm.Instruction) int {
	switch class := ins.OpCode.Class(); {
	case ins.IsFunctionReference(), ins.OpCode.IsDWordLoad():
		return 2
	case class == asm.LdXClass && ins.Src == regContext:
		return 8 // members of struct __sk_buff (bpf_convert_ctx_access in net/core/filter.c)
	case ins.IsBuiltinCall() && (ins.Constant == int64(asm.FnLoop) || ins.Constant == int64(asm.FnMapLookupElem)):
		return 32 // may be put in place of the call (INSN_BUF_SIZE in include/linux/bpf_verifier.h)
	case class == asm.ALU64Class && ins.OpCode.ALUOp() == asm.Add && ins.OpCode.Source() == asm.RegSource:
		return 10 // to a pointer, without CAP_PERFMON (the masking of do_misc_fixups in kernel/bpf/verifier.c)
	case class == asm.StXClass:
		return 2 // a barrier behind a pointer, without CAP_PERFMON
	}
	return 1
}

// maxJump is the greatest distance of a jump, in slots as they have grown, less a margin for the island's own first jump.
const maxJump = math.MaxInt16 - 8

// maxInstructions is BPF_COMPLEXITY_LIMIT_INSNS (include/linux/bpf_verifier.h): what a program of a
// privileged user may have.
const maxInstructions = 1_000_000

// maxCode is how many a program has at most here: the verifier goes through most of them once, and counts what it goes
// through.
const maxCode = maxInstructions * 9 / 10

// link lays the code out, resolves all jumps and returns the finished instructions.
func (a *assembler) link() (asm.Instructions, error) {
	l := linker{placed: make(map[label]int), pending: make(map[label][]reference)}
	cuts := a.cuts
	for i := range a.code {
		if len(cuts) > 0 && cuts[0] == i {
			cuts = cuts[1:]
			next := len(a.code)
			if len(cuts) > 0 {
				next = cuts[0]
			}
			if l.mustBridge(a.grown(i, next)) {
				if err := l.island(); err != nil {
					return nil, err
				}
			}
		}
		if err := l.place(&a.code[i]); err != nil {
			return nil, err
		}
	}
	if len(l.pending) > 0 {
		return nil, errInternal("a jump without a target")
	}
	if l.slot > maxCode {
		return nil, &LimitError{Limit: "instructions", Have: l.slot, Max: maxCode}
	}
	return l.out, nil
}

// grown returns the number of slots from code index i to j, as they may grow.
func (a *assembler) grown(i, j int) int {
	n := 0
	for ; i < j; i++ {
		n += grown(&a.code[i].Instruction)
	}
	return n
}

// reference is a jump that waits for its target.
type reference struct{ index, slot, grown int }

// linker is the state of the layout.
type linker struct {
	out     asm.Instructions
	slot    int // slots used by out
	grown   int // the same, as they may grow
	placed  map[label]int
	pending map[label][]reference
}

// mustBridge reports whether some waiting jump cannot be sure of a place within reach once the next
// block, of the given number of slots, has been laid out.
func (l *linker) mustBridge(block int) bool {
	limit := l.grown + block + len(l.pending) + 1 - maxJump
	for _, refs := range l.pending {
		if refs[0].grown < limit {
			return true
		}
	}
	return false
}

// island passes every waiting jump on.
func (l *linker) island() error {
	if len(l.pending) > maxJump/2 {
		return &LimitError{Limit: "jumps over 32,767 instructions", Have: len(l.pending), Max: maxJump / 2}
	}
	labels := make([]label, 0, len(l.pending))
	for to := range l.pending {
		labels = append(labels, to)
	}
	slices.Sort(labels) // the same filter gives the same code

	ja := asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Ja)}
	if !l.leaves() {
		ja.Offset = int16(len(labels))
		l.add(ja)
	}
	for _, to := range labels {
		l.resolve(to)
		l.pending[to] = []reference{{len(l.out), l.slot, l.grown}}
		l.add(asm.Instruction{OpCode: ja.OpCode})
	}
	return nil
}

// leaves reports whether the last instruction never goes on to the next: the verifier refuses code
// that cannot be reached.
func (l *linker) leaves() bool {
	op := l.out[len(l.out)-1].OpCode.JumpOp()
	return op == asm.Ja || op == asm.Exit
}

func (l *linker) add(ins asm.Instruction) {
	l.out = append(l.out, ins)
	l.slot += width(&ins)
	l.grown += grown(&ins)
}

// resolve points all jumps that wait for a label to the current slot.
func (l *linker) resolve(to label) {
	for _, ref := range l.pending[to] {
		l.out[ref.index].Offset = int16(l.slot - ref.slot - 1)
	}
	delete(l.pending, to)
}

// place adds an instruction.
func (l *linker) place(ins *instruction) error {
	for _, at := range ins.at {
		for _, ref := range l.pending[at] {
			if l.grown-ref.grown > math.MaxInt16 {
				return errInternal("a jump beyond reach")
			}
		}
		l.resolve(at)
		l.placed[at] = l.slot
	}
	if ins.target != 0 {
		if slot, ok := l.placed[ins.target]; ok {
			if l.slot-slot > math.MaxInt16 {
				return errInternal("a backward jump beyond reach")
			}
			ins.Offset = int16(slot - l.slot - 1)
		} else {
			l.pending[ins.target] = append(l.pending[ins.target], reference{len(l.out), l.slot, l.grown})
		}
	}
	l.add(ins.Instruction)
	return nil
}

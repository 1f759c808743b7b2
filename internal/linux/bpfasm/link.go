//go:build linux

package bpfasm

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/cilium/ebpf/asm"
)

// SizeError says that code is too large for the kernel.
type SizeError struct {
	Limit string // the quantity that exceeds a limit
	Have  int    // how much
	Max   int    // how much the kernel takes
}

func (e *SizeError) Error() string {
	return fmt.Sprintf("the program is too large: the kernel takes %d %s, it has %d", e.Max, e.Limit, e.Have)
}

// errMistake is a mistake of the code that called the Assembler.
func errMistake(what string) error { return errors.New("bpfasm: " + what) }

// width is the number of 8-byte slots of an instruction.
func width(ins *asm.Instruction) int {
	if ins.OpCode.IsDWordLoad() {
		return 2
	}
	return 1
}

// grown is the most slots that an instruction may have after the kernel has rewritten it. The kernel refuses a program if a jump
// reaches too far after that (bpf_adj_branches in kernel/bpf/core.c).
func grown(ins *asm.Instruction) int {
	switch class := ins.OpCode.Class(); {
	case ins.IsFunctionReference(), ins.OpCode.IsDWordLoad():
		return 2
	case class == asm.LdXClass && ins.Src == Context:
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

// MaxInstructions is the most instructions that the program of a privileged user may have: BPF_COMPLEXITY_LIMIT_INSNS
// (include/linux/bpf_verifier.h).
const MaxInstructions = 1_000_000

// maxCode is the limit here, which leaves a margin: the verifier counts each instruction as often as it goes through it, most of
// them once.
const maxCode = MaxInstructions * 9 / 10

// Link lays the code out, resolves all jumps and returns the finished instructions. Jumps have distances then, so the instructions
// may be put behind others. The error is a *SizeError, or that of a mistake in the program, such as a jump that leads nowhere.
func (a *Assembler) Link() (asm.Instructions, error) {
	l := linker{placed: make(map[Label]int), pending: make(map[Label][]reference)}
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
		return nil, errMistake("a jump without a target")
	}
	if l.slot > maxCode {
		return nil, &SizeError{Limit: "instructions", Have: l.slot, Max: maxCode}
	}
	return l.out, nil
}

// grown returns the number of slots from code index i to j, as they may grow.
func (a *Assembler) grown(i, j int) int {
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
	placed  map[Label]int
	pending map[Label][]reference
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
		return &SizeError{Limit: "jumps over 32,767 instructions", Have: len(l.pending), Max: maxJump / 2}
	}
	labels := make([]Label, 0, len(l.pending))
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
func (l *linker) resolve(to Label) {
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
				return errMistake("a jump beyond reach")
			}
		}
		l.resolve(at)
		l.placed[at] = l.slot
	}
	if ins.target != 0 {
		if slot, ok := l.placed[ins.target]; ok {
			if l.slot-slot > math.MaxInt16 {
				return errMistake("a backward jump beyond reach")
			}
			ins.Offset = int16(slot - l.slot - 1)
		} else {
			l.pending[ins.target] = append(l.pending[ins.target], reference{len(l.out), l.slot, l.grown})
		}
	}
	l.add(ins.Instruction)
	return nil
}

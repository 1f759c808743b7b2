//go:build linux

package codegen

import "github.com/cilium/ebpf/asm"

// The tests of long filters. Each computes its answer as the top bit of a register and has one
// branch, whose side that leads to another test falls through: so the verifier goes through all tests
// once before it comes to the other sides, of which one waits for each test. (The other way round
// nothing would wait, but Linux 6.18 spends time in proportion to the whole program at every end
// it comes to while there is something new to learn: bpf_update_live_stack in kernel/bpf/liveness.c.)

// regAbsent has its top bit set if the value of the field is not available. It survives calls.
const regAbsent = asm.R7

// maxComputed is up to how many ranges are compared without a search.
const maxComputed = 4

// emitLong emits a test of a long filter.
func (t *tests) emitLong(c *condition, kind valueKind, succ, fail, next label) {
	t.Emit(asm.Mov.Imm(regAbsent, 0))
	t.loader.load(t, c, fail)
	if c.named != nil {
		t.outsideNamed(c, kind)
	} else {
		t.outside(c, kind)
	}
	if c.negate {
		t.Emit(asm.Xor.Imm(asm.R0, -1))
	}
	t.Emit(asm.Or.Reg(asm.R0, regAbsent))
	op, taken, behind := asm.JSLT, fail, succ
	if succ == t.accept || succ == t.reject {
		op, taken, behind = asm.JSGE, succ, fail
	}
	t.JumpImm64(op, asm.R0, 0, taken)
	t.jumpUnless(behind, next)
}

// requireLong makes the value unavailable unless a comparison holds. It uses R5.
func (t *tests) requireLong(c comparison) {
	t.Emit(asm.Mov.Reg(asm.R5, c.dst))
	switch c.op {
	case asm.JEq:
		t.Emit(asm.Xor.Imm(asm.R5, int32(c.imm)))
		t.nonzero(asm.R5, asm.R4)
	case asm.JNE: // zero, by all that require it
		t.Emit(asm.Sub.Imm(asm.R5, 1))
	case asm.JSGE:
		t.Emit(asm.Sub.Reg(asm.R5, c.src))
	}
	t.Emit(asm.Or.Reg(regAbsent, asm.R5))
}

// nonzero sets the top bit of r if r is not zero, else clears it.
func (t *tests) nonzero(r, scratch asm.Register) {
	t.Emit(
		asm.Mov.Reg(scratch, r),
		asm.Neg.Imm(scratch, 0),
		asm.Or.Reg(r, scratch),
	)
}

// outside sets the top bit of R0 if the value lies in no range, else clears it. It uses R1 to R5 and R8.
func (t *tests) outside(c *condition, kind valueKind) {
	if len(c.ranges) == 0 {
		t.Emit(asm.Mov.Imm(asm.R0, -1))
		return
	}
	if kind == value64 {
		t.Emit(asm.Mov.Reg(asm.R2, asm.R1), asm.Mov.Imm(asm.R1, 0))
		kind = value128
	}
	r := c.ranges[0]
	switch {
	case kind != value128 && len(c.ranges) <= maxComputed:
		t.outside32(c)
	case kind != value128 || len(c.ranges) > 1:
		t.sets.search(t, c, kind)
		t.Emit(asm.Sub.Imm(asm.R0, 1))
	case r.First == r.Last:
		t.set(asm.R0, r.First.Hi)
		t.set(asm.R3, r.First.Lo)
		t.Emit(
			asm.Xor.Reg(asm.R0, asm.R1),
			asm.Xor.Reg(asm.R3, asm.R2),
			asm.Or.Reg(asm.R0, asm.R3),
		)
		t.nonzero(asm.R0, asm.R3)
	default:
		t.below128(r.First)
		t.Emit(asm.Mov.Reg(asm.R8, asm.R0))
		if r.Last != maximum {
			t.below128(add1(r.Last))
			t.Emit(asm.Xor.Imm(asm.R0, 1), asm.Or.Reg(asm.R0, asm.R8))
		}
		t.Emit(asm.Neg.Imm(asm.R0, 0))
	}
}

// outside32 is outside for few ranges of R1.
func (t *tests) outside32(c *condition) {
	for i, r := range c.ranges {
		t.set(asm.R4, uint64(uint32(r.First.Lo)))
		t.set(asm.R3, uint64(uint32(r.Last.Lo)))
		t.Emit(
			asm.Mov.Reg(asm.R5, asm.R1),
			asm.Sub.Reg(asm.R5, asm.R4), // negative: below
			asm.Sub.Reg(asm.R3, asm.R1), // negative: above
			asm.Or.Reg(asm.R5, asm.R3),
		)
		if i == 0 {
			t.Emit(asm.Mov.Reg(asm.R0, asm.R5))
		} else {
			t.Emit(asm.And.Reg(asm.R0, asm.R5))
		}
	}
}

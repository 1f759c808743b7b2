//go:build linux

package codegen

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/prog"
)

// A loader brings the value of a field into registers. The tests of all layers are emitted by the
// same code (tests); only the loader knows where values come from.
type loader interface {
	// locate tells the form of the condition's value. It may restate the condition.
	locate(c *condition) valueKind
	// load emits code that goes to fail if the value is not available, and otherwise leaves it in
	// R1 (and R2, see valueKind). It may use R0 to R5.
	load(t *tests, c *condition, fail label)
}

// tests emits the tests of a filter.
//
// The verifier follows one side of a branch to its end and keeps the other waiting, at most 8,192 at
// a time. A filter with more branches than that is long: its tests compute their answers and branch
// once each, see long.go.
type tests struct {
	*assembler
	loader loader
	sets   *setTable
	named  *namedTable
	long   bool
	accept label
	reject label
}

// emitAll emits all tests; the first is entered first.
func (t *tests) emitAll(list []prog.Test) {
	entries := make([]label, len(list))
	for i := range entries {
		entries[i] = t.NewLabel()
	}
	at := func(target prog.Target) label {
		switch target {
		case prog.Accept:
			return t.accept
		case prog.Reject:
			return t.reject
		}
		return entries[target]
	}
	for i := range list {
		t.Cut()
		t.Mark(entries[i])
		next := t.reject // stands behind the last test
		if i+1 < len(list) {
			next = entries[i+1]
		}
		t.emitTest(&list[i], at(list[i].Succ), at(list[i].Fail), next)
	}
	t.Cut()
}

// emitTest emits a test that goes on at succ or fail; next is the code behind it.
func (t *tests) emitTest(test *prog.Test, succ, fail, next label) {
	c := toCondition(test)
	kind := t.loader.locate(&c)
	if t.long {
		t.emitLong(&c, kind, succ, fail, next)
		return
	}
	t.loader.load(t, &c, fail)
	in, out := succ, fail
	if c.negate {
		in, out = fail, succ
	}
	switch {
	case c.named != nil:
		t.inNamed(&c, kind, in, out, next)
		return
	case len(c.ranges) == 0:
		t.jumpUnless(out, next)
		return
	}
	switch kind {
	case value64:
		t.ranges64(&c, in, out, next)
	case value128:
		t.ranges128(&c, in, out, next)
	default:
		t.ranges32(&c, in, out, next)
	}
}

// jumpUnless goes to a label unless it stands right behind.
func (t *tests) jumpUnless(to, next label) {
	if to != next {
		t.Jump(to)
	}
}

// inverse of the comparisons that are used.
var inverse = map[asm.JumpOp]asm.JumpOp{
	asm.JEq: asm.JNE, asm.JNE: asm.JEq,
	asm.JGT: asm.JLE, asm.JLE: asm.JGT,
	asm.JGE: asm.JLT, asm.JLT: asm.JGE,
	asm.JSGE: asm.JSLT, asm.JSLT: asm.JSGE,
}

// comparison is a branch without its targets.
type comparison struct {
	op  asm.JumpOp
	dst asm.Register
	src asm.Register // if reg
	imm uint32
	reg bool // compare 64 bits with src, otherwise 32 bits with imm
}

func imm32(op asm.JumpOp, dst asm.Register, imm uint32) comparison {
	return comparison{op: op, dst: dst, imm: imm}
}

func reg64(op asm.JumpOp, dst, src asm.Register) comparison {
	return comparison{op: op, dst: dst, src: src, reg: true}
}

func (t *tests) branch(c comparison, to label) {
	if c.reg {
		t.JumpReg(c.op, c.dst, c.src, to)
	} else {
		t.JumpImm32(c.op, c.dst, c.imm, to)
	}
}

func (c comparison) not() comparison { c.op = inverse[c.op]; return c }

// decide ends a test: yes if the comparison holds, else no; next is the code behind it.
func (t *tests) decide(c comparison, yes, no, next label) {
	if yes == next {
		c, yes, no = c.not(), no, yes
	}
	t.branch(c, yes)
	t.jumpUnless(no, next)
}

// require goes on behind if the comparison holds, else to fail.
func (t *tests) require(c comparison, fail label) {
	if t.long {
		t.requireLong(c)
		return
	}
	t.branch(c.not(), fail)
}

// set leaves a constant of 64 bits in a register.
func (t *tests) set(dst asm.Register, v uint64) {
	if int64(v) == int64(int32(v)) {
		t.Emit(asm.Mov.Imm(dst, int32(v)))
		return
	}
	t.Emit(asm.LoadImm(dst, int64(v), asm.DWord))
}

// ranges32 goes to in if R1 lies in a range, else to out.
func (t *tests) ranges32(c *condition, in, out, next label) {
	if len(c.ranges) > maxInline {
		t.sets.search(t, c, value32)
		t.decide(imm32(asm.JNE, asm.R0, 0), in, out, next)
		return
	}
	t.tree32(c.ranges, uint32(c.domain.First.Lo), uint32(c.domain.Last.Lo), in, out, next)
}

// tree32 is a binary decision tree. R1 is known to lie within lo to hi.
func (t *tests) tree32(ranges []prog.Range, lo, hi uint32, in, out, next label) {
	for len(ranges) > 1 {
		mid := len(ranges) / 2
		right := t.NewLabel()
		first := uint32(ranges[mid].First.Lo)
		t.branch(imm32(asm.JGE, asm.R1, first), right)
		t.tree32(ranges[:mid], lo, first-1, in, out, right)
		t.Mark(right)
		ranges, lo = ranges[mid:], first
	}
	t.range32(ranges[0], lo, hi, in, out, next)
}

func (t *tests) range32(r prog.Range, lo, hi uint32, in, out, next label) {
	first, last := uint32(r.First.Lo), uint32(r.Last.Lo)
	switch {
	case first <= lo && last >= hi:
		t.jumpUnless(in, next)
	case first == last:
		t.decide(imm32(asm.JEq, asm.R1, first), in, out, next)
	case first <= lo:
		t.decide(imm32(asm.JLE, asm.R1, last), in, out, next)
	default:
		if last < hi {
			t.branch(imm32(asm.JGT, asm.R1, last), out)
		}
		t.decide(imm32(asm.JGE, asm.R1, first), in, out, next)
	}
}

// ranges64 is the same for 64 bits, a list: only the timestamp has them.
func (t *tests) ranges64(c *condition, in, out, next label) {
	if len(c.ranges) > maxInline {
		t.Emit(asm.Mov.Reg(asm.R2, asm.R1), asm.Mov.Imm(asm.R1, 0))
		t.sets.search(t, c, value128)
		t.decide(imm32(asm.JNE, asm.R0, 0), in, out, next)
		return
	}
	for i, r := range c.ranges {
		t.set(asm.R3, r.First.Lo)
		t.branch(reg64(asm.JLT, asm.R1, asm.R3), out)
		t.set(asm.R3, r.Last.Lo)
		if i == len(c.ranges)-1 {
			t.decide(reg64(asm.JLE, asm.R1, asm.R3), in, out, next)
		} else {
			t.branch(reg64(asm.JLE, asm.R1, asm.R3), in)
		}
	}
}

// ranges128 goes to in if R1:R2 lies in a range, else to out.
func (t *tests) ranges128(c *condition, in, out, next label) {
	if len(c.ranges) > maxInline128 {
		t.sets.search(t, c, value128)
		t.decide(imm32(asm.JNE, asm.R0, 0), in, out, next)
		return
	}
	for i, r := range c.ranges {
		if i == len(c.ranges)-1 {
			t.range128(r, in, out, next)
			return
		}
		other := t.NewLabel()
		t.range128(r, in, other, other)
		t.Mark(other)
	}
}

// range128 goes to in if R1:R2 lies in the range, else to out. It keeps R1 and R2.
func (t *tests) range128(r prog.Range, in, out, next label) {
	switch {
	case r.First == r.Last:
		t.set(asm.R3, r.First.Hi)
		t.set(asm.R4, r.First.Lo)
		t.Emit(
			asm.Xor.Reg(asm.R3, asm.R1),
			asm.Xor.Reg(asm.R4, asm.R2),
			asm.Or.Reg(asm.R3, asm.R4),
			asm.Mov.Imm(asm.R4, 0),
		)
		t.decide(reg64(asm.JEq, asm.R3, asm.R4), in, out, next)
	case r.First.Lo == 0 && r.Last.Lo == ^uint64(0):
		t.within64(asm.R1, r.First.Hi, r.Last.Hi, in, out, next)
	case r.First.Hi == r.Last.Hi:
		t.set(asm.R3, r.First.Hi)
		t.require(reg64(asm.JEq, asm.R1, asm.R3), out)
		t.within64(asm.R2, r.First.Lo, r.Last.Lo, in, out, next)
	default:
		if r.First != zero {
			t.below128(r.First)
			t.branch(imm32(asm.JNE, asm.R0, 0), out)
		}
		if r.Last == maximum {
			t.jumpUnless(in, next)
			return
		}
		t.below128(add1(r.Last))
		t.decide(imm32(asm.JNE, asm.R0, 0), in, out, next)
	}
}

// within64 goes to in if a register lies within first to last, else to out.
func (t *tests) within64(r asm.Register, first, last uint64, in, out, next label) {
	if last == ^uint64(0) {
		t.set(asm.R3, first)
		t.decide(reg64(asm.JGE, r, asm.R3), in, out, next)
		return
	}
	if first != 0 {
		t.set(asm.R3, first)
		t.require(reg64(asm.JGE, r, asm.R3), out)
	}
	t.set(asm.R3, last)
	t.decide(reg64(asm.JLE, r, asm.R3), in, out, next)
}

// below128 sets R0 to 1 if R1:R2 < v, else to 0, without a branch: the borrow of the subtraction.
// It uses R3 to R5.
func (t *tests) below128(v prog.Value) {
	t.Emit(asm.Mov.Imm(asm.R0, 0))
	for _, half := range [...]struct {
		x asm.Register
		y uint64
	}{{asm.R2, v.Lo}, {asm.R1, v.Hi}} {
		t.set(asm.R3, half.y)
		t.borrow(half.x)
	}
}

// borrow sets R0 to the borrow of x - R3 - R0. It uses R3 to R5 and keeps x.
// (Borrow of a - b: the top bit of (^a & b) | ((^a | b) & difference).)
func (t *tests) borrow(x asm.Register) {
	t.Emit(
		asm.Mov.Reg(asm.R4, x),
		asm.Sub.Reg(asm.R4, asm.R3),
		asm.Sub.Reg(asm.R4, asm.R0), // the difference
		asm.Mov.Reg(asm.R5, x),
		asm.Xor.Imm(asm.R5, -1),
		asm.Mov.Reg(asm.R0, asm.R5),
		asm.Or.Reg(asm.R0, asm.R3),
		asm.And.Reg(asm.R0, asm.R4),
		asm.And.Reg(asm.R5, asm.R3),
		asm.Or.Reg(asm.R0, asm.R5),
		asm.RSh.Imm(asm.R0, 63),
	)
}

//go:build linux

package bpfasm

import (
	"errors"
	"math"
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// run loads code as a socket filter and returns what it answers.
func run(t *testing.T, a *Assembler) uint32 {
	t.Helper()
	code, err := a.Link()
	if err != nil {
		t.Fatal(err)
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, Instructions: code, License: "GPL"})
	if errors.Is(err, os.ErrPermission) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer p.Close()
	answer, err := p.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if errors.Is(err, ebpf.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// answer ends a program.
func answer(a *Assembler, v int32) { a.Emit(asm.Mov.Imm(asm.R0, v), asm.Return()) }

// TestComparisons has the kernel compare: 32 and 64 bits differ where a value has its upper half, or its top bit, set.
func TestComparisons(t *testing.T) {
	for _, tt := range []struct {
		name  string
		value int64
		jump  func(a *Assembler, to Label)
		want  uint32
	}{
		{"32 bits, equal", 5, func(a *Assembler, to Label) { a.JumpImm32(asm.JEq, asm.R1, 5, to) }, 1},
		{"32 bits look at the lower half only", 1<<32 | 5, func(a *Assembler, to Label) { a.JumpImm32(asm.JEq, asm.R1, 5, to) }, 1},
		{"64 bits look at both", 1<<32 | 5, func(a *Assembler, to Label) { a.JumpImm64(asm.JEq, asm.R1, 5, to) }, 0},
		{"a pointer's lower half may be zero", 1 << 32, func(a *Assembler, to Label) { a.JumpImm32(asm.JEq, asm.R1, 0, to) }, 1},
		{"32 bits, top bit", 0x80000000, func(a *Assembler, to Label) { a.JumpImm32(asm.JEq, asm.R1, 0x80000000, to) }, 1},
		{"64 bits extend the sign", 0x80000000, func(a *Assembler, to Label) { a.JumpImm64(asm.JEq, asm.R1, math.MinInt32, to) }, 0},
		{"64 bits, negative", -2, func(a *Assembler, to Label) { a.JumpImm64(asm.JSLT, asm.R1, 0, to) }, 1},
		{"32 bits, unsigned", -2, func(a *Assembler, to Label) { a.JumpImm32(asm.JGT, asm.R1, 5, to) }, 1},
		{"registers", 1<<32 | 5, func(a *Assembler, to Label) {
			a.Emit(asm.Mov.Imm(asm.R2, 5))
			a.JumpReg(asm.JEq, asm.R1, asm.R2, to)
		}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var a Assembler
			yes := a.NewLabel()
			a.Emit(asm.LoadImm(asm.R1, tt.value, asm.DWord))
			tt.jump(&a, yes)
			answer(&a, 0)
			a.Mark(yes)
			answer(&a, 1)
			if got := run(t, &a); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
		})
	}
}

// TestLabels: several labels stand at one instruction, jumps go forwards and backwards, a wide instruction counts twice.
func TestLabels(t *testing.T) {
	var a Assembler
	again, one, two, never := a.NewLabel(), a.NewLabel(), a.NewLabel(), a.NewLabel()
	a.Emit(asm.Mov.Imm(asm.R1, 0), asm.Mov.Imm(asm.R0, 0))
	a.Mark(again)
	a.JumpImm32(asm.JEq, asm.R1, 3, one)
	a.Emit(asm.LoadImm(asm.R2, 1<<40, asm.DWord), asm.Add.Imm(asm.R1, 1))
	a.JumpImm64(asm.JLT, asm.R1, 10, again)
	a.Jump(two)
	a.Mark(one, two, never)
	a.Emit(asm.Mov.Reg(asm.R0, asm.R1), asm.Return())
	if got := a.Branches(); got != 2 {
		t.Errorf("%d branches", got)
	}
	code, err := a.Link()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := []int16{code[2].Offset, code[5].Offset, code[6].Offset}, []int16{5, -5, 0}; !slices.Equal(got, want) {
		t.Errorf("distances %d, want %d", got, want)
	}
	if got := run(t, &a); got != 3 {
		t.Errorf("%d, want 3", got)
	}
}

// TestMistakes: a label that stands nowhere, and a jump that does not reach.
func TestMistakes(t *testing.T) {
	var nowhere Assembler
	nowhere.Jump(nowhere.NewLabel())
	answer(&nowhere, 0)
	if code, err := nowhere.Link(); err == nil {
		t.Errorf("a jump that leads nowhere: %v", code)
	}
	far := func(cut bool) *Assembler {
		var a Assembler
		end := a.NewLabel()
		a.Emit(asm.Mov.Imm(asm.R1, 1))
		a.JumpImm32(asm.JEq, asm.R1, 1, end)
		for i := range 40_000 {
			if cut && i%100 == 0 {
				a.Cut()
			}
			a.Emit(asm.Mov.Imm(asm.R0, 0))
		}
		a.Mark(end)
		answer(&a, 1)
		return &a
	}
	if _, err := far(false).Link(); err == nil {
		t.Error("a jump over 40,000 instructions")
	}
	code, err := far(true).Link()
	if err != nil {
		t.Fatal(err)
	}
	if want := 40_004 + 2; len(code) != want { // an island is a jump over it and one jump
		t.Errorf("%d instructions with an island, want %d", len(code), want)
	}
	at := 1 // follow the jump from island to island
	for steps := 0; code[at].OpCode.Class().IsJump() && code[at].OpCode.JumpOp() != asm.Exit; steps++ {
		if at += int(code[at].Offset) + 1; steps > 2 {
			t.Fatal("the jump does not arrive")
		}
	}
	if at != len(code)-2 {
		t.Errorf("the jump leads to %d of %d", at, len(code))
	}
}

// TestTooLarge: code past the limit of the kernel.
func TestTooLarge(t *testing.T) {
	var a Assembler
	for range maxCode + 1 {
		a.Emit(asm.Mov.Imm(asm.R0, 0))
	}
	_, err := a.Link()
	var size *SizeError
	if !errors.As(err, &size) || size.Have != maxCode+1 || size.Max != maxCode {
		t.Errorf("%v", err)
	}
}

// Package bpfasm assembles eBPF programs with labels.
//
// The library's instructions (github.com/cilium/ebpf/asm) say what a program does; an Assembler collects them, hands out labels
// and turns jumps to labels into distances. It knows two things that are easy to get wrong:
//
//   - Comparisons are of 32 or of 64 bits. JumpImm32 compares the low halves of a register and a constant, JumpImm64 compares the
//     whole register with the constant, whose sign it extends. A value that the program has loaded with fewer than 64 bits is the same
//     to both, except against a constant with the top bit set: to JumpImm64, 0x80000000 is 0xffffffff80000000. A pointer, the result
//     of a function of the kernel that may be negative, and 64-bit values need JumpImm64.
//   - Jumps reach 32,767 slots. Where the caller allows it (Cut), Link puts islands: jumps that pass on others that would not reach.
package bpfasm

//go:build linux

package codegen

import (
	"encoding/binary"

	"github.com/cilium/ebpf/asm"
)

// Constants of the packet hash (specification: packets.md 5).
const (
	hashP1 = 0x9E3779B185EBCA87
	hashP2 = 0xC2B2AE3D27D4EB4F
	hashP3 = 0x165667B19E3779F9
	hashP4 = 0x85EBCA77C2B2AE63
)

var hashKeys = [8]uint64{
	0x428A2F9871374491, 0xB5C0FBCFE9B5DBA5, 0x3956C25B59F111F1, 0x923F82A4AB1C5ED5,
	0xD807AA9812835B01, 0x243185BE550C7DC3, 0x72BE5D7480DEB1FE, 0x9BDC06A7C19BF174,
}

// hash emits code that leaves the hash of the headers in R0; the seed is in R1. The parser must have
// provided needIPv6 and needTransport. It uses all scratch registers and R7 to R9.
func (p *parser) hash() {
	for i := range int16(8) {
		p.Emit(asm.StoreMem(regFrame, frameWords+8*i, asm.R1, asm.DWord))
	}
	v6, join := p.NewLabel(), p.NewLabel()
	p.ifIPv6(v6)
	if p.family != IPv6 {
		p.hashWords(frameIP, 1, asm.DWord, asm.DWord, asm.Word)
		p.hashTransport(4, join)
	}
	p.Mark(v6)
	if p.family != IPv4 {
		p.hashWords(frameIP, 1, asm.DWord, asm.DWord, asm.DWord, asm.DWord, asm.DWord)
		p.hashTransport(6, join)
	}
	p.Mark(join)
	p.hashMix()
}

// forgetChecksum sets the checksum of TCP or UDP to 0 where the header was loaded.
func (p *parser) forgetChecksum() {
	tcp, done := p.NewLabel(), p.NewLabel()
	p.Emit(asm.LoadMem(asm.R2, regFrame, varFlags, asm.Word))
	p.JumpImm32(asm.JSet, asm.R2, 1<<flagTCP, tcp)
	p.Emit(asm.And.Imm32(asm.R2, 1<<flagUDP))
	p.JumpImm32(asm.JEq, asm.R2, 0, done)
	p.Emit(asm.StoreImm(regFrame, frameTransport+6, 0, asm.Half))
	p.Jump(done)
	p.Mark(tcp)
	p.Emit(asm.StoreImm(regFrame, frameTransport+16, 0, asm.Half))
	p.Mark(done)
}

// flowHash is hash for the addresses and ports alone: packet.Parsed.FlowHash.
func (p *parser) flowHash() {
	for i := range int16(8) {
		p.Emit(asm.StoreMem(regFrame, frameWords+8*i, asm.R1, asm.DWord))
	}
	v6, ports, done := p.NewLabel(), p.NewLabel(), p.NewLabel()
	p.ifIPv6(v6)
	if p.family != IPv6 {
		p.hashWords(frameIP+12, 1, asm.Word, asm.Word)
		p.Jump(ports)
	}
	p.Mark(v6)
	if p.family != IPv4 {
		p.hashWords(frameIP+8, 1, asm.DWord, asm.DWord, asm.DWord, asm.DWord)
	}
	p.Mark(ports)
	p.Emit(
		asm.LoadMem(asm.R2, regFrame, varFlags, asm.Word),
		asm.And.Imm32(asm.R2, 1<<flagUDP|1<<flagTCP),
	)
	p.JumpImm32(asm.JEq, asm.R2, 0, done)
	p.hashWords(frameTransport, 5, asm.Word)
	p.Mark(done)
	p.hashMix()
}

// hashWords copies words of a header to the list, from word i on.
func (p *parser) hashWords(from int16, i int16, sizes ...asm.Size) {
	for _, size := range sizes {
		p.loadLittle(asm.R1, from, size)
		p.Emit(asm.StoreMem(regFrame, frameWords+8*i, asm.R1, asm.DWord))
		from += int16(size.Sizeof())
		i++
	}
}

// loadLittle loads a little-endian word.
func (p *parser) loadLittle(dst asm.Register, from int16, size asm.Size) {
	p.Emit(asm.LoadMem(dst, regFrame, from, size))
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		p.Emit(asm.HostTo(asm.LE, dst, size))
	}
}

// hashTransport copies the transport header to the list, from word i on, and goes to join. The list
// is full before the last word of an IPv6 TCP header; that one goes into the upper half of word 1.
func (p *parser) hashTransport(i int16, join label) {
	short := p.NewLabel()
	p.Emit(asm.LoadMem(asm.R2, regFrame, varFlags, asm.Word))
	p.JumpImm32(asm.JSet, asm.R2, 1<<flagUDP|1<<flagICMP|1<<flagICMPv6, short)
	p.Emit(asm.And.Imm32(asm.R2, 1<<flagTCP))
	p.JumpImm32(asm.JEq, asm.R2, 0, join)
	if i == 4 {
		p.hashWords(frameTransport, i, asm.DWord, asm.DWord, asm.Word)
	} else {
		p.hashWords(frameTransport, i, asm.DWord, asm.DWord)
		p.loadLittle(asm.R1, frameTransport+16, asm.Word)
		p.Emit(
			asm.LSh.Imm(asm.R1, 32),
			asm.LoadMem(asm.R2, regFrame, frameWords+8, asm.DWord),
			asm.Xor.Reg(asm.R2, asm.R1),
			asm.StoreMem(regFrame, frameWords+8, asm.R2, asm.DWord),
		)
	}
	p.Jump(join)
	p.Mark(short)
	p.hashWords(frameTransport, i, asm.DWord)
	p.Jump(join)
}

// Registers of the mixing.
const (
	regP1 = asm.R4
	regP2 = asm.R5
)

// hashMix turns the words into the hash, in R0.
func (p *parser) hashMix() {
	sums := [4]asm.Register{asm.R3, asm.R7, asm.R8, asm.R9}
	p.Emit(
		asm.LoadImm(regP1, signed64(hashP1), asm.DWord),
		asm.LoadImm(regP2, signed64(hashP2), asm.DWord),
	)
	for i, s := range sums {
		p.keyedWord(s, 4+i)
		p.keyedWord(asm.R1, i)
		p.round(s, asm.R1)
	}
	p.Emit(asm.Mov.Imm(asm.R0, 0))
	for i, bits := range [4]int32{1, 7, 12, 18} {
		p.Emit(asm.Mov.Reg(asm.R1, sums[i]))
		p.rotate(asm.R1, bits)
		p.Emit(asm.Add.Reg(asm.R0, asm.R1))
	}
	for _, s := range sums {
		p.Emit(asm.Mov.Imm(asm.R1, 0))
		p.round(asm.R1, s)
		p.Emit(
			asm.Xor.Reg(asm.R0, asm.R1),
			asm.Mul.Reg(asm.R0, regP1),
			asm.LoadImm(asm.R1, signed64(hashP4), asm.DWord),
			asm.Add.Reg(asm.R0, asm.R1),
		)
	}
	p.Emit(asm.Add.Imm(asm.R0, 32))
	p.fold(33)
	p.Emit(asm.Mul.Reg(asm.R0, regP2))
	p.fold(29)
	p.Emit(
		asm.LoadImm(asm.R1, hashP3, asm.DWord),
		asm.Mul.Reg(asm.R0, asm.R1),
	)
	p.fold(32)
}

func signed64(v uint64) int64 { return int64(v) }

// keyedWord loads word i, xored with its key. It uses R2.
func (p *parser) keyedWord(dst asm.Register, i int) {
	p.Emit(
		asm.LoadMem(dst, regFrame, frameWords+8*int16(i), asm.DWord),
		asm.LoadImm(asm.R2, signed64(hashKeys[i]), asm.DWord),
		asm.Xor.Reg(dst, asm.R2),
	)
}

// round sets a to rotl(a + x·P2, 31)·P1. It destroys x and uses R2.
func (p *parser) round(a, x asm.Register) {
	p.Emit(
		asm.Mul.Reg(x, regP2),
		asm.Add.Reg(a, x),
	)
	p.rotate(a, 31)
	p.Emit(asm.Mul.Reg(a, regP1))
}

// rotate rotates left. It uses R2.
func (p *parser) rotate(r asm.Register, bits int32) {
	p.Emit(
		asm.Mov.Reg(asm.R2, r),
		asm.LSh.Imm(r, bits),
		asm.RSh.Imm(asm.R2, 64-bits),
		asm.Or.Reg(r, asm.R2),
	)
}

// fold xors R0 with itself, shifted right. It uses R1.
func (p *parser) fold(bits int32) {
	p.Emit(
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.RSh.Imm(asm.R1, bits),
		asm.Xor.Reg(asm.R0, asm.R1),
	)
}

//go:build linux

package codegen

import (
	"slices"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/opendivert/divert/internal/linux/kernel"
)

// A program skips the extension headers of IPv6 with bpf_loop (since Linux 5.17), which ends only with the chain of headers,
// however long it is. Kernels without it take a loop only if they can see its end: the verifier goes through it once for each
// header. There a program stops after MaxExtensionHeaders and does not know what follows, so it answers that the packet matches
// and leaves the decision to its caller, see Options.Bounded.

// MaxExtensionHeaders is how many IPv6 extension headers a program of Options.Bounded skips. Each makes loading it longer (64 of
// them take about 5 ms).
const MaxExtensionHeaders = 64

// maxWalk is more extension headers, of at least 8 bytes each, than the 65,535 bytes behind an IPv6 header hold.
const maxWalk = 1 << 13

// walk skips the extension headers (specification: packets.md 1.1). It leaves the offset of what follows in regOffset, its
// protocol in regProtocol, and the fragment flags in varFlags.
func (p *parser) walk() {
	end := p.NewLabel()
	p.Emit(
		asm.Mov.Imm(regOffset, lenIPv6),
		asm.LoadMem(regProtocol, regFrame, frameIP+6, asm.Byte),
		asm.Mov.Imm(asm.R1, 1<<flagSet),
		asm.StoreMem(regFrame, varFlags, asm.R1, asm.Word),
	)
	if p.bounded {
		p.walkBounded(end)
	} else {
		p.walkAll(end)
	}
	p.Mark(end)
}

// walkAll calls the function of walkStep until the chain ends.
func (p *parser) walkAll(end label) {
	p.steps = true
	p.isExtension()
	p.JumpImm32(asm.JEq, asm.R1, 0, end)
	p.Emit(
		asm.StoreMem(regFrame, frameWords, regContext, asm.DWord), // for the function, which has registers of its own
		asm.StoreMem(regFrame, varPayload, regOffset, asm.Word),
		asm.StoreMem(regFrame, varProtocol, regProtocol, asm.Word),
		asm.Mov.Imm(asm.R1, maxWalk),
		asm.Instruction{OpCode: asm.LoadImmOp(asm.DWord), Dst: asm.R2, Src: asm.PseudoFunc, Constant: -1}.WithReference(stepName),
		asm.Mov.Reg(asm.R3, regFrame),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnLoop.Call(),
		asm.LoadMem(regOffset, regFrame, varPayload, asm.Word),
		asm.LoadMem(regProtocol, regFrame, varProtocol, asm.Word),
	)
}

// Names of the functions of a program.
const (
	mainName = "divert"
	stepName = "divert_step"
)

// walkStep emits the function that skips one extension header, if walkAll has called it. Its second argument is the frame of the
// program. It returns 1 when the walk is over.
//
// Kernels before 6.7 verify it once, as if it were called once: so the values that it changes must look unknown from the start,
// as values do in slots that are not aligned to 8 bytes.
func (p *parser) walkStep() {
	if !p.steps {
		return
	}
	const frame = asm.R9
	end := p.NewLabel()
	p.Emit(
		asm.Mov.Reg(frame, asm.R2).WithSymbol(stepName),
		asm.LoadMem(regContext, frame, frameWords, asm.DWord),
		asm.LoadMem(regOffset, frame, varPayload, asm.Word),
		asm.LoadMem(regProtocol, frame, varProtocol, asm.Word),
	)
	p.isExtension()
	p.JumpImm32(asm.JEq, asm.R1, 0, end)
	p.passExtension(frame, end)
	p.Emit(
		asm.StoreMem(frame, varPayload, regOffset, asm.Word),
		asm.StoreMem(frame, varProtocol, regProtocol, asm.Word),
	)
	p.JumpImm32(asm.JSet, asm.R5, 1<<flagLater, end)
	p.Emit(asm.Mov.Imm(asm.R0, 0), asm.Return())
	p.Mark(end)
	p.Emit(asm.Mov.Imm(asm.R0, 1), asm.Return())
}

// walkBounded skips up to MaxExtensionHeaders.
func (p *parser) walkBounded(end label) {
	next := p.NewLabel()
	p.Emit(asm.Mov.Imm(regCount, 0))
	p.Mark(next)
	p.isExtension()
	p.JumpImm32(asm.JEq, asm.R1, 0, end)
	p.passExtension(regFrame, end)
	p.JumpImm32(asm.JSet, asm.R5, 1<<flagLater, end)
	p.Emit(asm.Add.Imm(regCount, 1))
	p.JumpImm32(asm.JLT, regCount, MaxExtensionHeaders, next)
	p.isExtension()
	p.JumpImm32(asm.JEq, asm.R1, 0, end)
	p.Emit(
		asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word),
		asm.Or.Imm32(asm.R1, 1<<flagUndecided),
		asm.StoreMem(regFrame, varFlags, asm.R1, asm.Word),
	)
}

// passExtension skips the extension header of regProtocol at regOffset and leaves varFlags in R5, or goes to end if the header
// is not all there, or is a second fragment header. No header is shorter than 8 bytes, so one that has fewer ends the walk,
// whatever its protocol.
func (p *parser) passExtension(frame asm.Register, end label) {
	fragment, passed := p.NewLabel(), p.NewLabel()
	p.Emit(asm.Mov.Reg(asm.R2, regOffset))
	p.loadBytesInto(frame, varElement, lenExtension)
	p.JumpImm64(asm.JSLT, asm.R0, 0, end)
	p.Emit(asm.LoadMem(asm.R5, frame, varFlags, asm.Word))
	p.JumpImm32(asm.JEq, regProtocol, protoFragment, fragment)
	p.extensionLength(frame)
	p.Emit(
		asm.Add.Reg32(asm.R1, regOffset),
		asm.LoadMem(asm.R2, regContext, skbLen, asm.Word),
	)
	p.JumpReg(asm.JGT, asm.R1, asm.R2, end)
	p.Emit(asm.Mov.Reg32(regOffset, asm.R1))
	p.Jump(passed)

	p.Mark(fragment)
	p.JumpImm32(asm.JSet, asm.R5, 1<<flagFragment, end) // a second one stays
	p.Emit(
		asm.Add.Imm32(regOffset, lenExtension),
		asm.LoadMem(asm.R2, frame, varElement+2, asm.Half),
		asm.HostTo(asm.BE, asm.R2, asm.Half),
		asm.Mov.Reg32(asm.R1, asm.R2),
		asm.And.Imm32(asm.R1, 1),
		asm.LSh.Imm32(asm.R1, flagMore),
		asm.Or.Reg32(asm.R5, asm.R1),
		asm.And.Imm32(asm.R2, 0xFFF8),
		asm.Neg.Imm(asm.R2, 0),
		asm.RSh.Imm(asm.R2, 63), // 1: the offset is not 0
		asm.LSh.Imm(asm.R2, flagLater),
		asm.Or.Imm32(asm.R5, 1<<flagFragment),
		asm.Or.Reg32(asm.R5, asm.R2),
		asm.StoreMem(frame, varFlags, asm.R5, asm.Word),
	)
	p.Mark(passed)
	p.Emit(asm.LoadMem(regProtocol, frame, varElement, asm.Byte))
}

// isExtension sets R1 to 1 if regProtocol is an extension header that the walk skips, else to 0. The verifier takes all ways
// through the walk for each header, so this has no branches: ((a xor b) - 1) has its top bit set if a and b, bytes, are equal.
func (p *parser) isExtension() {
	const small = 1<<protoHopByHop | 1<<protoRouting | 1<<protoFragment | 1<<protoAH | 1<<protoDestination
	p.Emit(
		asm.Mov.Reg(asm.R2, regProtocol),
		asm.And.Imm(asm.R2, 63),
		asm.LoadImm(asm.R1, small, asm.DWord),
		asm.RSh.Reg(asm.R1, asm.R2),
		asm.Mov.Reg(asm.R2, regProtocol),
		asm.Sub.Imm(asm.R2, 64),
		asm.RSh.Imm(asm.R2, 63), // below 64?
		asm.And.Reg(asm.R1, asm.R2),
		asm.Mov.Reg(asm.R2, regProtocol),
		asm.Xor.Imm(asm.R2, protoMobility),
		asm.Sub.Imm(asm.R2, 1),
		asm.RSh.Imm(asm.R2, 63),
		asm.Or.Reg(asm.R1, asm.R2),
		asm.And.Imm(asm.R1, 1),
	)
}

// extensionLength leaves the length of the extension header in R1: (n+1)·8, for the authentication
// header (n+2)·4.
func (p *parser) extensionLength(frame asm.Register) {
	p.Emit(
		asm.Mov.Reg(asm.R2, regProtocol),
		asm.Xor.Imm(asm.R2, protoAH),
		asm.Sub.Imm(asm.R2, 1),
		asm.RSh.Imm(asm.R2, 63), // 1: authentication
		asm.LoadMem(asm.R1, frame, varElement+1, asm.Byte),
		asm.Add.Imm(asm.R1, 1),
		asm.Add.Reg(asm.R1, asm.R2),
		asm.LSh.Imm(asm.R1, 3),
		asm.RSh.Reg(asm.R1, asm.R2),
	)
}

// PastWalk reports whether a packet has so many extension headers that a program of Options.Bounded cannot decide
// on it. The beginning of the packet is enough, if it is long enough.
func PastWalk(b []byte) bool {
	if len(b) <= lenIPv6+lenExtension*MaxExtensionHeaders || b[0]>>4 != 6 {
		return false
	}
	protocol, at := b[6], lenIPv6
	for range MaxExtensionHeaders {
		if !isExtension[protocol] || at+lenExtension > len(b) {
			return false
		}
		protocol, at = b[at], at+extensionSize(protocol, b[at:])
	}
	return isExtension[protocol]
}

// Truncated reports whether a packet is the first fragment of several and ends before its transport header does, so that no
// program knows the ports. A second fragment header ends the chain, too.
func Truncated(b []byte) bool {
	if len(b) < lenIPv4 {
		return false
	}
	if b[0]>>4 == 4 {
		at := int(b[0]&15) * 4
		return b[6]&0x20 != 0 && b[6]&0x1F == 0 && b[7] == 0 && len(b) < at+shortest(b[9])
	}
	if b[0]>>4 != 6 || len(b) < lenIPv6 || !isExtension[b[6]] {
		return false
	}
	first := false
	protocol, at := b[6], lenIPv6
	for isExtension[protocol] {
		if at+lenExtension > len(b) || first && protocol == protoFragment {
			return first
		}
		if protocol == protoFragment {
			if b[at+2] != 0 || b[at+3]&^6 != 1 {
				return false
			}
			first = true
		}
		size := extensionSize(protocol, b[at:])
		if at+size > len(b) {
			return first
		}
		protocol, at = b[at], at+size
	}
	return first && len(b) < at+shortest(protocol)
}

// extensionSize returns the length of the extension header at the beginning of b, in bytes.
func extensionSize(protocol byte, b []byte) int {
	switch protocol {
	case protoAH:
		return 4 * (int(b[1]) + 2)
	case protoFragment:
		return lenExtension
	}
	return 8 * (int(b[1]) + 1)
}

// shortest is the length of a transport header without options; 0 for protocols that filters do not know.
func shortest(protocol byte) int {
	switch protocol {
	case protoTCP:
		return lenTCP
	case protoUDP, protoICMP, protoICMPv6:
		return lenICMP
	}
	return 0
}

// isExtension are the extension headers that are skipped.
var isExtension = [256]bool{
	protoHopByHop: true, protoRouting: true, protoFragment: true, protoAH: true, protoDestination: true, protoMobility: true,
}

// describe gives the functions of a program the types that the kernel wants of programs with a function that
// bpf_loop calls, and those of sets the types that make them global.
func describe(code asm.Instructions) {
	functions := func(i asm.Instruction) bool { return i.Symbol() == stepName || isSetFunction(i.Symbol()) }
	if !slices.ContainsFunc(code, functions) {
		return
	}
	long := &btf.Int{Name: "long", Size: 8, Encoding: btf.Signed}
	skb := &btf.Pointer{Target: &btf.Void{}}
	for i := range code {
		symbol := code[i].Symbol()
		if isSetFunction(symbol) { // global: the kernel looks at it once, not at each call
			code[i] = btf.WithFuncMetadata(code[i], &btf.Func{
				Name: symbol, Linkage: btf.GlobalFunc,
				Type: &btf.FuncProto{Return: long, Params: []btf.FuncParam{{Name: "upper", Type: long}, {Name: "lower", Type: long}}},
			})
		}
		switch symbol {
		case nodeName:
			params := []btf.FuncParam{{Name: "table", Type: skb}, {Name: "level", Type: long}, {Name: "upper", Type: long}, {Name: "lower", Type: long}, {Name: "header", Type: skb}}
			code[i] = btf.WithFuncMetadata(code[i], &btf.Func{
				Name: nodeName, Linkage: btf.StaticFunc, Type: &btf.FuncProto{Return: long, Params: params},
			})
		case mainName:
			code[i] = btf.WithFuncMetadata(code[i], &btf.Func{
				Name: mainName, Linkage: btf.GlobalFunc,
				Type: &btf.FuncProto{Return: long, Params: []btf.FuncParam{{Name: "skb", Type: skb}}},
			})
		case stepName:
			code[i] = btf.WithFuncMetadata(code[i], &btf.Func{
				Name: stepName, Linkage: btf.StaticFunc,
				Type: &btf.FuncProto{Return: long, Params: []btf.FuncParam{{Name: "i", Type: long}, {Name: "frame", Type: skb}}},
			})
		}
	}
}

// Loops: programs can walk without a bound; otherwise they take Options.Bounded. The kernel must translate programs
// (net.core.bpf_jit_enable).
var Loops = &kernel.Feature{
	Name: "bpf_loop", Since: kernel.Version{Major: 5, Minor: 17}, For: "filters that look behind any number of IPv6 extension headers",
	Without: "packets with more than 64 of them come to user space, where the interpreter decides; handles that drop, drop them all",
	Remedy:  "a newer kernel, which translates programs (sysctl net.core.bpf_jit_enable=1)",
	Probe:   tryLoop,
}

// tryLoop loads a program that walks.
func tryLoop() error {
	g := newGenerator(Hook{Family: IPv6}, Options{}, nil)
	g.parser.need |= needProtocol
	g.generate(Always)
	code, err := g.link()
	if err != nil {
		return err
	}
	p, err := (&Unloaded{Outcome: Depends, Instructions: code}).Load()
	if err != nil {
		return err
	}
	return p.Close()
}

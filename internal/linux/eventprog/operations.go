//go:build linux

package eventprog

import (
	"fmt"

	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/cgprog"
)

// part is the part of a handle's sock_ops program for one operation.
type part struct {
	op    int32
	build func(g *generator) (bool, error)
}

// operations returns the builder of a program of sock_ops from its parts. Such a program runs a dozen times for each connection
// of the machine, so a handle has only one, in which an operation without a part costs a comparison for each part. The parts are
// functions: a call reaches any distance, a jump 32,767 instructions, and filters may be longer.
func operations(parts ...part) func(*generator) (bool, error) {
	return func(g *generator) (bool, error) {
		var choice cgprog.Builder
		var functions asm.Instructions
		choice.Emit(asm.LoadMem(asm.R2, asm.R1, cgprog.OpsOp, asm.Word))
		for _, p := range parts {
			g.Assembler, g.owed = bpfasm.Assembler{}, nil
			wanted, err := p.build(g)
			if err != nil {
				return false, err
			}
			if !wanted {
				continue
			}
			code, err := g.Link()
			if err != nil {
				return false, err
			}
			name, other := fmt.Sprintf("operation_%d", p.op), choice.NewLabel()
			code[0] = code[0].WithSymbol(name)
			functions = append(functions, code...)
			choice.JumpImm64(asm.JNE, asm.R2, p.op, other)
			choice.Emit(asm.Call.Label(name), asm.Return())
			choice.Mark(other)
		}
		choice.Leave(cgprog.Allow)
		code, err := choice.Link()
		if err != nil {
			return false, err
		}
		g.parts = append(code, functions...)
		return functions != nil, nil
	}
}

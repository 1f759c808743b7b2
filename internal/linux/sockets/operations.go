//go:build linux

package sockets

import (
	"fmt"

	"github.com/cilium/ebpf/asm"
)

// part is what a handle's program of sock_ops does for one operation.
type part struct {
	op    int32
	build func(g *generator) (bool, error)
}

// operations returns the builder of a program of sock_ops from its parts. Such a program runs a dozen times for
// each connection of the machine, so a handle has one, and what nobody asks about costs a comparison for each part.
// The parts are functions: a call reaches any distance, a jump 32,767 instructions, and filters may be longer.
func operations(parts ...part) func(*generator) (bool, error) {
	return func(g *generator) (bool, error) {
		var choice builder
		var functions asm.Instructions
		choice.emit(asm.LoadMem(asm.R2, asm.R1, opsOp, asm.Word))
		for _, p := range parts {
			g.Instructions, g.next, g.owed = nil, "", nil
			wanted, err := p.build(g)
			if err != nil {
				return false, err
			}
			if !wanted {
				continue
			}
			name, other := fmt.Sprintf("operation_%d", p.op), g.newLabel()
			g.Instructions[0] = g.Instructions[0].WithSymbol(name)
			functions = append(functions, g.Instructions...)
			choice.emit(asm.JNE.Imm(asm.R2, p.op, other), asm.Call.Label(name), asm.Return())
			choice.mark(other)
		}
		choice.leave(allow)
		g.Instructions = append(choice.Instructions, functions...)
		return functions != nil, nil
	}
}

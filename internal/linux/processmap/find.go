//go:build linux

package processmap

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/bpfasm"
)

// FindHolder emits a look-up in Ports with the key at an offset of the frame. If the port has a holder, the program goes to found
// with the process of the first one in R1.
func FindHolder(a *bpfasm.Assembler, key int16, found bpfasm.Label) {
	miss := a.NewLabel()
	a.LookUp(PortsMap, key)
	a.JumpImm64(asm.JEq, asm.R0, 0, miss)
	for i := range int16(Holders) {
		free := a.NewLabel()
		a.Emit(asm.LoadMem(asm.R2, asm.R0, i*HolderSize+HolderCookie, asm.DWord))
		a.JumpImm64(asm.JEq, asm.R2, 0, free)
		a.Emit(asm.LoadMem(asm.R1, asm.R0, i*HolderSize+HolderProcess, asm.Word))
		a.Jump(found)
		a.Mark(free)
	}
	a.Mark(miss)
}

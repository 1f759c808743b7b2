//go:build linux

package codegen

import (
	"errors"

	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/bpfasm"
)

// label is a place in the code that jumps lead to.
type label = bpfasm.Label

// assembler is the Assembler with steps that only filters need.
type assembler struct{ bpfasm.Assembler }

// maxWaiting is the most branches of a program whose far sides may all wait in the verifier at once:
// BPF_COMPLEXITY_LIMIT_JMP_SEQ, 8,192, less a margin for those of loops.
const maxWaiting = 8192 - 1024

// MaxTests is how many tests a program may have after lists have become sets and the hook has decided some. The
// tests of a long filter have a branch each, of which all may wait; the parser has fewer than 168.
const MaxTests = maxWaiting - 168

// link returns the finished instructions. The error is a *LimitError if they are too many.
func (a *assembler) link() (asm.Instructions, error) {
	code, err := a.Link()
	var size *bpfasm.SizeError
	if errors.As(err, &size) {
		return nil, &LimitError{Limit: size.Limit, Have: size.Have, Max: size.Max}
	}
	return code, err
}

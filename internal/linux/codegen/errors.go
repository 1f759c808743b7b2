//go:build linux

package codegen

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// LayerError says that a filter was compiled for a layer that has no packets.
type LayerError struct{ Layer packet.Layer }

func (e *LayerError) Error() string {
	return fmt.Sprintf("codegen: a filter of layer %v cannot run in a packet hook", e.Layer)
}

// FieldError says that a filter tests a field whose value the hook does not know.
type FieldError struct{ Field prog.Field }

func (e *FieldError) Error() string {
	return fmt.Sprintf("codegen: the hook does not know field %v", e.Field)
}

// LimitError says that a filter is too large for the kernel.
type LimitError struct {
	Limit string // the quantity that exceeds a limit
	Have  int    // how much, 0 if only the kernel has counted
	Max   int    // how much the kernel takes
	Err   error  // the kernel's answer, if it was asked
}

func (e *LimitError) Error() string {
	have := "more"
	if e.Have != 0 {
		have = fmt.Sprint(e.Have)
	}
	return fmt.Sprintf("the filter is too large for a program in the kernel: it takes %d %s, the filter comes to %s"+
		"; a set, such as \"tcp.DstPort in {80, 443}\", is one test", e.Max, e.Limit, have)
}

func tooManyTests(have, most int) error { return &LimitError{Limit: "tests", Have: have, Max: most} }

// Unwrap returns the kernel's answer.
func (e *LimitError) Unwrap() error { return e.Err }

// LoadError says that the kernel refused a program or a map of it. Its text is one line; the verb
// %+v adds the whole log of the verifier.
type LoadError struct{ Err error }

func (e *LoadError) Error() string { return fmt.Sprintf("codegen: load: %v", e.Err) }

// Unwrap returns the cause, so that errors.Is finds os.ErrPermission and ebpf.ErrNotSupported.
func (e *LoadError) Unwrap() error { return e.Err }

// Format implements fmt.Formatter.
func (e *LoadError) Format(f fmt.State, verb rune) {
	if verb == 'v' && f.Flag('+') {
		fmt.Fprintf(f, "codegen: load: %+v", e.Err)
		return
	}
	fmt.Fprintf(f, fmt.FormatString(f, verb), e.Error())
}

// verifierLimits are the limits that a filter can run into (kernel/bpf/verifier.c and
// include/linux/bpf.h), with the words of the verifier's log.
var verifierLimits = []struct {
	words string
	limit string
	max   int
}{
	{"BPF program is too large", "instructions to verify", bpfasm.MaxInstructions},
	{"jumps is too complex", "branches on one path", 8192},
}

// Refused gives the error of a load its type: *LimitError or *LoadError.
func Refused(err error) error {
	var refused *ebpf.VerifierError
	if errors.As(err, &refused) {
		for _, line := range refused.Log {
			for _, l := range verifierLimits {
				if strings.Contains(line, l.words) {
					return &LimitError{Limit: l.limit, Max: l.max, Err: err}
				}
			}
		}
	}
	if errors.Is(err, unix.E2BIG) {
		return &LimitError{Limit: "instructions", Max: bpfasm.MaxInstructions, Err: err}
	}
	return &LoadError{Err: err}
}

// KeepsOld adds to the error of a filter that is too large, and that was to replace another, that the other stays in force. It
// returns other errors as they are.
func KeepsOld(err error) error {
	var limit *LimitError
	if !errors.As(err, &limit) {
		return err
	}
	return fmt.Errorf("%w: %w; the filter before stays in force; a handle that opens with this one may have the interpreter decide",
		engine.ErrNotSupported, limit)
}

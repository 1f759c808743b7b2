//go:build linux

package codegen

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/cursor"
)

// Gate keeps packets of a chain's path away from a filter that are none of its layer's.
type Gate uint8

// The gates.
const (
	NoGate      Gate = iota
	NotLoopback      // at PRE_ROUTING: what came in on lo, skb->ifindex 1, does not match
	LocalOnly        // at POST_ROUTING: what came in on an interface, skb->ingress_ifindex not 0, does not match
)

// Entry is the program that a handle's rule asks: it turns away packets that are not the handle's to see, and
// hands the others to the filter program that is set. With none set nothing matches.
//
// The filter program stands in a map of kind PROG_ARRAY, which the kernel empties when no process holds
// it open any more (kernel/bpf/arraymap.c, prog_array_map_clear). So with the end of its process,
// however it ends, a handle's rules match nothing: they stand in nobody's way until somebody takes them
// away. And a filter is replaced in one step: a packet meets the old one or the new one.
//
// Set and Clear may be called by several goroutines at once.
type Entry struct {
	program *ebpf.Program
	slot    *ebpf.Map
}

// NewEntry loads an entry for a handle with the given key (Linux 4.20; CAP_BPF or CAP_SYS_ADMIN).
func NewEntry(key cursor.Key, gate Gate) (*Entry, error) {
	liftMemlock()
	slot, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "divert_filter", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1,
	})
	if err != nil {
		return nil, &LoadError{Err: fmt.Errorf("map divert_filter: %w", err)}
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "divert_entry", Type: ebpf.SocketFilter, Instructions: entryCode(key, gate, slot), License: "GPL",
	})
	if err != nil {
		slot.Close()
		return nil, Refused(err)
	}
	return &Entry{program: program, slot: slot}, nil
}

// entryCode returns the instructions of an entry.
func entryCode(key cursor.Key, gate Gate, slot *ebpf.Map) asm.Instructions {
	const out = "out"
	first, last := key.Served()
	code := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, skbPriority, asm.Word),
		asm.Sub.Imm32(asm.R2, int32(first)),
		asm.JLE.Imm32(asm.R2, int32(last-first), out),
	}
	switch gate {
	case NotLoopback:
		code = append(code,
			asm.LoadMem(asm.R2, asm.R1, skbIfindex, asm.Word),
			asm.JEq.Imm32(asm.R2, loopbackIfindex, out),
		)
	case LocalOnly:
		code = append(code,
			asm.LoadMem(asm.R2, asm.R1, skbIngressIfindex, asm.Word),
			asm.JNE.Imm32(asm.R2, 0, out),
		)
	}
	return append(code,
		asm.LoadMapPtr(asm.R2, slot.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(), // returns only if the slot is empty
		asm.Mov.Imm(asm.R0, 0).WithSymbol(out),
		asm.Return(),
	)
}

// FD returns the file descriptor of the program. It belongs to the entry: do not close it.
func (e *Entry) FD() int { return e.program.FD() }

// Set makes p decide from now on. The entry holds it: p may be closed.
func (e *Entry) Set(p *Program) error {
	if err := e.slot.Put(uint32(0), uint32(p.FD())); err != nil {
		return fmt.Errorf("codegen: set the filter: %w", err)
	}
	return nil
}

// Clear makes nothing match from now on.
func (e *Entry) Clear() error {
	if err := e.slot.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("codegen: clear the filter: %w", err)
	}
	return nil
}

// Close releases program and slot. A rule that holds the program keeps it alive, matching nothing.
func (e *Entry) Close() error { return errors.Join(e.program.Close(), e.slot.Close()) }

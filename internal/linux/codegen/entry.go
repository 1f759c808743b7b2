//go:build linux

package codegen

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/netns"
)

// Gate keeps packets of other layers on a chain's path away from a filter.
type Gate uint8

// The gates.
const (
	NoGate      Gate = iota
	NotLoopback      // at PRE_ROUTING: packets that came in on lo, skb->ifindex 1, do not match
	LocalOnly        // at POST_ROUTING: packets that came in on an interface, skb->ingress_ifindex not 0, do not match
)

// Take says which of a chain's packets a rule is for, and so which filter program decides on them. One
// program of the handle sees superpackets of TCP, which are cut into segments later (GSO); other superpackets go where the kernel
// cuts them, because each segment is a packet of its own.
type Take uint8

// The kinds of rules.
const (
	// TakeAll is for the only rule of a handle: copies are made of superpackets too, by the program SlotCut.
	TakeAll Take = iota
	// TakeStreams is for TCP in packets without IP options and extension headers, except the one in which BIG TCP tells the
	// length of a superpacket, and on the way in for TCP behind extension headers too: SlotWhole decides.
	TakeStreams
	// TakeRest is for all else: SlotRest decides, on superpackets SlotCut.
	TakeRest
	// TakeWhole is for packets that the rule itself has chosen: SlotWhole decides.
	TakeWhole
	// TakeSure is for all packets on which a decision can be made as they are: SlotWhole decides, on superpackets SlotSure.
	TakeSure
	// TakeDoubt is for superpackets only: SlotCut decides.
	TakeDoubt
	// TakeFlow is for packets whose flow is dropped: SlotFlow decides, on superpackets whose segments are packets of their own
	// SlotFlowCut.
	TakeFlow

	numTakes
)

// Slot is where a filter program stands in an entry. A slot without a program matches nothing.
type Slot uint32

// The slots.
const (
	SlotWhole Slot = iota
	SlotRest
	SlotCut
	SlotSure
	SlotFlow
	SlotFlowCut

	NumSlots
)

// Entry is the programs that a handle's rules ask: each turns away packets that the handle must not see, and hands the others to
// a filter program that is set. With none set nothing matches.
//
// The filter programs stand in a map of kind PROG_ARRAY, which the kernel empties when no process holds it open any more
// (kernel/bpf/arraymap.c, prog_array_map_clear). So when its process ends, however it ends, a handle's rules match nothing, and
// do no harm until they are removed. And a filter is replaced in one step: a packet meets the old one or the new one.
//
// Set and Clear may be called by several goroutines at once.
type Entry struct {
	programs [numTakes]*ebpf.Program
	slots    *ebpf.Map

	mu   sync.Mutex
	used [NumSlots]bool // there has been a program in it

	key      cursor.Key
	gate     Gate
	segments bool
}

// NewEntry loads an entry for a handle with the given key and the kinds of its rules (Linux 5.7; CAP_BPF or CAP_SYS_ADMIN).
// With segments TCP counts among the rest.
func NewEntry(key cursor.Key, gate Gate, segments bool, takes ...Take) (*Entry, error) {
	kernel.LiftMemlock()
	slots, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "divert_filter", Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: uint32(NumSlots),
	})
	if err != nil {
		return nil, &LoadError{Err: fmt.Errorf("map divert_filter: %w", err)}
	}
	e := &Entry{slots: slots, key: key, gate: gate, segments: segments}
	_ = useNothing(1)
	for _, take := range takes {
		if err := e.Add(take); err != nil {
			return nil, errors.Join(err, e.Close())
		}
	}
	return e, nil
}

// Add loads the program for one more kind of rules, unless it is there. It must not be called with other methods at once.
func (e *Entry) Add(take Take) (err error) {
	if e.programs[take] != nil {
		return nil
	}
	e.programs[take], err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "divert_entry", Type: ebpf.SocketFilter,
		Instructions: entryCode(e.key, e.gate, take, e.segments, e.slots), License: "GPL",
	})
	if err != nil {
		e.programs[take] = nil
		return Refused(err)
	}
	return nil
}

// entryCode returns the instructions of an entry's program.
func entryCode(key cursor.Key, gate Gate, take Take, segments bool, slots *ebpf.Map) asm.Instructions {
	const out, found = "out", "found"
	first, last := key.Served()
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1), // where LD_ABS expects it
		asm.LoadMem(asm.R2, asm.R6, skbPriority, asm.Word),
		asm.Sub.Imm32(asm.R2, int32(first)),
		asm.JLE.Imm32(asm.R2, int32(last-first), out),
	}
	switch gate {
	case NotLoopback:
		code = append(code,
			asm.LoadMem(asm.R2, asm.R6, skbIfindex, asm.Word),
			asm.JEq.Imm32(asm.R2, netns.LoopbackIndex, out),
		)
	case LocalOnly:
		code = append(code,
			asm.LoadMem(asm.R2, asm.R6, skbIngressIfindex, asm.Word),
			asm.JNE.Imm32(asm.R2, 0, out),
		)
	}
	code = append(code, choose(take, segments, gate == NotLoopback, found, out)...)
	return append(code,
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol(found),
		asm.LoadMapPtr(asm.R2, slots.FD()),
		asm.Mov.Reg(asm.R3, asm.R7),
		asm.FnTailCall.Call(), // returns only if the slot is empty
		asm.Mov.Imm(asm.R0, 0).WithSymbol(out),
		asm.Return(),
	)
}

// choose leaves the slot in R7 and goes on behind itself or to found; or it goes to out.
func choose(take Take, segments, inbound bool, found, out string) asm.Instructions {
	superpacket := asm.LoadMem(asm.R2, asm.R6, skbGSOSize, asm.Word)
	slot := func(s Slot) asm.Instruction { return asm.Mov.Imm(asm.R7, int32(s)) }
	switch take {
	case TakeStreams:
		if segments {
			return asm.Instructions{asm.Ja.Label(out)}
		}
		return append(ifStream("stream", inbound), asm.Ja.Label(out), slot(SlotWhole).WithSymbol("stream"))
	case TakeWhole:
		return asm.Instructions{slot(SlotWhole)}
	case TakeRest:
		var code asm.Instructions
		if !segments {
			code = ifStream(out, inbound)
		}
		return append(code, slot(SlotRest), superpacket, asm.JEq.Imm32(asm.R2, 0, found), slot(SlotCut))
	}
	whole, cut := SlotWhole, SlotCut
	other := found
	switch take {
	case TakeSure:
		cut = SlotSure
	case TakeFlow:
		whole, cut = SlotFlow, SlotFlowCut
	case TakeDoubt:
		other = out
	}
	code := asm.Instructions{slot(whole), superpacket, asm.JEq.Imm32(asm.R2, 0, other)}
	if !segments {
		code = append(code, ifStream(other, inbound)...)
	}
	return append(code, slot(cut))
}

// ifStream goes to the label if the packet is TCP as TakeStreams wants it. It uses R0 to R5, R8 and R9. A packet without
// a whole IP header matches nothing: LD_ABS ends the program.
func ifStream(label string, inbound bool) asm.Instructions {
	v6, no, other := label+"_v6", label+"_no", label+"_other"
	const jumbo = 0xC204 // option and length (RFC 2675 section 2)
	code := asm.Instructions{
		asm.LoadAbs(0, asm.Byte),
		asm.Mov.Reg32(asm.R8, asm.R0),
		asm.RSh.Imm32(asm.R8, 4),
		asm.JEq.Imm32(asm.R8, 6, v6),
		asm.JNE.Imm32(asm.R0, 0x45, no),
		asm.LoadAbs(9, asm.Byte),
		asm.JEq.Imm32(asm.R0, protoTCP, label),
		asm.Ja.Label(no),
		asm.LoadAbs(6, asm.Byte).WithSymbol(v6),
		asm.JEq.Imm32(asm.R0, protoTCP, label),
		asm.JNE.Imm32(asm.R0, protoHopByHop, other),
		asm.LoadMem(asm.R0, asm.R6, skbLen, asm.Word),
		asm.JLT.Imm32(asm.R0, lenIPv6+lenExtension, no),
		asm.LoadAbs(lenIPv6, asm.Half), // the next header, and a length of 8 bytes
		asm.JNE.Imm32(asm.R0, protoTCP<<8, other),
		asm.LoadAbs(lenIPv6+2, asm.Half),
		asm.JEq.Imm32(asm.R0, jumbo, label),
		asm.Mov.Imm(asm.R0, 0).WithSymbol(other),
	}
	if inbound {
		code = append(code, ifBehind(label, no)...)
	}
	return append(code, asm.Mov.Imm(asm.R0, 0).WithSymbol(no))
}

// maxBehind is how many extension headers ifBehind skips. In a superpacket there is rarely more than one.
const maxBehind = 4

// ifBehind goes to the label if the packet, of IPv6, is TCP behind extension headers of the kinds that may stand in a
// superpacket (net/ipv6/exthdrs_offload.c), and else to no. Cut for the queue, such a packet would not go on: the kernel looks
// for extension headers where its first one lies, and a segment has its TCP header noted there (skb->transport_header).
func ifBehind(label, no string) asm.Instructions {
	code := asm.Instructions{
		asm.LoadAbs(6, asm.Byte),
		asm.Mov.Imm(asm.R8, lenIPv6),
	}
	for i := range maxBehind {
		header := fmt.Sprintf("%s_behind_%d", label, i)
		code = append(code,
			asm.JEq.Imm32(asm.R0, protoHopByHop, header),
			asm.JEq.Imm32(asm.R0, protoRouting, header),
			asm.JNE.Imm32(asm.R0, protoDestination, no),
			asm.Mov.Reg(asm.R2, asm.R8).WithSymbol(header),
			asm.Add.Imm(asm.R2, lenExtension),
			asm.LoadMem(asm.R3, asm.R6, skbLen, asm.Word),
			asm.JGT.Reg(asm.R2, asm.R3, no),
			asm.LoadInd(asm.R0, asm.R8, 0, asm.Half), // the next header, and how many times 8 bytes follow the first 8
			asm.Mov.Reg(asm.R9, asm.R0),
			asm.And.Imm(asm.R9, 0xFF),
			asm.Add.Imm(asm.R9, 1),
			asm.LSh.Imm(asm.R9, 3),
			asm.Add.Reg(asm.R8, asm.R9),
			asm.RSh.Imm(asm.R0, 8),
			asm.JEq.Imm32(asm.R0, protoTCP, label),
		)
	}
	return append(code, asm.Ja.Label(no))
}

// FD returns the file descriptor of the program for a kind of rule, -1 if the entry was loaded without. It belongs to the
// entry: do not close it.
func (e *Entry) FD(take Take) int {
	if e.programs[take] == nil {
		return -1
	}
	return e.programs[take].FD()
}

// Set makes programs decide from now on; where there is none nothing matches. The entry holds them: they may be closed.
func (e *Entry) Set(programs [NumSlots]*Program) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for slot, p := range programs {
		fd := 0
		switch {
		case p != nil:
			fd = p.FD()
		case !e.used[slot]:
			continue
		default:
			// Not an empty slot: to make one the kernel may wait until all processors have left the program that was there
			// (bpf_arch_poke_desc_update, arch/x86/net/bpf_jit_comp.c), some 10 ms.
			none, err := matchesNothing()
			if err != nil {
				return err
			}
			fd = none.FD()
		}
		if err := e.slots.Put(uint32(slot), uint32(fd)); err != nil {
			return fmt.Errorf("codegen: set the filter: %w", err)
		}
		e.used[slot] = true
	}
	return nil
}

// nothing is a program that matches nothing, which all entries of the process share: it exists while any entry does.
var nothing struct {
	sync.Mutex
	users   int
	program *ebpf.Program // nil until an entry needs it
}

// matchesNothing returns the program that matches nothing. The caller is an entry that is not closed.
func matchesNothing() (p *ebpf.Program, err error) {
	nothing.Lock()
	defer nothing.Unlock()
	if nothing.program == nil {
		nothing.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "divert_nothing", Type: ebpf.SocketFilter,
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}, License: "GPL",
		})
	}
	if err != nil {
		return nil, Refused(err)
	}
	return nothing.program, nil
}

// useNothing counts an entry that is opened, with 1, or closed, with -1.
func useNothing(n int) error {
	nothing.Lock()
	defer nothing.Unlock()
	if nothing.users += n; nothing.users > 0 || nothing.program == nil {
		return nil
	}
	p := nothing.program
	nothing.program = nil
	return p.Close()
}

// Clear makes nothing match from now on.
func (e *Entry) Clear() error { return e.Set([NumSlots]*Program{}) }

// Close releases programs and slots. A rule that holds a program keeps it alive, matching nothing.
func (e *Entry) Close() error {
	errs := []error{e.slots.Close(), useNothing(-1)}
	for _, p := range e.programs {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

//go:build linux

// Package hang is the guard for programs that hang. A handle's rules end with a program of the guard, which leads packets past
// the queue when a packet has waited in it too long without being received.
//
// The process and the programs share one word: since when a packet has waited without a receive call. The first packet that is
// queued writes the time; each receive call clears it, before it waits and when it returns. So a process that waits for packets
// need not show that it is alive, and one that is stopped while it waits is noticed all the same, by the packets that it does
// not take. Nothing runs in the process for this but its own receive calls.
package hang

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/kernel"
)

// word is what the process and the programs share. Times are those of CLOCK_MONOTONIC, or its last tick, in nanoseconds.
type word struct {
	since   int64  // when the first packet was queued since the last receive call, 0: none
	probe   int64  // when the first was queued, or the last probe, see probeTimes
	behind  uint64 // packets that were led past the queue since then, superpackets as one
	packets uint64 // that were led past the queue
}

const (
	sinceAt   = int16(unsafe.Offsetof(word{}.since))
	probeAt   = int16(unsafe.Offsetof(word{}.probe))
	behindAt  = int16(unsafe.Offsetof(word{}.behind))
	packetsAt = int16(unsafe.Offsetof(word{}.packets))
	wordSize  = uint32(unsafe.Sizeof(word{}))
)

// A probe is a packet that is queued although the program seems to hang: after so many times the limit, and after so many
// packets that were led past the queue. The packet that seems to wait may have been lost behind its rule: then nothing waits and
// nobody is woken, and a probe wakes the program.
const (
	probeTimes   = 2
	probePackets = 16
)

// kind is what a program does.
type kind int

// The kinds. Programs whose packets are cut into segments behind the rule count the segments.
const (
	note     kind = iota // matches packets to be queued, notes the first, and leads others past the queue
	noteSegs             // the same
	queued               // notes the first packet and matches all
	blocked              // matches packets that are not to be queued
	count                // counts, and matches
	countSegs

	numKinds
)

// Guard is the guard of a handle. A nil Guard guards nothing. Its methods may be called by several goroutines at once.
type Guard struct {
	drop bool

	mu     sync.RWMutex // held while the memory is used
	memory []byte
	word   *word // nil when the guard is closed

	shared   *ebpf.Map
	programs [numKinds]*ebpf.Program
}

// flagMmapable is BPF_F_MMAPABLE (since Linux 5.5).
const flagMmapable = 1 << 10

// Open makes a guard that takes effect when a packet has waited for the time after. It then lets packets pass, or drops them
// (Linux 5.8; CAP_BPF or CAP_SYS_ADMIN).
func Open(after time.Duration, drop bool) (g *Guard, err error) {
	kernel.LiftMemlock()
	g = &Guard{drop: drop}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("the guard for programs that hang: %w", err), g.Close())
			g = nil
		}
	}()
	if g.shared, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "divert_hang", Type: ebpf.Array, KeySize: 4, ValueSize: wordSize, MaxEntries: 1, Flags: flagMmapable,
	}); err != nil {
		return g, &codegen.LoadError{Err: err}
	}
	if g.memory, err = unix.Mmap(g.shared.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return g, os.NewSyscallError("mmap", err)
	}
	g.word = (*word)(unsafe.Pointer(&g.memory[0]))
	kinds := []kind{note, noteSegs}
	if drop {
		kinds = []kind{queued, blocked, count, countSegs}
	}
	for _, k := range kinds {
		if g.programs[k], err = ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "divert_hang", Type: ebpf.SocketFilter, License: "GPL",
			Instructions: code(k, g.shared.FD(), after, kernel.CoarseClock.Has()),
		}); err != nil {
			g.programs[k] = nil
			return g, codegen.Refused(err)
		}
	}
	return g, nil
}

// Alive notes a receive call.
func (g *Guard) Alive() {
	if g == nil {
		return
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.word != nil && atomic.LoadInt64(&g.word.since) != 0 { // so that the cache line stays shared while it is clear
		atomic.StoreInt64(&g.word.since, 0)
	}
}

// Drops reports whether packets are dropped, not passed.
func (g *Guard) Drops() bool { return g != nil && g.drop }

// Packets returns how many packets were led past the queue.
func (g *Guard) Packets() uint64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.word == nil {
		return 0
	}
	return atomic.LoadUint64(&g.word.packets)
}

// Last returns the descriptor of the program that a rule asks last before it queues a packet; with segments, of a rule whose
// packets are cut afterwards. It belongs to the guard.
func (g *Guard) Last(segments bool) int {
	switch {
	case g.drop:
		return g.programs[queued].FD()
	case segments:
		return g.programs[noteSegs].FD()
	}
	return g.programs[note].FD()
}

// Dropping returns the descriptors of the two programs of a rule that drops packets: the first, before the filter, decides
// whether to drop; the last counts.
func (g *Guard) Dropping(segments bool) (first, last int) {
	if segments {
		return g.programs[blocked].FD(), g.programs[countSegs].FD()
	}
	return g.programs[blocked].FD(), g.programs[count].FD()
}

// Close releases the guard. Rules that hold its programs keep these alive.
func (g *Guard) Close() error {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	errs := []error{g.shared.Close()}
	if g.memory != nil {
		errs = append(errs, unix.Munmap(g.memory))
		g.memory, g.word = nil, nil
	}
	for _, p := range g.programs {
		errs = append(errs, p.Close()) // nil has nothing to close
	}
	return errors.Join(errs...)
}

// Offsets in struct __sk_buff (include/uapi/linux/bpf.h).
const (
	skbGSOSegs int16 = 164
	skbGSOSize int16 = 176
)

// code returns the instructions of a program.
func code(k kind, shared int, after time.Duration, coarse bool) asm.Instructions {
	const waits, late, yes, no, due, single = "waits", "late", "yes", "no", "due", "single"
	context, now, memory := asm.R6, asm.R7, asm.R8
	clock := asm.FnKtimeGetNs
	if coarse {
		clock = asm.FnKtimeGetCoarseNs
	}
	code := asm.Instructions{asm.Mov.Reg(context, asm.R1)}
	value := asm.LoadMapValue(memory, shared, 0)
	if k == count || k == countSegs {
		return append(append(append(code, value), add(k, context, memory, single)...), asm.Mov.Imm(asm.R0, 1), asm.Return())
	}
	code = append(code,
		clock.Call(),
		asm.Mov.Reg(now, asm.R0),
		value,
		asm.LoadMem(asm.R1, memory, sinceAt, asm.DWord),
		asm.JNE.Imm(asm.R1, 0, waits),
	)
	idle := no
	if k != blocked {
		code = append(code,
			asm.StoreMem(memory, sinceAt, now, asm.DWord),
			asm.StoreMem(memory, probeAt, now, asm.DWord),
			asm.StoreMem(memory, behindAt, asm.R1, asm.DWord), // 0
		)
		idle = yes
	}
	code = append(code,
		asm.Ja.Label(idle),
		asm.Mov.Reg(asm.R2, now).WithSymbol(waits),
		asm.Sub.Reg(asm.R2, asm.R1),
		asm.LoadImm(asm.R3, int64(after), asm.DWord),
		asm.JSLE.Reg(asm.R2, asm.R3, idle), // another processor may have written a later time
		asm.LoadMem(asm.R1, memory, probeAt, asm.DWord),
		asm.Mov.Reg(asm.R2, now),
		asm.Sub.Reg(asm.R2, asm.R1),
		asm.LoadImm(asm.R3, probeTimes*int64(after), asm.DWord),
		asm.JSLE.Reg(asm.R2, asm.R3, late),
		asm.LoadMem(asm.R1, memory, behindAt, asm.DWord),
		asm.JGE.Imm(asm.R1, probePackets, due),
	)
	hangs := len(code)
	switch k {
	case note, noteSegs:
		code = append(append(code, add(k, context, memory, single)...), asm.Ja.Label(no))
	case queued, blocked:
		code = append(code, asm.Ja.Label(yes))
	}
	code[hangs] = code[hangs].WithSymbol(late)
	if k == blocked {
		code = append(code, asm.Ja.Label(no).WithSymbol(due))
	} else {
		code = append(code,
			asm.StoreMem(memory, probeAt, now, asm.DWord).WithSymbol(due),
			asm.Mov.Imm(asm.R1, 0),
			asm.StoreMem(memory, behindAt, asm.R1, asm.DWord),
			asm.Ja.Label(yes),
		)
	}
	code = append(code,
		asm.Mov.Imm(asm.R0, 1).WithSymbol(yes),
		asm.Return(),
	)
	if k == queued {
		return code
	}
	return append(code, asm.Mov.Imm(asm.R0, 0).WithSymbol(no), asm.Return())
}

// add counts the packet. A packet to be cut that does not say into how many segments counts as one.
func add(k kind, context, memory asm.Register, single string) asm.Instructions {
	behind, counted := asm.StoreXAdd(memory, asm.R1, asm.DWord), asm.StoreXAdd(memory, asm.R1, asm.DWord)
	behind.Offset, counted.Offset = behindAt, packetsAt
	code := asm.Instructions{asm.Mov.Imm(asm.R1, 1), behind}
	if k == noteSegs || k == countSegs {
		code = append(code,
			asm.LoadMem(asm.R2, context, skbGSOSize, asm.Word),
			asm.JEq.Imm(asm.R2, 0, single),
			asm.LoadMem(asm.R2, context, skbGSOSegs, asm.Word),
			asm.JEq.Imm(asm.R2, 0, single),
			asm.Mov.Reg(asm.R1, asm.R2),
		)
		counted = counted.WithSymbol(single)
	}
	return append(code, counted)
}

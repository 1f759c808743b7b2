//go:build linux

package codegen

import (
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// The bell wakes a reader of copies that sleeps. Before it sleeps the reader stores 1 where programs look, and looks into
// its buffers once more. A program that has copied a packet and finds the 1 takes it away and rings, so that a flood
// rings once, and a reader that is awake costs a program one load. See Outlet.
const (
	asleepMap = "divert_asleep"
	bellMap   = "divert_bell"
)

// flagMmapable is BPF_F_MMAPABLE (since Linux 5.5), ringForceWakeup BPF_RB_FORCE_WAKEUP (since Linux 5.8).
const (
	flagMmapable    = 1 << 10
	ringForceWakeup = 2
)

// bellRecord is the size of the record that rings, in bytes; its contents have no meaning.
const bellRecord = 8

func asleepSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: asleepMap, Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Flags: flagMmapable}
}

// bellSpec is the smallest ring buffer. If it is full its reader has been woken already.
func bellSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: bellMap, Type: ebpf.RingBuf, MaxEntries: uint32(os.Getpagesize())}
}

// ring rings the bell if the reader sleeps. The flag goes before the bell: a reader that is woken finds it taken away, and
// one that has stored another meanwhile is woken by this ring.
func (g *generator) ring() {
	awake := g.NewLabel()
	value := asm.LoadImm(asm.R1, 0, asm.DWord)
	value.Src = asm.PseudoMapValue
	g.Emit(
		value.WithReference(asleepMap),
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
	)
	g.JumpImm32(asm.JEq, asm.R2, 0, awake)
	g.Emit(asm.StoreImm(asm.R1, 0, 0, asm.Word))
	g.send(bellMap, bellRecord, ringForceWakeup)
	g.Mark(awake)
}

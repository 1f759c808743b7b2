//go:build linux

package sockets

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/cursor"
)

// Names of the maps, as programs refer to them.
const (
	storageMap  = "divert_sockets"  // of each socket: the body of its record, and its last peer
	ringMap     = "divert_events"   // records for user space
	countersMap = "divert_counters" // see counterLost
	peersMap    = "divert_peers"    // peers that sockets without connections have met
	flowsMap    = "divert_flows"    // FLOW: when each flow was last seen

	olderMap     = "divert_older"     // of each socket older than the handle: what its storage begins with
	listenersMap = "divert_listeners" // the same, of those that listen, by address and port
)

// maxPeers is how many peers and flows the kernel remembers; the least recently used give way.
const maxPeers = 1 << 16

// kernelMaps returns the maps of a handle.
func kernelMaps(ringSize uint32) []*ebpf.MapSpec {
	word := &btf.Int{Name: "unsigned int", Size: 4}
	long := &btf.Int{Name: "unsigned long", Size: 8}
	return []*ebpf.MapSpec{
		{Name: ringMap, Type: ebpf.RingBuf, MaxEntries: ringSize}, // first: its refusal says why
		{
			Name: storageMap, Type: ebpf.SkStorage, KeySize: 4, ValueSize: uint32(storedSize),
			Flags: flagNoPrealloc | flagClone,
			Key:   word, Value: &btf.Array{Index: word, Type: long, Nelems: uint32(storedSize) / 8},
		},
		{Name: countersMap, Type: ebpf.Array, KeySize: 4, ValueSize: countersSize, MaxEntries: 1},
		{Name: peersMap, Type: ebpf.LRUHash, KeySize: peerKeySize, ValueSize: 8, MaxEntries: maxPeers},
		{Name: flowsMap, Type: ebpf.LRUHash, KeySize: flowKeySize, ValueSize: flowValueSize, MaxEntries: maxPeers},
	}
}

// Flags of maps (linux/bpf.h).
const (
	flagNoPrealloc = 1 << 0
	flagClone      = 1 << 9
)

// openMaps makes the maps, with room for so many older sockets.
func openMaps(ringSize, older uint32) (map[string]*ebpf.Map, error) {
	maps := map[string]*ebpf.Map{}
	for _, spec := range append(kernelMaps(ringSize), olderMaps(older)...) {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			closeMaps(maps)
			return nil, fmt.Errorf("map %s: %w", spec.Name, err)
		}
		maps[spec.Name] = m
	}
	return maps, nil
}

func closeMaps(maps map[string]*ebpf.Map) (err error) {
	for _, m := range maps {
		err = errors.Join(err, m.Close())
	}
	return err
}

// load loads the program of a hook, or returns nil if the filter leaves it nothing to do.
func load(h *hook, cfg *Config, maps map[string]*ebpf.Map) (*ebpf.Program, error) {
	g := &generator{filter: cfg.Filter, flags: cfg.Flags, cookie: cfg.Cookie, inode: cfg.inode, generation: cfg.generation}
	wanted, err := h.build(g)
	if !wanted || err != nil {
		return nil, err
	}
	own := map[string]*ebpf.Map{}
	defer closeMaps(own) // the program keeps them
	functions, err := g.decider.Functions(g.Instructions)
	if err != nil {
		return nil, err
	}
	g.Instructions = append(g.Instructions, functions...)
	if err := g.decider.OpenSets(own); err != nil {
		return nil, err
	}
	for _, spec := range g.decider.Maps() {
		m, err := newSets(spec)
		if err != nil {
			return nil, err
		}
		own[spec.Name] = m
	}
	return newProgram(programName(cfg.Key), h, g.Instructions, maps, own)
}

// newSets makes the map of a decision's sets, which nobody writes any more.
func newSets(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, codegen.RefusedSets(spec, err)
	}
	if err := m.Freeze(); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// newProgram loads instructions that refer to maps by name, for a hook.
func newProgram(name string, h *hook, code asm.Instructions, maps ...map[string]*ebpf.Map) (*ebpf.Program, error) {
	for i := range code {
		for _, m := range maps {
			if m, ok := m[code[i].Reference()]; ok && code[i].IsLoadFromMap() {
				if err := code[i].AssociateMap(m); err != nil {
					return nil, err
				}
			}
		}
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: h.kind, AttachType: h.attach, AttachTo: h.target, Instructions: code, License: "GPL",
	})
	if err != nil {
		return nil, codegen.Refused(err)
	}
	return p, nil
}

// programName names a handle's programs, so that others can place theirs before or behind them.
func programName(k cursor.Key) string { return fmt.Sprintf("divert_%06x", uint32(k)) }

// parseProgramName returns the key in the name of a program.
func parseProgramName(name string) (k cursor.Key, ok bool) {
	var v uint32
	_, err := fmt.Sscanf(name, "divert_%06x", &v)
	return cursor.Key(v), err == nil && name == programName(cursor.Key(v))
}

// loads reports whether a program loads; it is for what kernels differ in.
func loads(kind ebpf.ProgramType, attach ebpf.AttachType, code ...asm.Instruction) bool {
	p, err := newProgram("divert_probe", &hook{kind: kind, attach: attach}, append(code, asm.Mov.Imm(asm.R0, allow), asm.Return()))
	if err != nil {
		return false
	}
	p.Close()
	return true
}

// sockOpsProcess reports whether sock_ops programs may ask who is running (since Linux 6.10).
var sockOpsProcess = sync.OnceValue(func() bool {
	return loads(ebpf.SockOps, ebpf.AttachCGroupSockOps, asm.FnGetCurrentPidTgid.Call())
})

// skbNamespace reports whether programs for packets are told the namespace (since Linux 6.15). It only
// makes them let the packets of others pass sooner.
var skbNamespace = sync.OnceValue(func() bool {
	return loads(ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress, asm.FnGetNetnsCookie.Call())
})

// Probe returns why the programs of the layers cannot be loaded here, nil if they can. That they can is
// remembered.
func Probe() error {
	if probed.Load() {
		return nil
	}
	if _, err := Cookie(); err != nil {
		return err
	}
	maps, err := openMaps(4096, 1)
	if err != nil {
		return err
	}
	defer closeMaps(maps)
	g := &generator{}
	g.creation()
	p, err := newProgram("divert_probe", &hook{kind: ebpf.CGroupSock, attach: ebpf.AttachCGroupInetSockCreate}, g.Instructions, maps)
	if err != nil {
		return err
	}
	probed.Store(true)
	return p.Close()
}

var probed atomic.Bool

//go:build linux

package eventprog

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/cgroup"
	"github.com/opendivert/divert/internal/linux/eventmap"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Config has the maps and settings of a handle's programs.
type Config struct {
	Filter     *prog.Program // of LayerSocket or LayerFlow
	Flags      uint64        // of the handle
	Cookie     uint64        // of the network namespace
	Inode      uint32        // of the same, for programs that cannot get the cookie
	Generation uint16        // counts the filters of the handle; 0 when there were too many to count
}

// Program is the program of one hook, before it is generated for a filter.
type Program struct {
	cgprog.Hook
	// build emits the program. It reports false if the filter leaves it nothing to do.
	build func(g *generator) (bool, error)
}

// Programs returns the programs of a layer, SOCKET or FLOW, without those of Listen. Do not change them.
func Programs(layer packet.Layer) []Program {
	if layer == packet.LayerFlow {
		return flowPrograms
	}
	return socketPrograms
}

// Load generates and loads the program, or returns nil if the filter leaves it nothing to do. The errors are
// *codegen.LimitError, if the filter is too large, and *codegen.LoadError.
func (p *Program) Load(name string, cfg *Config, maps eventmap.Maps) (*ebpf.Program, error) {
	g := &generator{filter: cfg.Filter, flags: cfg.Flags, cookie: cfg.Cookie, inode: cfg.Inode, generation: cfg.Generation}
	wanted, err := p.build(g)
	if !wanted || err != nil {
		return nil, err
	}
	code, err := g.finish()
	if err != nil {
		return nil, err
	}
	return cgprog.LoadDecider(name, p.Hook, code, &g.decider, maps)
}

// finish returns the instructions.
func (g *generator) finish() (asm.Instructions, error) {
	if g.parts != nil {
		return g.parts, nil
	}
	return g.Link()
}

// OnCgroups: programs of the layers can be loaded, and there is a cgroup to attach them to.
var OnCgroups = &kernel.Feature{
	Name: "eBPF programs on cgroups", Since: kernel.Version{Major: 6, Minor: 1}, For: "the layers socket and flow",
	Without: "handles of the layers socket and flow do not open", Remedy: cgroup.Remedy,
	Probe: tryCgroups, Mutable: true,
}

func tryCgroups() error {
	root, err := cgroup.Open()
	if err != nil {
		return err
	}
	defer root.Dir.Close()
	if _, err := netns.Cookie(); err != nil {
		return err
	}
	maps, err := eventmap.Open(1, 1)
	if err != nil {
		return err
	}
	defer maps.Close()
	g := &generator{}
	g.creation()
	code, err := g.Link()
	if err != nil {
		return err
	}
	p, err := cgprog.Load("divert_probe", cgprog.Hook{Kind: ebpf.CGroupSock, Attach: ebpf.AttachCGroupInetSockCreate}, code, maps)
	if err != nil {
		return err
	}
	return p.Close()
}

//go:build linux

package cgprog

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/kernel"
)

// Hook is a place in the kernel at which a program runs.
type Hook struct {
	Name   string // for messages
	Kind   ebpf.ProgramType
	Attach ebpf.AttachType
	Target string // the function of the kernel that the program is attached to; "": none, but a cgroup
}

// Load loads instructions for a hook. Maps that they refer to by name (MapPtr) are in one of maps. The errors are
// those of codegen.Refused.
func Load(name string, h Hook, code asm.Instructions, maps ...map[string]*ebpf.Map) (*ebpf.Program, error) {
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
		Name: name, Type: h.Kind, AttachType: h.Attach, AttachTo: h.Target, Instructions: code, License: "GPL",
	})
	if err != nil {
		return nil, codegen.Refused(err)
	}
	return p, nil
}

// LoadDecider is Load for instructions with decisions of d. It opens the maps of the sets that they look into.
func LoadDecider(name string, h Hook, code asm.Instructions, d *codegen.EventDecider, maps map[string]*ebpf.Map) (*ebpf.Program, error) {
	functions, err := d.Functions(code)
	if err != nil {
		return nil, err
	}
	own := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range own {
			m.Close() // the program keeps it
		}
	}()
	if err := d.OpenSets(own); err != nil {
		return nil, err
	}
	for _, spec := range d.Maps() {
		m, err := newSets(spec)
		if err != nil {
			return nil, err
		}
		own[spec.Name] = m
	}
	return Load(name, h, append(code, functions...), maps, own)
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

// tries returns a probe that loads a program of a kind with these instructions: kernels differ in the functions that they let it
// call.
func tries(kind ebpf.ProgramType, attach ebpf.AttachType, code ...asm.Instruction) func() error {
	return func() error {
		p, err := Load("divert_probe", Hook{Kind: kind, Attach: attach}, append(code, asm.Mov.Imm(asm.R0, Allow), asm.Return()))
		if err != nil {
			return err
		}
		return p.Close()
	}
}

// Features that programs on cgroups work with.
var (
	// SockOpsProcess: sock_ops programs may ask for the running process.
	SockOpsProcess = &kernel.Feature{
		Name: "the process in sock_ops programs", Since: kernel.Version{Major: 6, Minor: 10}, For: "the process of TCP events (layers socket and flow)",
		Without: "it is noted when the socket is made or connected, which costs every socket some time", Remedy: "a newer kernel",
		Probe: tries(ebpf.SockOps, ebpf.AttachCGroupSockOps, asm.FnGetCurrentPidTgid.Call()),
	}
	// SockOpsName: sock_ops programs may ask for the name of the running thread. Debian's 6.12 refuses it.
	SockOpsName = &kernel.Feature{
		Name: "the process's name in sock_ops programs", Since: kernel.Version{Major: 6, Minor: 16}, For: "the same, for the name",
		Without: "it is noted when the socket is made or connected, which costs every socket some time", Remedy: "a newer kernel",
		Probe: tries(ebpf.SockOps, ebpf.AttachCGroupSockOps,
			asm.Mov.Reg(asm.R1, asm.R10), asm.Add.Imm(asm.R1, -codegen.NameSize), asm.Mov.Imm(asm.R2, codegen.NameSize), asm.FnGetCurrentComm.Call()),
	}
	// SkbNamespace: programs for packets are told the namespace.
	SkbNamespace = &kernel.Feature{
		Name: "the namespace in cgroup_skb programs", Since: kernel.Version{Major: 6, Minor: 15}, For: "passing the packets of other namespaces sooner",
		Without: "programs look for the socket of each packet of the machine", Remedy: "a newer kernel",
		Probe: tries(ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress, asm.FnGetNetnsCookie.Call()),
	}
)

//go:build linux

package cgprog

import (
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/codegen"
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

// loads reports whether a program loads; it is for what kernels differ in.
func loads(kind ebpf.ProgramType, attach ebpf.AttachType, code ...asm.Instruction) bool {
	p, err := Load("divert_probe", Hook{Kind: kind, Attach: attach}, append(code, asm.Mov.Imm(asm.R0, Allow), asm.Return()))
	if err != nil {
		return false
	}
	p.Close()
	return true
}

// SockOpsProcess reports whether sock_ops programs may ask who is running (since Linux 6.10).
var SockOpsProcess = sync.OnceValue(func() bool {
	return loads(ebpf.SockOps, ebpf.AttachCGroupSockOps, asm.FnGetCurrentPidTgid.Call())
})

// SockOpsName reports whether sock_ops programs may ask for the name of who is running.
var SockOpsName = sync.OnceValue(func() bool {
	return loads(ebpf.SockOps, ebpf.AttachCGroupSockOps,
		asm.Mov.Reg(asm.R1, asm.R10), asm.Add.Imm(asm.R1, -codegen.NameSize), asm.Mov.Imm(asm.R2, codegen.NameSize), asm.FnGetCurrentComm.Call())
})

// SkbNamespace reports whether programs for packets are told the namespace (since Linux 6.15). It only
// makes them let the packets of others pass sooner.
var SkbNamespace = sync.OnceValue(func() bool {
	return loads(ebpf.CGroupSKB, ebpf.AttachCGroupInetIngress, asm.FnGetNetnsCookie.Call())
})

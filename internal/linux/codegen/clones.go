//go:build linux

package codegen

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/kernel"
)

// CloneCheck makes a program leave packets alone that the kernel would lose in a packet queue: one of several copies of a packet
// whose connection is new. That is the copy for this host of the first multicast or broadcast packet of a flow, and of the
// first frame that a bridge floods. The copies share the connection, which a queue must not hold before it is confirmed, so
// the queue drops all but the last (net/netfilter/nfnetlink_queue.c, nf_ct_drop_unconfirmed, since Linux 6.11).
//
// Such a packet does not match, and is counted in Outlet.Clones.
type CloneCheck struct {
	cast   int64 // type of the kernel's function bpf_cast_to_kern_ctx, since Linux 6.2
	nfct   int16 // offset of the connection in struct sk_buff
	status int16 // and of its status in struct nf_conn
}

// Bits and offsets of the kernel's connections.
const (
	nfctPointerMask = ^int32(7) // include/linux/skbuff.h, NFCT_PTRMASK; sign-extended
	ctConfirmed     = 1 << 3    // include/uapi/linux/netfilter/nf_conntrack_common.h, IPS_CONFIRMED
	ctUse           = 0         // struct nf_conntrack, the first member of struct nf_conn, begins with the reference count
)

// clonesMap has the count of CloneCheck, for each CPU.
const clonesMap = "divert_clones"

func clonesSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: clonesMap, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1}
}

// NewClones makes an outlet for the count of CloneCheck (CAP_BPF or CAP_SYS_ADMIN).
func NewClones() (*Outlet, error) {
	kernel.LiftMemlock()
	m, err := ebpf.NewMap(clonesSpec())
	if err != nil {
		return nil, &LoadError{Err: fmt.Errorf("map %s: %w", clonesMap, err)}
	}
	return &Outlet{Clones: m}, nil
}

// CloneCount returns how many packets CloneCheck has left alone.
func (o *Outlet) CloneCount() (n uint64, err error) {
	var perCPU []uint64
	if err := o.Clones.Lookup(uint32(0), &perCPU); err != nil {
		return 0, fmt.Errorf("codegen: clones: %w", err)
	}
	for _, c := range perCPU {
		n += c
	}
	return n, nil
}

// clones remembers FindCloneCheck's answer.
var clones struct {
	sync.Mutex
	known bool
	check *CloneCheck
	err   error
}

// FindCloneCheck returns the check for the running kernel (Linux 6.2 with type information; CAP_PERFMON or
// CAP_SYS_ADMIN). The answer is remembered, unless rights or the connection tracking were missing.
func FindCloneCheck() (*CloneCheck, error) {
	clones.Lock()
	defer clones.Unlock()
	if clones.known {
		return clones.check, clones.err
	}
	check, err := readCloneCheck()
	if err == nil {
		err = check.try()
	}
	if err != nil {
		check = nil
	}
	clones.known = !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) && !errors.Is(err, btf.ErrNotFound)
	clones.check, clones.err = check, err
	return check, err
}

// readCloneCheck reads the kernel's type information.
func readCloneCheck() (*CloneCheck, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, err
	}
	var cast *btf.Func
	if err := spec.TypeByName("bpf_cast_to_kern_ctx", &cast); err != nil {
		return nil, err
	}
	id, err := spec.TypeID(cast)
	if err != nil {
		return nil, err
	}
	c := &CloneCheck{cast: int64(id)}
	if c.nfct, err = memberAt(spec, "sk_buff", "_nfct"); err != nil {
		return nil, err
	}
	c.status, err = memberAt(spec, "nf_conn", "status")
	if errors.Is(err, btf.ErrNotFound) {
		// Connection tracking is a module, which has types of its own.
		if spec, err = btf.LoadKernelModuleSpec("nf_conntrack"); err == nil {
			c.status, err = memberAt(spec, "nf_conn", "status")
		}
	}
	return c, err
}

// memberAt returns the offset of a member of a struct, in bytes. The member may be in a struct or union without a name.
func memberAt(spec *btf.Spec, name, wanted string) (int16, error) {
	var s *btf.Struct
	if err := spec.TypeByName(name, &s); err != nil {
		return 0, err
	}
	if at, ok := findMember(s.Members, wanted); ok {
		return int16(at), nil
	}
	return 0, fmt.Errorf("no %s in struct %s: %w", wanted, name, btf.ErrNotFound)
}

func findMember(members []btf.Member, wanted string) (at uint32, ok bool) {
	for _, m := range members {
		if m.Name == wanted {
			return m.Offset.Bytes(), true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := m.Type.(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if below, ok := findMember(inner, wanted); ok {
			return m.Offset.Bytes() + below, true
		}
	}
	return 0, false
}

// try loads a program that checks.
func (c *CloneCheck) try() error {
	g := newGenerator(Hook{}, Options{Clones: c}, nil)
	g.generate(Always)
	code, err := g.link()
	if err != nil {
		return err
	}
	p, err := (&Unloaded{Outcome: Depends, Instructions: code, Maps: g.maps()}).Load()
	if err != nil {
		return err
	}
	return p.Close()
}

// clones leaves a packet alone that the queue would drop.
func (g *generator) clones() {
	c := g.options.Clones
	if c == nil {
		return
	}
	queue := g.NewLabel()
	g.Emit(
		asm.Mov.Reg(asm.R1, regContext),
		asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoKfuncCall, Constant: c.cast},
		asm.LoadMem(asm.R3, asm.R0, c.nfct, asm.DWord),
		asm.And.Imm(asm.R3, nfctPointerMask),
	)
	g.JumpImm64(asm.JEq, asm.R3, 0, queue) // no connection: nothing more to do for most packets where nothing is tracked
	g.Emit(asm.StoreMem(regFrame, frameRecord, asm.R3, asm.DWord))
	g.readKernel(c.status, 8)
	g.Emit(asm.LoadMem(asm.R1, regFrame, frameRecord+8, asm.DWord), asm.And.Imm(asm.R1, ctConfirmed))
	g.JumpImm64(asm.JNE, asm.R1, 0, queue)
	g.readKernel(ctUse, 4)
	g.Emit(asm.LoadMem(asm.R1, regFrame, frameRecord+8, asm.Word))
	g.JumpImm32(asm.JLE, asm.R1, 1, queue) // the only one
	g.onlyValue(clonesMap)
	out := g.NewLabel()
	g.JumpImm64(asm.JEq, asm.R0, 0, out) // cannot be: the key exists
	g.Emit(
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	)
	g.Mark(out)
	g.Emit(asm.Mov.Imm(asm.R0, 0), asm.Return())
	g.Mark(queue)
}

// readKernel reads bytes of the connection, whose address stands in the record, behind that. If it cannot, the bytes are 0.
func (g *generator) readKernel(offset int16, n int32) {
	g.Emit(
		asm.Mov.Reg(asm.R1, regFrame),
		asm.Add.Imm(asm.R1, int32(frameRecord+8)),
		asm.Mov.Imm(asm.R2, n),
		asm.LoadMem(asm.R3, regFrame, frameRecord, asm.DWord),
		asm.Add.Imm(asm.R3, int32(offset)),
		asm.FnProbeReadKernel.Call(),
	)
}

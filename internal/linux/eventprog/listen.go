//go:build linux

package eventprog

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/eventmap"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/packet"
)

// No hook on cgroups comes before a socket listens. Where programs can change the results of kernel functions (fmod_ret), one of
// them refuses LISTEN before it happens; elsewhere, and for sockets that it cannot judge, the program of sock_ops does so when
// it is too late for the call. Programs of BPF LSM would not do: they load and never run where the kernel was not started with
// lsm=bpf. Those of fmod_ret have no socket storage.

// Listen refuses LISTEN before it happens.
var Listen = Program{
	Hook:  cgprog.Hook{Name: "refuse_listen", Kind: ebpf.Tracing, Attach: ebpf.AttachModifyReturn, Target: "security_socket_listen"},
	build: (*generator).refuseListen,
}

// LoadListen loads Listen, or returns nil if the filter needs no such program or the kernel can have none.
func LoadListen(name string, cfg *Config, maps eventmap.Maps) (*ebpf.Program, error) {
	if refuses, err := RefusesListen(cfg); !refuses || err != nil || !RefuseListen.Has() {
		return nil, err
	}
	return Listen.Load(name, cfg, maps)
}

// RefusesListen reports whether a handle may refuse LISTEN.
func RefusesListen(cfg *Config) (bool, error) {
	g := &generator{filter: cfg.Filter, flags: cfg.Flags}
	if cfg.Filter.Layer() != packet.LayerSocket || g.sniffs() {
		return false, nil
	}
	return g.can(packet.EventSocketListen)
}

// RefuseListen: LISTEN can be refused before it happens.
var RefuseListen = &kernel.Feature{
	Name: "eBPF fmod_ret programs", Since: refusesSince(), For: "refusing listen at once (layer socket)",
	Without: "a refused listen succeeds, and the socket is destroyed at once",
	Remedy:  "run as root, on a kernel with type information that lets such programs load (CONFIG_DEBUG_INFO_BTF)",
	Probe:   tryListen,
}

// refusesSince returns the first version that can. On arm64 such programs load before they can be attached.
func refusesSince() kernel.Version {
	if runtime.GOARCH == "arm64" {
		return kernel.Version{Major: 6, Minor: 4}
	}
	return kernel.Version{Major: 5, Minor: 12}
}

// tryListen loads a program like Listen.
func tryListen() error {
	at, err := kernelLayout()
	if err != nil {
		return err
	}
	g := &generator{}
	g.Modifies = true
	g.aboutToListen(at)
	g.Leave(cgprog.Allow)
	code, err := g.Link()
	if err != nil {
		return err
	}
	p, err := cgprog.Load("divert_probe", Listen.Hook, code)
	switch {
	case errors.Is(err, unix.EPERM): // the library's hint at locked memory is misleading
		return fmt.Errorf("the kernel does not let such a program load: %w", unix.EPERM)
	case err != nil:
		return err
	}
	return p.Close()
}

// layout has the offsets, in bytes, of the fields of the kernel's sockets.
type layout struct {
	sk       int16 // struct socket
	net      int16 // struct sock, as those down to protocol
	family   int16
	state    int16
	local4   int16
	local6   int16
	port     int16 // host byte order
	cookie   int16
	protocol int16
	inode    int16 // struct net
	first    int16 // struct mptcp_sock: the connection that listens; -1 if the kernel has no MPTCP
}

// kernelLayout reads the layout of the running kernel from its type information.
var kernelLayout = sync.OnceValues(func() (*layout, error) {
	spec, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, err
	}
	l := &layout{first: -1}
	for _, f := range [...]struct {
		to   *int16
		path []string
	}{
		{&l.sk, []string{"socket", "sk"}},
		{&l.net, []string{"sock_common", "skc_net"}},
		{&l.family, []string{"sock_common", "skc_family"}},
		{&l.state, []string{"sock_common", "skc_state"}},
		{&l.local4, []string{"sock_common", "skc_rcv_saddr"}},
		{&l.local6, []string{"sock_common", "skc_v6_rcv_saddr"}},
		{&l.port, []string{"sock_common", "skc_num"}},
		{&l.cookie, []string{"sock_common", "skc_cookie"}},
		{&l.protocol, []string{"sock", "sk_protocol"}},
		{&l.inode, []string{"net", "ns", "inum"}},
	} {
		if *f.to, err = offsetOf(spec, f.path); err != nil {
			return nil, err
		}
	}
	if at, err := offsetOf(spec, []string{"mptcp_sock", "first"}); err == nil {
		l.first = at
	}
	return l, nil
})

// offsetOf returns the offset of a member, named by a structure and the names below it. struct sock begins with its
// struct sock_common.
func offsetOf(spec *btf.Spec, path []string) (int16, error) {
	var s *btf.Struct
	if err := spec.TypeByName(path[0], &s); err != nil {
		return 0, fmt.Errorf("struct %s: %w", path[0], err)
	}
	var at uint32
	var t btf.Type = s
	for _, name := range path[1:] {
		m, below, ok := member(t, name)
		if !ok {
			return 0, fmt.Errorf("struct %s has no member %s", path[0], name)
		}
		at += below
		t = m
	}
	if at > 1<<15-1 {
		return 0, fmt.Errorf("struct %s: a member at offset %d is out of reach", path[0], at)
	}
	return int16(at), nil
}

// member finds a member of a structure or union, also in those without a name within it.
func member(t btf.Type, name string) (of btf.Type, at uint32, ok bool) {
	var members []btf.Member
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		members = t.Members
	case *btf.Union:
		members = t.Members
	}
	for _, m := range members {
		if m.Name == name {
			return m.Type, m.Offset.Bytes(), true
		}
		if m.Name != "" {
			continue
		}
		if of, at, ok := member(m.Type, name); ok {
			return of, at + m.Offset.Bytes(), true
		}
	}
	return nil, 0, false
}

// refuseListen runs before a socket listens.
func (g *generator) refuseListen() (bool, error) {
	at, err := kernelLayout()
	if err != nil {
		return false, err
	}
	g.Modifies = true
	g.aboutToListen(at)
	if g.usesLocal() {
		g.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventLocalPort), asm.Half))
		g.AllowIf(asm.JEq, asm.R1, 0) // not known before it listens
	}
	matches, err := g.decide(codegen.EventHook{Event: packet.EventSocketListen, Protocol: cgprog.ProtoTCP})
	if matches {
		g.conclude(nil)
	}
	return matches, err
}

// regListener is where aboutToListen keeps the struct sock.
const regListener = regStorage

// aboutToListen makes the record of a socket that is about to listen, from struct socket, the first argument of the
// function. Sockets of other namespaces, other than of TCP, and those that listen already pass.
func (g *generator) aboutToListen(at *layout) {
	g.Emit(
		asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord),
		asm.LoadMem(regListener, asm.R1, at.sk, asm.DWord),
	)
	g.AllowIf(asm.JEq, regListener, 0)
	ours := g.NewLabel()
	g.Emit(
		asm.LoadMem(asm.R1, regListener, at.net, asm.DWord),
		asm.LoadMem(asm.R1, asm.R1, at.inode, asm.Word),
		asm.LoadImm(asm.R2, int64(g.inode), asm.DWord),
	)
	g.JumpReg(asm.JEq, asm.R1, asm.R2, ours)
	g.Leave(cgprog.Allow)
	g.Mark(ours)
	g.Emit(asm.LoadMem(asm.R1, regListener, at.state, asm.Byte))
	g.AllowIf(asm.JNE, asm.R1, cgprog.TCPClose)
	g.connections(at)
	g.blank()
	g.Emit(
		asm.Mov.Reg(asm.R1, regListener),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.R0, asm.DWord),
	)
	g.firstConnection(at)
	g.Process()
	g.Name()
	g.Emit(
		asm.LoadMem(asm.R1, regListener, at.port, asm.Half),
		asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventLocalPort), asm.R1, asm.Half),
	)
	g.listenerAddress(at)
	g.SetByte(codegen.EventProtocol, cgprog.ProtoTCP)
	g.Loopback(codegen.EventLocal)
}

// connections lets sockets pass that are not of TCP, or of MPTCP, and leaves the protocol in R8.
func (g *generator) connections(at *layout) {
	tcp := g.NewLabel()
	g.Emit(asm.LoadMem(asm.R8, regListener, at.protocol, asm.Half))
	g.JumpImm64(asm.JEq, asm.R8, cgprog.ProtoTCP, tcp)
	if at.first >= 0 {
		g.JumpImm64(asm.JEq, asm.R8, cgprog.ProtoMPTCP, tcp)
	}
	g.Leave(cgprog.Allow)
	g.Mark(tcp)
}

// firstConnection replaces the endpoint of a bound MPTCP socket by that of the connection that will listen, by which the other
// programs know it. Its sides are the same.
func (g *generator) firstConnection(at *layout) {
	if at.first < 0 {
		return
	}
	end := g.NewLabel()
	read := func(at int16) {
		g.Emit(asm.Add.Imm(asm.R3, int32(at)))
		g.Point(asm.R1, frameKey)
		g.Emit(
			asm.Mov.Imm(asm.R2, 8),
			asm.FnProbeReadKernel.Call(),
			asm.LoadMem(asm.R3, bpfasm.Frame, frameKey, asm.DWord),
		)
		g.JumpImm64(asm.JEq, asm.R3, 0, end)
	}
	g.JumpImm64(asm.JNE, asm.R8, cgprog.ProtoMPTCP, end)
	g.Emit(asm.Mov.Reg(asm.R3, regListener))
	read(at.first)
	read(at.cookie)
	g.Emit(asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.R3, asm.DWord))
	g.Mark(end)
}

// listenerAddress stores the local address.
func (g *generator) listenerAddress(at *layout) {
	six, end := g.NewLabel(), g.NewLabel()
	g.Emit(asm.LoadMem(asm.R1, regListener, at.family, asm.Half))
	g.JumpImm64(asm.JEq, asm.R1, cgprog.INET6, six)
	g.AllowIf(asm.JNE, asm.R1, cgprog.INET)
	g.Address4(regListener, at.local4, codegen.EventLocal)
	g.SetByte(codegen.EventIPv6, 0)
	g.Jump(end)
	g.Mark(six)
	g.Address6(regListener, at.local6, codegen.EventLocal)
	g.Family6(codegen.EventLocal)
	g.Mark(end)
}

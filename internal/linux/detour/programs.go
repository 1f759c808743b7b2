//go:build linux

package detour

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// The stack frame below the record: offsets from R10. A decision uses the frame from codegen.EventScratch on.
const (
	frameKey   = codegen.EventFrame - 8    // a key of a map
	frameValue = frameKey - int16(aimSize) // an aim
	frameTask  = frameValue - 16           // the address of a task, and its process id
)

// Offsets in an aim, a value of aimsMap. Numbers are in host byte order unless the text says otherwise.
const (
	aimAddr     = 0  // where the application wanted to go: the upper, then the lower 8 bytes; IPv4 mapped
	aimPort     = 16 // 4 bytes, as the context has it: network byte order
	aimProcess  = 20 // 4 bytes
	aimAlias    = 24 // port of the listener, as aimPort
	aimReleased = 32 // when the application has closed its socket, CLOCK_MONOTONIC in nanoseconds; 0: it has not
	aimSize     = 40
)

// Offsets in the one value of stateMap.
const (
	stateNext    = 0  // counts the connects: which listener gets the next
	stateFull    = 8  // connects that were refused because there was no room for their aims
	stateSpared  = 16 // connects that matched, of processes that are spared
	stateAliases = 24 // counts the aliases of datagrams
	stateUDP     = 32 // the port of the listener of datagrams, as aimPort, and 4 bytes of zeros
	statePorts   = 40 // the ports of the listeners, 4 bytes each, network byte order
	stateSize    = statePorts + 4*Listeners
)

// The names of the maps.
const (
	aimsMap    = "divert_aims"
	stateMap   = "divert_detour"
	sparedMap  = "divert_spared"  // processes that are spared, with their descendants
	socketsMap = "divert_sockets" // cookies of sockets that are spared
	othersMap  = "divert_others"  // ports of the listeners of other detours, as aimPort, those of UDP with othersUDP
)

// othersUDP is a bit of othersMap's keys, above the ports.
const othersUDP = 1 << 16

// loopback4 is 127.0.0.1, the address of the listeners.
const loopback4 = 0x7F000001

// generations is how many parents of a process are looked at.
const generations = 64

// builder generates one of the programs.
type builder struct {
	cgprog.Builder
	cfg     *Config
	cookie  uint64 // of the network namespace
	layout  layout
	decider codegen.EventDecider
}

// hook is a place of a program.
type hook struct {
	cgprog.Hook
	build func(*builder) (bool, error) // false: there is nothing to do
}

var hooks = []hook{
	{cgprog.Hook{Name: "getpeername4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCgroupInet4GetPeername}, func(b *builder) (bool, error) { return b.peer(cgprog.INET), nil }},
	{cgprog.Hook{Name: "getpeername6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCgroupInet6GetPeername}, func(b *builder) (bool, error) { return b.peer(cgprog.INET6), nil }},
	{cgprog.Hook{Name: "release", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCgroupInetSockRelease}, func(b *builder) (bool, error) { return b.release(), nil }},
	{cgprog.Hook{Name: "recvmsg4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupUDP4Recvmsg}, func(b *builder) (bool, error) { return b.receive(cgprog.INET), nil }},
	{cgprog.Hook{Name: "recvmsg6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupUDP6Recvmsg}, func(b *builder) (bool, error) { return b.receive(cgprog.INET6), nil }},
	{cgprog.Hook{Name: "sendmsg4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupUDP4Sendmsg}, func(b *builder) (bool, error) { return b.send(cgprog.INET) }},
	{cgprog.Hook{Name: "sendmsg6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupUDP6Sendmsg}, func(b *builder) (bool, error) { return b.send(cgprog.INET6) }},
	{cgprog.Hook{Name: "connect4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet4Connect}, func(b *builder) (bool, error) { return b.connect(cgprog.INET) }},
	{cgprog.Hook{Name: "connect6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet6Connect}, func(b *builder) (bool, error) { return b.connect(cgprog.INET6) }},
}

// begin lets sockets pass that are of other namespaces, or neither of TCP nor of UDP, and goes to udp with those of UDP. A
// protocol that is not led passes.
func (b *builder) begin(protocol int16) (udp bpfasm.Label) {
	udp = b.NewLabel()
	ours := b.NewLabel()
	b.Emit(asm.LoadMem(asm.R2, asm.R1, protocol, asm.Word))
	if b.cfg.UDP != nil {
		b.JumpImm64(asm.JEq, asm.R2, cgprog.ProtoUDP, ours)
	}
	if b.cfg.TCP != nil {
		b.JumpImm64(asm.JEq, asm.R2, cgprog.ProtoTCP, ours)
	}
	b.Leave(cgprog.Allow)
	b.Mark(ours)
	b.Begin(b.cookie)
	if b.cfg.UDP != nil {
		b.Emit(asm.LoadMem(asm.R2, bpfasm.Context, protocol, asm.Word))
		b.JumpImm64(asm.JEq, asm.R2, cgprog.ProtoUDP, udp)
	}
	return udp
}

// connect leads a connect that matches to a listener, or to the place of datagrams.
func (b *builder) connect(family int) (bool, error) {
	udp := b.begin(cgprog.AddrProtocol)
	streams, err := b.stream(family)
	if err != nil || b.cfg.UDP == nil {
		return streams, err
	}
	b.Mark(udp)
	datagrams, err := b.datagram(family, true)
	return streams || datagrams, err
}

// stream leads a connect of TCP that matches to a listener. It leaves the program in any case, and reports whether one can match.
func (b *builder) stream(family int) (bool, error) {
	if b.cfg.TCP == nil {
		b.Leave(cgprog.Allow)
		return false, nil
	}
	b.describe(family)
	b.Process()
	b.Cookie()
	if leads, err := b.decide(b.cfg.TCP, cgprog.ProtoTCP); !leads || err != nil {
		return false, err
	}
	b.passOtherDetours(0)
	b.passSpared()
	b.passLinkLocal()
	b.refuseBound()
	b.choose()
	b.remember()
	b.rewrite(family)
	b.Leave(cgprog.Allow)
	return true, nil
}

// describe makes the record of a connect, or of a datagram to be sent, without the process and the cookie. Traffic to addresses
// of many hosts passes.
func (b *builder) describe(family int) {
	b.UnlessRefused()
	b.Emit(asm.Mov.Imm(asm.R1, 0))
	for i := int16(0); i < codegen.EventSize; i += 8 {
		b.Emit(asm.StoreMem(bpfasm.Frame, codegen.EventFrame+i, asm.R1, asm.DWord))
	}
	b.ConnectSides(family)
	b.anyIsLoopback()
	b.passMany()
}

// decide lets traffic pass that the filter does not match. It reports whether the filter can match; if not, all passes.
func (b *builder) decide(p *prog.Program, protocol uint8) (bool, error) {
	code, outcome, err := b.decider.Decide(p, codegen.EventHook{Event: packet.EventSocketConnect, Protocol: protocol, LocalUnknown: true})
	if err != nil {
		return false, err
	}
	switch outcome {
	case codegen.Never:
		b.Leave(cgprog.Allow)
		return false, nil
	case codegen.Depends:
		b.Emit(code...)
		b.AllowIf(asm.JEq, asm.R0, 0)
	}
	return true, nil
}

// anyIsLoopback replaces the unspecified address by loopback, as the kernel does.
func (b *builder) anyIsLoopback() {
	low, end, six := cgprog.Record(codegen.EventRemote)+8, b.NewLabel(), b.NewLabel()
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, low-8, asm.DWord))
	b.JumpImm64(asm.JNE, asm.R1, 0, end)
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, low, asm.DWord))
	b.JumpImm64(asm.JEq, asm.R1, 0, six)
	b.Emit(asm.LoadImm(asm.R2, cgprog.Mapped, asm.DWord))
	b.JumpReg(asm.JNE, asm.R1, asm.R2, end)
	b.Emit(asm.LoadImm(asm.R1, cgprog.Mapped|loopback4, asm.DWord), asm.StoreMem(bpfasm.Frame, low, asm.R1, asm.DWord))
	b.Jump(end)
	b.Mark(six)
	b.Emit(asm.Mov.Imm(asm.R1, 1), asm.StoreMem(bpfasm.Frame, low, asm.R1, asm.DWord))
	b.Mark(end)
}

// passMany lets connects to addresses of many hosts pass; they fail.
func (b *builder) passMany() {
	at, six, end, many := cgprog.Record(codegen.EventRemote), b.NewLabel(), b.NewLabel(), b.NewLabel()
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventIPv6), asm.Byte))
	b.JumpImm64(asm.JNE, asm.R1, 0, six)
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, at+8, asm.DWord))
	b.JumpImm32(asm.JEq, asm.R1, 0xFFFFFFFF, many)
	b.Emit(asm.And.Imm32(asm.R1, -1<<28)) // 224.0.0.0/4
	b.JumpImm32(asm.JEq, asm.R1, 0xE0000000, many)
	b.Jump(end)
	b.Mark(six)
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, at, asm.DWord), asm.RSh.Imm(asm.R1, 56)) // ff00::/8
	b.JumpImm64(asm.JNE, asm.R1, 0xFF, end)
	b.Mark(many)
	b.Leave(cgprog.Allow)
	b.Mark(end)
}

// passOtherDetours lets traffic pass that another detour has led to its listener. Flag is 0 or othersUDP.
func (b *builder) passOtherDetours(flag int32) {
	end, here := b.NewLabel(), b.NewLabel()
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventLoopback), asm.Byte))
	b.JumpImm64(asm.JNE, asm.R1, 0, here)
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventRemote), asm.DWord), asm.LoadImm(asm.R2, discardPrefix, asm.DWord))
	b.JumpReg(asm.JNE, asm.R1, asm.R2, end)
	b.Mark(here)
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.AddrPort, asm.Word), asm.Or.Imm32(asm.R1, flag), asm.StoreMem(bpfasm.Frame, frameKey, asm.R1, asm.Word))
	b.LookUp(othersMap, frameKey)
	b.AllowIf(asm.JNE, asm.R0, 0)
	b.Mark(end)
}

// passSpared lets the program's own connections pass: sockets that it has named, and those of processes that are spared and of
// all their descendants.
func (b *builder) passSpared() {
	spared, next, others := b.NewLabel(), b.NewLabel(), b.NewLabel()
	if b.cfg.BySocket {
		b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
			asm.StoreMem(bpfasm.Frame, frameKey, asm.R1, asm.DWord))
		b.LookUp(socketsMap, frameKey)
		b.JumpImm64(asm.JNE, asm.R0, 0, spared)
	}
	b.Emit(asm.FnGetCurrentTask.Call(), asm.StoreMem(bpfasm.Frame, frameTask, asm.R0, asm.DWord), asm.Mov.Imm(asm.R9, generations))
	b.Mark(next)
	b.readTask(b.layout.process, frameTask+8, 4)
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, frameTask+8, asm.Word), asm.StoreMem(bpfasm.Frame, frameKey, asm.R1, asm.Word))
	b.LookUp(sparedMap, frameKey)
	b.JumpImm64(asm.JNE, asm.R0, 0, spared)
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, frameKey, asm.Word))
	b.JumpImm32(asm.JLE, asm.R1, 1, others)
	b.readTask(b.layout.parent, frameTask, 8)
	b.Emit(asm.Sub.Imm(asm.R9, 1))
	b.JumpImm64(asm.JNE, asm.R9, 0, next)
	b.Jump(others)
	b.Mark(spared)
	b.count(stateSpared)
	b.Leave(cgprog.Allow)
	b.Mark(others)
}

// readTask reads a member of the task at frameTask into the frame; zeros if it cannot be read.
func (b *builder) readTask(member int32, to int16, size int32) {
	b.Point(asm.R1, to)
	b.Emit(
		asm.Mov.Imm(asm.R2, size),
		asm.LoadMem(asm.R3, bpfasm.Frame, frameTask, asm.DWord),
		asm.Add.Imm(asm.R3, member),
		asm.FnProbeReadKernel.Call(),
	)
}

// passLinkLocal lets connects to link-local addresses pass, or refuses them: programs do not learn the interface.
func (b *builder) passLinkLocal() {
	end := b.NewLabel()
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventRemote), asm.DWord), asm.RSh.Imm(asm.R1, 54))
	b.JumpImm64(asm.JNE, asm.R1, 0xFE80>>6, end)
	if b.cfg.RefuseOthers {
		b.refuse(unix.EADDRNOTAVAIL)
	} else {
		b.Leave(cgprog.Allow)
	}
	b.Mark(end)
}

// refuseBound refuses the connect of a socket that is bound to a device: it cannot get to the loopback interface.
func (b *builder) refuseBound() {
	end := b.NewLabel()
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.AddrSock, asm.DWord), asm.LoadMem(asm.R1, asm.R1, 0, asm.Word))
	b.JumpImm64(asm.JEq, asm.R1, 0, end)
	b.refuse(unix.ENETUNREACH)
	b.Mark(end)
}

// refuse ends the program, and the connect with an error.
func (b *builder) refuse(errno unix.Errno) {
	b.Emit(asm.Mov.Imm(asm.R1, -int32(errno)), asm.FnSetRetval.Call())
	b.Leave(cgprog.Refuse)
}

// count adds one to a counter.
func (b *builder) count(counter int16) {
	b.Emit(
		asm.LoadMapValue(asm.R1, 0, 0).WithReference(stateMap),
		asm.Mov.Imm(asm.R2, 1),
		asm.AddAtomic.Mem(asm.R1, asm.R2, asm.DWord, counter),
	)
}

// choose leaves the port of the next listener in the aim. Connects from one port of an application to several destinations go to
// different listeners, so that their two ends differ.
func (b *builder) choose() {
	b.Emit(
		asm.LoadMapValue(asm.R1, 0, 0).WithReference(stateMap),
		asm.Mov.Imm(asm.R9, 1),
		fetchAdd(asm.R1, asm.R9, stateNext),
		asm.And.Imm(asm.R9, Listeners-1),
		asm.Mov.Reg(asm.R2, asm.R9),
		asm.LSh.Imm(asm.R2, 2),
		asm.Add.Reg(asm.R1, asm.R2),
		asm.LoadMem(asm.R2, asm.R1, statePorts, asm.Word),
		asm.StoreMem(bpfasm.Frame, frameValue+aimAlias, asm.R2, asm.Word),
	)
}

// fetchAdd adds src to the value at an address, and leaves the old value in src (since Linux 5.12). The library (v0.22) knows
// the operation but writes it without its number, so that src would not get the old value.
func fetchAdd(address, src asm.Register, offset int16) asm.Instruction {
	const fetchAdd = 0x01 // BPF_ADD | BPF_FETCH
	ins := asm.FetchAdd.Mem(address, src, asm.DWord, offset)
	ins.Constant = fetchAdd
	return ins
}

// remember enters the aim under the socket's cookie, and refuses the connect if there is no room.
func (b *builder) remember() {
	kept := b.NewLabel()
	for i := int16(0); i < 16; i += 8 {
		b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventRemote)+i, asm.DWord),
			asm.StoreMem(bpfasm.Frame, frameValue+aimAddr+i, asm.R1, asm.DWord))
	}
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Context, cgprog.AddrPort, asm.Word),
		asm.StoreMem(bpfasm.Frame, frameValue+aimPort, asm.R1, asm.Word),
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventProcess), asm.Word),
		asm.StoreMem(bpfasm.Frame, frameValue+aimProcess, asm.R1, asm.Word),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(bpfasm.Frame, frameValue+aimAlias+4, asm.R1, asm.Word),
		asm.StoreMem(bpfasm.Frame, frameValue+aimReleased, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventEndpoint), asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameKey, asm.R1, asm.DWord),
	)
	b.Update(aimsMap, frameKey, frameValue, cgprog.UpdateAny)
	b.JumpImm64(asm.JEq, asm.R0, 0, kept)
	b.count(stateFull)
	b.refuse(unix.EAGAIN)
	b.Mark(kept)
}

// rewrite makes a listener of the socket's family the destination.
func (b *builder) rewrite(family int) {
	store := func(at int16, word uint32) {
		b.Emit(asm.Mov.Imm32(asm.R1, int32(word)), asm.HostTo(asm.BE, asm.R1, asm.Word), asm.StoreMem(bpfasm.Context, at, asm.R1, asm.Word))
	}
	if family == cgprog.INET {
		store(cgprog.AddrIP4, loopback4)
	} else {
		six, end := b.NewLabel(), b.NewLabel()
		store(cgprog.AddrIP6, 0)
		store(cgprog.AddrIP6+4, 0)
		b.Emit(asm.LoadMem(asm.R2, bpfasm.Frame, cgprog.Record(codegen.EventIPv6), asm.Byte))
		b.JumpImm64(asm.JNE, asm.R2, 0, six)
		store(cgprog.AddrIP6+8, 0xFFFF)
		store(cgprog.AddrIP6+12, loopback4)
		b.Jump(end)
		b.Mark(six)
		store(cgprog.AddrIP6+8, 0)
		store(cgprog.AddrIP6+12, 1)
		b.Mark(end)
	}
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, frameValue+aimAlias, asm.Word), asm.StoreMem(bpfasm.Context, cgprog.AddrPort, asm.R1, asm.Word))
}

// peer gives the application the address that it wanted to go to.
func (b *builder) peer(family int) bool {
	udp := b.begin(cgprog.AddrProtocol)
	b.Emit(asm.Mov.Reg(asm.R1, bpfasm.Context), asm.FnGetSocketCookie.Call(), asm.StoreMem(bpfasm.Frame, frameKey, asm.R0, asm.DWord))
	b.LookUp(aimsMap, frameKey)
	b.AllowIf(asm.JEq, asm.R0, 0)
	ours := b.NewLabel()
	b.Emit(
		asm.LoadMem(asm.R1, bpfasm.Context, cgprog.AddrPort, asm.Word),
		asm.LoadMem(asm.R2, asm.R0, aimAlias, asm.Word),
	)
	b.JumpReg(asm.JEq, asm.R1, asm.R2, ours) // else the socket has been connected again, to elsewhere
	b.Leave(cgprog.Allow)
	b.Mark(ours)
	b.answer(family, aimAddr, aimPort)
	if b.cfg.UDP != nil {
		b.Mark(udp)
		b.unalias(family)
	}
	return true
}

// answer makes the address and port at two offsets from R0 those of the context, and ends the program.
func (b *builder) answer(family int, addr, port int16) {
	b.Emit(asm.LoadMem(asm.R1, asm.R0, port, asm.Word), asm.StoreMem(bpfasm.Context, cgprog.AddrPort, asm.R1, asm.Word))
	b.Emit(asm.LoadMem(asm.R2, asm.R0, addr+8, asm.DWord))
	if family == cgprog.INET {
		b.Emit(asm.HostTo(asm.BE, asm.R2, asm.Word), asm.StoreMem(bpfasm.Context, cgprog.AddrIP4, asm.R2, asm.Word))
		b.Leave(cgprog.Allow)
		return
	}
	b.Emit(asm.LoadMem(asm.R1, asm.R0, addr, asm.DWord))
	for i, r := range []asm.Register{asm.R1, asm.R2} {
		at := cgprog.AddrIP6 + 8*int16(i)
		b.Emit(
			asm.Mov.Reg(asm.R3, r), asm.RSh.Imm(asm.R3, 32), asm.HostTo(asm.BE, asm.R3, asm.Word), asm.StoreMem(bpfasm.Context, at, asm.R3, asm.Word),
			asm.HostTo(asm.BE, r, asm.Word), asm.StoreMem(bpfasm.Context, at+4, r, asm.Word),
		)
	}
	b.Leave(cgprog.Allow)
}

// release notes that a process has closed a socket.
func (b *builder) release() bool {
	udp := b.begin(cgprog.SockProtocol)
	b.noteRelease(aimsMap, aimReleased)
	if b.cfg.UDP != nil {
		b.Mark(udp)
		b.noteRelease(speakersMap, speakerReleased)
	}
	return true
}

// noteRelease stores the time in the socket's value of a map, if it has one.
func (b *builder) noteRelease(name string, released int16) {
	b.Emit(asm.Mov.Reg(asm.R1, bpfasm.Context), asm.FnGetSocketCookie.Call(), asm.StoreMem(bpfasm.Frame, frameKey, asm.R0, asm.DWord))
	b.LookUp(name, frameKey)
	b.AllowIf(asm.JEq, asm.R0, 0)
	b.Emit(asm.Mov.Reg(asm.R9, asm.R0), asm.FnKtimeGetNs.Call(), asm.StoreMem(asm.R9, released, asm.R0, asm.DWord))
	b.Leave(cgprog.Allow)
}

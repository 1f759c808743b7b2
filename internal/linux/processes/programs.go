//go:build linux

package processes

import (
	"encoding/binary"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/bpfasm"
	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/processmap"
)

// The programs that keep the maps (processmap.Maps). They decide nothing and refuse nothing.
//
// The process of a socket is the last one that made, bound or connected it or made it listen; a connection that
// comes in has that of its listener. The key of a socket is entered when the socket gets it, before or as its first
// packet leaves, so that the answer finds it:
//
//   - TCP: both ends when the SYN is about to be sent, or when an incoming connection is established; the local end
//     when the socket begins to listen.
//   - UDP: the local end when the socket is bound. A port that the kernel chose, and the peer of a connected
//     socket, show when it sends: the program for outgoing packets looks at the socket, and does
//     something only if that has changed.
//   - Echo sockets ("ping"): the same, with the identifier for the port.

// The stack frame below the record, of which these programs use endpoint, process and both sides: offsets from R10.
const (
	frameSocket     = codegen.EventFrame - int16(processmap.SocketSize) // a value of processmap.SocketsMap
	frameSocketKey  = frameSocket - processmap.FlowKeySize              // a key of the other maps
	frameSocketData = frameSocketKey - processmap.PortSize              // a value of the other maps
)

// regSocket is the value of the socket in processmap.SocketsMap.
const regSocket = asm.R9

// Flags of sockets, in processmap.SocketFlags.
const (
	socketUser     = 1 << iota // made by a process: the entry stays until the process closes the socket
	socketReleased             // the process has closed it
	socketWatched              // the end of the connection will be reported
)

// program is a program that keeps the maps.
type program struct {
	cgprog.Hook
	build func(*builder)
}

// programs are all of them.
var programs = []program{
	{cgprog.Hook{Name: "create", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCGroupInetSockCreate}, (*builder).create},
	{cgprog.Hook{Name: "bind4", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCGroupInet4PostBind}, func(b *builder) { b.bind(cgprog.INET) }},
	{cgprog.Hook{Name: "bind6", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCGroupInet6PostBind}, func(b *builder) { b.bind(cgprog.INET6) }},
	{cgprog.Hook{Name: "connect4", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet4Connect}, (*builder).connect},
	{cgprog.Hook{Name: "connect6", Kind: ebpf.CGroupSockAddr, Attach: ebpf.AttachCGroupInet6Connect}, (*builder).connect},
	{cgprog.Hook{Name: "tcp", Kind: ebpf.SockOps, Attach: ebpf.AttachCGroupSockOps}, (*builder).tcp},
	{cgprog.Hook{Name: "release", Kind: ebpf.CGroupSock, Attach: ebpf.AttachCgroupInetSockRelease}, (*builder).release},
	{cgprog.Hook{Name: "egress", Kind: ebpf.CGroupSKB, Attach: ebpf.AttachCGroupInetEgress}, (*builder).egress},
}

// builder generates one of the programs.
type builder struct {
	cgprog.Builder
	namespace uint64 // cookie of the network namespace
}

// create runs when a process has made a socket.
func (b *builder) create() {
	b.Begin(b.namespace)
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.SockProtocol, asm.Word))
	b.AllowIf(asm.JEq, asm.R1, cgprog.ProtoMPTCP) // its connections are sockets of their own
	b.Cookie()
	b.Process()
	b.name()
	b.entry(socketUser)
	b.Leave(cgprog.Allow)
}

// bind runs when a socket has been bound.
func (b *builder) bind(family int) {
	b.Begin(b.namespace)
	b.UnlessRefused()
	b.Cookie()
	b.Process()
	b.name()
	b.entry(0)
	b.own()
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.SockProtocol, asm.Word))
	b.AllowIf(asm.JNE, asm.R1, cgprog.ProtoUDP)
	b.dropPort()
	b.BindSide(family)
	b.portKey(cgprog.ProtoUDP)
	b.keepKey(processmap.SocketPort, processmap.PortKeySize)
	b.enterPort()
	b.Leave(cgprog.Allow)
}

// connect runs before a socket is connected.
func (b *builder) connect() {
	b.Begin(b.namespace)
	b.UnlessRefused()
	b.Cookie()
	b.unlessWorker()
	b.Process()
	b.name()
	b.entry(0)
	b.own()
	b.enterPort()
	b.enterFlow()
	b.Leave(cgprog.Allow)
}

// unlessWorker ends the program if the socket is not known and a thread of the kernel connects it: MPTCP opens further paths of
// a connection so, for no process.
func (b *builder) unlessWorker() {
	known := b.NewLabel()
	b.LookUp(processmap.SocketsMap, cgprog.Record(codegen.EventEndpoint))
	b.JumpImm64(asm.JNE, asm.R0, 0, known)
	b.Point(asm.R1, frameSocketData)
	b.Emit(
		asm.Mov.Imm(asm.R2, codegen.NameSize),
		asm.FnGetCurrentComm.Call(),
		asm.LoadMem(asm.R1, bpfasm.Frame, frameSocketData, asm.DWord),
		asm.LoadImm(asm.R2, int64(binary.NativeEndian.Uint64([]byte("kworker/"))), asm.DWord),
	)
	b.JumpReg(asm.JNE, asm.R1, asm.R2, known)
	b.Leave(cgprog.Allow)
	b.Mark(known)
}

// tcp runs at the stages of a connection.
func (b *builder) tcp() {
	connecting, listening, accepting, over := b.NewLabel(), b.NewLabel(), b.NewLabel(), b.NewLabel()
	b.Begin(b.namespace)
	b.Cookie()
	b.Emit(asm.StoreImm(bpfasm.Frame, cgprog.Record(codegen.EventProcess), 0, asm.Word))
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.OpsOp, asm.Word))
	b.JumpImm64(asm.JEq, asm.R1, cgprog.OpTCPConnect, connecting)
	b.JumpImm64(asm.JEq, asm.R1, cgprog.OpTCPListen, listening)
	b.JumpImm64(asm.JEq, asm.R1, cgprog.OpPassiveEstablished, accepting)
	b.JumpImm64(asm.JEq, asm.R1, cgprog.OpState, over)
	b.Leave(cgprog.Allow)

	b.Mark(connecting)
	b.entry(0) // of no process, if the program for connects did not see one
	b.connection()

	b.Mark(listening)
	b.listen()

	b.Mark(accepting)
	b.parent()
	b.entry(0)
	b.connection()

	b.Mark(over)
	b.over()
}

// connection enters both ends of a connection and asks for a report of its end.
func (b *builder) connection() {
	b.dropFlow(false)
	b.TCPSides(true)
	b.flowKey(cgprog.ProtoTCP)
	b.keepKey(processmap.SocketFlow, processmap.FlowKeySize)
	b.enterFlow()
	b.watch()
	b.Leave(cgprog.Allow)
}

// watch asks for a report of the end of the connection or the listener.
func (b *builder) watch() {
	b.setSocketFlag(socketWatched)
	b.WatchState()
}

// listen enters a socket that begins to listen. Its children find its process in a storage that they inherit.
func (b *builder) listen() {
	if cgprog.SockOpsProcess.Has() {
		b.Process()
	}
	b.entry(0)
	if cgprog.SockOpsProcess.Has() {
		b.own()
	}
	b.dropPort()
	b.TCPSides(false)
	b.portKey(cgprog.ProtoTCP)
	b.keepKey(processmap.SocketPort, processmap.PortKeySize)
	b.enterPort()
	b.watch()
	b.loadListener(cgprog.StorageCreate)
	b.AllowIf(asm.JEq, asm.R0, 0)
	b.Emit(
		asm.LoadMem(asm.R1, regSocket, processmap.SocketProcess, asm.Word),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	)
	b.Leave(cgprog.Allow)
}

// loadListener leaves the address of the storage with the listener's process in R0.
func (b *builder) loadListener(flags int32) {
	b.LoadStorage(listenerMap, cgprog.OpsSock, asm.Mov.Imm(asm.R3, 0), flags)
}

// parent makes the listener's process the one of the record. A listener that is older than the programs has no
// storage, but its port is known.
func (b *builder) parent() {
	found, none := b.NewLabel(), b.NewLabel()
	byPort := b.NewLabel()
	b.loadListener(0)
	b.JumpImm64(asm.JEq, asm.R0, 0, byPort)
	b.Emit(asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord))
	b.Jump(found)
	b.Mark(byPort)
	b.TCPSides(false)
	b.portKey(cgprog.ProtoTCP)
	// The listener has the address, or any address, of either family.
	for _, addr := range [...]func(){
		func() {},
		func() { b.keyLocal(cgprog.Mapped) },
		func() { b.keyLocal(0) },
	} {
		addr()
		processmap.FindHolder(&b.Assembler, frameSocketKey, found)
	}
	b.Jump(none)
	b.Mark(found)
	b.Emit(asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventProcess), asm.R1, asm.Word))
	b.Mark(none)
}

// keyLocal stores the address that stands for all of a family in the key.
func (b *builder) keyLocal(lower int64) {
	b.Emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(bpfasm.Frame, frameSocketKey+processmap.KeyLocal, asm.R1, asm.DWord),
		asm.LoadImm(asm.R1, lower, asm.DWord),
		asm.StoreMem(bpfasm.Frame, frameSocketKey+processmap.KeyLocal+8, asm.R1, asm.DWord),
	)
}

// over runs when the state of a connection or a listener changes, and does its work when that is over. A socket
// that its process still has may be connected anew.
func (b *builder) over() {
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.OpsNewState, asm.Word))
	b.AllowIf(asm.JNE, asm.R1, cgprog.TCPClose)
	b.find()
	b.dropPort()
	b.dropFlow(true)
	b.Emit(
		asm.LoadMem(asm.R1, regSocket, processmap.SocketFlags, asm.Word),
		asm.And.Imm32(asm.R1, socketUser|socketReleased),
	)
	b.AllowIf(asm.JEq, asm.R1, socketUser)
	b.forget()
	b.Leave(cgprog.Allow)
}

// release runs when a process closes a socket. A connection of TCP goes on for a while: its end is reported, or, if the socket
// is older than the programs, the time in which packets may still come is bounded.
func (b *builder) release() {
	gone, bounded := b.NewLabel(), b.NewLabel()
	b.Begin(b.namespace)
	b.Cookie()
	b.find()
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.SockProtocol, asm.Word))
	b.JumpImm64(asm.JNE, asm.R1, cgprog.ProtoTCP, gone)
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Context, cgprog.SockState, asm.Word))
	b.JumpImm64(asm.JEq, asm.R1, cgprog.TCPClose, gone)
	b.setSocketFlag(socketReleased)
	b.Emit(asm.LoadMem(asm.R1, regSocket, processmap.SocketFlags, asm.Word), asm.And.Imm32(asm.R1, socketWatched))
	b.JumpImm64(asm.JEq, asm.R1, 0, bounded)
	b.Leave(cgprog.Allow)

	b.Mark(bounded)
	b.dropPort()
	b.dropFlow(true)
	b.Leave(cgprog.Allow)

	b.Mark(gone)
	b.dropPort()
	b.dropFlow(false)
	b.forget()
	b.Leave(cgprog.Allow)
}

// sockRaw is SOCK_RAW (linux/net.h).
const sockRaw = 3

// regSock is the struct bpf_sock of an outgoing packet.
const regSock = asm.R7

// egress runs for each outgoing packet. Only sockets of the namespace are known.
func (b *builder) egress() {
	datagrams, peerless, six, sides := b.NewLabel(), b.NewLabel(), b.NewLabel(), b.NewLabel()
	b.Emit(asm.Mov.Reg(bpfasm.Context, asm.R1), asm.LoadMem(asm.R1, bpfasm.Context, cgprog.SkbSock, asm.DWord))
	b.AllowIf(asm.JEq, asm.R1, 0)
	b.Emit(asm.FnSkFullsock.Call())
	b.AllowIf(asm.JEq, asm.R0, 0)
	b.Emit(asm.Mov.Reg(regSock, asm.R0), asm.LoadMem(asm.R8, regSock, cgprog.SockProtocol, asm.Word))
	b.JumpImm64(asm.JEq, asm.R8, cgprog.ProtoUDP, datagrams)
	b.JumpImm64(asm.JEq, asm.R8, cgprog.ProtoICMP, datagrams)
	b.JumpImm64(asm.JEq, asm.R8, cgprog.ProtoICMPv6, datagrams)
	b.Leave(cgprog.Allow)
	b.Mark(datagrams)
	b.Emit(asm.LoadMem(asm.R1, regSock, cgprog.SockType, asm.Word))
	b.AllowIf(asm.JEq, asm.R1, sockRaw)
	b.Cookie()
	b.find()
	b.Emit(
		asm.LoadMem(asm.R1, regSock, cgprog.SockSrcPort, asm.Word),
		asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventLocalPort), asm.R1, asm.Half),
		asm.LoadMem(asm.R1, regSock, cgprog.SockDstPort, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(bpfasm.Frame, cgprog.Record(codegen.EventRemotePort), asm.R1, asm.Half),
		asm.LoadMem(asm.R1, regSock, cgprog.SockFamily, asm.Word),
	)
	b.JumpImm64(asm.JEq, asm.R1, cgprog.INET6, six)
	b.Address4(regSock, cgprog.SockSrcIP4, codegen.EventLocal)
	b.Address4(regSock, cgprog.SockDstIP4, codegen.EventRemote)
	b.Jump(sides)
	b.Mark(six)
	b.Address6(regSock, cgprog.SockSrcIP6, codegen.EventLocal)
	b.Address6(regSock, cgprog.SockDstIP6, codegen.EventRemote)
	b.Mark(sides)
	b.JumpImm64(asm.JNE, asm.R8, cgprog.ProtoUDP, peerless) // echo replies come from anybody, connected or not
	b.Emit(asm.LoadMem(asm.R1, bpfasm.Frame, cgprog.Record(codegen.EventRemotePort), asm.Half))
	b.JumpImm64(asm.JEq, asm.R1, 0, peerless)
	b.flowKeyOf(asm.R8)
	b.renew(processmap.SocketFlow, processmap.FlowKeySize)
	b.enterFlow()
	b.Leave(cgprog.Allow)

	b.Mark(peerless)
	b.portKeyOf(asm.R8)
	b.renew(processmap.SocketPort, processmap.PortKeySize)
	b.enterPort()
	b.Leave(cgprog.Allow)
}

// renew ends the program if the socket has been entered with the key; else it notes the key and removes the entries under the
// others.
func (b *builder) renew(at int16, size int16) {
	other := b.NewLabel()
	for i := int16(0); i < size; i += 8 {
		b.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, frameSocketKey+i, asm.DWord),
			asm.LoadMem(asm.R2, regSocket, at+i, asm.DWord),
		)
		b.JumpReg(asm.JNE, asm.R1, asm.R2, other)
	}
	b.Leave(cgprog.Allow)
	b.Mark(other)
	// The key waits in the place of the entry's value, which is not needed meanwhile.
	for i := int16(0); i < size; i += 8 {
		b.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, frameSocketKey+i, asm.DWord),
			asm.StoreMem(bpfasm.Frame, frameSocket+i, asm.R1, asm.DWord),
		)
	}
	b.dropPort()
	b.dropFlow(false)
	for i := int16(0); i < size; i += 8 {
		b.Emit(
			asm.LoadMem(asm.R1, bpfasm.Frame, frameSocket+i, asm.DWord),
			asm.StoreMem(regSocket, at+i, asm.R1, asm.DWord),
		)
	}
}

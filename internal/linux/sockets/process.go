//go:build linux

package sockets

import (
	"encoding/binary"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/codegen"
)

// The programs that keep the maps of processes (codegen.Processes). They decide nothing and refuse nothing.
//
// The process of a socket is the last one that made, bound or connected it or made it listen; a connection that
// comes in has that of its listener. What a socket is to be found by is entered when it gets it, before its first
// packet leaves or as that leaves, so that the answer finds it:
//
//   - TCP: both ends when the SYN is about to be sent, or when an incoming connection is established; the local end
//     when the socket begins to listen.
//   - UDP: the local end when the socket is bound. What the kernel binds by itself, and the peer of a connected
//     socket, is seen when it sends: the program for outgoing packets looks at the socket, and does
//     something only if that is not what it was.
//   - Echo sockets ("ping"): the same, with the identifier for the port.

// The stack frame below the record, of which these programs use endpoint, process and both sides: offsets from R10.
const (
	frameSocket     = frameRecord - int16(codegen.SocketSize) // a value of codegen.SocketsMap
	frameSocketKey  = frameSocket - codegen.FlowKeySize       // a key of the other maps
	frameSocketData = frameSocketKey - codegen.PortSize       // a value of the other maps
)

// regSocket is the value of the socket in codegen.SocketsMap.
const regSocket = asm.R9

// Flags of sockets, in codegen.SocketFlags.
const (
	socketUser     = 1 << iota // made by a process: the entry stays until the process closes the socket
	socketReleased             // the process has closed it
	socketWatched              // the end of the connection will be told
)

// Flags of bpf_map_update_elem (linux/bpf.h).
const (
	updateAny     = 0
	updateNoExist = 1
)

// processHook is a place at which a program that keeps the maps runs.
type processHook struct {
	name   string
	kind   ebpf.ProgramType
	attach ebpf.AttachType
	build  func(*processBuilder)
}

// processHooks are all of them.
var processHooks = []processHook{
	{"create", ebpf.CGroupSock, ebpf.AttachCGroupInetSockCreate, (*processBuilder).create},
	{"bind4", ebpf.CGroupSock, ebpf.AttachCGroupInet4PostBind, func(b *processBuilder) { b.bind(afINET) }},
	{"bind6", ebpf.CGroupSock, ebpf.AttachCGroupInet6PostBind, func(b *processBuilder) { b.bind(afINET6) }},
	{"connect4", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet4Connect, (*processBuilder).connect},
	{"connect6", ebpf.CGroupSockAddr, ebpf.AttachCGroupInet6Connect, (*processBuilder).connect},
	{"tcp", ebpf.SockOps, ebpf.AttachCGroupSockOps, (*processBuilder).tcp},
	{"release", ebpf.CGroupSock, ebpf.AttachCgroupInetSockRelease, (*processBuilder).release},
	{"egress", ebpf.CGroupSKB, ebpf.AttachCGroupInetEgress, (*processBuilder).egress},
}

// processBuilder generates one of the programs.
type processBuilder struct {
	builder
	namespace uint64 // cookie of the network namespace
}

// create runs when a process has made a socket.
func (b *processBuilder) create() {
	b.begin(b.namespace)
	b.emit(asm.LoadMem(asm.R1, regContext, sockProtocol, asm.Word))
	b.allowIf(asm.JEq, asm.R1, protoMPTCP) // its connections are sockets of their own
	b.cookie()
	b.process()
	b.entry(socketUser)
	b.leave(allow)
}

// bind runs when a socket has been bound.
func (b *processBuilder) bind(family int) {
	b.begin(b.namespace)
	b.unlessRefused()
	b.cookie()
	b.process()
	b.entry(0)
	b.own()
	b.emit(asm.LoadMem(asm.R1, regContext, sockProtocol, asm.Word))
	b.allowIf(asm.JNE, asm.R1, protoUDP)
	b.dropPort()
	b.bindSide(family)
	b.portKey(protoUDP)
	b.keepKey(codegen.SocketPort, codegen.PortKeySize)
	b.enterPort()
	b.leave(allow)
}

// connect runs before a socket is connected.
func (b *processBuilder) connect() {
	b.begin(b.namespace)
	b.unlessRefused()
	b.cookie()
	b.unlessWorker()
	b.process()
	b.entry(0)
	b.own()
	b.enterPort()
	b.enterFlow()
	b.leave(allow)
}

// unlessWorker ends the program if the socket is not known and a thread of the kernel connects it: so MPTCP opens
// further paths of a connection, in the name of nobody.
func (b *processBuilder) unlessWorker() {
	known := b.newLabel()
	b.lookUp(codegen.SocketsMap, record(codegen.EventEndpoint))
	b.emit(asm.JNE.Imm(asm.R0, 0, known))
	b.point(asm.R1, frameSocketData)
	b.emit(
		asm.Mov.Imm(asm.R2, taskCommLen),
		asm.FnGetCurrentComm.Call(),
		asm.LoadMem(asm.R1, regFrame, frameSocketData, asm.DWord),
		asm.LoadImm(asm.R2, int64(binary.NativeEndian.Uint64([]byte("kworker/"))), asm.DWord),
		asm.JNE.Reg(asm.R1, asm.R2, known),
	)
	b.leave(allow)
	b.mark(known)
}

// taskCommLen is TASK_COMM_LEN, the size of the name of a thread (linux/sched.h).
const taskCommLen = 16

// tcp runs at the turns of a connection.
func (b *processBuilder) tcp() {
	connecting, listening, accepting, over := b.newLabel(), b.newLabel(), b.newLabel(), b.newLabel()
	b.begin(b.namespace)
	b.cookie()
	b.emit(asm.StoreImm(regFrame, record(codegen.EventProcess), 0, asm.Word))
	b.emit(
		asm.LoadMem(asm.R1, regContext, opsOp, asm.Word),
		asm.JEq.Imm(asm.R1, opTCPConnect, connecting),
		asm.JEq.Imm(asm.R1, opTCPListen, listening),
		asm.JEq.Imm(asm.R1, opPassiveEstablished, accepting),
		asm.JEq.Imm(asm.R1, opState, over),
	)
	b.leave(allow)

	b.mark(connecting)
	b.entry(0) // of nobody, if the program for connects did not see a process
	b.connection()

	b.mark(listening)
	b.listen()

	b.mark(accepting)
	b.parent()
	b.entry(0)
	b.connection()

	b.mark(over)
	b.over()
}

// connection enters both ends of a connection and asks to be told of its end.
func (b *processBuilder) connection() {
	b.dropFlow(false)
	b.tcpSides(true)
	b.flowKey(protoTCP)
	b.keepKey(codegen.SocketFlow, codegen.FlowKeySize)
	b.enterFlow()
	b.watch()
	b.leave(allow)
}

// watch asks to be told of the end of the connection or the listener.
func (b *processBuilder) watch() {
	b.setSocketFlag(socketWatched)
	b.emit(
		asm.LoadMem(asm.R2, regContext, opsCallbacks, asm.Word),
		asm.Or.Imm32(asm.R2, stateCallbacks), // besides what others have asked for
		asm.Mov.Reg(asm.R1, regContext),
		asm.FnSockOpsCbFlagsSet.Call(),
	)
}

// listen enters a socket that begins to listen. Its children find its process in a storage that they inherit.
func (b *processBuilder) listen() {
	if sockOpsProcess() {
		b.process()
	}
	b.entry(0)
	if sockOpsProcess() {
		b.own()
	}
	b.dropPort()
	b.tcpSides(false)
	b.portKey(protoTCP)
	b.keepKey(codegen.SocketPort, codegen.PortKeySize)
	b.enterPort()
	b.watch()
	b.loadListener(storageCreate)
	b.allowIf(asm.JEq, asm.R0, 0)
	b.emit(
		asm.LoadMem(asm.R1, regSocket, codegen.SocketProcess, asm.Word),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	)
	b.leave(allow)
}

// loadListener leaves the address of the storage with the listener's process in R0.
func (b *processBuilder) loadListener(flags int32) {
	b.emit(asm.LoadMem(asm.R2, regContext, opsSock, asm.DWord))
	b.allowIf(asm.JEq, asm.R2, 0)
	b.emit(
		mapPtr(asm.R1, listenerMap),
		asm.Mov.Imm(asm.R3, 0),
		asm.Mov.Imm(asm.R4, flags),
		asm.FnSkStorageGet.Call(),
	)
}

// parent makes the listener's process the one of the record. A listener that is older than the programs has no
// storage, but its port is known.
func (b *processBuilder) parent() {
	found, none := b.newLabel(), b.newLabel()
	byPort := b.newLabel()
	b.loadListener(0)
	b.emit(
		asm.JEq.Imm(asm.R0, 0, byPort),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Ja.Label(found),
	)
	b.mark(byPort)
	b.tcpSides(false)
	b.portKey(protoTCP)
	// The listener has the address, or any address, of either family.
	for _, addr := range [...]func(){
		func() {},
		func() { b.keyLocal(mapped) },
		func() { b.keyLocal(0) },
	} {
		addr()
		miss := b.newLabel()
		b.lookUp(codegen.PortsMap, frameSocketKey)
		b.emit(asm.JEq.Imm(asm.R0, 0, miss))
		for i := range int16(codegen.Holders) {
			free := b.newLabel()
			b.emit(
				asm.LoadMem(asm.R2, asm.R0, i*codegen.HolderSize+codegen.HolderCookie, asm.DWord),
				asm.JEq.Imm(asm.R2, 0, free),
				asm.LoadMem(asm.R1, asm.R0, i*codegen.HolderSize+codegen.HolderProcess, asm.Word),
				asm.Ja.Label(found),
			)
			b.mark(free)
		}
		b.mark(miss)
	}
	b.emit(asm.Ja.Label(none))
	b.mark(found)
	b.emit(asm.StoreMem(regFrame, record(codegen.EventProcess), asm.R1, asm.Word))
	b.mark(none)
}

// keyLocal stores the address that stands for all of a family in the key.
func (b *processBuilder) keyLocal(lower int64) {
	b.emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(regFrame, frameSocketKey+codegen.KeyLocal, asm.R1, asm.DWord),
		asm.LoadImm(asm.R1, lower, asm.DWord),
		asm.StoreMem(regFrame, frameSocketKey+codegen.KeyLocal+8, asm.R1, asm.DWord),
	)
}

// over runs when the state of a connection or a listener changes, and does its work when that is over. A socket
// that its process still has may be connected anew.
func (b *processBuilder) over() {
	b.emit(asm.LoadMem(asm.R1, regContext, opsNewState, asm.Word))
	b.allowIf(asm.JNE, asm.R1, tcpClose)
	b.find()
	b.dropPort()
	b.dropFlow(true)
	b.emit(
		asm.LoadMem(asm.R1, regSocket, codegen.SocketFlags, asm.Word),
		asm.And.Imm32(asm.R1, socketUser|socketReleased),
	)
	b.allowIf(asm.JEq, asm.R1, socketUser)
	b.forget()
	b.leave(allow)
}

// release runs when a process closes a socket. A connection of TCP goes on for a while: its end is told, or, if the
// socket is older than the programs, what may still come is bounded in time.
func (b *processBuilder) release() {
	gone, bounded := b.newLabel(), b.newLabel()
	b.begin(b.namespace)
	b.cookie()
	b.find()
	b.emit(
		asm.LoadMem(asm.R1, regContext, sockProtocol, asm.Word),
		asm.JNE.Imm(asm.R1, protoTCP, gone),
		asm.LoadMem(asm.R1, regContext, sockState, asm.Word),
		asm.JEq.Imm(asm.R1, tcpClose, gone),
	)
	b.setSocketFlag(socketReleased)
	b.emit(
		asm.LoadMem(asm.R1, regSocket, codegen.SocketFlags, asm.Word),
		asm.And.Imm32(asm.R1, socketWatched),
		asm.JEq.Imm(asm.R1, 0, bounded),
	)
	b.leave(allow)

	b.mark(bounded)
	b.dropPort()
	b.dropFlow(true)
	b.leave(allow)

	b.mark(gone)
	b.dropPort()
	b.dropFlow(false)
	b.forget()
	b.leave(allow)
}

// Offsets in struct bpf_sock (linux/bpf.h).
const (
	sockFamily  = 4
	sockType    = 8
	sockDstPort = 48 // network byte order, 2 bytes
	sockDstIP4  = 52
	sockDstIP6  = 56
)

// sockRaw is SOCK_RAW (linux/net.h).
const sockRaw = 3

// regSock is the struct bpf_sock of an outgoing packet.
const regSock = asm.R7

// egress runs for each outgoing packet. Only sockets of the namespace are known.
func (b *processBuilder) egress() {
	datagrams, peerless, six, sides := b.newLabel(), b.newLabel(), b.newLabel(), b.newLabel()
	b.emit(asm.Mov.Reg(regContext, asm.R1), asm.LoadMem(asm.R1, regContext, skbSock, asm.DWord))
	b.allowIf(asm.JEq, asm.R1, 0)
	b.emit(asm.FnSkFullsock.Call())
	b.allowIf(asm.JEq, asm.R0, 0)
	b.emit(
		asm.Mov.Reg(regSock, asm.R0),
		asm.LoadMem(asm.R8, regSock, sockProtocol, asm.Word),
		asm.JEq.Imm(asm.R8, protoUDP, datagrams),
		asm.JEq.Imm(asm.R8, protoICMP, datagrams),
		asm.JEq.Imm(asm.R8, protoICMPv6, datagrams),
	)
	b.leave(allow)
	b.mark(datagrams)
	b.emit(asm.LoadMem(asm.R1, regSock, sockType, asm.Word))
	b.allowIf(asm.JEq, asm.R1, sockRaw)
	b.cookie()
	b.find()
	b.emit(
		asm.LoadMem(asm.R1, regSock, sockSrcPort, asm.Word),
		asm.StoreMem(regFrame, record(codegen.EventLocalPort), asm.R1, asm.Half),
		asm.LoadMem(asm.R1, regSock, sockDstPort, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.StoreMem(regFrame, record(codegen.EventRemotePort), asm.R1, asm.Half),
		asm.LoadMem(asm.R1, regSock, sockFamily, asm.Word),
		asm.JEq.Imm(asm.R1, afINET6, six),
	)
	b.address4(regSock, sockSrcIP4, codegen.EventLocal)
	b.address4(regSock, sockDstIP4, codegen.EventRemote)
	b.emit(asm.Ja.Label(sides))
	b.mark(six)
	b.address6(regSock, sockSrcIP6, codegen.EventLocal)
	b.address6(regSock, sockDstIP6, codegen.EventRemote)
	b.mark(sides)
	b.emit(
		asm.JNE.Imm(asm.R8, protoUDP, peerless), // echo replies come from anybody, connected or not
		asm.LoadMem(asm.R1, regFrame, record(codegen.EventRemotePort), asm.Half),
		asm.JEq.Imm(asm.R1, 0, peerless),
	)
	b.flowKeyOf(asm.R8)
	b.renew(codegen.SocketFlow, codegen.FlowKeySize)
	b.enterFlow()
	b.leave(allow)

	b.mark(peerless)
	b.portKeyOf(asm.R8)
	b.renew(codegen.SocketPort, codegen.PortKeySize)
	b.enterPort()
	b.leave(allow)
}

// renew ends the program if the key is the one that the socket has been entered with, and else makes it that one and
// takes the others away.
func (b *processBuilder) renew(at int16, size int16) {
	other := b.newLabel()
	for i := int16(0); i < size; i += 8 {
		b.emit(
			asm.LoadMem(asm.R1, regFrame, frameSocketKey+i, asm.DWord),
			asm.LoadMem(asm.R2, regSocket, at+i, asm.DWord),
			asm.JNE.Reg(asm.R1, asm.R2, other),
		)
	}
	b.leave(allow)
	b.mark(other)
	// The key waits in the place of the entry's value, of which nothing is needed meanwhile.
	for i := int16(0); i < size; i += 8 {
		b.emit(
			asm.LoadMem(asm.R1, regFrame, frameSocketKey+i, asm.DWord),
			asm.StoreMem(regFrame, frameSocket+i, asm.R1, asm.DWord),
		)
	}
	b.dropPort()
	b.dropFlow(false)
	for i := int16(0); i < size; i += 8 {
		b.emit(
			asm.LoadMem(asm.R1, regFrame, frameSocket+i, asm.DWord),
			asm.StoreMem(regSocket, at+i, asm.R1, asm.DWord),
		)
	}
}

//go:build linux

package codegen

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Processes are the maps in which programs find the process of a packet. Other programs, which see what sockets
// do, keep them (package sockets). A packet on its way out has its socket with it, and so
// its cookie; the socket of one that comes in is known only later, so it is found by the two ends of the packet.
type Processes struct {
	Sockets *ebpf.Map // by the cookie of a socket: its process, and the keys under which the other maps have it
	Flows   *ebpf.Map // by both ends: sockets that have a peer
	Ports   *ebpf.Map // by the local end: sockets that listen, or receive from everybody
	Closed  *ebpf.Map // by both ends: connections of TCP whose socket is gone, for packets that are still on their way
}

// The keys, as they lie in memory. Numbers and ports are in host byte order, addresses are two words of 8 bytes in
// host byte order, the upper first; IPv4 ones are mapped. The key of a port is the start of that of a flow.
const (
	KeyLocal      int16 = 0  // local address, zero for all of a family: :: or ::ffff:0.0.0.0
	KeyLocalPort  int16 = 16 // 4 bytes; the identifier of ICMP echoes counts as one
	KeyProtocol   int16 = 20 // 4 bytes
	KeyRemote     int16 = 24 // remote address
	KeyRemotePort int16 = 40 // 4 bytes, and 4 that are zero

	PortKeySize = 24
	FlowKeySize = 48
)

// The value of Sockets.
const (
	SocketProcess int16 = 0 // 4 bytes
	SocketFlags   int16 = 4 // 4 bytes: their own, of the programs that keep the maps
	SocketPort    int16 = 8 // the key in Ports; none if its port is 0
	SocketFlow          = SocketPort + PortKeySize

	SocketSize = int(SocketFlow) + FlowKeySize
)

// The value of Flows.
const (
	FlowProcess int16 = 0 // 4 bytes
	FlowCookie  int16 = 8 // of the socket: who takes an entry away takes its own only

	FlowSize = 16
)

// The value of Closed.
const (
	ClosedProcess int16 = 0 // 4 bytes
	ClosedUntil   int16 = 8 // CLOCK_MONOTONIC in nanoseconds: from then on the entry does not count

	ClosedSize = 16
)

// The value of Ports: several sockets may share a port (SO_REUSEPORT, SO_REUSEADDR), so that there must be others
// when one closes. The process is that of the first place that is taken.
const (
	HolderCookie  int16 = 0 // 0: free
	HolderProcess int16 = 8 // 4 bytes
	HolderSize          = 16

	Holders  = 4
	PortSize = Holders * HolderSize
)

// How many entries the maps have room for. Their memory is taken as it is used, 150 to 200 bytes an entry. What finds
// no room has no process.
const (
	MaxSockets = 1 << 17
	MaxFlows   = 1 << 17
	MaxPorts   = 1 << 16
	MaxClosed  = 1 << 12 // the oldest give way
)

// Names of the maps of processes.
const (
	SocketsMap = "divert_process"
	FlowsMap   = "divert_peers"
	PortsMap   = "divert_ports"
	ClosedMap  = "divert_closed"
)

// flagNoPrealloc is BPF_F_NO_PREALLOC.
const flagNoPrealloc = 1 << 0

func processSpecs() []*ebpf.MapSpec {
	return []*ebpf.MapSpec{
		{Name: SocketsMap, Type: ebpf.Hash, KeySize: 8, ValueSize: uint32(SocketSize), MaxEntries: MaxSockets, Flags: flagNoPrealloc},
		{Name: FlowsMap, Type: ebpf.Hash, KeySize: FlowKeySize, ValueSize: FlowSize, MaxEntries: MaxFlows, Flags: flagNoPrealloc},
		{Name: PortsMap, Type: ebpf.Hash, KeySize: PortKeySize, ValueSize: PortSize, MaxEntries: MaxPorts, Flags: flagNoPrealloc},
		{Name: ClosedMap, Type: ebpf.LRUHash, KeySize: FlowKeySize, ValueSize: ClosedSize, MaxEntries: MaxClosed},
	}
}

// NewProcesses makes the maps, empty (CAP_BPF or CAP_SYS_ADMIN).
func NewProcesses() (*Processes, error) {
	liftMemlock()
	ps := &Processes{}
	for _, spec := range processSpecs() {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			ps.Close()
			return nil, &LoadError{Err: fmt.Errorf("map %s: %w", spec.Name, err)}
		}
		*ps.place(spec.Name) = m
	}
	return ps, nil
}

// place returns where a map stands, nil if there is none of the name.
func (ps *Processes) place(name string) **ebpf.Map {
	switch name {
	case SocketsMap:
		return &ps.Sockets
	case FlowsMap:
		return &ps.Flows
	case PortsMap:
		return &ps.Ports
	case ClosedMap:
		return &ps.Closed
	}
	return nil
}

// named returns a map, nil if there is none of the name.
func (ps *Processes) named(name string) *ebpf.Map {
	if ps == nil {
		return nil
	}
	if m := ps.place(name); m != nil {
		return *m
	}
	return nil
}

// Maps returns the maps by their names.
func (ps *Processes) Maps() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{SocketsMap: ps.Sockets, FlowsMap: ps.Flows, PortsMap: ps.Ports, ClosedMap: ps.Closed}
}

// Close releases the maps. Programs that have them keep them.
func (ps *Processes) Close() error {
	var errs []error
	for _, m := range ps.Maps() {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// process stores the process of the packet, 0 if it has none or none is known.
//
// Most packets take one look-up. On the way out that is the cookie's; without a socket that is known, only
// what the kernel sends for connections of TCP that are not sockets of their own yet, or not any more, has
// a process. On the way in it is both ends, then the local port with the addresses it may be bound to, in
// the order in which the kernel prefers them, and last the connections that have just been closed.
func (g *generator) process() {
	found, none := g.NewLabel(), g.NewLabel()
	if g.hook.Direction == Outbound {
		g.processByCookie(found, none)
	}
	g.processKey(none)
	g.processBy(FlowsMap, FlowProcess, found)
	g.processByPort(found)
	g.processByClosed(found, none)
	g.Mark(none)
	g.Emit(asm.LoadMem(asm.R1, regFrame, varZero, asm.DWord))
	g.Mark(found)
	g.Emit(asm.StoreMem(regFrame, varProcess, asm.R1, asm.Word))
}

// processByCookie goes to found with the process of the packet's socket in R1, or to none if another way to find it
// makes no sense.
func (g *generator) processByCookie(found, none label) {
	g.Emit(
		asm.Mov.Reg(asm.R1, regContext),
		asm.FnGetSocketCookie.Call(),
		asm.StoreMem(regFrame, frameProcess, asm.R0, asm.DWord),
	)
	g.processBy(SocketsMap, SocketProcess, found)
	g.Emit(
		asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word),
		asm.And.Imm32(asm.R1, 1<<flagTCP),
	)
	g.JumpImm32(asm.JEq, asm.R1, 0, none)
}

// processBy looks the key at frameProcess up and goes to found with the word at an offset of the value in R1, if
// there is one.
func (g *generator) processBy(name string, offset int16, found label) {
	miss := g.NewLabel()
	g.lookUp(name)
	g.JumpImm64(asm.JEq, asm.R0, 0, miss)
	g.Emit(asm.LoadMem(asm.R1, asm.R0, offset, asm.Word))
	g.Jump(found)
	g.Mark(miss)
}

// lookUp leaves the address of the value for the key at frameProcess in R0.
func (g *generator) lookUp(name string) {
	g.Emit(
		asm.LoadMapPtr(asm.R1, 0).WithReference(name),
		asm.Mov.Reg(asm.R2, regFrame),
		asm.Add.Imm(asm.R2, int32(frameProcess)),
		asm.FnMapLookupElem.Call(),
	)
}

// processKey makes the key of the packet's flow, or goes to none if it can be none of a socket's.
func (g *generator) processKey(none label) {
	echo, ports, end := g.NewLabel(), g.NewLabel(), g.NewLabel()
	g.Emit(asm.LoadMem(asm.R3, regFrame, varFlags, asm.Word))
	g.JumpImm32(asm.JSet, asm.R3, 1<<flagTCP|1<<flagUDP, ports)
	g.Emit(asm.And.Imm32(asm.R3, 1<<flagICMP|1<<flagICMPv6))
	g.JumpImm32(asm.JEq, asm.R3, 0, none)
	// Of ICMP only the reply to an echo is for a process (RFC 792, RFC 4443 4.2).
	g.Emit(asm.LoadMem(asm.R1, regFrame, frameTransport, asm.Byte))
	g.JumpImm32(asm.JEq, asm.R1, 0, echo)
	g.JumpImm32(asm.JNE, asm.R1, 129, none)
	g.Mark(echo)
	g.Emit(
		asm.LoadMem(asm.R1, regFrame, frameTransport+4, asm.Half),
		asm.HostTo(asm.BE, asm.R1, asm.Half),
		asm.LoadMem(asm.R2, regFrame, varZero, asm.DWord),
	)
	g.Jump(end)
	g.Mark(ports)
	g.Emit(
		asm.LoadMem(asm.R1, regFrame, varLocalPort, asm.Word),
		asm.LoadMem(asm.R2, regFrame, varRemotePort, asm.Word),
	)
	g.Mark(end)
	g.Emit(
		asm.StoreMem(regFrame, frameProcess+KeyLocalPort, asm.R1, asm.Word),
		asm.StoreMem(regFrame, frameProcess+KeyRemotePort, asm.R2, asm.DWord), // and what is zero
		asm.LoadMem(asm.R1, regFrame, varProtocol, asm.Word),
		asm.StoreMem(regFrame, frameProcess+KeyProtocol, asm.R1, asm.Word),
	)
	g.keyAddress(varLocalAddr, KeyLocal)
	g.keyAddress(varRemoteAddr, KeyRemote)
}

// keyAddress copies an address to the key.
func (g *generator) keyAddress(from, to int16) {
	for half := int16(0); half < 16; half += 8 {
		g.Emit(
			asm.LoadMem(asm.R1, regFrame, from+half, asm.DWord),
			asm.StoreMem(regFrame, frameProcess+to+half, asm.R1, asm.DWord),
		)
	}
}

// processByPort goes to found with the process of a socket that receives at the local end. On the way out
// only the answer to a SYN is sent in the name of such a one.
func (g *generator) processByPort(found label) {
	end := g.NewLabel()
	if g.hook.Direction == Outbound {
		const tcpFlags, syn, ack = 13, 0x02, 0x10
		g.Emit(
			asm.LoadMem(asm.R1, regFrame, frameTransport+tcpFlags, asm.Byte),
			asm.And.Imm32(asm.R1, syn|ack),
		)
		g.JumpImm32(asm.JNE, asm.R1, syn|ack, end)
	}
	g.processByHolder(found)
	if g.hook.Family != IPv6 {
		six := g.NewLabel()
		g.Emit(asm.LoadMem(asm.R1, regFrame, frameProcess+KeyLocal, asm.DWord))
		g.JumpImm64(asm.JNE, asm.R1, 0, six)
		g.Emit(
			asm.LoadMem(asm.R1, regFrame, frameProcess+KeyLocal+8, asm.DWord),
			asm.RSh.Imm(asm.R1, 32),
		)
		g.JumpImm32(asm.JNE, asm.R1, 0xFFFF, six)
		g.Emit(
			asm.LoadImm(asm.R1, mappedPrefix, asm.DWord),
			asm.StoreMem(regFrame, frameProcess+KeyLocal+8, asm.R1, asm.DWord),
		)
		g.processByHolder(found)
		g.Mark(six)
	}
	// Sockets that are bound to :: receive IPv4 too.
	g.Emit(
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(regFrame, frameProcess+KeyLocal, asm.R1, asm.DWord),
		asm.StoreMem(regFrame, frameProcess+KeyLocal+8, asm.R1, asm.DWord),
	)
	g.processByHolder(found)
	g.Mark(end)
}

// processByHolder looks the local end up and goes to found with the process of the first socket that holds it.
func (g *generator) processByHolder(found label) {
	miss := g.NewLabel()
	g.lookUp(PortsMap)
	g.JumpImm64(asm.JEq, asm.R0, 0, miss)
	for i := range int16(Holders) {
		free := g.NewLabel()
		g.Emit(asm.LoadMem(asm.R2, asm.R0, i*HolderSize+HolderCookie, asm.DWord))
		g.JumpImm64(asm.JEq, asm.R2, 0, free)
		g.Emit(asm.LoadMem(asm.R1, asm.R0, i*HolderSize+HolderProcess, asm.Word))
		g.Jump(found)
		g.Mark(free)
	}
	g.Mark(miss)
}

// processByClosed goes to found with the process that had the connection, if it was closed a short time ago, else to
// none.
func (g *generator) processByClosed(found, none label) {
	if g.hook.Direction != Outbound { // there it is TCP
		g.Emit(
			asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word),
			asm.And.Imm32(asm.R1, 1<<flagTCP),
		)
		g.JumpImm32(asm.JEq, asm.R1, 0, none)
	}
	g.keyAddress(varLocalAddr, KeyLocal)
	g.lookUp(ClosedMap)
	g.JumpImm64(asm.JEq, asm.R0, 0, none)
	g.Emit(
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.FnKtimeGetNs.Call(),
		asm.LoadMem(asm.R1, asm.R8, ClosedUntil, asm.DWord),
	)
	g.JumpReg(asm.JGT, asm.R0, asm.R1, none)
	g.Emit(asm.LoadMem(asm.R1, asm.R8, ClosedProcess, asm.Word))
	g.Jump(found)
}

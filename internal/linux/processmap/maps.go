//go:build linux

package processmap

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/opendivert/divert/internal/linux/kernel"
)

// Maps are the maps in which programs find the process of a packet.
type Maps struct {
	Sockets *ebpf.Map // by the cookie of a socket: its process, and the keys under which the other maps have it
	Flows   *ebpf.Map // by both ends: sockets that have a peer
	Ports   *ebpf.Map // by the local end: sockets that listen, or receive from everybody
	Names   *ebpf.Map // by the id of a process: its name when it last made, bound or connected a socket
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
	SocketFlags   int16 = 4 // 4 bytes, private to the programs that keep the maps
	SocketPort    int16 = 8 // the key in Ports; none if its port is 0
	SocketFlow          = SocketPort + PortKeySize

	SocketSize = int(SocketFlow) + FlowKeySize
)

// The value of Flows.
const (
	FlowProcess int16 = 0 // 4 bytes
	FlowCookie  int16 = 8 // of the socket, so that a program removes only the entries of its socket

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

// NameSize is the size of a name, zeros behind it: TASK_COMM_LEN (linux/sched.h).
const NameSize = 16

// How many entries the maps have room for. They take memory as it is used, 150 to 200 bytes an entry. Sockets that find
// no room have no known process.
const (
	MaxSockets = 1 << 17
	MaxFlows   = 1 << 17
	MaxPorts   = 1 << 16
	MaxClosed  = 1 << 12 // the oldest give way
	MaxNames   = 1 << 13 // the same
)

// Names of the maps of processes.
const (
	SocketsMap = "divert_process"
	FlowsMap   = "divert_peers"
	PortsMap   = "divert_ports"
	ClosedMap  = "divert_closed"
	NamesMap   = "divert_names"
)

// flagNoPrealloc is BPF_F_NO_PREALLOC.
const flagNoPrealloc = 1 << 0

// Specs returns the descriptions of the maps.
func Specs() []*ebpf.MapSpec {
	return []*ebpf.MapSpec{
		{Name: SocketsMap, Type: ebpf.Hash, KeySize: 8, ValueSize: uint32(SocketSize), MaxEntries: MaxSockets, Flags: flagNoPrealloc},
		{Name: FlowsMap, Type: ebpf.Hash, KeySize: FlowKeySize, ValueSize: FlowSize, MaxEntries: MaxFlows, Flags: flagNoPrealloc},
		{Name: PortsMap, Type: ebpf.Hash, KeySize: PortKeySize, ValueSize: PortSize, MaxEntries: MaxPorts, Flags: flagNoPrealloc},
		{Name: ClosedMap, Type: ebpf.LRUHash, KeySize: FlowKeySize, ValueSize: ClosedSize, MaxEntries: MaxClosed},
		{Name: NamesMap, Type: ebpf.LRUHash, KeySize: 4, ValueSize: NameSize, MaxEntries: MaxNames},
	}
}

// New makes the maps, empty (CAP_BPF or CAP_SYS_ADMIN).
func New() (*Maps, error) {
	kernel.LiftMemlock()
	maps := &Maps{}
	for _, spec := range Specs() {
		m, err := ebpf.NewMap(spec)
		if err != nil {
			maps.Close()
			return nil, fmt.Errorf("map %s: %w", spec.Name, err)
		}
		*maps.place(spec.Name) = m
	}
	return maps, nil
}

// place returns where a map stands, nil if there is none of the name.
func (ms *Maps) place(name string) **ebpf.Map {
	switch name {
	case SocketsMap:
		return &ms.Sockets
	case FlowsMap:
		return &ms.Flows
	case PortsMap:
		return &ms.Ports
	case ClosedMap:
		return &ms.Closed
	case NamesMap:
		return &ms.Names
	}
	return nil
}

// Named returns a map, nil if there is none of the name.
func (ms *Maps) Named(name string) *ebpf.Map {
	if ms == nil {
		return nil
	}
	if m := ms.place(name); m != nil {
		return *m
	}
	return nil
}

// All returns the maps by their names.
func (ms *Maps) All() map[string]*ebpf.Map {
	return map[string]*ebpf.Map{SocketsMap: ms.Sockets, FlowsMap: ms.Flows, PortsMap: ms.Ports, ClosedMap: ms.Closed, NamesMap: ms.Names}
}

// Close releases the maps. Programs that have them keep them.
func (ms *Maps) Close() error {
	var errs []error
	for _, m := range ms.All() {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

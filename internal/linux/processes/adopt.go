//go:build linux

package processes

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cgprog"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/processmap"
	"github.com/opendivert/divert/internal/linux/sockdiag"
)

// Sockets that are older than the programs are entered by user space, once: those that the kernel lists, and the others
// (unbound, echo and raw sockets) as their processes' descriptors describe them. While user space enters a socket it holds it
// open: if the socket were closed meanwhile, the programs would not know that there is an entry to remove.

// adoptOlder enters the sockets of the calling thread's namespace.
func (ps *Processes) adoptOlder() error {
	list, err := sockdiag.List()
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	a := adoption{ps: ps, holders: sockdiag.Holders(), files: processFiles{}, listeners: map[netip.AddrPort]uint32{}}
	defer a.files.close()
	for _, listening := range [...]bool{true, false} { // connections that were not accepted are their listener's
		for i := range list {
			if list[i].Listens() == listening {
				if err := a.listed(&list[i]); err != nil {
					return fmt.Errorf("enter a socket: %w", err)
				}
			}
		}
	}
	for _, h := range a.holders {
		if err := ps.adoptName(h); err != nil {
			return fmt.Errorf("enter the name of a process: %w", err)
		}
	}
	for i := range list {
		delete(a.holders, list[i].Inode)
	}
	for inode, h := range a.holders {
		if err := a.unlisted(inode, h); err != nil {
			return fmt.Errorf("enter a socket: %w", err)
		}
	}
	return nil
}

// adoptName enters the name of a process that has a socket, unless the programs have done so.
func (ps *Processes) adoptName(h sockdiag.Holder) error {
	var name [processmap.NameSize]byte
	copy(name[:len(name)-1], h.Name())
	err := ps.maps.Names.Update(h.Process, name[:], ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	}
	return err
}

// adoption is the work of adoptOlder.
type adoption struct {
	ps        *Processes
	holders   map[uint32]sockdiag.Holder
	files     processFiles
	listeners map[netip.AddrPort]uint32 // processes, by what they listen at
}

// listed enters a socket that the kernel has listed.
func (a *adoption) listed(s *sockdiag.Socket) error {
	h, ok := a.holders[s.Inode]
	if !ok {
		if s.Inode == 0 && s.Protocol == cgprog.ProtoTCP && !s.Listens() {
			return a.unaccepted(s)
		}
		return nil
	}
	switch fd, err := a.files.get(h, s.Inode); {
	case err == nil:
		defer unix.Close(fd)
	case !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS):
		return nil // closed meanwhile
	}
	if s.Listens() {
		a.listeners[s.Local] = h.Process
	}
	return a.ps.adopt(s, h.Process)
}

// unaccepted enters a connection that no process has, if it waits for the listener's process to accept it.
func (a *adoption) unaccepted(s *sockdiag.Socket) error {
	if s.State != sockdiag.StateEstablished && s.State != sockdiag.StateCloseWait {
		return nil
	}
	any4, any6 := netip.AddrFrom16(netip.IPv4Unspecified().As16()), netip.IPv6Unspecified()
	for _, addr := range [...]netip.Addr{s.Local.Addr(), any4, any6} {
		if process, ok := a.listeners[netip.AddrPortFrom(addr, s.Local.Port())]; ok {
			return a.ps.adopt(s, process)
		}
	}
	return nil
}

// unlisted enters a socket that the kernel has not listed, if it is one of IP and of the namespace.
func (a *adoption) unlisted(inode uint32, h sockdiag.Holder) error {
	fd, err := a.files.get(h, inode)
	if err != nil {
		return nil // closed meanwhile, or not ours to look at
	}
	defer unix.Close(fd)
	space, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil || space != a.ps.space {
		return nil
	}
	if s, ok := sockdiag.Describe(fd); ok {
		return a.ps.adopt(&s, h.Process)
	}
	return nil
}

// processFiles are processes whose descriptors are looked at, by id.
type processFiles map[uint32]int

// get returns a descriptor of a socket that a process has. It fails with ESTALE if the process has another file there
// by now.
func (f processFiles) get(h sockdiag.Holder, inode uint32) (fd int, err error) {
	process, ok := f[h.Process]
	if !ok {
		if process, err = unix.PidfdOpen(int(h.Process), 0); err != nil {
			return -1, err
		}
		f[h.Process] = process
	}
	if fd, err = unix.PidfdGetfd(process, h.FD, 0); err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || uint32(st.Ino) != inode {
		unix.Close(fd)
		return -1, unix.ESTALE
	}
	return fd, nil
}

func (f processFiles) close() {
	for _, fd := range f {
		unix.Close(fd)
	}
}

// adopt enters a socket and its process. When the maps are full, the rest stays without a known process.
func (ps *Processes) adopt(s *sockdiag.Socket, process uint32) error {
	entry := socketEntry(s, process)
	err := ps.maps.Sockets.Update(s.Cookie, entry[:], ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return ps.complete(s.Cookie, process)
	}
	if err == nil {
		err = ps.enterFlow(entry[processmap.SocketFlow:], s.Cookie, process)
	}
	if err == nil {
		err = ps.enterPort(entry[processmap.SocketPort:][:processmap.PortKeySize], s.Cookie, process)
	}
	if errors.Is(err, unix.E2BIG) {
		return nil
	}
	return err
}

// socketEntry returns the value of a socket in processmap.SocketsMap.
func socketEntry(s *sockdiag.Socket, process uint32) (entry [processmap.SocketSize]byte) {
	ne := binary.NativeEndian
	ne.PutUint32(entry[processmap.SocketProcess:], process)
	ne.PutUint32(entry[processmap.SocketFlags:], socketUser)
	key := entry[processmap.SocketPort:]
	receives := s.Listens() || s.Protocol == cgprog.ProtoUDP || s.Protocol == cgprog.ProtoICMP || s.Protocol == cgprog.ProtoICMPv6
	switch {
	case (s.Protocol == cgprog.ProtoTCP || s.Protocol == cgprog.ProtoUDP) && s.Remote.Port() != 0:
		key = entry[processmap.SocketFlow:]
		codegen.PutAddr(key[processmap.KeyRemote:], s.Remote.Addr())
		ne.PutUint32(key[processmap.KeyRemotePort:], uint32(s.Remote.Port()))
	case !receives || s.Local.Port() == 0:
		return entry
	}
	codegen.PutAddr(key[processmap.KeyLocal:], s.Local.Addr())
	ne.PutUint32(key[processmap.KeyLocalPort:], uint32(s.Local.Port()))
	ne.PutUint32(key[processmap.KeyProtocol:], uint32(s.Protocol))
	return entry
}

// hasPort reports whether a key has a port: without one it is not in use.
func hasPort(key []byte) bool { return binary.NativeEndian.Uint32(key[processmap.KeyLocalPort:]) != 0 }

// enterFlow enters a socket under the key of its flow, if that is one.
func (ps *Processes) enterFlow(key []byte, cookie uint64, process uint32) error {
	if !hasPort(key) {
		return nil
	}
	var value [processmap.FlowSize]byte
	binary.NativeEndian.PutUint32(value[processmap.FlowProcess:], process)
	binary.NativeEndian.PutUint64(value[processmap.FlowCookie:], cookie)
	err := ps.maps.Flows.Update(key, value[:], ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil // a newer socket has it
	}
	return err
}

// enterPort enters a socket under the key of its port, if that is one. A socket that the programs enter under the same key at
// the same moment may be lost.
func (ps *Processes) enterPort(key []byte, cookie uint64, process uint32) error {
	if !hasPort(key) {
		return nil
	}
	var value [processmap.PortSize]byte
	put := func(at int) {
		binary.NativeEndian.PutUint64(value[at+int(processmap.HolderCookie):], cookie)
		binary.NativeEndian.PutUint32(value[at+int(processmap.HolderProcess):], process)
	}
	put(0)
	err := ps.maps.Ports.Update(key, value[:], ebpf.UpdateNoExist)
	if !errors.Is(err, ebpf.ErrKeyExist) {
		return err
	}
	if err := ps.maps.Ports.Lookup(key, &value); err != nil {
		return nil // and has just gone again
	}
	for at := 0; at < len(value); at += processmap.HolderSize {
		if binary.NativeEndian.Uint64(value[at+int(processmap.HolderCookie):]) == 0 {
			put(at)
			return ps.maps.Ports.Update(key, value[:], ebpf.UpdateAny)
		}
	}
	return nil
}

// complete gives a process to a socket that the programs know without one: a connection that came in before its
// listener was entered.
func (ps *Processes) complete(cookie uint64, process uint32) error {
	var entry [processmap.SocketSize]byte
	ne := binary.NativeEndian
	if ps.maps.Sockets.Lookup(cookie, &entry) != nil || ne.Uint32(entry[processmap.SocketProcess:]) != 0 {
		return nil
	}
	ne.PutUint32(entry[processmap.SocketProcess:], process)
	err := ps.maps.Sockets.Update(cookie, entry[:], ebpf.UpdateExist)
	if key := entry[processmap.SocketFlow:]; err == nil && hasPort(key) {
		var value [processmap.FlowSize]byte
		ne.PutUint32(value[processmap.FlowProcess:], process)
		ne.PutUint64(value[processmap.FlowCookie:], cookie)
		err = ps.maps.Flows.Update(key, value[:], ebpf.UpdateExist)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // closed meanwhile
	}
	return err
}

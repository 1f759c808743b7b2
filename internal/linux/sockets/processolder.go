//go:build linux

package sockets

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/codegen"
)

// Sockets that are older than the programs are entered by user space, once: those that the kernel lists, and, of the
// others (unbound ones, echo and raw sockets), what their processes' descriptors tell. While a socket is entered it
// is held open here, so that it cannot be closed behind the back of the programs, which would then not
// know that there is something to take away.

// adoptOlder enters the sockets of the calling thread's namespace.
func (ps *Processes) adoptOlder() error {
	list, err := listAll()
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	a := adoption{ps: ps, holders: socketHolders(), files: processFiles{}, listeners: map[netip.AddrPort]uint32{}}
	defer a.files.close()
	for _, listening := range [...]bool{true, false} { // connections that were not accepted are their listener's
		for i := range list {
			if list[i].listens() == listening {
				if err := a.listed(&list[i]); err != nil {
					return fmt.Errorf("enter a socket: %w", err)
				}
			}
		}
	}
	for i := range list {
		delete(a.holders, list[i].inode)
	}
	for inode, h := range a.holders {
		if err := a.unlisted(inode, h); err != nil {
			return fmt.Errorf("enter a socket: %w", err)
		}
	}
	return nil
}

// listAll lists the sockets of the calling thread's namespace.
func listAll() (list []listed, err error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for _, kind := range olderKinds {
		messages, err := dumpSockets(conn, kind.family, kind.protocol)
		if unlisted(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, m := range messages {
			if s, ok := parseListed(m.Data, kind.protocol); ok {
				list = append(list, s)
			}
		}
	}
	return list, nil
}

// listens reports whether the socket is a listener.
func (s *listed) listens() bool { return s.protocol == protoTCP && s.state == stateListen }

// adoption is the work of adoptOlder.
type adoption struct {
	ps        *Processes
	holders   map[uint32]holder
	files     processFiles
	listeners map[netip.AddrPort]uint32 // processes, by what they listen at
}

// listed enters a socket that the kernel has listed.
func (a *adoption) listed(s *listed) error {
	h, ok := a.holders[s.inode]
	if !ok {
		if s.inode == 0 && s.protocol == protoTCP && !s.listens() {
			return a.unaccepted(s)
		}
		return nil
	}
	switch fd, err := a.files.get(h, s.inode); {
	case err == nil:
		defer unix.Close(fd)
	case !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS):
		return nil // closed meanwhile
	}
	if s.listens() {
		a.listeners[s.local] = h.process
	}
	return a.ps.adopt(s, h.process)
}

// States of TCP (net/tcp_states.h).
const (
	stateEstablished = 1
	stateCloseWait   = 8
)

// unaccepted enters a connection of no process, if it waits for the listener's to accept it.
func (a *adoption) unaccepted(s *listed) error {
	if s.state != stateEstablished && s.state != stateCloseWait {
		return nil
	}
	any4, any6 := netip.AddrFrom16(netip.IPv4Unspecified().As16()), netip.IPv6Unspecified()
	for _, addr := range [...]netip.Addr{s.local.Addr(), any4, any6} {
		if process, ok := a.listeners[netip.AddrPortFrom(addr, s.local.Port())]; ok {
			return a.ps.adopt(s, process)
		}
	}
	return nil
}

// unlisted enters a socket that the kernel has not listed, if it is one of IP and of the namespace.
func (a *adoption) unlisted(inode uint32, h holder) error {
	fd, err := a.files.get(h, inode)
	if err != nil {
		return nil // closed meanwhile, or not ours to look at
	}
	defer unix.Close(fd)
	space, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil || space != a.ps.space {
		return nil
	}
	if s, ok := describe(fd); ok {
		return a.ps.adopt(&s, h.process)
	}
	return nil
}

// describe returns what the kernel would list of a socket of IP. A raw socket is given no port.
func describe(fd int) (s listed, ok bool) {
	option := func(name int) int {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, name)
		if err != nil {
			return -1
		}
		return v
	}
	family, kind, protocol := option(unix.SO_DOMAIN), option(unix.SO_TYPE), option(unix.SO_PROTOCOL)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil || family != unix.AF_INET && family != unix.AF_INET6 || protocol < 0 || protocol > 255 {
		return s, false // MPTCP is above: its connections are sockets of their own
	}
	s = listed{family: uint8(family), protocol: uint8(protocol), cookie: cookie}
	if name, err := unix.Getsockname(fd); err == nil && kind == unix.SOCK_DGRAM {
		s.local = endOf(name)
	}
	return s, true
}

// endOf returns an address with its port, IPv4 mapped.
func endOf(name unix.Sockaddr) netip.AddrPort {
	switch n := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom16(netip.AddrFrom4(n.Addr).As16()), uint16(n.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(n.Addr), uint16(n.Port))
	}
	return netip.AddrPort{}
}

// processFiles are processes whose descriptors are looked at, by id.
type processFiles map[uint32]int

// get returns a descriptor of a socket that a process has. It fails with ESTALE if the process has another file there
// by now.
func (f processFiles) get(h holder, inode uint32) (fd int, err error) {
	process, ok := f[h.process]
	if !ok {
		if process, err = unix.PidfdOpen(int(h.process), 0); err != nil {
			return -1, err
		}
		f[h.process] = process
	}
	if fd, err = unix.PidfdGetfd(process, h.fd, 0); err != nil {
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

// adopt enters a socket and its process. Past the size of the maps there is no room, and the rest stays without.
func (ps *Processes) adopt(s *listed, process uint32) error {
	entry := socketEntry(s, process)
	err := ps.maps.Sockets.Update(s.cookie, entry[:], ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return ps.complete(s.cookie, process)
	}
	if err == nil {
		err = ps.enterFlow(entry[codegen.SocketFlow:], s.cookie, process)
	}
	if err == nil {
		err = ps.enterPort(entry[codegen.SocketPort:][:codegen.PortKeySize], s.cookie, process)
	}
	if errors.Is(err, unix.E2BIG) {
		return nil
	}
	return err
}

// socketEntry returns the value of a socket in codegen.SocketsMap.
func socketEntry(s *listed, process uint32) (entry [codegen.SocketSize]byte) {
	ne := binary.NativeEndian
	ne.PutUint32(entry[codegen.SocketProcess:], process)
	ne.PutUint32(entry[codegen.SocketFlags:], socketUser)
	key := entry[codegen.SocketPort:]
	receives := s.listens() || s.protocol == protoUDP || s.protocol == protoICMP || s.protocol == protoICMPv6
	switch {
	case (s.protocol == protoTCP || s.protocol == protoUDP) && s.remote.Port() != 0:
		key = entry[codegen.SocketFlow:]
		putAddr(key[codegen.KeyRemote:], s.remote.Addr())
		ne.PutUint32(key[codegen.KeyRemotePort:], uint32(s.remote.Port()))
	case !receives || s.local.Port() == 0:
		return entry
	}
	putAddr(key[codegen.KeyLocal:], s.local.Addr())
	ne.PutUint32(key[codegen.KeyLocalPort:], uint32(s.local.Port()))
	ne.PutUint32(key[codegen.KeyProtocol:], uint32(s.protocol))
	return entry
}

// hasPort reports whether a key is that of anything.
func hasPort(key []byte) bool { return binary.NativeEndian.Uint32(key[codegen.KeyLocalPort:]) != 0 }

// enterFlow enters a socket under the key of its flow, if that is one.
func (ps *Processes) enterFlow(key []byte, cookie uint64, process uint32) error {
	if !hasPort(key) {
		return nil
	}
	var value [codegen.FlowSize]byte
	binary.NativeEndian.PutUint32(value[codegen.FlowProcess:], process)
	binary.NativeEndian.PutUint64(value[codegen.FlowCookie:], cookie)
	err := ps.maps.Flows.Update(key, value[:], ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil // a newer socket has it
	}
	return err
}

// enterPort enters a socket under the key of its port, if that is one. A socket that the programs enter under the
// same key in the very moment in which this one joins others there may be lost.
func (ps *Processes) enterPort(key []byte, cookie uint64, process uint32) error {
	if !hasPort(key) {
		return nil
	}
	var value [codegen.PortSize]byte
	put := func(at int) {
		binary.NativeEndian.PutUint64(value[at+int(codegen.HolderCookie):], cookie)
		binary.NativeEndian.PutUint32(value[at+int(codegen.HolderProcess):], process)
	}
	put(0)
	err := ps.maps.Ports.Update(key, value[:], ebpf.UpdateNoExist)
	if !errors.Is(err, ebpf.ErrKeyExist) {
		return err
	}
	if err := ps.maps.Ports.Lookup(key, &value); err != nil {
		return nil // and has just gone again
	}
	for at := 0; at < len(value); at += codegen.HolderSize {
		if binary.NativeEndian.Uint64(value[at+int(codegen.HolderCookie):]) == 0 {
			put(at)
			return ps.maps.Ports.Update(key, value[:], ebpf.UpdateAny)
		}
	}
	return nil
}

// complete gives a process to a socket that the programs know without one: a connection that came in before its
// listener was entered.
func (ps *Processes) complete(cookie uint64, process uint32) error {
	var entry [codegen.SocketSize]byte
	ne := binary.NativeEndian
	if ps.maps.Sockets.Lookup(cookie, &entry) != nil || ne.Uint32(entry[codegen.SocketProcess:]) != 0 {
		return nil
	}
	ne.PutUint32(entry[codegen.SocketProcess:], process)
	err := ps.maps.Sockets.Update(cookie, entry[:], ebpf.UpdateExist)
	if key := entry[codegen.SocketFlow:]; err == nil && hasPort(key) {
		var value [codegen.FlowSize]byte
		ne.PutUint32(value[codegen.FlowProcess:], process)
		ne.PutUint64(value[codegen.FlowCookie:], cookie)
		err = ps.maps.Flows.Update(key, value[:], ebpf.UpdateExist)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // closed meanwhile
	}
	return err
}

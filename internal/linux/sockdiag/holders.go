//go:build linux

package sockdiag

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Holder is a process that has a socket open.
type Holder struct {
	Process uint32
	FD      int // its descriptor of the socket
}

// Name returns the name of the process, "" if it has just ended.
func (h Holder) Name() string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", h.Process))
	return strings.TrimSuffix(string(text), "\n")
}

// Holders returns, by the inodes of sockets, the processes of the calling thread's network namespace that have them open, and
// the calling process. If several have a socket open, it is the one with the lowest id.
func Holders() map[uint32]Holder {
	holders := map[uint32]Holder{}
	here, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return holders
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		pid, err := strconv.ParseUint(filepath.Base(dir), 10, 32)
		if err != nil {
			continue
		}
		if ns, err := os.Readlink(dir + "/ns/net"); err != nil || ns != here && uint64(os.Getpid()) != pid {
			continue // of another namespace, gone, or not ours to look at
		}
		for inode, fd := range socketInodes(dir + "/fd") {
			if h, has := holders[inode]; !has || uint32(pid) < h.Process {
				holders[inode] = Holder{uint32(pid), fd}
			}
		}
	}
	return holders
}

// socketInodes returns the inodes of the sockets in a directory of descriptors, with a descriptor of each.
func socketInodes(dir string) map[uint32]int {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	inodes := map[uint32]int{}
	names, _ := f.Readdirnames(-1)
	for _, name := range names {
		target, err := os.Readlink(dir + "/" + name)
		if err != nil {
			continue
		}
		number, isSocket := strings.CutPrefix(target, "socket:[")
		inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32)
		if !isSocket || err != nil {
			continue
		}
		if fd, err := strconv.Atoi(name); err == nil {
			inodes[uint32(inode)] = fd
		}
	}
	return inodes
}

// Describe returns the kernel's description of an IP socket, by the caller's descriptor. A raw socket is given no port.
func Describe(fd int) (s Socket, ok bool) {
	option := func(name int) int {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, name)
		if err != nil {
			return -1
		}
		return v
	}
	family, kind, protocol := option(unix.SO_DOMAIN), option(unix.SO_TYPE), option(unix.SO_PROTOCOL)
	cookie, err := Cookie(fd)
	if err != nil || family != unix.AF_INET && family != unix.AF_INET6 || protocol < 0 || protocol > 255 {
		return s, false // MPTCP is above: its connections are sockets of their own
	}
	s = Socket{Family: uint8(family), Protocol: uint8(protocol), Cookie: cookie}
	if name, err := unix.Getsockname(fd); err == nil && kind == unix.SOCK_DGRAM {
		s.Local = endOf(name)
	}
	return s, true
}

// Cookie returns the number by which programs and the kernel's lists know a socket (SO_COOKIE).
func Cookie(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return cookie, os.NewSyscallError("getsockopt SO_COOKIE", err)
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

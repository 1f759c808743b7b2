//go:build linux

package inject

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// events tells which interfaces and addresses of a namespace have changed since it was last asked,
// without waiting: one system call when nothing has. A goroutine that listens would be late.
type events struct{ fd int }

// The groups listened to: interfaces, IPv4 addresses, IPv6 addresses.
const eventGroups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR

// openEvents listens in the calling thread's namespace.
func openEvents() (events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return events{-1}, fmt.Errorf("inject: rtnetlink: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: eventGroups}); err != nil {
		unix.Close(fd)
		return events{-1}, fmt.Errorf("inject: rtnetlink: %w", err)
	}
	return events{fd}, nil
}

// pending tells whether there is anything to drain, without an allocation. lost says that events were
// lost: asking has cleared that state of the socket.
func (e events) pending() (any, lost bool) {
	_, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(e.fd), 0, 0, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return errno != unix.EAGAIN && errno != unix.EINTR, errno == unix.ENOBUFS
}

// drain reads the pending messages. It calls link with the index of each changed interface, 0 for all if
// events were lost, and addr if an address has changed.
func (e events) drain(link func(index uint32), addr func()) error {
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(e.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case err == nil:
			parseEvents(buf[:n], link, addr)
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOBUFS):
			link(0)
			addr()
		default:
			return fmt.Errorf("inject: rtnetlink: %w", err)
		}
	}
}

// parseEvents reads a datagram of rtnetlink messages (rtnetlink(7)): struct nlmsghdr, then struct ifinfomsg,
// whose interface index stands at byte 4, or struct ifaddrmsg.
func parseEvents(b []byte, link func(index uint32), addr func()) {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return
		}
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if n >= unix.NLMSG_HDRLEN+unix.SizeofIfInfomsg {
				link(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN+4:]))
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			addr()
		}
		b = b[min((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
	}
}

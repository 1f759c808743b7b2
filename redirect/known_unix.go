//go:build unix

package redirect

import (
	"context"
	"net"
	"strings"
	"sync"
	"syscall"
)

// dialKnown connects from a port that it marks as the program's as soon as the socket has it. It returns the marks that
// it made, also if it fails. It calls the function control too, as net.Dialer does with Control.
func (l *Listener) dialKnown(ctx context.Context, network, address string, control func(string, string, syscall.RawConn) error) (c net.Conn, known []dialKey, err error) {
	var mu sync.Mutex // the dialer dials both families of a name at once
	d := net.Dialer{Control: func(socket, at string, raw syscall.RawConn) (err error) {
		if err := control(socket, at, raw); err != nil {
			return err
		}
		k := dialKey{network: network, six: strings.HasSuffix(socket, "6")}
		if e := raw.Control(func(fd uintptr) { k.port, err = bindAny(int(fd), k.six) }); e != nil {
			return e
		}
		if err == nil {
			mu.Lock()
			defer mu.Unlock()
			l.dials.add(k)
			known = append(known, k)
		}
		return err
	}}
	c, err = l.options.Connect(ctx, &d, network, address)
	mu.Lock()
	defer mu.Unlock()
	return c, known, err
}

// bindAny binds a socket to a port that the kernel chooses.
func bindAny(fd int, ipv6 bool) (uint16, error) {
	var a syscall.Sockaddr = &syscall.SockaddrInet4{}
	if ipv6 {
		a = &syscall.SockaddrInet6{}
	}
	if err := syscall.Bind(fd, a); err != nil {
		return 0, err
	}
	a, err := syscall.Getsockname(fd)
	switch a := a.(type) {
	case *syscall.SockaddrInet4:
		return uint16(a.Port), err
	case *syscall.SockaddrInet6:
		return uint16(a.Port), err
	}
	return 0, err
}

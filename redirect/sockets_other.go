//go:build !linux

package redirect

import (
	"context"
	"errors"
	"net"
	"syscall"
)

// sockets is the road of sockets, which only Linux has.
type sockets struct{}

func (l *Listener) openSockets(context.Context, string) (*sockets, error, error) {
	err := errors.New("this is not Linux")
	return nil, err, err
}

func (*sockets) carries() (tcp bool, ports []uint16)                                  { return false, nil }
func (*sockets) own(*uint64) func(network, address string, raw syscall.RawConn) error { return nil }
func (*sockets) forget(uint64)                                                        {}
func (*sockets) spare(uint32) error                                                   { return nil }
func (*sockets) unspare(uint32)                                                       {}
func (*sockets) start()                                                               {}
func (*sockets) detach() error                                                        { return nil }
func (*sockets) closeListeners()                                                      {}
func (*sockets) close() error                                                         { return nil }
func (*sockets) counts() (spared, full uint64)                                        { return 0, 0 }
func (*sockets) addr() net.Addr                                                       { return nil }

//go:build linux

package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/packet"
)

// Finder finds sockets of the network namespace it was made in, by their two ends. Its methods may be called from several goroutines.
type Finder struct {
	mu   sync.Mutex
	conn *netlink.Conn
}

// NewFinder returns a finder for the namespace of the calling thread.
func NewFinder() (*Finder, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	return &Finder{conn: conn}, nil
}

// Close ends the finder.
func (f *Finder) Close() error { return f.conn.Close() }

// sockByFamily is SOCK_DIAG_BY_FAMILY (linux/sock_diag.h); anyCookie is INET_DIAG_NOCOOKIE (linux/inet_diag.h).
const (
	sockByFamily = 20
	anyCookie    = ^uint64(0)
)

// TCP returns the socket of TCP that is connected from one address to another, in whatever state. It reports false if there is none.
func (f *Finder) TCP(local, remote netip.AddrPort) (s Socket, ok bool, err error) {
	request := requestFor(&packet.FlowData{
		EndpointID: anyCookie, Protocol: protoTCP,
		LocalAddr: local.Addr(), LocalPort: local.Port(), RemoteAddr: remote.Addr(), RemotePort: remote.Port(),
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	messages, err := execute(f.conn, netlink.Message{
		Header: netlink.Header{Type: sockByFamily, Flags: netlink.Request},
		Data:   request[:],
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return s, false, nil
	case err != nil:
		return s, false, fmt.Errorf("find a socket: %w", err)
	case len(messages) == 0:
		return s, false, nil
	}
	s, ok = parse(messages[0].Data, protoTCP)
	return s, ok && s.Remote.Port() == remote.Port(), nil // else it is a listener
}

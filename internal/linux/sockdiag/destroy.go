//go:build linux

package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/packet"
)

// Destroyer ends sockets of the network namespace it was made in, as `ss --kill` does. It belongs to one
// goroutine.
type Destroyer struct{ conn *netlink.Conn }

// NewDestroyer returns a destroyer for the namespace of the calling thread.
func NewDestroyer() (*Destroyer, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	return &Destroyer{conn}, nil
}

// Close ends the destroyer.
func (d *Destroyer) Close() error { return d.conn.Close() }

// sockDestroy is SOCK_DESTROY (linux/sock_diag.h).
const sockDestroy = 21

// Destroy aborts a TCP socket: its owner's calls fail with ECONNABORTED, accept with EINVAL. A
// socket that is gone already is no error.
func (d *Destroyer) Destroy(f *packet.FlowData) error {
	request := requestFor(f)
	_, err := execute(d.conn, netlink.Message{
		Header: netlink.Header{Type: sockDestroy, Flags: netlink.Request | netlink.Acknowledge},
		Data:   request[:],
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// requestSize is the size of struct inet_diag_req_v2 (linux/inet_diag.h).
const requestSize = 56

// requestFor makes a request that names a socket.
func requestFor(f *packet.FlowData) (b [requestSize]byte) {
	local, remote := f.LocalAddr, f.RemoteAddr
	b[0] = unix.AF_INET
	if !local.Is4In6() && local.Is6() {
		b[0] = unix.AF_INET6
	}
	b[1] = f.Protocol
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // any state
	binary.BigEndian.PutUint16(b[8:], f.LocalPort)
	binary.BigEndian.PutUint16(b[10:], f.RemotePort)
	writeAddr(b[12:28], local, b[0])
	writeAddr(b[28:44], remote, b[0])
	binary.NativeEndian.PutUint32(b[48:], uint32(f.EndpointID))
	binary.NativeEndian.PutUint32(b[52:], uint32(f.EndpointID>>32))
	return b
}

// writeAddr writes an address in network byte order.
func writeAddr(b []byte, a netip.Addr, family byte) {
	if family == unix.AF_INET6 {
		ip := a.As16()
		copy(b, ip[:])
		return
	}
	if a = a.Unmap(); a.Is4() {
		ip := a.As4()
		copy(b, ip[:])
	}
}

//go:build linux

package sockets

import (
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/packet"
)

// Live are the sockets of TCP and UDP that there are.
type Live struct {
	endpoints map[uint64]struct{} // their cookies
	protocols map[uint8]bool      // which the kernel lists
}

// ListLive lists the sockets of the calling thread's namespace.
func ListLive() (*Live, error) {
	conn, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	defer conn.Close()
	l := &Live{endpoints: map[uint64]struct{}{}, protocols: map[uint8]bool{}}
	for _, kind := range olderKinds {
		messages, err := dumpSockets(conn, kind.family, kind.protocol)
		if unlisted(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list sockets: %w", err)
		}
		l.protocols[kind.protocol] = true
		for _, m := range messages {
			if s, ok := parseListed(m.Data, kind.protocol); ok {
				l.endpoints[s.cookie] = struct{}{}
			}
		}
	}
	return l, nil
}

// Gone reports whether the socket of a flow is not there any more. Of protocols that the kernel does not list nobody can tell.
func (l *Live) Gone(f *packet.FlowData) bool {
	_, there := l.endpoints[f.EndpointID]
	return !there && l.protocols[f.Protocol]
}

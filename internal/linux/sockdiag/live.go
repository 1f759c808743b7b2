//go:build linux

package sockdiag

import "github.com/opendivert/divert/packet"

// Live has the existing sockets of TCP and UDP.
type Live struct {
	endpoints map[uint64]struct{} // their cookies
	protocols map[uint8]bool      // which the kernel lists
}

// ListLive lists the sockets of the calling thread's namespace.
func ListLive() (*Live, error) {
	sockets, protocols, err := list()
	if err != nil {
		return nil, err
	}
	l := &Live{endpoints: make(map[uint64]struct{}, len(sockets)), protocols: protocols}
	for i := range sockets {
		l.endpoints[sockets[i].Cookie] = struct{}{}
	}
	return l, nil
}

// Gone reports whether the socket of a flow is gone. It returns false for protocols that the kernel does not list.
func (l *Live) Gone(f *packet.FlowData) bool {
	_, there := l.endpoints[f.EndpointID]
	return !there && l.protocols[f.Protocol]
}

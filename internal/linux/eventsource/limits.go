//go:build linux

package eventsource

import (
	"fmt"
	"strings"

	"github.com/opendivert/divert/internal/linux/cgroup"
	"github.com/opendivert/divert/internal/linux/eventprog"
	"github.com/opendivert/divert/packet"
)

// Limits names the things that the programs cannot see or do on this kernel, for people.
func (s *Source) Limits() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	layer := s.cfg.Filter.Layer()
	var not []string
	if layer == packet.LayerSocket {
		not = append(not,
			"no BIND for ports that the kernel chooses at connect or send",
			"what a UDP socket answers counts as CONNECT unless the filter can match ACCEPT too",
			"local address and port of a UDP CONNECT are 0 unless the socket was bound",
			"raw and packet sockets are not seen")
		if limit := s.listenLimit(); limit != "" {
			not = append(not, limit)
		}
	} else {
		not = append(not, "no flows of the kernel itself and of packet sockets")
	}
	if s.unordered {
		not = append(not, fmt.Sprintf("comes after handles of lower priority that were opened before (Linux %v)", cgroup.Order.Since))
	}
	return strings.Join(not, "; ")
}

// listenLimit says how LISTEN is refused, "" if it is not.
func (s *Source) listenLimit() string {
	if refuses, err := eventprog.RefusesListen(&s.cfg); !refuses || err != nil {
		return ""
	}
	if s.listen != nil {
		return "a refused LISTEN fails (fmod_ret); of a socket without a port that the filter asks for it succeeds, and the socket is destroyed at once"
	}
	return "a refused LISTEN succeeds and the socket is destroyed at once"
}

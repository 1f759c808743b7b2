//go:build linux

package sockets

import (
	"strings"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// Limits says what the programs cannot see or do on this kernel, for people.
func (s *Source) Limits() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	layer, flags := s.cfg.Filter.Layer(), s.cfg.Flags
	var not []string
	if layer == packet.LayerSocket {
		not = append(not,
			"no BIND for ports that the kernel chooses at connect or send",
			"what a UDP socket answers counts as CONNECT unless the filter can match ACCEPT too",
			"local address and port of a UDP CONNECT are 0 unless the socket was bound",
			"raw and packet sockets are not seen")
		if flags&engine.FlagSniff == 0 {
			not = append(not, "a refused LISTEN succeeds and the socket is destroyed at once")
		}
	} else {
		not = append(not, "no flows of the kernel itself and of packet sockets")
	}
	if s.unordered {
		not = append(not, "comes after handles of lower priority that were opened before (Linux 6.17)")
	}
	return strings.Join(not, "; ")
}

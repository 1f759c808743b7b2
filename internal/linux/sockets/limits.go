//go:build linux

package sockets

import (
	"strings"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// Limits says what the programs cannot see or do on this kernel, for people.
func Limits(layer packet.Layer, flags uint64) string {
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
	return strings.Join(not, "; ")
}

//go:build linux

package eventmap

import "github.com/opendivert/divert/internal/linux/codegen"

// Bits of a record's flags (codegen.EventFlags). Those of the socket stay in its storage.
const (
	FlagUser    = 1 << iota // the socket was made by a process, and ends with sock_release
	FlagPassive             // the socket is a child of a listener
	FlagClosed              // CLOSE was reported
	FlagBlocked             // packets of the socket are dropped
	FlagTracked             // user space knows flows of the socket
	FlagRefused = 1 << (10 + iota)
	FlagDestroy // user space is to destroy the socket
	FlagMatched // FLOW: the filter matches ESTABLISHED
	FlagEnd     // FLOW: the flows of the socket are over; the record has no more than the endpoint
	FlagInbound // FLOW: the other side began
)

// The storage of a socket: the record of its last event from the endpoint on, and the last peer.
const (
	BodySize   = codegen.EventSize - codegen.EventEndpoint
	StoredPeer = BodySize       // 8 bytes: see eventprog
	StoredSize = StoredPeer + 8 // of the storage
)

// Body returns the offset of a field of the record within the storage of a socket.
func Body(field int16) int16 { return field - codegen.EventEndpoint }

// Sizes of keys and values.
const (
	PeerKeySize     = 32 // endpoint, remote address, remote port (8 bytes)
	FlowKeySize     = 48 // endpoint, both addresses, both ports (2 bytes each), protocol (4 bytes)
	FlowValueSize   = 8  // the time of the last packet
	ListenerKeySize = 24 // address, port (8 bytes)
)

// Counters, by their place in the value of CountersMap.
const (
	CounterLost    = 0 // records for which the ring had no room
	CounterDropped = 8 // operations refused without a record
	countersSize   = 16
)

//go:build linux

package codegen

import (
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/packet"
)

// Family says which packets reach a hook.
type Family uint8

// The families of packets.
const (
	AnyFamily Family = iota
	IPv4             // the program matches no IPv6 packet
	IPv6             // the program matches no IPv4 packet
)

// Direction says which way the packets of a hook go.
type Direction uint8

// The directions. A filter that asks for the direction needs a hook that knows it.
const (
	AnyDirection Direction = iota
	Inbound
	Outbound
)

// LoopbackSource says how a program learns whether a packet is a loopback packet.
type LoopbackSource uint8

// The sources of the field loopback.
const (
	NeverLoopback       LoopbackSource = iota // the field is 0
	AlwaysLoopback                            // the field is 1
	LoopbackByInterface                       // 1 if skb->ifindex is 1, the index of lo in every namespace
)

// IndexSource says where a program finds the interface index.
type IndexSource uint8

// The sources of the field ifIdx.
const (
	IndexConstant IndexSource = iota // Hook.IfIdx
	IndexDevice                      // skb->ifindex: the incoming interface at PRE_ROUTING and FORWARD, else the outgoing one
	IndexIngress                     // skb->ingress_ifindex: the incoming interface of a forwarded packet
)

// ClockSource says where a program finds the timestamp of a packet.
type ClockSource uint8

// The sources of the field timestamp.
const (
	ClockMonotonic ClockSource = iota // bpf_ktime_get_ns when the program starts: CLOCK_MONOTONIC
	ClockConstant                     // Hook.Timestamp
)

// CursorCheck makes a program skip packets that carry the cursor of its own handle or of one
// further down, see package cursor.
type CursorCheck struct {
	Enabled bool
	Key     cursor.Key // the handle's own key
}

// Hook describes the place where a program runs: the facts about every packet there, and where
// the rest is found.
type Hook struct {
	Family    Family
	Direction Direction
	Loopback  LoopbackSource
	Impostor  bool
	Event     packet.Event
	Index     IndexSource
	IfIdx     uint32 // for IndexConstant
	SubIfIdx  uint32
	Clock     ClockSource
	Timestamp int64 // for ClockConstant
	Cursor    CursorCheck
	Processes bool // there are maps of processes, see Processes
}

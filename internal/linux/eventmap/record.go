//go:build linux

package eventmap

import (
	"encoding/binary"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/packet"
)

// Record is a program's record of an event.
type Record struct {
	Time     int64 // CLOCK_MONOTONIC in nanoseconds
	Event    packet.Event
	Data     packet.FlowData
	Name     [codegen.NameSize]byte // of the process, zeros behind it; all zeros: not known
	IPv6     bool
	Loopback bool
	Inbound  bool
	Refused  bool // the operation was refused
	Destroy  bool // the socket is to be destroyed, see Destroy
	Matched  bool // FLOW: the filter matches ESTABLISHED
	End      bool // FLOW: the flows of the endpoint are over; there is no other data
}

// Parse reads a record and reports whether it is one.
func (r *Record) Parse(b []byte) bool {
	if len(b) < codegen.EventSize {
		return false
	}
	ne := binary.NativeEndian
	flags := ne.Uint32(b[codegen.EventFlags:])
	*r = Record{
		Time:     int64(ne.Uint64(b[codegen.EventTime:])),
		Event:    packet.Event(b[codegen.EventKind]),
		Name:     [codegen.NameSize]byte(b[codegen.EventName:]),
		IPv6:     b[codegen.EventIPv6] != 0,
		Loopback: b[codegen.EventLoopback] != 0,
		Refused:  flags&FlagRefused != 0,
		Destroy:  flags&FlagDestroy != 0,
		Matched:  flags&FlagMatched != 0,
		End:      flags&FlagEnd != 0,
		Inbound:  flags&FlagInbound != 0,
		Data: packet.FlowData{
			EndpointID:       ne.Uint64(b[codegen.EventEndpoint:]),
			ParentEndpointID: ne.Uint64(b[codegen.EventParent:]),
			ProcessID:        ne.Uint32(b[codegen.EventProcess:]),
			LocalAddr:        codegen.Addr(b[codegen.EventLocal:]),
			RemoteAddr:       codegen.Addr(b[codegen.EventRemote:]),
			LocalPort:        ne.Uint16(b[codegen.EventLocalPort:]),
			RemotePort:       ne.Uint16(b[codegen.EventRemotePort:]),
			Protocol:         b[codegen.EventProtocol],
		},
	}
	if r.Event == packet.EventSocketAccept {
		r.Inbound = true
	}
	return r.Event < packet.NumEvents
}

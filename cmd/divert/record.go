package main

import (
	"net"
	"strconv"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/capfile"
)

// record is a packet to print or write: data from a handle or a capture file, with the time and the interface in
// readable form. Data is borrowed until the next record.
type record struct {
	data      []byte // from the IP header on
	length    int    // of the packet; more than len(data) if the capture cut it
	addr      *divert.Address
	when      time.Time
	device    string
	direction direction
	live      bool // from a handle: all of addr is known

	verdict capfile.Verdict
	sent    bool   // sent by divert
	lost    uint64 // packets lost between the record before and this one
	queue   int    // of the handle, numbered from 1; 0 if it has only one

	pid     uint32 // the process, 0 if there is none or it is unknown
	program string // its program's name
	path    string // and path, "" if unknown
}

// ascribe sets the process of a received packet.
func (r *record) ascribe(m *processes) {
	r.pid, r.program, r.path = 0, "", ""
	if m == nil {
		return
	}
	if r.pid = r.addr.Network().ProcessID; r.pid != 0 {
		r.program, r.path = m.program(r.pid, r.addr.ProcessName()), m.path(r.pid)
	}
}

// direction is the direction of a packet.
type direction uint8

const (
	directionUnknown direction = iota
	directionIn
	directionOut
	directionLoopback
	directionForward
)

// directions are the names of directions in text and in JSON, and their bits in the flags of a pcapng packet block
// (draft-ietf-opsawg-pcapng 4.3.1).
var directions = [...]struct {
	arrow, name string
	flags       uint32
}{
	directionUnknown:  {"", "", 0},
	directionIn:       {"<-", "in", 1},
	directionOut:      {"->", "out", 2},
	directionLoopback: {"<>", "loopback", 2},
	directionForward:  {">>", "forward", 0},
}

// directionOf returns the direction of a packet that a handle received.
func directionOf(a *divert.Address) direction {
	switch {
	case a.Layer == divert.LayerForward:
		return directionForward
	case a.Loopback:
		return directionLoopback
	case a.Outbound:
		return directionOut
	}
	return directionIn
}

// interfaces remembers the names of interfaces by index.
type interfaces map[uint32]string

// name returns the name of an interface, or "#" and the index if it is gone.
func (m interfaces) name(index uint32) string {
	if name, ok := m[index]; ok {
		return name
	}
	name := "#" + strconv.Itoa(int(index))
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		name = i.Name
	}
	m[index] = name
	return name
}

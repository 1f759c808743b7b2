package flow

import (
	"time"

	"github.com/opendivert/divert/packet"
)

// Verdict decides on all packets of a flow.
type Verdict uint8

// The verdicts.
const (
	Undecided Verdict = iota // they come to the program
	Accept                   // they go on
	Drop                     // they are gone
)

// Record is a table's record of a flow. It is also the value of the kernel's maps, 64 bytes in host byte order; times are
// those of its monotonic clock, in nanoseconds.
type Record struct {
	LastSeen   int64
	Packets    [2]uint64 // by Packet.Way
	Bytes      [2]uint64
	Deadline   int64 // time at which the flow ends, 0: none. Set at the end of a TCP connection.
	Idle       int64 // lifetime without a packet
	Generation uint32
	Verdict    Verdict
	Finished   [2]uint8 // 1: a FIN in this direction was seen
	Zero       uint8
}

// Linger is the time for which a flow lasts after a RST, or after the FINs of both sides: for the last ACK, and for
// retransmissions.
const Linger = 2 * time.Second

// Live reports whether the record is valid at a time, in a generation.
func (r *Record) Live(now int64, generation uint32) bool {
	return r.Generation == generation && (r.Deadline == 0 || now <= r.Deadline) && now-r.LastSeen <= r.Idle
}

// Count takes in a packet of the flow that does not begin it.
func (r *Record) Count(p *Packet, now int64) {
	way := p.Way()
	r.LastSeen = now
	r.Packets[way]++
	r.Bytes[way] += uint64(p.Bytes)
	r.close(p, way, now)
}

// close records the end of TCP.
func (r *Record) close(p *Packet, way int, now int64) {
	if p.Flags&FlagFIN != 0 {
		r.Finished[way] = 1
	}
	ends := p.Flags&FlagRST != 0 || p.Flags&FlagFIN != 0 && r.Finished[1-way] != 0
	if ends && r.Deadline == 0 {
		r.Deadline = now + int64(Linger)
	}
}

// Idle has the lifetimes of flows without a packet.
type Idle struct{ TCP, UDP, ICMP time.Duration }

// DefaultIdle has the least times for NATs: RFC 5382 REQ-5, RFC 4787 REQ-5, RFC 5508 REQ-2.
var DefaultIdle = Idle{TCP: 2*time.Hour + 4*time.Minute, UDP: 5 * time.Minute, ICMP: time.Minute}

// IdleFor returns d as the time of all flows, or the default times if it is 0.
func IdleFor(d time.Duration) Idle {
	if d == 0 {
		return DefaultIdle
	}
	return Idle{d, d, d}
}

// Of returns the time for a protocol.
func (i *Idle) Of(protocol uint8) int64 {
	switch protocol {
	case packet.ProtocolTCP:
		return int64(i.TCP)
	case packet.ProtocolUDP:
		return int64(i.UDP)
	}
	return int64(i.ICMP)
}

// DefaultSize is the least number of flows that a handle keeps.
const DefaultSize = 65536

// Totals count the packets that met a verdict of their flow, since the handle was opened.
type Totals struct {
	Accepted, AcceptedBytes, Dropped, DroppedBytes uint64
}

// add counts a packet.
func (t *Totals) add(v Verdict, bytes int) {
	if v == Accept {
		t.Accepted++
		t.AcceptedBytes += uint64(bytes)
	} else {
		t.Dropped++
		t.DroppedBytes += uint64(bytes)
	}
}

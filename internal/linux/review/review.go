//go:build linux

package review

import (
	"sync/atomic"
	"time"

	"github.com/opendivert/divert/internal/linux/verdict"
	"github.com/opendivert/divert/packet"
)

// Review gives packets of queues and of the log the time and process that filter programs found, and decides again
// where a program could not.
type Review struct {
	times     atomic.Pointer[times]  // nil until a filter asks for the time or the process
	second    atomic.Pointer[second] // decides where a program could not, see refuses
	queueTime atomic.Int64           // of the limits, in ns
	name      func(*packet.Packet)   // gives the address the name of its process
}

// SetNames has f asked for the names of processes: it sets that of a packet's address. It is called before packets come.
func (r *Review) SetNames(f func(*packet.Packet)) { r.name = f }

// SetQueueTime says how long packets wait at most.
func (r *Review) SetQueueTime(d time.Duration) { r.queueTime.Store(int64(d)) }

// Tell returns the channel by which programs report packets. It is made when it is first needed.
func (r *Review) Tell() (*times, error) {
	if t := r.times.Load(); t != nil {
		return t, nil
	}
	t, err := newTimes()
	if err != nil {
		return nil, err
	}
	r.times.Store(t)
	return t, nil
}

// StopTelling notes that the programs in force report no packets. Packets that others have reported are in the queues, whose
// last numbers these are.
func (r *Review) StopTelling(last []uint32) { r.times.Load().end(last) }

// Tells reports whether programs have reported packets that may still come.
func (r *Review) Tells() bool { return r.times.Load() != nil }

// SegmentSize returns the size of the segments of a superpacket of a flow, 0 if no program has reported it.
func (r *Review) SegmentSize(flow uint64, length int) int {
	return r.times.Load().segmentSize(flow, length)
}

// BySegment reports whether the filter tests values that differ between a superpacket and its segments.
func (r *Review) BySegment() bool { return r.second.Load().segment }

// Close closes the channel by which programs report packets.
func (r *Review) Close() error {
	if t := r.times.Load(); t != nil {
		return t.close()
	}
	return nil
}

// Retime gives a packet the timestamp with which its filter program decided, which the answer may depend on, and the
// process that the program has found. Lane and number are those of a queued packet; other packets have no lane.
func (r *Review) Retime(p *packet.Packet, l *verdict.Lane, id uint32) {
	t := r.times.Load()
	if t == nil || !t.asked(l, id) {
		return
	}
	var parsed packet.Parsed
	parsed.Parse(p.Data) // of a part too: WithSnapLength
	if told, ok := t.take(parsed.Hash(p.Data, 0)); ok {
		p.Addr.Timestamp = told.Timestamp
		SetProcess(&p.Addr, told.Process)
	}
}

// Ascribe is Retime for a single packet whose checksum the kernel has finished since the program saw it. The superpacket that it
// was cut from gives the time and the process of its flow.
func (r *Review) Ascribe(p *packet.Packet, l *verdict.Lane, id uint32) {
	t := r.times.Load()
	if t == nil || !t.asked(l, id) {
		return
	}
	var parsed packet.Parsed
	parsed.Parse(p.Data)
	told, ok := t.take(unsummed(&parsed, p.Data))
	if !ok {
		told, ok = t.flow(parsed.FlowHash(p.Data))
	}
	if ok {
		p.Addr.Timestamp = told.Timestamp
		SetProcess(&p.Addr, told.Process)
	}
}

// unsummed is the hash of a packet with a checksum of 0 of TCP or UDP.
func unsummed(p *packet.Parsed, b []byte) uint64 {
	at := int(p.UDPOff) + 6
	if p.TCPOff >= 0 {
		at = int(p.TCPOff) + 16
	}
	if p.TCPOff < 0 && p.UDPOff < 0 {
		return p.Hash(b, 0)
	}
	first, second := b[at], b[at+1]
	b[at], b[at+1] = 0, 0
	hash := p.Hash(b, 0)
	b[at], b[at+1] = first, second
	return hash
}

// SetProcess sets the process of a packet.
func SetProcess(a *packet.Address, process uint32) {
	n := a.Network()
	n.ProcessID = process
	a.SetNetwork(n)
}

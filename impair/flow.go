package impair

import (
	"encoding/binary"

	"github.com/opendivert/divert/packet"
)

// flowKey identifies one direction of a flow, among the packets of a rule.
type flowKey struct {
	src, dst [16]byte // an IPv4 address is in the last 4 bytes
	ports    uint32   // source and destination; of an ICMP echo its identifier; else 0
	rule     uint16   // the rule's number in its phase
	protocol uint8
	family   uint8
}

// words returns the key as numbers, which are the same on every machine.
func (k *flowKey) words() [6]uint64 {
	be := binary.BigEndian
	return [6]uint64{
		be.Uint64(k.src[:]), be.Uint64(k.src[8:]), be.Uint64(k.dst[:]), be.Uint64(k.dst[8:]),
		uint64(k.ports), uint64(k.rule)<<16 | uint64(k.protocol)<<8 | uint64(k.family),
	}
}

// The types of ICMP and ICMPv6 that have an identifier (RFC 792, RFC 4443 section 4).
const (
	echoReply     = 0
	echoRequest   = 8
	echoRequestV6 = 128
	echoReplyV6   = 129
)

// keyOf returns the key of the packet in b. It takes no ports from fragments, so that all fragments of a datagram belong
// to one flow.
func keyOf(b []byte, p *packet.Parsed, rule uint16) flowKey {
	k := flowKey{rule: rule, protocol: p.Protocol, family: p.Family}
	switch {
	case p.Family == 4 && len(b) >= packet.IPv4HeaderLen:
		copy(k.src[12:], b[12:16])
		copy(k.dst[12:], b[16:20])
	case p.Family == 6 && len(b) >= packet.IPv6HeaderLen:
		copy(k.src[:], b[8:24])
		copy(k.dst[:], b[24:40])
	}
	if p.Fragment {
		return k
	}
	switch {
	case p.TCPOff >= 0:
		k.ports = binary.BigEndian.Uint32(b[p.TCPOff:])
	case p.UDPOff >= 0:
		k.ports = binary.BigEndian.Uint32(b[p.UDPOff:])
	case p.ICMPOff >= 0:
		if h := p.ICMP(b); h.Type() == echoReply || h.Type() == echoRequest {
			k.ports = h.Body() >> 16
		}
	case p.ICMPv6Off >= 0:
		if h := p.ICMPv6(b); h.Type() == echoRequestV6 || h.Type() == echoReplyV6 {
			k.ports = h.Body() >> 16
		}
	}
	return k
}

// flow is the state of a flow.
type flow struct {
	key        flowKey
	prev, next *flow // in the order of their last packets
	origin     uint64
	ordinal    uint64 // of the next packet
	losing     bool   // the last packet was lost, as one of a run
	last       int64  // time at which the last packet that keeps its order goes on
	waiting    *held  // packets that let others pass, the last one first
}

// flowTable holds the flows of a run. When it is full it forgets the flow that has been silent for longest.
type flowTable struct {
	seed      uint64
	max       int
	flows     map[flowKey]*flow
	ring      flow // ring.next had the last packet, ring.prev has been silent for longest
	forgotten uint64
}

func newFlowTable(seed uint64, max int) *flowTable {
	t := &flowTable{seed: seed, max: max, flows: map[flowKey]*flow{}}
	t.ring.prev, t.ring.next = &t.ring, &t.ring
	return t
}

// find returns the flow of a key, a new one if there is none.
func (t *flowTable) find(k *flowKey) *flow {
	f := t.flows[*k]
	switch {
	case f != nil:
		if t.ring.next == f {
			return f
		}
		f.prev.next, f.next.prev = f.next, f.prev
	case len(t.flows) >= t.max:
		f = t.forget()
		*f = flow{key: *k, origin: k.origin(t.seed)}
		t.flows[*k] = f
	default:
		f = &flow{key: *k, origin: k.origin(t.seed)}
		t.flows[*k] = f
	}
	f.prev, f.next = &t.ring, t.ring.next
	f.prev.next, f.next.prev = f, f
	return f
}

// forget removes the oldest flow and returns memory for another.
func (t *flowTable) forget() *flow {
	f := t.ring.prev
	f.prev.next, f.next.prev = f.next, f.prev
	delete(t.flows, f.key)
	t.forgotten++
	if f.waiting != nil {
		return new(flow) // packets still refer to it
	}
	return f
}

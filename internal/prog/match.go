package prog

import (
	"encoding/binary"

	"github.com/opendivert/divert/internal/flow"
	"github.com/opendivert/divert/internal/radix"
	"github.com/opendivert/divert/packet"
)

// Match reports whether the program accepts an item of its layer: at the layers NETWORK and NETWORK_FORWARD the packet in
// b, an IP header first, with its address; at the other layers the event in a, whatever b holds. Match takes the packet's
// family and headers from b, and the layer, timestamp, event, flags and layer data from a. Nothing matches if b is not a
// packet, if a belongs to another layer, or if an executed test has a field that the layer lacks.
//
// The packet may be shorter or longer than its IP header says (specification: packets.md 1); MatchExact is stricter. a
// must not be nil. Match neither changes nor keeps b and a, and allocates nothing; any number of goroutines may use the
// program at once.
func (p *Program) Match(b []byte, a *packet.Address) bool {
	if !OnPackets.Has(p.layer) {
		return p.matchEvent(a)
	}
	var parsed packet.Parsed
	return parsed.Parse(b) && p.MatchParsed(b, &parsed, a)
}

// MatchExact is Match with the parser of the original's driver: a packet also fails to match if the length in its IP
// header is not that of b (specification: packets.md 1.4). Live handles decide this way.
func (p *Program) MatchExact(b []byte, a *packet.Address) bool {
	if !OnPackets.Has(p.layer) {
		return p.matchEvent(a)
	}
	var parsed packet.Parsed
	return parsed.ParseExact(b) && p.MatchParsed(b, &parsed, a)
}

// MatchParsed is Match for a parsed packet: parsed must be the result of parsing b, which has not changed since. At the
// layers without packets b and parsed are not used.
func (p *Program) MatchParsed(b []byte, parsed *packet.Parsed, a *packet.Address) bool {
	if !OnPackets.Has(p.layer) {
		return p.matchEvent(a)
	}
	if a.Layer != p.layer || parsed.Family == 0 {
		return false
	}
	s := state{packet: b, parsed: parsed, addr: a}
	return p.code.run(&s) == accepted
}

// Known has facts about a packet beyond its bytes and address: the values of fields that the extended dialect has at the
// layers with packets. Nothing matches if an executed test needs an unknown one.
type Known struct {
	Process    uint32 // processId, if HasProcess; the address has the name
	HasProcess bool

	Counts    *flow.Counts // flow.Packets and the like, if HasCounts; nil for a packet that belongs to no flow
	HasCounts bool
}

// MatchKnown is MatchParsed with known facts about the packet.
func (p *Program) MatchKnown(b []byte, parsed *packet.Parsed, a *packet.Address, k Known) bool {
	if !OnPackets.Has(p.layer) {
		return p.matchEvent(a)
	}
	if a.Layer != p.layer || parsed.Family == 0 {
		return false
	}
	s := state{packet: b, parsed: parsed, addr: a, known: k}
	return p.code.run(&s) == accepted
}

// CountsFlows reports whether the program tests counts of flows, at a layer with packets.
func (p *Program) CountsFlows() bool { return p.uncounted != nil }

// Uncounted returns a program that matches every packet that p matches with any counts of flows; p itself if it does not
// test them.
func (p *Program) Uncounted() *Program {
	if p.uncounted == nil {
		return p
	}
	return p.uncounted
}

// OfFlow reports whether a field is one of those that count packets of flows.
func (f Field) OfFlow() bool { return f >= FieldFlowPackets && f <= FieldFlowWayBytes }

// OfProcess reports whether a field is about the process of a packet or event.
func (f Field) OfProcess() bool { return f == FieldProcessID || f == FieldProcess }

// flowValue returns a count, limited to the greatest 32-bit number.
func (k *Known) flowValue(f Field) uint32 {
	c := k.Counts
	v := [...]uint64{c.Packets, c.Bytes, c.WayPackets, c.WayBytes}[f-FieldFlowPackets]
	return uint32(min(v, 1<<32-1))
}

func (p *Program) matchEvent(a *packet.Address) bool {
	if a.Layer != p.layer {
		return false
	}
	s := state{parsed: &noPacket, addr: a}
	return p.code.run(&s) == accepted
}

// noPacket stands for the packet of an event; it is only read.
var noPacket packet.Parsed

// numSlots is the number of a packet's values that one evaluation remembers.
const numSlots = 32

// state is one evaluation.
type state struct {
	packet []byte
	parsed *packet.Parsed
	addr   *packet.Address

	// The values of fields tested so far. Each field of a program has a slot, as long as there are any; bit n of ready
	// and of absent is the state of slot n.
	ready, absent uint32
	slots         [numSlots]uint32

	wide      Value // value of wideField, which tests of long lists of addresses use repeatedly
	wideField Field // FieldZero if there is none yet

	hash  uint64 // packet hash, source of the random fields; 0 if not computed yet
	fault uint32 // index of the test that cannot be executed

	known Known
}

// found is a fact about a test.
type found uint8

const (
	foundHit    found = iota // the value lies in the range or set
	foundMiss                // it does not
	foundAbsent              // there is no value: the test fails
	foundFault               // the test cannot be executed
)

// faulted is the result of run if a test cannot be executed; state.fault is its index.
const faulted = ^uint32(2)

// run executes the program and returns Accept or Reject, as unsigned numbers, or faulted.
func (c *code) run(s *state) uint32 {
	steps := c.steps
	pc := uint32(0)
	for uint(pc) < uint(len(steps)) {
		st := &steps[pc]
		hit := false
		switch {
		// Nearly all steps of long programs take this path: a known value and a range. If the next step is the one
		// behind, the processor need not wait for its number.
		case s.ready&st.rangeBit != 0:
			if s.slots[st.slot%numSlots]-st.lo > st.span {
				if st.flow&missNext != 0 {
					pc++
					continue
				}
				pc = st.miss
				continue
			}
			if st.flow&hitNext != 0 {
				pc++
				continue
			}
			pc = st.hit
			continue
		case s.absent&st.slotBit != 0:
			hit = st.flow&failHits != 0
		default:
			switch s.decide(c, &c.instrs[st.instr]) {
			case foundHit:
				hit = true
			case foundAbsent:
				hit = st.flow&failHits != 0
			case foundFault:
				s.fault = pc
				return faulted
			}
		}
		if hit {
			pc = st.hit
		} else {
			pc = st.miss
		}
	}
	return pc
}

// decide looks up the value for the test in and compares it.
func (s *state) decide(c *code, in *instr) found {
	v := s.slots[in.slot%numSlots]
	switch {
	case in.origin == fromWide:
		return s.decideWide(c, in)
	case s.ready&in.slotBit != 0:
	default:
		var f found
		if v, f = s.fetch(in); f != foundHit {
			return f
		}
	}
	if in.check == checkRange {
		return inside(v-in.lo <= in.span)
	}
	return inside(c.contains(in, v))
}

func (s *state) decideWide(c *code, in *instr) found {
	if s.wideField != in.field {
		if in.field == FieldProcess && s.parsed.Family != 0 && !s.known.HasProcess {
			return foundFault
		}
		wide, ok := s.wideValue(in.field)
		if !ok {
			return foundAbsent
		}
		s.wide, s.wideField = wide, in.field
	}
	return inside(c.acceptsWide(in, s.wide))
}

func inside(yes bool) found {
	if yes {
		return foundHit
	}
	return foundMiss
}

// remember stores the value for the test in, if it has a slot.
func (s *state) remember(in *instr, v uint32) {
	if in.slotBit != 0 {
		s.slots[in.slot%numSlots] = v
		s.ready |= in.slotBit
	}
}

// fetch finds the 32-bit value for the test in and stores it in its slot. It returns foundHit with the value, foundAbsent
// or foundFault.
func (s *state) fetch(in *instr) (v uint32, f found) {
	var ok bool
	switch in.origin {
	case fromWord:
		// The most frequent origin takes the shortest path.
		at := s.offset(in.base)
		off := at + int(in.off)
		if at >= 0 && off <= len(s.packet)-4 {
			v = binary.BigEndian.Uint32(s.packet[off:]) >> (in.shift & 31) & in.mask
			s.remember(in, v)
			return v, foundHit
		}
	case fromPresent:
		v, ok = bit(s.offset(in.base) >= 0), true
	case fromElement:
		v, ok = s.element(in)
	case fromComputed:
		v, ok = s.value(in.field)
	case fromProcess:
		if !s.known.HasProcess {
			return 0, foundFault
		}
		v, ok = s.known.Process, true
	case fromFlow:
		if !s.known.HasCounts {
			return 0, foundFault
		}
		if ok = s.known.Counts != nil; ok {
			v = s.known.flowValue(in.field)
		}
	default:
		return 0, foundFault
	}
	if !ok {
		s.absent |= in.slotBit
		return 0, foundAbsent
	}
	s.remember(in, v)
	return v, foundHit
}

// offset returns where a header starts in the packet, a negative number if it is absent.
func (s *state) offset(b base) int {
	p := s.parsed
	switch b {
	case baseIPv4:
		return int(p.IPv4Off)
	case baseIPv6:
		return int(p.IPv6Off)
	case baseICMP:
		return int(p.ICMPOff)
	case baseICMPv6:
		return int(p.ICMPv6Off)
	case baseTCP:
		return int(p.TCPOff)
	default:
		return int(p.UDPOff)
	}
}

// contains reports whether v lies in the set of in.
func (c *code) contains(in *instr, v uint32) bool {
	switch in.check {
	case checkBitmap:
		return c.bitmaps[in.set].contains(v)
	case checkNamed: // an IPv4 address or a number
		return c.named[in.set].values.Contains(radix.Value{Lo: ipv4Prefix | uint64(v)})
	}
	return c.sets[in.set].contains(v)
}

// acceptsWide reports whether a wide value lies in the range or set of in.
func (c *code) acceptsWide(in *instr, v Value) bool {
	switch in.check {
	case checkWideSet:
		return c.wideSets[in.set].Contains(v)
	case checkNamed:
		return c.acceptsNamed(in, v)
	}
	r := &c.ranges[in.set]
	return !v.Less(r.First) && !r.Last.Less(v)
}

// element reads bytes of the packet or of a payload (specification: filter-language.md 4).
func (s *state) element(in *instr) (v uint32, ok bool) {
	start, end := 0, len(s.packet)
	if in.base != basePacket {
		if s.offset(in.base) < 0 {
			return 0, false
		}
		start = int(s.parsed.HeaderLen)
		end = min(end, start+int(s.parsed.PayloadLen))
	}
	from := start + int(in.off)
	if in.off < 0 {
		from = end + int(in.off)
	}
	if from < start || from > end-int(in.size) {
		return 0, false
	}
	switch b := s.packet[from:end]; in.size {
	case 1:
		return uint32(b[0]), true
	case 2:
		return uint32(binary.BigEndian.Uint16(b)), true
	default:
		return binary.BigEndian.Uint32(b), true
	}
}

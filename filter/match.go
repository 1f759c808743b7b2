package filter

import (
	"encoding/binary"

	"github.com/opendivert/divert/packet"
)

// Match reports whether the program accepts an item of its layer: at the layers NETWORK and
// NETWORK_FORWARD the packet in b, an IP header first, with its address; at the other layers the event
// in a, whatever b holds. The packet's family and headers are taken from b; of a, its layer,
// timestamp, event, flags and layer data are used. Nothing matches if b is not a packet, if a belongs to
// another layer, or if a test is executed whose field the layer does not have.
//
// The packet may be shorter or longer than its IP header says (specification: packets.md 1);
// MatchExact is stricter. a must not be nil. Neither b nor a is changed or kept, nothing is allocated,
// and any number of goroutines may use the program at once.
func (p *Program) Match(b []byte, a *packet.Address) bool {
	if !onPackets.has(p.layer) {
		return p.matchEvent(a)
	}
	var parsed packet.Parsed
	return parsed.Parse(b) && p.MatchParsed(b, &parsed, a)
}

// MatchExact is Match with the parser of the original's driver: a packet also matches nothing if its
// length in the IP header is not that of b (specification: packets.md 1.4). Live handles
// decide this way.
func (p *Program) MatchExact(b []byte, a *packet.Address) bool {
	if !onPackets.has(p.layer) {
		return p.matchEvent(a)
	}
	var parsed packet.Parsed
	return parsed.ParseExact(b) && p.MatchParsed(b, &parsed, a)
}

// MatchParsed is Match for a packet that is parsed already: parsed must be the result of parsing b, which
// has not changed since. At the layers without packets b and parsed are not used.
func (p *Program) MatchParsed(b []byte, parsed *packet.Parsed, a *packet.Address) bool {
	if !onPackets.has(p.layer) {
		return p.matchEvent(a)
	}
	if a.Layer != p.layer || parsed.Family == 0 {
		return false
	}
	s := state{packet: b, parsed: parsed, addr: a}
	s.locate()
	return p.code.run(&s) == int32(Accept)
}

// MatchProcess is MatchParsed for a packet of a known process, the value of the field processId
// that the extended dialect has at the layers with packets. The other forms do not know the process:
// there nothing matches once that field is tested.
func (p *Program) MatchProcess(b []byte, parsed *packet.Parsed, a *packet.Address, process uint32) bool {
	if !onPackets.has(p.layer) {
		return p.matchEvent(a)
	}
	if a.Layer != p.layer || parsed.Family == 0 {
		return false
	}
	s := state{packet: b, parsed: parsed, addr: a, process: process, hasProcess: true}
	s.locate()
	return p.code.run(&s) == int32(Accept)
}

func (p *Program) matchEvent(a *packet.Address) bool {
	if a.Layer != p.layer {
		return false
	}
	s := state{parsed: &noPacket, addr: a}
	return p.code.run(&s) == int32(Accept)
}

// noPacket stands for the packet of an event; it is only read.
var noPacket packet.Parsed

// faulted is the result of run if a test cannot be executed; state.fault tells which.
const faulted int32 = -3

// state is one evaluation.
type state struct {
	// at has the offset of each header in the packet, negative if it is absent. Its size is a
	// power of two above numBases so that indexing needs no check.
	at     [8]int32
	packet []byte
	parsed *packet.Parsed
	addr   *packet.Address
	hash   uint64 // packet hash that the random fields come from; 0 if not computed yet
	fault  int32  // index of the test that cannot be executed

	process    uint32 // of a packet, if hasProcess
	hasProcess bool
}

// locate notes where the headers of the packet are.
func (s *state) locate() {
	p := s.parsed
	s.at = [8]int32{
		baseIPv4: p.IPv4Off, baseIPv6: p.IPv6Off, baseICMP: p.ICMPOff,
		baseICMPv6: p.ICMPv6Off, baseTCP: p.TCPOff, baseUDP: p.UDPOff,
	}
}

// run executes the program and returns Accept, Reject or faulted.
func (c *code) run(s *state) int32 {
	instrs := c.instrs
	pc := int32(0)
	for uint32(pc) < uint32(len(instrs)) {
		in := &instrs[pc]
		var v uint32
		switch in.origin {
		case fromWord:
			var ok bool
			if v, ok = s.headerWord(in); !ok {
				pc = in.fail
				continue
			}
		case fromPresent:
			v = uint32(^s.at[in.base&7]) >> 31
		case fromWide:
			if v, ok := s.wideValue(in.field); ok && c.acceptsWide(in, v) {
				pc = in.succ
			} else {
				pc = in.fail
			}
			continue
		case fromProcess:
			if !s.hasProcess {
				s.fault = pc
				return faulted
			}
			v = s.process
		case fromNowhere:
			s.fault = pc
			return faulted
		default:
			var ok bool
			if v, ok = s.load(in); !ok {
				pc = in.fail
				continue
			}
		}
		hit := v-in.lo <= in.span
		if in.check != checkRange {
			hit = c.inSet(in, v)
		}
		if hit != in.invert {
			pc = in.succ
		} else {
			pc = in.fail
		}
	}
	return pc
}

// headerWord reads a field of a header, not ok if the header is absent.
func (s *state) headerWord(in *instr) (v uint32, ok bool) {
	at := int(s.at[in.base&7])
	off := at + int(in.off)
	if at < 0 || off > len(s.packet)-4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(s.packet[off:]) >> (in.shift & 31) & in.mask, true
}

// inSet reports whether v lies in the set of in.
func (c *code) inSet(in *instr, v uint32) bool {
	if in.check == checkBitmap {
		return c.bitmaps[in.set].contains(v)
	}
	return c.sets[in.set].contains(v)
}

// acceptsWide reports whether the test in holds for a wide value.
func (c *code) acceptsWide(in *instr, v Value) bool {
	var hit bool
	if in.check == checkWideSet {
		hit = c.wideSets[in.set].Contains(v)
	} else {
		r := &c.ranges[in.set]
		hit = !v.less(r.First) && !r.Last.less(v)
	}
	return hit != in.invert
}

// load returns the value of fromElement and fromComputed tests, not ok if it is not available.
func (s *state) load(in *instr) (v uint32, ok bool) {
	if in.origin == fromElement {
		return s.element(in)
	}
	return s.value(in.field)
}

// element reads bytes of the packet or of a payload (specification: filter-language.md 4).
func (s *state) element(in *instr) (v uint32, ok bool) {
	start, end := 0, len(s.packet)
	if in.base != basePacket {
		if s.at[in.base&7] < 0 {
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

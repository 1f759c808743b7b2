package prog

import "github.com/opendivert/divert/packet"

// MayMatchHeaders reports whether the program could accept a packet whose transport header, and perhaps protocol, is
// unknown: it takes tests that depend on these as open. parsed is the result of parsing b. It is for first fragments that
// end before the header does, and allocates.
func (p *Program) MayMatchHeaders(b []byte, parsed *packet.Parsed, a *packet.Address) bool {
	if !OnPackets.Has(p.layer) || a.Layer != p.layer || parsed.Family == 0 {
		return false
	}
	s := state{packet: b, parsed: parsed, addr: a}
	possible := transportShapes(parsed.Protocol)
	reached := make([]bool, len(p.tests))
	reached[0] = true
	accepts := false
	lead := func(t Target) {
		switch {
		case t == Accept:
			accepts = true
		case t != Reject:
			reached[t] = true
		}
	}
	for i := range p.tests { // jumps only go forward
		if accepts {
			return true
		}
		if !reached[i] {
			continue
		}
		t := &p.tests[i]
		if t.Field.ofTransport(p.layer, possible) {
			lead(t.Succ)
			lead(t.Fail)
			continue
		}
		_, next := p.step(&s, Target(i))
		lead(next)
	}
	return accepts
}

// transportShapes are the possible shapes of a packet whose visible chain of headers ends with a protocol.
func transportShapes(protocol uint8) shapes {
	switch protocol {
	case packet.ProtocolTCP:
		return shapesOf[FieldTCP]
	case packet.ProtocolUDP:
		return shapesOf[FieldUDP]
	case packet.ProtocolICMP:
		return shapesOf[FieldICMP]
	case packet.ProtocolICMPv6:
		return shapesOf[FieldICMPv6]
	}
	return allShapes
}

// ofTransport reports whether the value of a field, at a layer with packets, depends on the transport header of a packet
// with one of the possible shapes.
func (f Field) ofTransport(layer packet.Layer, possible shapes) bool {
	switch {
	case f == FieldLocalPort, f == FieldRemotePort, f.OfProcess(), f.OfFlow():
		return true
	case f == FieldProtocol:
		return possible == allShapes
	}
	s, ok := having(f, layer)
	if !ok {
		s = header(f, layer)
	}
	return s&both(shapeOther4|shapeOther6) == 0 && s&possible != 0
}

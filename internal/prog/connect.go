package prog

import (
	"fmt"

	"github.com/opendivert/divert/packet"
)

// A ConnectError names a field of a filter that is unknown when a connection begins.
type ConnectError struct{ Field Field }

func (e *ConnectError) Error() string {
	return fmt.Sprintf("the filter tests %v, which is not known before the first packet", e.Field)
}

// AtConnect returns a program of layer SOCKET that decides, when a socket of the protocol (packet.ProtocolTCP or
// packet.ProtocolUDP) connects or sends a datagram, as p, of layer NETWORK, decides about every packet of that socket. It
// fails with a *ConnectError if p may test a value that is unknown then, such as the socket's own port, or that differs
// between packets.
func (p *Program) AtConnect(protocol uint8) (*Program, error) {
	chains := make([][]Test, len(p.tests))
	reached := make([]bool, len(p.tests))
	reached[0] = true
	for i := range p.tests { // jumps only go forward
		if !reached[i] {
			chains[i] = fixed(false)
			continue
		}
		t := &p.tests[i]
		chain, ok := connectTest(t, protocol)
		if !ok {
			return nil, &ConnectError{t.Field}
		}
		chains[i] = chain
		if t.Succ >= 0 && !constantly(chain, false) {
			reached[t.Succ] = true
		}
		if t.Fail >= 0 && !constantly(chain, true) {
			reached[t.Fail] = true
		}
	}
	return p.replace(packet.LayerSocket, chains), nil
}

// connectTest returns the chain of tests of an event that replaces a test of a packet; ok is false if there is none.
func connectTest(t *Test, protocol uint8) (chain []Test, ok bool) {
	as := func(f Field) Test {
		out := *t
		out.Field, out.Succ, out.Fail = f, chainSucc, chainFail
		return out
	}
	within := func(family, f Field) []Test {
		return []Test{{Field: family, Op: OpNe, Succ: chainNext, Fail: chainFail}, as(f)}
	}
	switch t.Field {
	case FieldZero:
		return []Test{as(t.Field)}, true
	case FieldOutbound:
		return fixed(holdsNarrow(t, 1)), true
	case FieldInbound, FieldICMP, FieldICMPv6:
		return fixed(holdsNarrow(t, 0)), true
	case FieldTCP:
		return fixed(holdsNarrow(t, bit(protocol == packet.ProtocolTCP))), true
	case FieldUDP:
		return fixed(holdsNarrow(t, bit(protocol == packet.ProtocolUDP))), true
	case FieldIP:
		return []Test{as(FieldFamilyIP)}, true
	case FieldIPv6:
		return []Test{as(FieldFamilyIPv6)}, true
	case FieldIPProtocol:
		return within(FieldFamilyIP, FieldProtocol), true
	case FieldIPDstAddr:
		return within(FieldFamilyIP, FieldRemoteAddr), true
	case FieldIPv6DstAddr:
		return within(FieldFamilyIPv6, FieldRemoteAddr), true
	case FieldTCPDstPort, FieldUDPDstPort, FieldTCPSrcPort, FieldUDPSrcPort:
		tcp := t.Field == FieldTCPDstPort || t.Field == FieldTCPSrcPort
		switch {
		case tcp != (protocol == packet.ProtocolTCP): // no such header
			return fixed(false), true
		case t.Field == FieldTCPSrcPort || t.Field == FieldUDPSrcPort:
			return nil, false
		}
		return []Test{as(FieldRemotePort)}, true
	case FieldRemotePort:
		return []Test{as(FieldRemotePort)}, true
	case FieldRemoteAddr, FieldProtocol, FieldProcessID:
		return []Test{as(t.Field)}, true
	}
	return nil, false
}

// fixed returns a chain that holds, or fails, for every packet.
func fixed(holds bool) []Test {
	end := chainFail
	if holds {
		end = chainSucc
	}
	return []Test{{Field: FieldZero, Succ: end, Fail: end}}
}

// constantly reports whether a chain of fixed stands for an outcome.
func constantly(chain []Test, holds bool) bool {
	t := &chain[0]
	return t.Succ == t.Fail && (t.Succ == chainSucc) == holds
}

package prog

import (
	"errors"
	"fmt"

	"github.com/opendivert/divert/packet"
)

// The errors of Eval for missing or wrong inputs (specification: api.md 21).
var (
	ErrNoAddress   = errors.New("filter: there is no address")
	ErrOtherLayer  = errors.New("filter: the address is not of the layer of the filter")
	ErrNotPacket   = errors.New("filter: there is no packet, or it has no valid IP header")
	ErrOtherFamily = errors.New("filter: the address and the packet are of different IP versions")
	ErrHasPacket   = errors.New("filter: the layers FLOW and SOCKET have no packets")
)

// ErrNoValue is the cause of a *FieldError.
var ErrNoValue = errors.New("filter: a field has no value here")

// A FieldError means that an executed test has a field that the layer lacks. That happens with objects only, and, at the
// layers with packets, with processId and the counts such as flow.Packets.
type FieldError struct {
	Test  int // index of the test in Program.Tests
	Field Field
	Layer packet.Layer
}

func (e *FieldError) Error() string {
	return fmt.Sprintf("filter: test %d: %v has no value at %v here", e.Test, e.Field, e.Layer)
}

func (e *FieldError) Unwrap() error { return ErrNoValue }

// Eval is Match with the checks of WinDivertHelperEvalFilter (specification: api.md 21). At the layers NETWORK and
// NETWORK_FORWARD b must start with an IP header, may be shorter or longer than the packet, and must agree with a.IPv6;
// at FLOW and SOCKET b must be nil; at REFLECT it is ignored. The errors are ErrNoAddress, ErrOtherLayer, ErrNotPacket,
// ErrOtherFamily, ErrHasPacket and *FieldError; the result is then false.
func (p *Program) Eval(b []byte, a *packet.Address) (bool, error) {
	s, err := p.prepare(b, a)
	if err != nil {
		return false, err
	}
	end := p.code.run(&s)
	if end == faulted {
		return false, p.fieldError(int(s.fault))
	}
	return end == accepted, nil
}

// EvalParsed is Eval for a parsed packet, at a layer with packets, with the known facts in k. parsed must be the result
// of parsing b, which has not changed since. The error is a *FieldError, or ErrOtherLayer.
func (p *Program) EvalParsed(b []byte, parsed *packet.Parsed, a *packet.Address, k Known) (bool, error) {
	if !OnPackets.Has(p.layer) || a.Layer != p.layer {
		return false, ErrOtherLayer
	}
	s := state{packet: b, parsed: parsed, addr: a, known: k}
	end := p.code.run(&s)
	if end == faulted {
		return false, p.fieldError(int(s.fault))
	}
	return end == accepted, nil
}

func (p *Program) fieldError(test int) error {
	return &FieldError{Test: test, Field: p.tests[test].Field, Layer: p.layer}
}

// prepare checks the arguments of an evaluation and starts it.
func (p *Program) prepare(b []byte, a *packet.Address) (state, error) {
	switch {
	case a == nil:
		return state{}, ErrNoAddress
	case a.Layer != p.layer || a.Layer >= packet.NumLayers:
		return state{}, ErrOtherLayer
	case OnPackets.Has(p.layer):
		parsed := new(packet.Parsed)
		if !parsed.Parse(b) {
			return state{}, ErrNotPacket
		}
		if a.IPv6 != (parsed.Family == 6) {
			return state{}, ErrOtherFamily
		}
		return state{packet: b, parsed: parsed, addr: a}, nil
	case p.layer != packet.LayerReflect && b != nil:
		return state{}, ErrHasPacket
	}
	return state{parsed: &noPacket, addr: a}, nil
}

//go:build linux

package codegen

import (
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/prog"
)

// packetLoader loads the fields of the layers with packets.
type packetLoader struct{ hook *Hook }

func (l *packetLoader) locate(c *condition) valueKind {
	where := l.hook.locate(c)
	return where.kind
}

// presenceFlags are the bits of varFlags that tell whether a header is there.
var presenceFlags = map[presence]int{
	hasICMP: flagICMP, hasTCP: flagTCP, hasUDP: flagUDP, hasICMPv6: flagICMPv6, hasCounts: flagCounted,
}

func (l *packetLoader) load(t *tests, c *condition, fail label) {
	if v, constant := l.hook.constant(c.field); constant { // for a named set; a timestamp is biased already
		t.set(asm.R1, v.Lo)
		return
	}
	where := l.hook.locate(&condition{field: c.field, ranges: c.ranges})
	l.require(t, where.has, fail)
	switch where.place {
	case inIP:
		l.loadField(t, frameIP+where.offset, &where)
	case inTransport:
		l.loadField(t, frameTransport+where.offset, &where)
	case inPacket:
		l.loadElement(t, c, &where, fail)
	case inContext:
		t.Emit(asm.LoadMem(asm.R1, regContext, where.offset, asm.Word))
	case inFrame:
		l.loadVariable(t, &where)
	case inRest:
		t.Emit(
			asm.LoadMem(asm.R1, regContext, skbLen, asm.Word),
			asm.LoadMem(asm.R2, regFrame, varPayload, asm.Word),
			asm.Sub.Reg32(asm.R1, asm.R2),
		)
	}
}

// require goes to fail if the header is absent.
func (l *packetLoader) require(t *tests, p presence, fail label) {
	switch p {
	case hasIPv4, hasIPv6:
		if l.hook.Family != AnyFamily {
			return
		}
		version := uint32(4)
		if p == hasIPv6 {
			version = 6
		}
		t.Emit(
			asm.LoadMem(asm.R1, regFrame, frameIP, asm.Byte),
			asm.RSh.Imm32(asm.R1, 4),
		)
		t.require(imm32(asm.JEq, asm.R1, version), fail)
	case hasICMP, hasTCP, hasUDP, hasICMPv6, hasCounts:
		t.Emit(
			asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word),
			asm.And.Imm32(asm.R1, 1<<presenceFlags[p]),
		)
		t.require(imm32(asm.JNE, asm.R1, 0), fail)
	}
}

// loadField loads a field of a header in the frame.
func (l *packetLoader) loadField(t *tests, offset int16, where *location) {
	if where.kind == value128 {
		t.Emit(
			asm.LoadMem(asm.R1, regFrame, offset, asm.DWord),
			asm.HostTo(asm.BE, asm.R1, asm.DWord),
			asm.LoadMem(asm.R2, regFrame, offset+8, asm.DWord),
			asm.HostTo(asm.BE, asm.R2, asm.DWord),
		)
		return
	}
	t.Emit(asm.LoadMem(asm.R1, regFrame, offset, where.size))
	if where.size != asm.Byte {
		t.Emit(asm.HostTo(asm.BE, asm.R1, where.size))
	}
	l.cut(t, where)
	if where.kind == valueScrambled {
		// Label bits 19..16, 15..8, 7..0 become bits 11..8, 31..24, 23..16.
		t.Emit(
			asm.Mov.Reg32(asm.R2, asm.R1),
			asm.RSh.Imm32(asm.R2, 16),
			asm.LSh.Imm32(asm.R2, 8),
			asm.LSh.Imm32(asm.R1, 16),
			asm.Or.Reg32(asm.R1, asm.R2),
		)
	}
}

// cut moves the bits of the field to the bottom and clears all others.
func (l *packetLoader) cut(t *tests, where *location) {
	if where.shift != 0 {
		t.Emit(asm.RSh.Imm(asm.R1, where.shift))
	}
	switch {
	case where.mask == ^uint32(0):
		t.Emit(asm.Mov.Reg32(asm.R1, asm.R1)) // clears the upper half
	case where.mask != 0:
		t.Emit(asm.And.Imm32(asm.R1, int32(where.mask)))
	}
}

// loadVariable loads a variable of the parser.
func (l *packetLoader) loadVariable(t *tests, where *location) {
	t.Emit(asm.LoadMem(asm.R1, regFrame, where.offset, where.size))
	if where.kind == value128 {
		t.Emit(asm.LoadMem(asm.R2, regFrame, where.offset+8, where.size))
	}
	l.cut(t, where)
}

// loadElement loads an element of the packet or of the payload. The packet ends where the payload
// ends, because the parser is strict; so beyond the end is beyond the packet, where
// bpf_skb_load_bytes fails (specification: filter-language.md 4).
func (l *packetLoader) loadElement(t *tests, c *condition, where *location, fail label) {
	payload := where.needs&needPayload != 0
	switch {
	case c.index >= 0 && !payload:
		t.Emit(asm.Mov.Imm(asm.R2, c.index))
	case c.index >= 0:
		t.Emit(
			asm.LoadMem(asm.R2, regFrame, varPayload, asm.Word),
			asm.Add.Imm32(asm.R2, c.index),
		)
	default:
		t.Emit(
			asm.LoadMem(asm.R2, regContext, skbLen, asm.Word),
			asm.Add.Imm(asm.R2, c.index),
		)
		start := asm.Mov.Imm(asm.R3, 0)
		if payload {
			start = asm.LoadMem(asm.R3, regFrame, varPayload, asm.Word)
		}
		t.Emit(start)
		t.require(reg64(asm.JSGE, asm.R2, asm.R3), fail)
	}
	t.loadBytes(varElement, int32(where.size.Sizeof()))
	t.require(imm32(asm.JEq, asm.R0, 0), fail)
	t.Emit(asm.LoadMem(asm.R1, regFrame, varElement, where.size))
	if where.size != asm.Byte {
		t.Emit(asm.HostTo(asm.BE, asm.R1, where.size))
	}
}

// needsOf collects the parser's part for the tests.
func (h *Hook) needsOf(list []prog.Test) need {
	var n need
	for i := range list {
		n |= locations[list[i].Field].needs
	}
	return n.implied()
}

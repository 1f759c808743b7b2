//go:build linux

package linux

import (
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/prog"
)

// A packet that is to be cut later (GSO) holds several packets of the network. Segments of TCP are seen together, as the stack
// has them. In superpackets of UDP, which programs make with UDP_SEGMENT, as QUIC and WireGuard do, each datagram is a packet of
// its own, as in all other protocols: the kernel cuts such a superpacket before it queues it. The filter program sees the
// superpacket before that. It is therefore a wider program, without tests of values that are unknown then, and matches if any
// segment may. The interpreter decides anew on each segment.

// unfinished reports whether a field is unknown while the kernel has still to finish the packet's checksum, or has to be asked
// for again when it has.
func unfinished(f prog.Field) bool {
	switch f {
	case prog.FieldUDPChecksum, prog.FieldTCPChecksum,
		prog.FieldPacket, prog.FieldPacket16, prog.FieldPacket32,
		prog.FieldTimestamp, prog.FieldRandom8, prog.FieldRandom16, prog.FieldRandom32:
		return true
	}
	return false
}

// perSegment reports whether a field differs between a superpacket and its segments.
func perSegment(f prog.Field) bool {
	switch f {
	case prog.FieldLength, prog.FieldIPLength, prog.FieldIPID, prog.FieldIPChecksum, prog.FieldIPv6Length,
		prog.FieldUDPLength, prog.FieldUDPPayloadLength,
		prog.FieldUDPPayload, prog.FieldUDPPayload16, prog.FieldUDPPayload32,
		prog.FieldTCPSeqNum, prog.FieldTCPFin, prog.FieldTCPPsh, prog.FieldTCPPayloadLength,
		prog.FieldTCPPayload, prog.FieldTCPPayload16, prog.FieldTCPPayload32:
		return true
	}
	return unfinished(f)
}

// cutting returns the rules by which superpackets of UDP are cut that will meet the rules of a chain.
func (h *handle) cutting(chain rules.Chain) (rs []rules.Rule) {
	cutter := h.source.Wants().Cutter
	if cutter == nil || chain != rules.Outbound {
		return nil
	}
	for _, when := range rules.CasesOfDatagrams(h.terms[chain]) {
		rs = append(rs, rules.Rule{Chain: rules.OutboundCut, Action: cutter, When: when})
	}
	return rs
}

// takes are the kinds of rules that a handle with the flags has.
func takes(sniffs, drops, segments bool) []codegen.Take {
	switch {
	case sniffs:
		return []codegen.Take{codegen.TakeAll}
	case drops:
		return []codegen.Take{codegen.TakeSure, codegen.TakeDoubt}
	}
	kinds := []codegen.Take{codegen.TakeRest}
	if !segments {
		kinds = append(kinds, codegen.TakeStreams)
	}
	if !kernel.FinishedSCTP.Has() {
		kinds = append(kinds, codegen.TakeWhole)
	}
	return kinds
}

//go:build linux

package review

import (
	"sync"

	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// The kernel's messages carry 65,531 bytes of a packet, and a packet may have 65,575: IPv4 up to 65,535, IPv6 40 more.
// Such a packet is received cut.

// maxPacket is the length of the longest packet that an IP header can tell, in bytes.
const maxPacket = packet.IPv6HeaderLen + 0xffff

// paddings are memory for packets of which the end is missing.
var paddings = sync.Pool{New: func() any { return new([maxPacket]byte) }}

// MayMatch decides on a packet of length bytes, of which b is all or, where it does not fit into a message of the kernel, the
// beginning. If the filter tests a missing byte, the packet counts as a match. The process is the address's.
func MayMatch(f *prog.Program, b []byte, length int, a *packet.Address) bool {
	return MayMatchKnown(f, b, length, a, prog.Known{})
}

// MayMatchKnown is MayMatch for a packet of which more is known than its process.
func MayMatchKnown(f *prog.Program, b []byte, length int, a *packet.Address, k prog.Known) bool {
	k.Process, k.HasProcess = a.Network().ProcessID, true
	var parsed packet.Parsed
	if length <= len(b) || length > maxPacket {
		if !parsed.ParseExact(b) {
			return false
		}
		return f.MatchKnown(b, &parsed, a, k) || codegen.Truncated(b) && f.MayMatchHeaders(b, &parsed, a)
	}
	if !parsed.Parse(b) || int(parsed.Length) != length {
		return false // as exact matching decides
	}
	if len(b) < queue.MaxPayload {
		return true // the program wanted no more (WithSnapLength)
	}
	if looksBehind(f, &parsed, len(b)) {
		return true
	}
	whole := paddings.Get().(*[maxPacket]byte)
	defer paddings.Put(whole)
	clear(whole[copy(whole[:], b):])
	return parsed.ParseExact(whole[:length]) && f.MatchKnown(whole[:length], &parsed, a, k)
}

// looksBehind reports whether a filter has a test of an element of a packet that lies behind its first n bytes.
func looksBehind(f *prog.Program, p *packet.Parsed, n int) bool {
	for _, t := range f.Tests() {
		start := 0
		switch t.Field {
		case prog.FieldPacket, prog.FieldPacket16, prog.FieldPacket32:
		case prog.FieldTCPPayload, prog.FieldTCPPayload16, prog.FieldTCPPayload32,
			prog.FieldUDPPayload, prog.FieldUDPPayload16, prog.FieldUDPPayload32:
			start = int(p.HeaderLen)
		default:
			continue
		}
		if t.Index < 0 {
			start = int(p.Length) // it counts from the end
		}
		const longest = 4 // bytes of an element
		if start+int(t.Index)+longest > n {
			return true
		}
	}
	return false
}

// Copied returns the length of a packet of which the log has made a copy that is not limited otherwise.
func Copied(b []byte) int {
	var p packet.Parsed
	if len(b) == queue.MaxPayload && p.Parse(b) && p.Truncated {
		return int(p.Length)
	}
	return len(b)
}

//go:build linux

package linux

import (
	"github.com/opendivert/divert/internal/linux/clock"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// bounded reports whether filter programs cannot pass all extension headers that a packet may have. Tests say so where
// they can.
var bounded = func() bool { return codegen.Loops() != nil }

// doubts is what a handle's description says where programs are bounded.
const doubts = ", the interpreter on packets of IPv6 with more than 64 extension headers, which a handle that drops drops all (Linux 5.17)"

// second decides on packets on which a filter program could not decide, or only that they may match.
type second struct {
	program *prog.Program
	segment bool // the programs do not know all that the filter asks for of single packets, see segments.go

	// For the time that packets wait at most they may have matched the filter before.
	before *prog.Program
	until  int64
}

// setSecond makes a filter the one to decide by from now on.
func (h *handle) setSecond(p *prog.Program) {
	_, exact := p.Without(perSegment)
	next := &second{program: p.Uncounted(), segment: !exact} // nobody knows any more what had been counted
	if last := h.second.Load(); last != nil {
		next.before, next.until = last.program, clock.Now()+int64(h.queueTime.Load())
	}
	h.second.Store(next)
}

// refuses decides once more on a packet of length bytes on which its filter program could not decide, and reports whether it
// does not match. A single packet is one that the kernel may have cut out of another. It cannot tell of a packet of which
// only the beginning is there: that counts as a match.
func (h *handle) refuses(p *packet.Packet, length int, single bool) bool {
	s := h.second.Load()
	if s == nil || !(single && s.segment) && !(length <= len(p.Data) && bounded() && codegen.PastWalk(p.Data)) {
		return false
	}
	if mayMatch(s.program, p.Data, length, &p.Addr) {
		return false
	}
	return s.before == nil || p.Addr.Timestamp > s.until || !mayMatch(s.before, p.Data, length, &p.Addr)
}

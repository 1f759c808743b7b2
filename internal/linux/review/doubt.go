//go:build linux

package review

import (
	"github.com/opendivert/divert/internal/clock"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Bounded reports whether filter programs cannot pass all extension headers that a packet may have. Tests say so where
// they can.
var Bounded = func() bool { return codegen.Loops.Err() != nil }

// Doubts is a handle's description of the limits of its programs.
const Doubts = ", the interpreter on packets of IPv6 with more than 64 extension headers, which a handle that drops drops all (Linux 5.17)"

// second decides on packets on which a filter program could not decide, or only that they may match.
type second struct {
	program *prog.Program
	names   bool // the filter asks for names of processes, or the one before did
	segment bool // for single packets, programs lack values that the filter asks for, see exact of SetSecond

	// Until the longest wait is over, packets may have matched the filter before.
	before *prog.Program
	until  int64
}

// SetSecond makes a filter the one to decide by from now on. exact tells that it asks for nothing that differs between a
// superpacket and its segments.
func (r *Review) SetSecond(p *prog.Program, exact bool) {
	next := &second{program: p.Uncounted(), segment: !exact} // the counts of that moment are gone
	next.names = namesProcess(p)
	if last := r.second.Load(); last != nil {
		next.names = next.names || namesProcess(last.program)
		next.before, next.until = last.program, clock.Now()+int64(r.queueTime.Load())
	}
	r.second.Store(next)
}

// namesProcess reports whether a program asks for the names of processes.
func namesProcess(p *prog.Program) bool {
	return p.Asks(func(f prog.Field) bool { return f == prog.FieldProcess })
}

// Refuses decides once more on a packet of length bytes on which its filter program could not decide, and reports whether it
// does not match. A single packet is one that the kernel may have cut out of another. If the answer depends on a part of the
// packet that is missing, it counts as a match.
func (r *Review) Refuses(p *packet.Packet, length int, single bool) bool {
	s := r.second.Load()
	if s == nil || !(single && s.segment) && !(length <= len(p.Data) && (Bounded() && codegen.PastWalk(p.Data) || codegen.Truncated(p.Data))) {
		return false
	}
	if s.names {
		r.name(p)
	}
	if MayMatch(s.program, p.Data, length, &p.Addr) {
		return false
	}
	return s.before == nil || p.Addr.Timestamp > s.until || !MayMatch(s.before, p.Data, length, &p.Addr)
}

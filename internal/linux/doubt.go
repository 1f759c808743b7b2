//go:build linux

package linux

import (
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/packet"
)

// bounded reports whether filter programs cannot pass all extension headers that a packet may have. Tests say so where
// they can.
var bounded = func() bool { return codegen.Loops() != nil }

// doubts is what a handle's description says where programs are bounded.
const doubts = ", the interpreter on packets of IPv6 with more than 64 extension headers, which a handle that drops drops all (Linux 5.17)"

// refuses decides once more on a packet on which its filter program could not decide, and reports whether it does not
// match. It cannot tell of a packet of which only the beginning is there: that counts as a match.
func (h *handle) refuses(p *packet.Packet, cut bool) bool {
	program := h.second.Load()
	if program == nil || cut || !codegen.PastWalk(p.Data) {
		return false
	}
	var parsed packet.Parsed
	return !parsed.ParseExact(p.Data) || !program.MatchProcess(p.Data, &parsed, &p.Addr, p.Addr.Network().ProcessID)
}

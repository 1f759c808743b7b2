//go:build linux

package rules

import (
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/prog"
)

// The packet log does not tell that a packet is to be cut later (GSO), nor how. A handle that sniffs through it without programs
// therefore has superpackets of UDP cut that this host sends: its rules lead datagrams to a queue that takes no packet and lets
// them go on at once (queue.Options.Cuts). The kernel cuts superpackets for that queue, in the course of the sender's system
// call: nothing waits for a program. That happens at LOCAL_OUT, before connection tracking: behind it a queue drops
// datagrams that share a new connection (nf_ct_drop_unconfirmed, net/netfilter/nfnetlink_queue.c, Linux 6.11).
//
// Superpackets that come in are not cut: what is cut out of them has no link-layer header, so that others' rules that
// ask for MAC addresses would decide otherwise. A packet socket tells their sizes, see package superpacket.

// ToCutter leads packets to a queue that cuts superpackets, and past the rest of the chain. If nobody has bound it any
// more, packets go on as they are.
type ToCutter struct{ Num uint16 }

func (c ToCutter) exprs(chain Chain) []expr.Any { return ToQueue(c).exprs(chain) }

// cutting returns the expressions of a rule that leads packets to a queue that cuts them.
func (r Rule) cutting() []expr.Any {
	before, destination := r.When.exprs()
	return slices.Concat(before, destination, r.Action.exprs(r.Chain))
}

// owns reports whether a rule is the handle's.
func (o Owner) owns(r rule) bool { return r.owner != nil && r.owner.ID == o.ID }

// jumpToCut leads datagrams without a cursor through the chain that cuts.
func jumpToCut() []expr.Any {
	return append(priorityDiffers(cursor.Ours, cursor.Ours),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Verdict{Kind: expr.VerdictJump, Chain: chains[OutboundCut].name},
	)
}

var udpOnly = []prog.Range{{First: prog.Value{Lo: unix.IPPROTO_UDP}, Last: prog.Value{Lo: unix.IPPROTO_UDP}}}

// CasesOfDatagrams returns the cases for rules that lead UDP on if it meets one of the terms, is no fragment of IPv4, and has no
// extension headers of IPv6.
func CasesOfDatagrams(terms []prog.Term) (cases []When) {
	for _, t := range terms {
		switch {
		case t.Family == 0:
			return []When{{Term: prog.Term{Family: 4, Pieces: prog.WholePiece, Protocol: udpOnly}}, {Term: prog.Term{Family: 6, Protocol: udpOnly}}}
		case t.Extends, t.Pieces == prog.FirstPiece, t.Pieces == prog.Fragments,
			t.Protocol != nil && !slices.ContainsFunc(t.Protocol, holdsUDP):
			continue
		case t.Family == 4:
			t.Pieces = prog.WholePiece
		}
		t.Protocol = udpOnly
		cases = append(cases, When{Term: t})
	}
	return cases
}

func holdsUDP(r prog.Range) bool {
	return r.First.Lo <= unix.IPPROTO_UDP && unix.IPPROTO_UDP <= r.Last.Lo
}

// setCutting leads datagrams through the chain that cuts, where handles have rules there, and past it elsewhere.
func (t *tx) setCutting() {
	if !t.loaded || !t.table.there {
		return // the rules are as they were
	}
	switch there := t.has(OutboundOrigin, cutting); {
	case len(t.rules[OutboundCut]) == 0 && there:
		t.removeFixed(OutboundOrigin, cutting)
	case len(t.rules[OutboundCut]) > 0 && !there:
		t.rules[OutboundOrigin] = slices.Insert(t.rules[OutboundOrigin], 0, cutting.rule())
	}
}

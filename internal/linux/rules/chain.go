//go:build linux

package rules

import (
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/inject"
)

// Chain is a chain of the table.
type Chain int

// The chains. Each stands at the outermost place of its path, where the packet is what the network sent
// or will get, so that connection tracking, NAT, routing and sockets see what a program re-injects.
const (
	Inbound          Chain = iota // packets for this host, datagrams put together
	InboundFragments              // packets for this host as they came
	Forward                       // packets routed through this host
	Outbound                      // packets of this host
	Defrag                        // in no path: its rules switch reassembly on
	Handles                       // in no path: one rule for each handle, also for those whose filter matches nothing
	numChains
)

// tableName names the table, family inet.
const tableName = "divert"

// Priorities of the base chains among those of others (linux/netfilter_ipv4.h): reassembly sits at -400,
// connection tracking at -200, its confirmation of outgoing packets at the very end.
const (
	beforeDefrag    = -450
	afterDefrag     = -300
	beforeConfirmed = 1<<31 - 1 - 100
)

// chains describes the chains: the hook of each, nil for a chain in no path, and the rules that are nobody's.
// A packet keeps its cursor from inbound_fragments to inbound: they are one way.
var chains = [numChains]struct {
	name     string
	hook     *nftables.ChainHook
	priority int32
	fixed    []fixed
}{
	Inbound:          {"inbound", nftables.ChainHookPrerouting, afterDefrag, []fixed{opening, closing}},
	InboundFragments: {"inbound_fragments", nftables.ChainHookPrerouting, beforeDefrag, []fixed{opening}},
	Forward:          {"forward", nftables.ChainHookForward, afterDefrag, []fixed{openingForward, closing}},
	Outbound:         {"outbound", nftables.ChainHookPostrouting, beforeConfirmed, []fixed{closing}},
	Defrag:           {"defrag", nil, 0, nil},
	Handles:          {"handles", nil, 0, nil},
}

// fixed is a rule that stands in a chain for all handles.
type fixed uint8

const (
	opening        fixed = iota // takes the cursor of packets that were injected inbound from where it travelled
	openingForward              // the same of packets that were injected to be forwarded
	closing                     // takes the cursor out of packets that have met every handle
)

// fixedComment is the comment by which a fixed rule is known.
var fixedComment = [...]string{opening: "divert: first", openingForward: "divert: first of forwarded", closing: "divert: last"}

func (f fixed) userData() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, fixedComment[f])
}

func (f fixed) exprs() []expr.Any {
	switch f {
	case opening:
		return inject.CursorRule()
	case openingForward:
		return inject.ForwardCursorRule()
	}
	return append(priorityIs(cursor.MagicMask, cursor.Magic), setPriority(cursor.OldMask, 0)...)
}

// is reports whether a rule with this userdata is the fixed one.
func (f fixed) is(data []byte) bool {
	text, ok := comment(data)
	return ok && text == fixedComment[f]
}

var table = &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}

// ref returns the chain as the library wants it named.
func (c Chain) ref() *nftables.Chain {
	return &nftables.Chain{Name: chains[c].name, Table: table}
}

// definition returns the chain as it is made.
func (c Chain) definition() *nftables.Chain {
	d := c.ref()
	if hook := chains[c].hook; hook != nil {
		accept := nftables.ChainPolicyAccept
		d.Type = nftables.ChainTypeFilter
		d.Hooknum = hook
		d.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(chains[c].priority))
		d.Policy = &accept
	}
	return d
}

// native returns a number as a register holds it.
func native(v uint32) []byte { return binaryutil.NativeEndian.PutUint32(v) }

// Registers of the rules' expressions.
const (
	reg1 = unix.NFT_REG_1
	reg2 = unix.NFT_REG_2
)

// priorityIs matches packets whose skb->priority, under mask, is value, and leaves the priority in reg1.
func priorityIs(mask, value uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg2, Len: 4, Mask: native(mask), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg2, Data: native(value)},
	}
}

// setPriority replaces skb->priority by reg1 under mask, with the bits of or set.
func setPriority(mask, or uint32) []expr.Any {
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: native(mask), Xor: native(or)},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg1},
	}
}

// notServed matches packets that the handle with the key has not served yet, for rules without a program
// that looks.
func notServed(k cursor.Key) []expr.Any {
	first, last := k.Served()
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg1},
		&expr.Byteorder{SourceRegister: reg1, DestRegister: reg1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Range{Op: expr.CmpOpNeq, Register: reg1, FromData: binaryutil.BigEndian.PutUint32(first), ToData: binaryutil.BigEndian.PutUint32(last)},
	}
}

// loopbackIfIndex is the index of lo in every namespace (include/net/flow.h, LOOPBACK_IFINDEX).
const loopbackIfIndex = 1

// notFromLoopback matches packets that did not come in on lo.
func notFromLoopback() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: native(loopbackIfIndex)},
	}
}

// forThisHost matches packets whose destination is an address of this host, a broadcast, anycast or
// multicast address.
func forThisHost() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Byteorder{SourceRegister: reg1, DestRegister: reg1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Range{Op: expr.CmpOpEq, Register: reg1, FromData: binaryutil.BigEndian.PutUint32(unix.RTN_LOCAL), ToData: binaryutil.BigEndian.PutUint32(unix.RTN_MULTICAST)},
	}
}

// Forwarded packets pass the chain "outbound" too. A program tells them by the interface they came in
// on; a rule without a program cannot, so the chain "forward" marks them for it: another magic nibble
// in the priority, put on only where the rest of the priority fits beside it.
const forwardedMagic = 0xC0000000

// markForwarded is the rule of "forward" that marks.
func markForwarded() []expr.Any {
	return append(priorityIs(^uint32(cursor.OldMask), 0), setPriority(cursor.OldMask, forwardedMagic)...)
}

// passForwarded is the rule of "outbound" that takes the mark away and lets the packet pass.
func passForwarded() []expr.Any {
	e := append(priorityIs(cursor.MagicMask, forwardedMagic), setPriority(cursor.OldMask, 0)...)
	return append(e, &expr.Verdict{Kind: expr.VerdictReturn})
}

// defragRules switch reassembly on for both families without connection tracking: the expression asks
// for it when it is made, wherever it stands (net/netfilter/nft_tproxy.c). They stay as long as the table:
// reassembly is a hook too, and to take a hook away loses the packets that wait in queues.
func defragRules() [][]expr.Any {
	rule := func(family byte) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{family}},
			&expr.Immediate{Register: reg1, Data: binaryutil.BigEndian.PutUint16(1)},
			&expr.TProxy{Family: family, TableFamily: byte(nftables.TableFamilyINet), RegPort: reg1},
		}
	}
	return [][]expr.Any{rule(unix.NFPROTO_IPV4), rule(unix.NFPROTO_IPV6)}
}

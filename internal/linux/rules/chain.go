//go:build linux

package rules

import (
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/netns"
)

// Chain is a chain of the table.
type Chain int

// The chains. Each stands at the outermost place of its path, where the packet is as the network sent it
// or will get it, so that connection tracking, NAT, routing and sockets see what a program re-injects.
const (
	Inbound          Chain = iota // packets for this host, datagrams put together
	InboundFragments              // packets for this host as they came
	Forward                       // packets routed through this host
	Outbound                      // packets of this host
	Redirected                    // packets for this host that were not before others redirected them
	InboundOrigin                 // every incoming packet, once: only injected ones have a cursor
	OutboundOrigin                // all that this host sends, once: the same
	ForwardOrigin                 // a part of Forward: the cursor of injected packets
	Defrag                        // in no path: its rules switch reassembly on
	Handles                       // in no path: rules for each handle, also for those whose filter matches nothing
	InboundGate                   // a part of Inbound: leads packets that no handle demands past the handles
	OutboundGate                  // the same of Outbound
	OutboundCut                   // a part of OutboundOrigin: cuts superpackets of UDP, see ToCutter
	numChains
)

// tableName names the table, family inet.
const tableName = "divert"

const forwardOrigin = "forward_origin"

// Priorities of the base chains among those of others (linux/netfilter_ipv4.h): reassembly sits at -400,
// connection tracking at -200, its confirmation of outgoing packets at the very end.
const (
	first           = -451 // once for each packet: NF_REPEAT returns to the chain that queued it, not to one before
	beforeDefrag    = -450
	afterDefrag     = -300
	beforeConfirmed = 1<<31 - 1 - 100
)

// chains describes the chains: the hook of each, nil for a chain in no path, and the rules that belong to no handle, which stand
// before and behind those of the handles.
// A packet keeps its cursor from inbound_fragments to inbound: they are one way.
var chains = [numChains]struct {
	name       string
	hook       *nftables.ChainHook
	priority   int32
	head, tail []fixed
}{
	Inbound:          {"inbound", nftables.ChainHookPrerouting, afterDefrag, []fixed{fromVRF, gating}, []fixed{closing}},
	InboundFragments: {"inbound_fragments", nftables.ChainHookPrerouting, beforeDefrag, nil, nil},
	Forward:          {"forward", nftables.ChainHookForward, afterDefrag, []fixed{entering}, []fixed{forgetting}},
	Outbound:         {"outbound", nftables.ChainHookPostrouting, beforeConfirmed, []fixed{toVRF, gating}, []fixed{closing}},
	Redirected:       {"redirected", nftables.ChainHookInput, afterDefrag, []fixed{known, opening}, []fixed{closing}},
	InboundOrigin:    {"inbound_origin", nftables.ChainHookPrerouting, first, []fixed{fromVRF}, []fixed{passing, clearing}},
	OutboundOrigin:   {"outbound_origin", nftables.ChainHookOutput, first, []fixed{cutting, passing, toVRF}, []fixed{clearing}},
	ForwardOrigin:    {forwardOrigin, nil, 0, nil, nil},
	Defrag:           {"defrag", nil, 0, nil, nil},
	Handles:          {"handles", nil, 0, nil, nil},
	InboundGate:      {"inbound_gate", nil, 0, nil, nil},
	OutboundGate:     {"outbound_gate", nil, 0, nil, nil},
	OutboundCut:      {"outbound_cut", nil, 0, nil, nil},
}

// fixed returns the rules of a chain that belong to no handle, in order.
func (c Chain) fixed() []fixed { return slices.Concat(chains[c].head, chains[c].tail) }

// behind reports whether a rule with this userdata is one of those behind the rules of the handles.
func (c Chain) behind(data []byte) bool {
	return slices.ContainsFunc(chains[c].tail, func(f fixed) bool { return f.is(data) })
}

// fixed is a rule that stands in a chain for all handles.
type fixed uint8

const (
	entering   fixed = iota // leads packets without a cursor through forward_origin
	passing                 // lets packets go on that carry no cursor, true or forged
	fromVRF                 // lets packets go on that a VRF device received: they have come in by its port already
	toVRF                   // lets packets go on that a VRF device will send: its port sends them once more
	clearing                // takes forged cursors out of packets; those that proved theirs have left the chain
	closing                 // takes the cursor out of packets that have met every handle
	forgetting              // the same, and takes out the note that packets are for elsewhere
	known                   // lets packets go on that were for this host when they came in: they have met every handle
	gating                  // leads packets through the gate of the chain, see setGates
	opening                 // turns the note into a cursor that no handle has set
	cutting                 // leads datagrams without a cursor through the chain that cuts, see setCutting
)

// fixedComment is the comment by which a fixed rule is known.
var fixedComment = [...]string{
	entering: "divert: first of forwarded", passing: "divert: without cursor",
	fromVRF: "divert: second of two in a VRF", toVRF: "divert: first of two in a VRF",
	clearing: "divert: forged", closing: "divert: last",
	forgetting: "divert: last of forwarded", known: "divert: for this host before", gating: "divert: for all handles", opening: "divert: first",
	cutting: "divert: cut",
}

func (f fixed) userData() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, fixedComment[f])
}

func (f fixed) exprs() []expr.Any {
	switch f {
	case entering:
		// Here and not at PRE_ROUTING, because IPv4 sets the priority before FORWARD (ip_forward, net/ipv4/ip_forward.c).
		return append(priorityDiffers(cursor.MagicMask, cursor.Magic), &expr.Verdict{Kind: expr.VerdictJump, Chain: forwardOrigin})
	case passing:
		return append(priorityDiffers(cursor.Ours, cursor.Ours), &expr.Verdict{Kind: expr.VerdictAccept})
	case fromVRF:
		return passVRF(metaIIFKind)
	case toVRF:
		return passVRF(metaOIFKind)
	case cutting:
		return jumpToCut()
	case known:
		return append(priorityDiffers(cursor.Magic, cursor.Magic), &expr.Verdict{Kind: expr.VerdictAccept})
	case opening:
		return append(priorityIs(cursor.MagicMask, cursor.Elsewhere), setPriority(cursor.OldMask, cursor.Magic|cursor.KeyMask)...)
	case forgetting:
		return append(priorityIs(cursor.Magic, cursor.Magic), setPriority(cursor.OldMask, 0)...)
	case clearing:
		return append(priorityIs(cursor.Ours, cursor.Ours), setPriority(cursor.OldMask, 0)...)
	}
	return append(priorityIs(cursor.MagicMask, cursor.Magic), setPriority(cursor.OldMask, 0)...)
}

// rule returns the rule as one to be made.
func (f fixed) rule() rule { return rule{data: f.userData(), exprs: f.exprs()} }

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

// priorityDiffers matches packets whose skb->priority, under mask, is not value.
func priorityDiffers(mask, value uint32) []expr.Any {
	e := priorityIs(mask, value)
	e[len(e)-1].(*expr.Cmp).Op = expr.CmpOpNeq
	return e
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

// notFromLoopback matches packets that did not come in on lo.
func notFromLoopback() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIF, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: native(netns.LoopbackIndex)},
	}
}

// Keys of meta that the library does not name: the kind of the incoming and of the outgoing device
// (linux/netfilter/nf_tables.h, Linux 5.1).
const (
	metaIIFKind expr.MetaKey = 26
	metaOIFKind expr.MetaKey = 27
)

// A VRF device passes on what its ports receive and send, so such packets enter PRE_ROUTING, LOCAL_OUT and POST_ROUTING twice
// (drivers/net/vrf.c). The port's pass is the one that counts: at PRE_ROUTING, a packet that waits in a queue during the pass of
// the VRF device is lost (vrf_rcv_finish).

// needed reports whether a fixed rule has a use in a chain on this host. At the head of a chain every packet
// pays for the rules that know VRF devices, so there they wait for the module that makes such devices: a handle
// that opens after it was loaded adds them. In inbound_origin they stand there because an injected packet proves its origin by
// its frame, which it still has when the VRF device receives it: it would get its cursor a second time.
func (c Chain) needed(f fixed) bool {
	if f == gating || f == cutting {
		return false // setGates and setCutting know
	}
	return f != fromVRF && f != toVRF || c == OutboundOrigin || mayHaveVRF()
}

// mayHaveVRF reports whether the host can have VRF devices at this moment. Built in, the module is always there.
func mayHaveVRF() bool {
	_, err := os.Stat("/sys/module/vrf")
	if err == nil {
		return true
	}
	_, err = os.Stat("/sys/module")
	return err != nil // unknown
}

// passVRF lets packets go on whose device, of the kind that key reads, is a VRF device. Devices that are made by a driver have
// no kind, so that the expression ends the rule: a rule that tests for another kind would miss them.
func passVRF(key expr.MetaKey) []expr.Any {
	kind := make([]byte, unix.IFNAMSIZ)
	copy(kind, "vrf")
	return []expr.Any{
		&expr.Meta{Key: key, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: kind},
		&expr.Verdict{Kind: expr.VerdictAccept},
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

// A transparent proxy redirects packets behind PRE_ROUTING: their destination is no address of this host when inbound sees them,
// and yet they end here. So before the test for this host a packet gets a note that it is for elsewhere, which is removed if it
// is for this host; the chain "redirected" at LOCAL_IN looks at packets with the note, and at no others.

// noteElsewhere gives packets the note and leaves the old priority in reg2.
func noteElsewhere() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg2},
		&expr.Bitwise{SourceRegister: reg2, DestRegister: reg1, Len: 4, Mask: native(cursor.OldMask), Xor: native(cursor.Elsewhere)},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg1},
	}
}

// onlyForThisHost matches packets for this host. Others that get this far keep the note.
func onlyForThisHost() []expr.Any {
	e := append(noteElsewhere(), forThisHost()...)
	return append(e, &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg2})
}

// Forwarded packets pass the chain "outbound" too. A program tells them by the interface they came in
// on; a rule without a program cannot, so the chain "forward" marks them for it: another magic nibble
// in the priority, put on only where the rest of the priority fits beside it, and gone if a rule behind "forward" sets
// another priority. Packets with a greater priority go by passUnmarked.
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

// passUnmarked is the rule of "outbound" that lets forwarded packets pass whose priority has no room for the mark, or has
// replaced it: POST_ROUTING has the interface they came in on (Linux 5.7). It has one for packets too that a tunnel of this host
// makes of others, but their source is an address of the host. A forwarded packet that has got such a source by NAT looks the
// same as those.
func passUnmarked() []expr.Any {
	e := priorityDiffers(^uint32(cursor.OldMask), 0)
	e = append(e, priorityDiffers(cursor.Ours, cursor.Ours)...)
	e = append(e,
		&expr.Meta{Key: expr.MetaKeyIIF, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: native(0)},
		&expr.Fib{Register: reg1, FlagSADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: native(unix.RTN_LOCAL)},
	)
	return append(e, &expr.Verdict{Kind: expr.VerdictReturn})
}

// defragRules switch reassembly on for both families without connection tracking: the expression asks for it when it is made,
// wherever it stands (net/netfilter/nft_tproxy.c). They stay as long as the table: reassembly is a hook too, and removing a hook
// loses the packets that wait in queues.
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

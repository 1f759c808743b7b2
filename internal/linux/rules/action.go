//go:build linux

package rules

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nflog"
)

// The extensions of x_tables that rules use where nf_tables has no expression.
const (
	matchName     = "bpf"
	matchRevision = 1
	queueName     = "NFQUEUE"
	queueRevision = 3
)

// Rule is a handle's place in one chain.
type Rule struct {
	Chain   Chain
	Program int    // descriptor of the filter program, or NoProgram
	Action  Action // what happens to the packets that the program matches
	Share   Share  // which flows the rule is for
	When    When   // which packets it is for
	Silent  bool   // the counter of the handle does not count its packets

	// First and Last are descriptors of programs that are asked too: before Program, and when everything else is met. 0: none.
	First, Last int
}

// Only selects the packets that a rule is for, by the protocol as far as rules themselves can see it.
type Only uint8

// The kinds of packets.
const (
	AllPackets Only = iota
	TCP             // TCP behind any headers that the kernel follows
	PlainTCP4       // TCP over IPv4 without options
	PlainTCP6       // TCP over IPv6 without extension headers
	BigTCP6         // TCP over IPv6 with the one of BIG TCP
	TCP6            // TCP over IPv6 behind any headers that the kernel follows
	SCTP            // SCTP behind any headers that the kernel follows
	OddTCP4         // TCP over IPv4 with options, where a term asks for TCP already
)

// exprs matches the packets.
func (o Only) exprs() []expr.Any {
	meta := func(key expr.MetaKey, want byte) []expr.Any {
		return []expr.Any{
			&expr.Meta{Key: key, Register: reg1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{want}},
		}
	}
	header := func(offset uint32, want ...byte) []expr.Any {
		return []expr.Any{
			&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(want))},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: want},
		}
	}
	switch o {
	case TCP:
		return meta(expr.MetaKeyL4PROTO, unix.IPPROTO_TCP)
	case SCTP:
		return meta(expr.MetaKeyL4PROTO, unix.IPPROTO_SCTP)
	case TCP6:
		return slices.Concat(meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6), meta(expr.MetaKeyL4PROTO, unix.IPPROTO_TCP))
	case PlainTCP4: // version and header length, protocol
		return slices.Concat(meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4), header(0, 0x45), header(9, unix.IPPROTO_TCP))
	case OddTCP4:
		e := header(0, 0x45)
		e[len(e)-1].(*expr.Cmp).Op = expr.CmpOpNeq
		return append(meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4), e...)
	case PlainTCP6: // next header
		return slices.Concat(meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6), header(6, unix.IPPROTO_TCP))
	case BigTCP6: // hop-by-hop options, then TCP; 8 bytes; the option of jumbograms, of 4 bytes (RFC 2675 section 2)
		return slices.Concat(meta(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6), header(6, unix.IPPROTO_HOPOPTS),
			header(40, unix.IPPROTO_TCP, 0, 0xC2, 4))
	}
	return nil
}

// Share is the flows of one among several rules: those whose number, modulo Of, is Index. The zero Share is all
// flows. Both directions of a flow, and the fragments of a datagram among themselves, have one number.
type Share struct{ Index, Of uint32 }

// exprs matches the share's flows.
func (s Share) exprs() []expr.Any {
	if s.Of <= 1 {
		return nil
	}
	return []expr.Any{
		&expr.Hash{DestRegister: reg1, Modulus: s.Of, Type: expr.HashTypeSym},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: native(s.Index)},
	}
}

// NoProgram makes a rule that takes every packet of the chain's path: there is no program, and the handle decides in user space.
const NoProgram = -1

// Action says what a rule does with its packets.
type Action interface{ exprs(Chain) []expr.Any }

// ToQueue leads packets to a queue. If nobody has bound it any more, packets pass.
type ToQueue struct{ Num uint16 }

// ToLog leads copies of packets to a log group; the packets go on to the next rule.
type ToLog struct{ Group uint16 }

// Flags of struct xt_NFQ_info_v3 (linux/netfilter/xt_NFQUEUE.h).
const nfqBypass = 1

// xtAlign is the alignment of extensions' data in xtables, in bytes.
const xtAlign = 8

// ToNobody does nothing: the rule's program has done everything.
type ToNobody struct{}

func (ToNobody) exprs(Chain) []expr.Any { return nil }

// ToNowhere drops packets without an error for their sender. A packet of this host goes to a queue that takes none, because a
// verdict would fail the sender's call (EPERM). A packet of another host gets the verdict, which costs much less.
type ToNowhere struct{ Num uint16 }

func (n ToNowhere) exprs(c Chain) []expr.Any {
	if c == Outbound {
		return ToQueue(n).exprs(c)
	}
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
}

func (q ToQueue) exprs(Chain) []expr.Any {
	info := make(xt.Unknown, xtAlign)
	binary.NativeEndian.PutUint16(info[0:], q.Num)
	binary.NativeEndian.PutUint16(info[2:], 1) // one queue: the target itself would choose among several by address only
	binary.NativeEndian.PutUint16(info[4:], nfqBypass)
	return []expr.Any{&expr.Target{Name: queueName, Rev: queueRevision, Info: &info}}
}

func (l ToLog) exprs(Chain) []expr.Any {
	return []expr.Any{&expr.Log{
		Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_QTHRESHOLD,
		Group: l.Group, QThreshold: nflog.Threshold,
	}}
}

// struct xt_bpf_info_v1 of linux/netfilter/xt_bpf.h: mode, length, descriptor, room for a path, a pointer
// of the kernel's own.
const (
	xtBPFSize   = 528
	xtBPFModeFD = 2
)

// program matches the packets that the filter program with the descriptor matches. The kernel takes its own
// reference to the program.
func program(fd int) expr.Any {
	info := make(xt.Unknown, xtBPFSize)
	binary.NativeEndian.PutUint16(info[0:], xtBPFModeFD)
	binary.NativeEndian.PutUint32(info[4:], uint32(fd))
	return &expr.Match{Name: matchName, Rev: matchRevision, Info: &info}
}

// late reports whether the rule looks at the destination late. Where the test for this host comes before the program, and notes
// that a packet is for elsewhere, a destination that others are still to change must not keep packets from that test.
func (r *Rule) late() bool {
	_, alone := r.Action.(ToNobody)
	return (r.Chain == Inbound || r.Chain == InboundFragments) && (alone || r.Program == NoProgram)
}

// exprs returns the rule's expressions.
func (r Rule) exprs(o Owner) []expr.Any {
	if _, cuts := r.Action.(ToCutter); cuts {
		return r.cutting()
	}
	inbound := r.Chain == Inbound || r.Chain == InboundFragments
	_, alone := r.Action.(ToNobody)
	e, destination := r.When.exprs()
	if !r.late() {
		e = append(e, destination...)
	}
	e = append(e, r.Share.exprs()...)
	if inbound && alone {
		e = append(e, onlyForThisHost()...) // the program must not see others
		e = append(e, destination...)
	}
	if r.First != 0 {
		e = append(e, program(r.First))
	}
	if r.Program != NoProgram {
		e = append(e, program(r.Program))
	} else {
		e = append(e, notServed(o.Key)...)
	}
	if inbound && !alone {
		if r.Program == NoProgram {
			e = append(e, notFromLoopback()...)
		}
		// After the program, because the look-up costs more than most filters.
		e = append(e, onlyForThisHost()...)
		if r.late() {
			e = append(e, destination...)
		}
	}
	if r.Last != 0 {
		e = append(e, program(r.Last))
	}
	if !alone && !r.Silent {
		e = append(e, &expr.Objref{Type: int(nftables.ObjTypeCounter), Name: o.counter()})
	}
	return append(e, r.Action.exprs(r.Chain)...)
}

// counter names the counter of a handle's packets. It is an object of the table, not of a rule, so it
// goes on counting when the rules are replaced.
func (o Owner) counter() string { return fmt.Sprintf("handle_%x", o.ID) }

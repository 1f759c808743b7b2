//go:build linux

package inject

import (
	"crypto/rand"
	"encoding/binary"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
)

// Anybody with CAP_NET_RAW may set the priority of a packet, so a priority does not prove where a packet comes
// from. Packets that are injected prove it by secrets, which stand in rules that only CAP_NET_ADMIN lets anybody read;
// the rules replace the proof by the cursor.

// Password proves an Outbound's packets: 60 secret bits. Both halves stay inside the kernel: the mark is
// one of the socket, which each message overrides with 0 for the packet and its route, and which sock_diag shows to
// CAP_NET_ADMIN only (net/ipv4/inet_diag.c).
type Password struct {
	Priority uint32 // skb->priority until PasswordRule has seen it; the highest four bits are those of a cursor
	Mark     uint32 // of the socket
}

// NewPassword returns a new password.
func NewPassword() Password {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return Password{
		Priority: cursor.Magic | binary.NativeEndian.Uint32(b[:])&^cursor.MagicMask,
		Mark:     binary.NativeEndian.Uint32(b[4:]) | 1,
	}
}

// Seal proves an Inbound's frames: their destination address and the first 36 bits of their source
// address. The device has the destination as its own address, so that frames are for this host; anybody may read it.
// The 35 random bits of the source are the secret.
type Seal [11]byte

const sealMask = 0xf0 // of the last byte: the rest of the source address says which interface is meant

// NewSeal returns a new seal.
func NewSeal() (s Seal) {
	rand.Read(s[:]) // never fails
	s[0] = s[0]&^1 | 2
	s[6] = s[6]&^1 | 2 // both locally administered, individual addresses
	s[10] &= sealMask
	return s
}

// PasswordRule returns the expressions of a rule at LOCAL_OUT that gives packets with the password the cursor and
// ends the chain for them.
func PasswordRule(p Password, cursor uint32) []expr.Any {
	e := append(hasPassword(p), setPriority(cursor)...)
	return append(e, &expr.Verdict{Kind: expr.VerdictReturn})
}

// FragmentRule returns the expressions of a rule, before PasswordRule and before reassembly at -400, that keeps IPv6
// fragments with the password out of reassembly and connection tracking, as IP_NODEFRAG does IPv4's.
// It does not switch connection tracking on (nft_notrack_eval, net/netfilter/nft_ct.c).
func FragmentRule(p Password) []expr.Any {
	return append(hasPassword(p),
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{unix.NFPROTO_IPV6}},
		&expr.Exthdr{DestRegister: reg1, Type: protoFragment, Len: 1, Flags: unix.NFT_EXTHDR_F_PRESENT, Op: expr.ExthdrOpIpv6},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{1}},
		&expr.Notrack{},
	)
}

// hasPassword matches packets with the password. The priority comes first: for packets without a socket, the comparison of the
// mark looks one up.
func hasPassword(p Password) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: native(p.Priority)},
		&expr.Socket{Key: expr.SocketKeyMark, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: native(p.Mark)},
	}
}

// SealRule returns the expressions of a rule at PRE_ROUTING or FORWARD that gives packets from frames with the seal the cursor
// and ends the chain for them. It looks at 24 bits of the destination and at all bits of the source that count.
// The packets must also match the expressions in and.
func SealRule(s Seal, cursor uint32, and ...expr.Any) []expr.Any {
	const from, length = 3, 8
	mask := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, sealMask}
	e := []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseLLHeader, Offset: from, Len: length},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: s[from : from+length]},
	}
	return slices.Concat(e, and, setPriority(cursor), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}})
}

const reg1 = unix.NFT_REG_1

func setPriority(v uint32) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: reg1, Data: native(v)},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg1},
	}
}

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

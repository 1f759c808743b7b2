//go:build linux

package inject

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
)

// CursorRule returns the expressions of the rule that must come first in each PRE_ROUTING chain: it
// takes the cursor of a packet that an Inbound injected from the frame's destination address to
// skb->priority. Packets of other origin do not match. A packet that has a cursor already keeps it:
// after NF_REPEAT, it says which handles the packet has passed since.
//
// A cursor is known by the magic number 0xd in its highest four bits.
func CursorRule() []expr.Any { return cursorRule(macOwn) }

// ForwardCursorRule is CursorRule for the chain of FORWARD and the packets of a Forward.
func ForwardCursorRule() []expr.Any { return cursorRule(macForward) }

func cursorRule(kind uint16) []expr.Any {
	const reg, magic, magicMask = 1, 0xd0000000, 0xf0000000
	u16 := func(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
	u32 := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	etherAddr := func(offset, length uint32) expr.Any {
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: offset, Len: length}
	}
	return []expr.Any{
		etherAddr(0, 2),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: u16(kind)},
		etherAddr(6, 2),
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: u16(macTarget)},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: reg},
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: u32(magicMask), Xor: u32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: u32(magic)},
		etherAddr(2, 4),
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg},
	}
}

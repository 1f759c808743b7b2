// Package cursor is the mark that a packet carries in skb->priority between two handles: how far
// down the order of handles it has come.
//
// A verdict or an injection sets it, the filter programs compare it with their own key, and the last
// rule of each chain puts the old priority back. The field has 32 bits: a magic nibble, the key of the
// handle that has served the packet, and the low nibble of the old priority, which holds every value
// that the kernel derives from a packet itself (linux/pkt_sched.h, TC_PRIO_MAX).
package cursor

// Key orders the handles of a namespace: 24 bits, unique; a packet meets the higher keys first.
type Key uint32

// Layout of the field. A field with both of the highest bits is ours, whatever the other two say.
const (
	Ours      = 0xC0000000
	Magic     = 0xD0000000
	MagicMask = 0xF0000000
	Elsewhere = 0xF0000000 // instead of Magic: not for this host at PRE_ROUTING, and no handle has seen it
	KeyMask   = 0x0FFFFFF0
	OldMask   = 0x0000000F

	keyShift = 4
)

// Bounds of a key. A priority has 256 keys of its own, for handles of equal priority.
const (
	subBits = 8
	Subs    = 1 << subBits
	maxKey  = 1<<24 - 1

	lowestPriority = -30000
)

// NewKey returns the key of a handle of the given priority (-30000 to 30000). Among equal priorities the
// higher sub is the higher key.
func NewKey(priority int16, sub uint8) Key {
	return Key(int32(priority)-lowestPriority)<<subBits | Key(sub)
}

// Sub returns the part of a key that tells handles of equal priority apart.
func (k Key) Sub() uint8 { return uint8(k) }

// Pack returns the field of a packet that the handle with this key has served, whose priority was old.
func (k Key) Pack(old uint32) uint32 {
	return Magic | uint32(k&maxKey)<<keyShift | old&OldMask
}

// Unpack returns the key in a field, and whether it holds a cursor.
func Unpack(v uint32) (k Key, ok bool) {
	return Key(v & KeyMask >> keyShift), v&MagicMask == Magic
}

// Served returns the lowest and the highest field of packets that a handle with this key must not see
// any more.
func (k Key) Served() (first, last uint32) {
	return Magic, uint32(Magic) | uint32(k&maxKey)<<keyShift | OldMask
}

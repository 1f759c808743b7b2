//go:build linux

package verdict

import (
	"encoding/binary"

	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// token is an address's memory of the queued packet that it came with. It lies in the bytes of the
// layer data that the C layout leaves unused at the NETWORK layers, so it survives the C interface.
type token struct {
	tag      uint32 // of the handle, never 0
	id       uint32 // of the packet in its queue
	place    uint32 // among those received and not sent on
	priority uint32 // skb->priority at the capture
	ifIdx    uint32 // as captured
	hook     queue.Hook
	gso      bool     // the packet is to be cut into segments
	six      bool     // it is of IPv6
	bridged  bool     // a bridge passes it on
	severed  bool     // a verdict may lose the packet, see severed
	cut      bool     // only the beginning of the packet was received
	lane     uint8    // which of the handle's queues
	sums     uint8    // sumsOf the address, as captured
	digest   uint64   // of the packet's bytes, 0: unknown
	dst      [16]byte // destination of the packet
}

// The bits of a token's flags.
const (
	tokenGSO = 1 << iota
	tokenCut
	tokenSevered
	tokenIPv6
	tokenBridged
)

// tokenOffset is where the token lies in the layer data, behind interface and sub-interface.
const tokenOffset = 8

// tokenFlags is where its flags lie, behind tokenOffset.
const tokenFlags = 21

// put writes the token into an address.
func (t *token) put(a *packet.Address) {
	b := a.Union()[tokenOffset:]
	le := binary.LittleEndian
	le.PutUint32(b[0:], t.tag)
	le.PutUint32(b[4:], t.id)
	le.PutUint32(b[8:], t.priority)
	le.PutUint32(b[12:], t.ifIdx)
	b[20] = byte(t.hook)
	b[tokenFlags] = 0
	for _, f := range [...]struct {
		set bool
		bit byte
	}{{t.gso, tokenGSO}, {t.cut, tokenCut}, {t.six, tokenIPv6}, {t.bridged, tokenBridged}, {t.severed, tokenSevered}} {
		if f.set {
			b[tokenFlags] |= f.bit
		}
	}
	b[22] = t.lane
	b[23] = t.sums
	le.PutUint32(b[24:], t.place)
	// Four bytes are the process's (packet.NetworkData).
	le.PutUint64(b[32:], t.digest)
	copy(b[40:], t.dst[:])
}

// tokenOf reads the token of an address. Any address has one; only the tag makes it mean something.
func tokenOf(a *packet.Address) token {
	b := a.Union()[tokenOffset:]
	le := binary.LittleEndian
	return token{
		tag: le.Uint32(b[0:]), id: le.Uint32(b[4:]), priority: le.Uint32(b[8:]),
		ifIdx: le.Uint32(b[12:]), hook: queue.Hook(b[20]),
		gso: b[tokenFlags]&tokenGSO != 0, cut: b[tokenFlags]&tokenCut != 0, six: b[tokenFlags]&tokenIPv6 != 0, bridged: b[tokenFlags]&tokenBridged != 0,
		severed: b[tokenFlags]&tokenSevered != 0,
		lane:    b[22], sums: b[23], place: le.Uint32(b[24:]), digest: le.Uint64(b[32:]), dst: [16]byte(b[40:]),
	}
}

// outbound reports whether the packet was on its way out.
func (t *token) outbound() bool { return outbound(t.hook) }

// outbound reports whether packets of a hook are on their way out.
func outbound(hook queue.Hook) bool { return hook != queue.HookPrerouting && hook != queue.HookLocalIn }

// holds reports whether a packet with this address and these bytes can go on as the one it was captured as:
// on the same way, over the same interface, and, when it has been routed already, to the
// same destination.
func (t *token) holds(b []byte, a *packet.Address) bool {
	if a.Outbound != t.outbound() || isIPv6(b) != t.six {
		return false
	}
	if t.hook != queue.HookPrerouting && destination(b) != t.dst {
		return false
	}
	return t.outbound() || a.Network().IfIdx == t.ifIdx
}

// summedLater reports whether the kernel computes the missing checksum of a packet that goes on as the one it was captured as. It
// does so when it cuts a superpacket of TCP into segments, or hands it to a device that does, whatever stands in the field
// (tcp4_gso_segment, net/ipv4/tcp_offload.c; tcp6_gso_segment, net/ipv6/tcpv6_offload.c): nfqnl_mangle calls the checksum of new bytes
// one that the kernel has not begun. Handles below are told by Describe that the checksum is missing, or see it by the field.
// Forwarded superpackets may be of other kinds.
func (t *token) summedLater(b []byte, a *packet.Address) bool {
	return t.gso && t.hook == queue.HookPostrouting && a.Outbound && !a.TCPChecksum && isIPv6(b) == t.six && simple(b) && isTCP(b)
}

// isTCP reports whether the header behind the fixed IP header of a whole packet is TCP's.
func isTCP(b []byte) bool {
	if isIPv6(b) {
		return b[6] == packet.ProtocolTCP
	}
	return b[9] == packet.ProtocolTCP
}

func isIPv6(b []byte) bool { return len(b) > 0 && b[0]>>4 == 6 }

// destination returns the destination address of a packet, an IPv4 address with zeros behind it; all zeros if it is cut before
// that.
func destination(b []byte) (dst [16]byte) {
	switch {
	case len(b) >= packet.IPv6HeaderLen && b[0]>>4 == 6:
		dst = [16]byte(b[24:40])
	case len(b) >= packet.IPv4HeaderLen && b[0]>>4 == 4:
		copy(dst[:], b[16:20])
	}
	return dst
}

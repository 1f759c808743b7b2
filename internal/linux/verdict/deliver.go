//go:build linux

package verdict

import (
	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// Deliver makes a packet of a message whose payload lies in the packet's memory.
func (s *Sender) Deliver(l *Lane, p *packet.Packet, m *queue.Message, at int64) {
	p.Data = m.Payload
	p.Addr = packet.Address{}
	Describe(s.Layer, &p.Addr, m, at)
	t := token{
		tag: s.Tag, id: m.ID, place: m.ID, priority: m.Priority, hook: m.Hook, gso: m.GSO, lane: l.Index,
		six: p.Addr.IPv6, bridged: m.Bridged, ifIdx: p.Addr.Network().IfIdx, dst: destination(m.Payload), sums: sumsOf(&p.Addr),
	}
	// If a packet is too long for the queue, Send can only let the captured packet go on, or refuse. So such a packet always
	// has a digest, unless the program asked for beginnings (WithSnapLength). A severed one has it because Accept needs no bytes.
	t.cut = int(m.Length) > len(m.Payload)
	t.severed = l.IsSingle() && severed(m)
	if t.cut && len(m.Payload) == queue.MaxPayload || !t.cut && (t.severed || s.habit.wants(m.ID)) {
		t.digest = digest(m.Payload)
	}
	t.put(&p.Addr)
}

// Describe fills an address from a message, without the token (specification: api.md 14.3).
func Describe(layer packet.Layer, a *packet.Address, m *queue.Message, at int64) {
	a.Timestamp = at
	a.Layer = layer
	a.Event = packet.EventPacket
	a.Outbound = outbound(m.Hook)
	a.IPv6 = len(m.Payload) > 0 && m.Payload[0]>>4 == 6
	ifIdx := m.Out
	if !a.Outbound {
		ifIdx = m.In
	}
	a.Loopback = a.Outbound && ifIdx == netns.LoopbackIndex && m.Hook == queue.HookPostrouting
	a.SetNetwork(packet.NetworkData{IfIdx: ifIdx})
	if cut := int(m.Length); cut > len(m.Payload) {
		a.SetPacketLength(cut)
	} else {
		a.SetPacketLength(0)
	}
	// The header checksum is always in the packet. For the transport checksum the kernel says when it left
	// it to the hardware (the field then holds a partial sum), and when the hardware has
	// verified it on the way in. It does not say so of an outgoing superpacket that another handle has changed, see summedLater.
	unfinished := m.ChecksumNotReady || m.GSO && m.Hook == queue.HookPostrouting
	trusted := !unfinished && (a.Outbound || m.ChecksumNotVerified)
	a.IPChecksum, a.TCPChecksum, a.UDPChecksum = true, trusted, trusted
}

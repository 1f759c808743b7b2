//go:build linux

package verdict

import (
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// severed reports whether a packet from a single lane may be a segment that the kernel loses after any verdict. When the kernel
// receives a packet of IPv6 it notes where the headers behind the fixed one begin (skb->transport_header), and parses them there
// once the packet has passed the hooks (ip6_protocol_deliver_rcu, net/ipv6/ip6_input.c). In a segment that it has cut out of a
// superpacket for the queue, its TCP or UDP header is noted there instead: with destination options or a routing header in
// front, the segment is dropped as malformed. Hop-by-hop options are parsed before the hooks. Such a segment goes on as an
// injection, see anew.
//
// Nothing marks such a segment. Its checksum is complete and not verified; other packets of which this is true are injected as
// well.
func severed(m *queue.Message) bool {
	b := m.Payload
	if outbound(m.Hook) || !m.ChecksumNotVerified || m.ChecksumNotReady || len(b) < packet.IPv6HeaderLen || b[0]>>4 != 6 {
		return false
	}
	next := b[6]
	if next == packet.ProtocolHopByHop && len(b) > packet.IPv6HeaderLen {
		next = b[packet.IPv6HeaderLen]
	}
	return next == packet.ProtocolDestOptions || next == packet.ProtocolRouting
}

// anew lets a severed packet go on as an injection, as it was, and reports whether it has: the queued packet is to be dropped
// then. Where that is impossible, because the program has not kept the bytes or there is no device to inject by, a verdict is
// the best there is.
func (s *Sender) anew(t *token, b []byte, a *packet.Address) bool {
	return t.severed && !t.cut && t.same(b, a) && s.Injector.Inject(b, a) == nil
}

// untilSevered returns how many packets may go before verdicts are flushed: those before the first severed packet that others
// precede. An injection is done at once, a verdict with the flush, so the order of a flow that has both would change.
func untilSevered(ps []packet.Packet) int {
	for i := 1; i < len(ps); i++ {
		if isSevered(&ps[i].Addr) && !isSevered(&ps[i-1].Addr) {
			return i
		}
	}
	return len(ps)
}

// isSevered reports whether the token in an address says that its packet is severed.
func isSevered(a *packet.Address) bool { return a.Union()[tokenOffset+tokenFlags]&tokenSevered != 0 }

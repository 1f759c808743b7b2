//go:build linux

package verdict

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/nexthop"
	"github.com/opendivert/divert/internal/linux/queue"
	"github.com/opendivert/divert/packet"
)

// redirects reports whether a packet whose destination has changed since it was routed can go on as the captured one: the new
// destination has the same next hop. Then it stays one packet, however long, and the kernel cuts it; as a new one it would be
// cut here. Connection tracking, the rules at LOCAL_OUT and sockets have seen the old destination then.
func (s *Sender) redirects(v *verdicts, t *token, b []byte, a *packet.Address) bool {
	if !a.Outbound || !t.outbound() || t.bridged || isIPv6(b) != t.six || !simple(b) || !kernel.VerdictPriority.Has() {
		return false // where no cursor can be set, handles below meet injected packets only
	}
	hops := s.Injector.Hops()
	if hops == nil {
		return false
	}
	if !v.fresh {
		hops.Refresh()
		v.fresh = true
	}
	dst := destination(b)
	w := nexthop.Way{
		Source: source(b), From: address(t.dst, t.six), To: address(dst, t.six), Device: t.ifIdx, Forwarded: t.hook == queue.HookForward,
	}
	if !t.six {
		w.TOS = b[1]
	}
	switch hops.Compare(&w) {
	case nexthop.Through:
	case nexthop.Linked:
		// The route of a raw socket's packet, whose header is the program's, names the old destination
		// (FLOWI_FLAG_KNOWN_NH, net/ipv4/raw.c and net/ipv6/raw.c). Such a packet is never one that the kernel has yet to finish.
		if !w.Forwarded && !t.gso && !t.unfinished() {
			return false
		}
	default:
		return false
	}
	v.redirected = true
	return true
}

// unfinished reports whether the kernel had left the checksum of a packet of TCP to the hardware.
func (t *token) unfinished() bool { return t.sums&sumTCP == 0 }

// simple reports whether a packet is no fragment, and has no header between its IP header and its payload that affects its way.
func simple(b []byte) bool {
	if isIPv6(b) {
		switch b[6] {
		case unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMPV6, unix.IPPROTO_SCTP:
			return true
		}
		return false
	}
	const more, offset = 0x20, 0x1f
	return b[0]&0x0f == packet.IPv4HeaderLen/4 && b[6]&(more|offset) == 0 && b[7] == 0
}

// address returns a destination as the token has it.
func address(dst [16]byte, six bool) netip.Addr {
	if six {
		return netip.AddrFrom16(dst)
	}
	return netip.AddrFrom4([4]byte(dst[:4]))
}

// source returns the source of a whole packet.
func source(b []byte) netip.Addr {
	if isIPv6(b) {
		return netip.AddrFrom16([16]byte(b[8:24]))
	}
	return netip.AddrFrom4([4]byte(b[12:16]))
}

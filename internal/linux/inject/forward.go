//go:build linux

package inject

import (
	"errors"
	"net"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/packet"
)

// Forward hands IP packets to the stack to be forwarded. The forward path has no entrance of its own, so a packet comes in on
// the interface from which its source would come (by the routing table, so strict rp_filter lets it pass), goes through
// PRE_ROUTING and the routing decision, and reaches FORWARD. Routing chooses the outgoing interface; the TTL is decremented once
// on the way, and address translation sees a packet that begins its way.
//
// A packet cannot come in if its source is an address of this host or has no route: it goes out as one of this host's own, past
// FORWARD.
//
// A Forward may be used by several goroutines.
type Forward struct {
	in  *Inbound
	out *Outbound
}

// NewForward is NewInbound for packets to be forwarded. Packets that cannot come in carry the password own.
func NewForward(s Seal, own, served Password) (*Forward, error) {
	in, err := NewInbound(s, served)
	if err != nil {
		return nil, err
	}
	out, err := NewOutbound(own)
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return &Forward{in: in, out: out}, nil
}

// Close gives back the resources of NewForward. Later calls, of Close too, return net.ErrClosed.
func (f *Forward) Close() error { return errors.Join(f.in.Close(), f.out.Close()) }

// Ready is Inbound.Ready.
func (f *Forward) Ready() error { return f.in.Ready() }

// Send injects one packet, as long as its length field says; ifIdx is the interface by which it is to leave. A TCP packet that
// is longer than this interface carries was most likely captured before segmentation, and is cut into segments: by the kernel
// after it has been forwarded, or here. The errors are those of Inbound.Send and Outbound.Send.
func (f *Forward) Send(pkt []byte, ifIdx uint32) error {
	v, err := version(pkt)
	if err != nil {
		return err
	}
	from, ok := f.in.origin(pkt, v)
	if !ok {
		return f.out.SendSegmented(pkt, ifIdx, 0)
	}
	if mss := f.in.segmentSize(pkt, ifIdx); mss > 0 {
		if o, ok := wholeOf(pkt, mss); ok {
			if err := f.in.sendWhole(pkt, from, o); err == nil || !refusesWhole(err) {
				return err
			}
		}
		return f.sendSegments(pkt, mss, from)
	}
	return f.in.Send(pkt, from)
}

// sendSegments sends a packet in segments with mss bytes of payload.
func (f *Forward) sendSegments(pkt []byte, mss int, from uint32) error {
	s, err := NewSegmenter(pkt, mss)
	if err != nil {
		return err
	}
	scratch := make([]byte, min(s.HeaderLen()+mss, len(pkt)))
	for n := s.Next(scratch); n > 0; n = s.Next(scratch) {
		if err := f.in.Send(scratch[:n], from); err != nil {
			return err
		}
	}
	return nil
}

// origin returns the interface from which packets with the source come, and whether there is one.
func (in *Inbound) origin(pkt []byte, v int) (ifIdx uint32, ok bool) {
	src := net.IP(pkt[12:16])
	if v == 6 {
		src = net.IP(pkt[8:24])
	}
	in.mu.RLock()
	defer in.mu.RUnlock()
	if in.closed {
		return 0, true // Send returns the error
	}
	routes, err := in.nl.RouteGet(src)
	if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_UNICAST || routes[0].LinkIndex <= 0 {
		return 0, false
	}
	return uint32(routes[0].LinkIndex), true
}

// segmentSize returns how many bytes of TCP's data fit the interface, or 0 if the whole packet fits or is not TCP.
func (in *Inbound) segmentSize(pkt []byte, ifIdx uint32) int {
	if len(pkt) <= minSegmented {
		return 0
	}
	var p packet.Parsed
	if !p.ParseExact(pkt) || p.TCP(pkt) == nil || p.Fragment {
		return 0
	}
	in.mu.RLock()
	defer in.mu.RUnlock()
	if in.closed {
		return 0
	}
	link, err := in.nl.LinkByIndex(int(ifIdx))
	if err != nil || len(pkt) <= link.Attrs().MTU {
		return 0
	}
	return max(link.Attrs().MTU-(len(pkt)-len(p.Payload(pkt))), 1)
}

// minSegmented is the least length of a packet that may have to be cut: Ethernet's MTU, in bytes.
const minSegmented = 1500

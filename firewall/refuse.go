package firewall

import (
	"net"
	"net/netip"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// maxAnswers is the most refusals sent in a second: more are probably a flood, and the answers would be another.
const maxAnswers = 1000

// limiter allows a number of events a second.
type limiter struct {
	rate   int
	second int64
	used   int
}

func (l *limiter) allow(now time.Time) bool {
	if s := now.Unix(); s != l.second {
		l.second, l.used = s, 0
	}
	l.used++
	return l.used <= l.rate
}

// refuse tells the sender of a packet that it is refused; for an established connection it also tells the other side.
func (f *Firewall) refuse(p *divert.Packet) {
	now := time.Now()
	h := &f.parsed
	if !h.Parse(p.Data) || h.UDPOff < 0 && h.TCPOff < 0 {
		return
	}
	f.broadcasts.update(now)
	if src, dst := p.Src().Addr(), p.Dst().Addr(); f.broadcasts.addrs[src] || f.broadcasts.addrs[dst] {
		return
	}
	if !f.answers.allow(now) {
		f.stats.Unsent++
		return
	}
	var back []byte
	var ok bool
	a := p.Addr
	a.IPChecksum, a.TCPChecksum, a.UDPChecksum = true, true, true // already computed
	if tcp := h.TCP(p.Data); tcp != nil {
		if back, ok = packet.AppendReset(nil, p.Data, h); ok && tcp.Flags()&packet.TCPAck != 0 {
			ends := packet.Header{Src: p.Src(), Dst: p.Dst()}
			on, err := ends.AppendTCP(nil, packet.Segment{Seq: tcp.Seq(), Ack: tcp.Ack(), Flags: packet.TCPRst | packet.TCPAck}, nil)
			if err == nil {
				f.send(on, a)
			}
		}
	} else {
		code := uint8(packet.ICMPPortUnreachable)
		if h.Family == 6 {
			code = packet.ICMPv6PortUnreachable
		}
		back, ok = packet.AppendUnreachable(nil, p.Data, h, code)
	}
	if ok {
		a.Outbound = !a.Outbound
		f.send(back, a)
	}
}

// send injects a packet made by the firewall.
func (f *Firewall) send(b []byte, a divert.Address) {
	fresh := divert.Address{
		Layer: a.Layer, Event: a.Event, Outbound: a.Outbound, Loopback: a.Loopback, IPv6: a.IPv6,
		IPChecksum: true, TCPChecksum: true, UDPChecksum: true,
	}
	n := a.Network()
	fresh.SetNetwork(packet.NetworkData{IfIdx: n.IfIdx, SubIfIdx: n.SubIfIdx})
	f.check(f.handle.Send(&divert.Packet{Data: b, Addr: fresh}))
}

// broadcasts are the broadcast addresses of this host's IPv4 subnets. Packets to them must not be answered, and look like
// any others (RFC 1122 section 3.2.2).
type broadcasts struct {
	addrs map[netip.Addr]bool
	read  time.Time
}

// broadcastsAge is the time for which the addresses are used: the host's may change.
const broadcastsAge = time.Second

func (s *broadcasts) update(now time.Time) {
	if now.Sub(s.read) < broadcastsAge {
		return
	}
	s.read = now
	list, err := net.InterfaceAddrs()
	if err != nil {
		return // the old ones stay
	}
	s.addrs = map[netip.Addr]bool{}
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok || n.IP.To4() == nil {
			continue
		}
		ones, bits := n.Mask.Size()
		if bits != 32 || ones == 0 || ones > 30 {
			continue
		}
		b := [4]byte(n.IP.To4())
		for i := range b {
			b[i] |= ^n.Mask[i]
		}
		s.addrs[netip.AddrFrom4(b)] = true
	}
}

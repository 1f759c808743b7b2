package main

import (
	"net"
	"net/netip"
	"time"

	"github.com/opendivert/divert/packet"
)

// broadcasts holds the broadcast addresses of this host's IPv4 subnets. A packet does not show whether its address is
// one of them, and packets to a broadcast address must not be answered (RFC 1122 section 3.2.2). The zero value is
// ready for update.
type broadcasts struct {
	addrs map[netip.Addr]struct{}
	read  time.Time
}

// broadcastsAge is how long addresses are trusted: the host's may change.
const broadcastsAge = time.Second

// update reads the host's addresses again if they are too old. On failure the old ones stay.
func (s *broadcasts) update() error {
	if now := time.Now(); now.Sub(s.read) >= broadcastsAge {
		s.read = now
		list, err := net.InterfaceAddrs()
		if err != nil {
			return err
		}
		s.set(list)
	}
	return nil
}

// set replaces the subnets.
func (s *broadcasts) set(list []net.Addr) {
	s.addrs = make(map[netip.Addr]struct{}, len(list))
	for _, a := range list {
		if n, ok := a.(*net.IPNet); ok {
			if b, ok := broadcastOf(n); ok {
				s.addrs[b] = struct{}{}
			}
		}
	}
}

// broadcastOf returns the broadcast address of a subnet. IPv6 subnets have none; neither have subnets of one or two
// addresses (RFC 3021).
func broadcastOf(n *net.IPNet) (netip.Addr, bool) {
	ip, ones := n.IP.To4(), 0
	if size, bits := n.Mask.Size(); bits == 32 {
		ones = size
	}
	if ip == nil || ones == 0 || ones > 30 {
		return netip.Addr{}, false
	}
	var b [4]byte
	for i := range b {
		b[i] = ip[i] | ^n.Mask[i]
	}
	return netip.AddrFrom4(b), true
}

// contains reports whether a packet goes to or comes from a broadcast address.
func (s *broadcasts) contains(data []byte, p *packet.Parsed) bool {
	if p.Family != 4 {
		return false
	}
	src, dst := addresses(data, p)
	_, from := s.addrs[src]
	_, to := s.addrs[dst]
	return from || to
}

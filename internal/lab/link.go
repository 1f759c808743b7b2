//go:build linux

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is one end of a link: a network interface of a host. Several goroutines may call its methods.
type Link struct {
	host  *Host
	peer  *Link // nil for an interface without another end
	name  string
	index int
	mac   net.HardwareAddr
	addrs []netip.Prefix
}

// Host returns the host that has this end.
func (l *Link) Host() *Host { return l.host }

// Peer returns the other end, or nil for an interface without one.
func (l *Link) Peer() *Link { return l.peer }

// Name returns the interface's name in its host.
func (l *Link) Name() string { return l.name }

// Index returns the interface's index in its host. Indexes repeat from host to host.
func (l *Link) Index() int { return l.index }

// MAC returns the interface's Ethernet address.
func (l *Link) MAC() net.HardwareAddr { return append(net.HardwareAddr(nil), l.mac...) }

// Addrs returns the addresses that the link was made with.
func (l *Link) Addrs() []netip.Prefix { return append([]netip.Prefix(nil), l.addrs...) }

// LinkOptions are a link's properties; the zero value is a plain Ethernet link.
type LinkOptions struct {
	MTU     int     // bytes of IP packet, both ends; 0: 1500
	Without Offload // offloads to turn off at both ends

	NameA, NameB   string         // interface names; "": eth0, eth1, … in order of creation
	AddrsA, AddrsB []netip.Prefix // addresses of the ends, with their networks' lengths

	// LearnNeighbours leaves ARP and neighbour discovery to the kernel. Otherwise each end knows the other's Ethernet
	// address from the start, so the first packet is not delayed and the wire is free of that traffic.
	LearnNeighbours bool
}

// Connect makes a link between two hosts (which may be the same), brings it up, assigns its addresses and waits until
// both ends carry packets.
func (n *Network) Connect(a, b *Host, o LinkOptions) (*Link, *Link, error) {
	serial := n.nextLink()
	la := &Link{host: a, name: o.NameA, addrs: o.AddrsA, mac: labMAC(serial, 1)}
	lb := &Link{host: b, name: o.NameB, addrs: o.AddrsB, mac: labMAC(serial, 2)}
	la.peer, lb.peer = lb, la
	if la.name == "" {
		la.name = a.nextName(0)
	}
	if lb.name == "" {
		lb.name = b.nextName(0)
		if a == b && lb.name == la.name {
			lb.name = b.nextName(1)
		}
	}
	steps := []func() error{
		func() error { return createVeth(la, lb, o.MTU) },
		la.up, lb.up, la.waitUp, lb.waitUp,
		la.assign, lb.assign,
	}
	if !o.LearnNeighbours {
		steps = append(steps, la.learnPeer, lb.learnPeer)
	}
	if o.Without != 0 {
		steps = append(steps,
			func() error { return la.SetOffload(o.Without, false) },
			func() error { return lb.SetOffload(o.Without, false) })
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, nil, fmt.Errorf("lab: link %s:%s - %s:%s: %w", a, la.name, b, lb.name, err)
		}
	}
	a.addLink(la)
	b.addLink(lb)
	tracef("link %s:%s %v - %s:%s %v, MTU %d, without %v", a, la.name, la.addrs, b, lb.name, lb.addrs, o.MTU, o.Without)
	return la, lb, nil
}

// labMAC returns a locally administered Ethernet address (IEEE 802, bit 1 of the first octet).
func labMAC(serial, end int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x77, 0, byte(serial >> 8), byte(serial), byte(end)}
}

// nextName returns a free name for an interface, after skipping skip free ones.
func (h *Host) nextName(skip int) string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("eth%d", i)
		if h.Link(name) == nil {
			if skip == 0 {
				return name
			}
			skip--
		}
	}
}

func (h *Host) addLink(l *Link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.links = append(h.links, l)
	for _, p := range l.addrs {
		h.addrs = append(h.addrs, p.Addr())
	}
}

func (h *Host) removeLink(l *Link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.links = slices.DeleteFunc(h.links, func(have *Link) bool { return have == l })
	for _, p := range l.addrs {
		h.addrs = slices.DeleteFunc(h.addrs, func(have netip.Addr) bool { return have == p.Addr() })
	}
}

// createVeth makes the pair with each end in its host from the start: no third namespace sees it.
func createVeth(a, b *Link, mtu int) error {
	if mtu == 0 {
		mtu = 1500
	}
	ns, err := b.host.NetNS()
	if err != nil {
		return err
	}
	defer ns.Close()
	err = a.host.rtnl(func(nl *netlink.Handle) error {
		return nl.LinkAdd(&netlink.Veth{
			LinkAttrs:        netlink.LinkAttrs{Name: a.name, MTU: mtu, HardwareAddr: a.mac, TxQLen: -1},
			PeerName:         b.name,
			PeerMTU:          uint32(mtu),
			PeerHardwareAddr: b.mac,
			PeerNamespace:    netlink.NsFd(ns.Fd()),
			PeerTxQLen:       -1,
		})
	})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	return errors.Join(a.find(), b.find())
}

// rtnl calls f with the host's own netlink handle.
func (h *Host) rtnl(f func(nl *netlink.Handle) error) error {
	return h.withNS(func(int) error { return f(h.nl) })
}

// get asks the kernel for the interface.
func (l *Link) get() (link netlink.Link, err error) {
	err = l.host.rtnl(func(nl *netlink.Handle) error {
		link, err = nl.LinkByName(l.name)
		return err
	})
	return link, err
}

func (l *Link) find() error {
	link, err := l.get()
	if err == nil {
		l.index = link.Attrs().Index
		l.mac = link.Attrs().HardwareAddr
	}
	return err
}

// Netlink returns the kernel's current state of the interface.
func (l *Link) Netlink() (netlink.Link, error) { return l.get() }

// SetUp brings the interface up or down. Going down removes its routes (and, for IPv6, all but kept
// addresses), as with any interface.
func (l *Link) SetUp(up bool) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: l.name, Index: l.index}}
	return l.host.rtnl(func(nl *netlink.Handle) error {
		if up {
			return nl.LinkSetUp(link)
		}
		return nl.LinkSetDown(link)
	})
}

// SetMTU changes the interface's MTU, in bytes of IP packet.
func (l *Link) SetMTU(mtu int) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: l.name, Index: l.index}}
	return l.host.rtnl(func(nl *netlink.Handle) error { return nl.LinkSetMTU(link, mtu) })
}

func (l *Link) up() error { return l.SetUp(true) }

// waitUp waits until the kernel has seen the carrier: until then the queueing discipline drops all packets
// (net/sched/sch_generic.c, noop_qdisc).
func (l *Link) waitUp() error {
	return poll(func() (bool, error) {
		link, err := l.get()
		return err == nil && link.Attrs().OperState == netlink.OperUp, err
	}, "%s:%s is still down", l.host, l.name)
}

// assign gives the interface the addresses of its options.
func (l *Link) assign() error {
	for _, p := range l.addrs {
		if err := l.add(p); err != nil {
			return err
		}
	}
	return nil
}

// add gives the interface one address; an IPv6 one skips duplicate address detection.
func (l *Link) add(p netip.Prefix) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: l.name, Index: l.index}}
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	err := l.host.rtnl(func(nl *netlink.Handle) error { return nl.AddrAdd(link, addr) })
	if err != nil {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return l.waitLocal(p.Addr())
}

// waitLocal waits until the host accepts packets to the address. For IPv6 a work queue adds that route some time after
// the address exists and sockets may bind to it (net/ipv6/addrconf.c, addrconf_dad_work); until then packets to it are
// dropped or forwarded.
func (l *Link) waitLocal(a netip.Addr) error {
	return poll(func() (bool, error) {
		var routes []netlink.Route
		err := l.host.rtnl(func(nl *netlink.Handle) (err error) {
			routes, err = nl.RouteGet(a.AsSlice())
			return err
		})
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
			return false, nil
		}
		return len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL, err
	}, "address %s of %s:%s is still not in use", a, l.host, l.name)
}

// poll calls ask every half millisecond until it returns true, and finally gives up with the formatted error.
func poll(ask func() (bool, error), format string, args ...any) error {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(500 * time.Microsecond) {
		yes, err := ask()
		if yes || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf(format, args...)
		}
	}
}

// learnPeer makes the other end's addresses permanent neighbours.
func (l *Link) learnPeer() error {
	return l.host.rtnl(func(nl *netlink.Handle) error {
		for _, p := range l.peer.addrs {
			if err := nl.NeighSet(&netlink.Neigh{
				LinkIndex: l.index, State: unix.NUD_PERMANENT, Family: family(p.Addr()),
				IP: p.Addr().AsSlice(), HardwareAddr: l.peer.mac,
			}); err != nil {
				return fmt.Errorf("neighbour %s: %w", p.Addr(), err)
			}
		}
		return nil
	})
}

// AddAddr adds an address to the interface, which must be up. The address works at once.
func (l *Link) AddAddr(p netip.Prefix) error {
	if err := l.add(p); err != nil {
		return fmt.Errorf("lab: %s:%s: %w", l.host, l.name, err)
	}
	l.host.mu.Lock()
	defer l.host.mu.Unlock()
	l.host.addrs = append(l.host.addrs, p.Addr())
	tracef("%s:%s: address %s", l.host, l.name, p)
	return nil
}

// Loopback returns the host's loopback interface.
func (h *Host) Loopback() *Link { return &Link{host: h, name: "lo", index: 1} }

// AddRoute routes dst through the router via; the zero prefix of via's family ("0.0.0.0/0", "::/0") is the default
// route.
func (h *Host) AddRoute(dst netip.Prefix, via netip.Addr) error {
	tracef("%s: route %s via %s", h, dst, via)
	err := h.rtnl(func(nl *netlink.Handle) error {
		return nl.RouteReplace(&netlink.Route{Dst: ipNet(dst.Masked()), Gw: via.AsSlice(), Family: family(via)})
	})
	if err != nil {
		return fmt.Errorf("lab: host %s: route %s via %s: %w", h, dst, via, err)
	}
	return nil
}

// defaultVia routes all packets of via's family through via.
func (h *Host) defaultVia(via netip.Addr) error {
	everything := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if via.Is6() {
		everything = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return h.AddRoute(everything, via)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func family(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

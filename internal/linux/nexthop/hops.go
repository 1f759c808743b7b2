//go:build linux

package nexthop

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/clock"
)

// Hops knows the next hops of a network namespace. Its methods may be called from several goroutines.
type Hops struct {
	mu       sync.Mutex
	closed   bool
	err      error          // why nothing is known any more
	changes  []int          // sockets that tell of changes: to routes and rules, and to policies of IPsec where there can be any
	routes   *netlink.Conn  // answers questions about routes and rules
	policies *netlink.Conn  // the same about IPsec; nil where the kernel has none
	known    map[target]hop // of the destinations that were asked for
	plain    [2]plain       // IPv4, IPv6
	tracking tracking
}

// target has the properties of a packet that decide its route, while no rule looks at others.
type target struct {
	to   netip.Addr
	from netip.Addr // IPv6 only: routes may be for a source
	tos  uint8      // IPv4 only: routes may be for one type of service
}

// hop is the next hop of a target.
type hop struct {
	ok      bool       // there is one, and it is the same for all packets to the target
	local   bool       // this host
	device  uint32     // the interface's index
	gateway netip.Addr // not valid: the destination is on the link
	mtu     uint32     // of the route, in bytes; 0: the interface's
	realm   bool       // the route is of a realm
	at      int64      // when the kernel was asked, ns
}

// plain says whether a family's routes follow from the target alone.
type plain struct {
	ok bool
	at int64 // when the kernel was asked, ns; 0: it was not
}

// Bounds of the hops that are kept. The kernel announces neither new exceptions from routes, which ICMP errors make, nor IPsec
// policies of single sockets, so it is asked again after a while.
const (
	maxKnown = 4096
	validFor = int64(time.Second)
)

// The groups of rtnetlink listened to, in bits: interfaces, addresses, routes, rules, and nexthop objects, which older kernels
// ignore.
const routeGroups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE |
	unix.RTMGRP_IPV6_ROUTE | unix.RTMGRP_IPV4_RULE | 1<<(unix.RTNLGRP_IPV6_RULE-1) | 1<<(unix.RTNLGRP_NEXTHOP-1)

// The groups of XFRM listened to, in bits (linux/xfrm.h): associations and policies.
const policyGroups = 1<<(3-1) | 1<<(4-1)

// Open listens and asks in a network namespace. It needs CAP_NET_ADMIN there. The function in runs another one on a thread in
// the namespace, and is called until Close.
func Open(in func(func() error) error) (*Hops, error) {
	h := &Hops{known: make(map[target]hop), tracking: tracking{in: in}}
	if err := in(h.open); err != nil {
		return nil, errors.Join(fmt.Errorf("next hops: %w", err), h.Close())
	}
	return h, nil
}

func (h *Hops) open() (err error) {
	if err = h.listen(unix.NETLINK_ROUTE, routeGroups); err != nil {
		return err
	}
	if h.routes, err = netlink.Dial(unix.NETLINK_ROUTE, nil); err != nil {
		return err
	}
	switch err = h.listen(unix.NETLINK_XFRM, policyGroups); {
	case errors.Is(err, unix.EPROTONOSUPPORT):
		return nil
	case err != nil:
		return err
	}
	h.policies, err = netlink.Dial(unix.NETLINK_XFRM, nil)
	return err
}

// listen opens a socket of changes.
func (h *Hops) listen(family int, groups uint32) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, family)
	if err != nil {
		return err
	}
	h.changes = append(h.changes, fd)
	return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
}

// Close closes the sockets: from then on no two destinations have the same hop.
func (h *Hops) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil
	}
	h.closed = true
	errs := []error{h.tracking.close()}
	for _, fd := range h.changes {
		errs = append(errs, unix.Close(fd))
	}
	for _, c := range []*netlink.Conn{h.routes, h.policies} {
		if c != nil {
			errs = append(errs, c.Close())
		}
	}
	return errors.Join(errs...)
}

// Way is where a packet was going, and where it is to go.
type Way struct {
	Source    netip.Addr // of the packet, as it is now
	From, To  netip.Addr // the destination that the packet was routed to, and the one that it has now
	Device    uint32     // index of the interface that it leaves by
	TOS       uint8      // type of service of an IPv4 packet
	Forwarded bool       // it came in by an interface, too
}

// Relation is the relation between the next hops of two destinations.
type Relation uint8

const (
	Apart   Relation = iota // by different hops, or nobody knows
	Through                 // by the same gateway, or both are this host: any packet may be redirected
	Linked                  // on the same link, where the kernel looks for the destination in the packet, unless its route names the old one
)

// Refresh takes in the changes since the last call. Without changes it costs one or two system calls.
func (h *Hops) Refresh() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.err != nil {
		return
	}
	h.tracking.asked = false
	changed := false
	for _, fd := range h.changes {
		for {
			_, _, errno := unix.Syscall6(unix.SYS_RECVFROM, uintptr(fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
			if errno == unix.EAGAIN {
				break
			}
			switch errno {
			case 0, unix.EINTR, unix.ENOBUFS: // ENOBUFS: some changes were lost
			default:
				h.err = errno
				return
			}
			changed = changed || errno != unix.EINTR
		}
	}
	if changed {
		clear(h.known)
		h.plain = [2]plain{}
	}
}

// Compare compares the two destinations of a way.
func (h *Hops) Compare(w *Way) Relation {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.err != nil || w.From.Is4() != w.To.Is4() || !direct(w.From) || !direct(w.To) {
		return Apart
	}
	// For connection tracking, a forwarded connection would keep its old destination. Its answers, which are tracked before a
	// handle of the layer FORWARD sees them, would belong to no connection. (Answers to this host's own connections come to
	// handles first.)
	if w.Forwarded && h.tracking.tracked() {
		return Apart
	}
	now := clock.Now()
	if !h.isPlain(w.To.Is6(), now) {
		return Apart
	}
	to := h.hop(w.target(w.To), now)
	if !to.ok || to.device != w.Device {
		return Apart
	}
	from := h.hop(w.target(w.From), now)
	if !from.ok || from.device != to.device || from.local != to.local || from.gateway != to.gateway || from.mtu != to.mtu {
		return Apart
	}
	if to.local || to.gateway.IsValid() {
		return Through
	}
	// A route of a forwarded packet from a realm is not shared, and then it names the old destination (rt_set_nexthop,
	// net/ipv4/route.c).
	if w.Forwarded && w.To.Is4() {
		if s := h.hop(target{to: w.Source}, now); !s.ok || s.realm {
			return Apart
		}
	}
	return Linked
}

// direct reports whether an address is that of one host, whatever the interface.
func direct(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast() && !a.Is4In6()
}

// tosMask has the bits of the type of service that routes may be for (IPTOS_RT_MASK, include/net/route.h).
const tosMask = 0x1c

func (w *Way) target(to netip.Addr) target {
	if w.Source.Is6() {
		return target{to: to, from: w.Source}
	}
	return target{to: to, tos: w.TOS & tosMask}
}

// hop returns the next hop of a target. h.mu is held.
func (h *Hops) hop(t target, now int64) hop {
	if k, ok := h.known[t]; ok && now-k.at < validFor {
		return k
	}
	if len(h.known) >= maxKnown {
		clear(h.known)
	}
	k := h.ask(t)
	k.at = now
	h.known[t] = k
	return k
}

// ask asks the kernel twice for a next hop: for the route that it takes, and for the entry of the table that the route comes
// from.
func (h *Hops) ask(t target) hop {
	taken, ok := h.route(t, 0)
	if !ok {
		return hop{}
	}
	entry, ok := h.route(t, unix.RTM_F_FIB_MATCH)
	if !ok {
		return hop{}
	}
	return hopOf(&taken, &entry, t.to.Is6())
}

// hopOf returns the hop of a route that was taken from an entry of the table.
func hopOf(taken, entry *route, six bool) hop {
	k := hop{local: taken.typ == unix.RTN_LOCAL, device: taken.device, gateway: taken.gateway, mtu: taken.mtu, realm: entry.realm}
	switch {
	case taken.typ != unix.RTN_UNICAST && !k.local, entry.typ != taken.typ:
	case taken.device == 0, taken.odd, entry.odd, entry.several, entry.source != 0:
	case six && taken.flags&unix.RTM_F_CLONED != 0: // an exception names its destination, whatever the packet says
	default:
		k.ok = true
	}
	return k
}

// route asks for the route to a target.
func (h *Hops) route(t target, flags uint32) (route, bool) {
	m, ok := h.execute(h.routes, netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETROUTE, Flags: netlink.Request},
		Data:   question(t, flags),
	})
	if !ok || len(m) != 1 || m[0].Header.Type != unix.RTM_NEWROUTE {
		return route{}, false
	}
	return parseRoute(m[0].Data)
}

// isPlain reports whether a family's routes follow from the target alone: no rule looks at anything else, and no IPsec policy
// chooses packets. h.mu is held.
func (h *Hops) isPlain(six bool, now int64) bool {
	i, family := 0, byte(unix.AF_INET)
	if six {
		i, family = 1, unix.AF_INET6
	}
	if p := h.plain[i]; p.at != 0 && now-p.at < validFor {
		return p.ok
	}
	h.plain[i] = plain{ok: h.rulesPlain(family) && h.unprotected(), at: now}
	return h.plain[i].ok
}

func (h *Hops) rulesPlain(family byte) bool {
	body := make([]byte, ruleHeaderLen)
	body[0] = family
	rules, ok := h.execute(h.routes, netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETRULE, Flags: netlink.Request | netlink.Dump}, Data: body,
	})
	for i := range rules {
		ok = ok && plainRule(rules[i].Data)
	}
	return ok
}

func (h *Hops) unprotected() bool {
	if h.policies == nil {
		return true
	}
	m, ok := h.execute(h.policies, netlink.Message{
		Header: netlink.Header{Type: msgGetSPDInfo, Flags: netlink.Request}, Data: make([]byte, 4),
	})
	return ok && len(m) == 1 && m[0].Header.Type == msgNewSPDInfo && noPolicies(m[0].Data)
}

// patience is how long an answer may take. The kernel gives it before the question's system call returns.
const patience = time.Second

// execute asks a question. If the kernel lacks the thing asked for, the answer is empty; other errors of the kernel are not ok.
// After an error of the socket itself nothing is known any more. h.mu is held.
func (h *Hops) execute(c *netlink.Conn, m netlink.Message) ([]netlink.Message, bool) {
	err := c.SetReadDeadline(time.Now().Add(patience))
	if err != nil {
		h.err = err
		return nil, false
	}
	answer, err := c.Execute(m)
	var errno unix.Errno
	switch {
	case err == nil:
		return answer, true
	case !errors.As(err, &errno):
		h.err = err
	case errno == unix.EOPNOTSUPP, errno == unix.EAFNOSUPPORT:
		return nil, true
	}
	return nil, false
}

//go:build linux

package lab

import (
	"errors"
	"net/netip"
)

// Pair is two hosts with one link between them; each is the other's default router.
type Pair struct {
	*Network
	A, B         *Host // 10.77.0.1, fd77::1 and 10.77.0.2, fd77::2
	LinkA, LinkB *Link // eth0 of each, unless LinkOptions names them
}

// Routed is a host, a router and a peer: A - R - B.
type Routed struct {
	*Network
	A, R, B       *Host // A: 10.77.1.2, fd77:1::2; B: 10.77.2.2, fd77:2::2; R: .1 of both networks
	LinkA, LinkRA *Link // A's eth0 and R's eth0
	LinkRB, LinkB *Link // R's eth1 and B's eth0
}

// prefixes parses the addresses below, which are valid.
func prefixes(text ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(text))
	for i, t := range text {
		list[i] = netip.MustParsePrefix(t)
	}
	return list
}

// TwoHosts builds a Pair. The addresses are those in o or, if it has none, those that Pair names.
func TwoHosts(o LinkOptions) (*Pair, error) {
	n, err := New()
	if err != nil {
		return nil, err
	}
	p := &Pair{Network: n}
	if err := p.build(o); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return p, nil
}

func (p *Pair) build(o LinkOptions) (err error) {
	if o.AddrsA == nil && o.AddrsB == nil {
		o.AddrsA, o.AddrsB = prefixes("10.77.0.1/24", "fd77::1/64"), prefixes("10.77.0.2/24", "fd77::2/64")
	}
	if p.A, err = p.AddHost("A"); err != nil {
		return err
	}
	if p.B, err = p.AddHost("B"); err != nil {
		return err
	}
	if p.LinkA, p.LinkB, err = p.Connect(p.A, p.B, o); err != nil {
		return err
	}
	return errors.Join(routeOver(p.A, p.B), routeOver(p.B, p.A))
}

// HostRouterPeer builds a Routed. Both links have o's MTU, offloads and neighbours; its names and addresses are
// ignored.
func HostRouterPeer(o LinkOptions) (*Routed, error) {
	n, err := New()
	if err != nil {
		return nil, err
	}
	r := &Routed{Network: n}
	if err := r.build(o); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return r, nil
}

func (r *Routed) build(o LinkOptions) (err error) {
	if r.A, err = r.AddHost("A"); err != nil {
		return err
	}
	if r.R, err = r.AddRouter("R"); err != nil {
		return err
	}
	if r.B, err = r.AddHost("B"); err != nil {
		return err
	}
	o.NameA, o.NameB = "", ""
	o.AddrsA, o.AddrsB = prefixes("10.77.1.2/24", "fd77:1::2/64"), prefixes("10.77.1.1/24", "fd77:1::1/64")
	if r.LinkA, r.LinkRA, err = r.Connect(r.A, r.R, o); err != nil {
		return err
	}
	o.AddrsA, o.AddrsB = prefixes("10.77.2.1/24", "fd77:2::1/64"), prefixes("10.77.2.2/24", "fd77:2::2/64")
	if r.LinkRB, r.LinkB, err = r.Connect(r.R, r.B, o); err != nil {
		return err
	}
	return errors.Join(
		routeVia(r.A, r.LinkRA.addrs),
		routeVia(r.B, r.LinkRB.addrs))
}

// routeOver makes router h's default router in each family in which h has an address.
func routeOver(h, router *Host) error {
	return errors.Join(optionalDefault(h, router.Addr4()), optionalDefault(h, router.Addr6()))
}

func routeVia(h *Host, router []netip.Prefix) error {
	var errs []error
	for _, p := range router {
		errs = append(errs, h.defaultVia(p.Addr()))
	}
	return errors.Join(errs...)
}

func optionalDefault(h *Host, via netip.Addr) error {
	if !via.IsValid() {
		return nil
	}
	return h.defaultVia(via)
}

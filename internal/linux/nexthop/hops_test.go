//go:build linux

package nexthop

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/race"
)

func TestMain(m *testing.M) { lab.Main(m) }

// place is a host with an interface, and the Hops that know its next hops.
type place struct {
	*lab.Pair
	hops   *Hops
	nl     *netlink.Handle
	device uint32
}

func newPlace(t testing.TB) *place {
	t.Helper()
	p := &place{Pair: lab.TwoHostsT(t, lab.LinkOptions{})}
	p.device = uint32(p.LinkA.Index())
	var err error
	if p.hops, err = Open(p.A.Do); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.hops.Close(); err != nil {
			t.Error(err)
		}
	})
	if p.nl, err = p.A.Netlink(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.nl.Close)
	return p
}

// way is a way from A with a device.
func (p *place) way(from, to string) *Way {
	w := &Way{From: netip.MustParseAddr(from), To: netip.MustParseAddr(to), Device: p.device, Source: p.A.Addr4()}
	if w.To.Is6() {
		w.Source = p.A.Addr6()
	}
	return w
}

func (p *place) expect(t *testing.T, w *Way, want Relation) {
	t.Helper()
	p.hops.Refresh()
	if got := p.hops.Compare(w); got != want {
		t.Errorf("%v to %v: %d, want %d", w.From, w.To, got, want)
	}
}

func network(text string) *net.IPNet {
	p := netip.MustParsePrefix(text)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (p *place) route(t *testing.T, r *netlink.Route) {
	t.Helper()
	if err := p.nl.RouteAdd(r); err != nil {
		t.Fatal(err)
	}
}

func TestCompare(t *testing.T) {
	p := newPlace(t)
	index := p.LinkA.Index()
	p.route(t, &netlink.Route{LinkIndex: index, Dst: network("198.51.100.0/24"), Gw: net.ParseIP("10.77.0.2")})
	p.route(t, &netlink.Route{LinkIndex: index, Dst: network("203.0.113.0/24"), Gw: net.ParseIP("10.77.0.3")})
	p.route(t, &netlink.Route{LinkIndex: index, Dst: network("192.0.2.0/25"), Gw: net.ParseIP("10.77.0.2"), MTU: 1300})
	p.route(t, &netlink.Route{Dst: network("192.0.2.128/25"), MultiPath: []*netlink.NexthopInfo{
		{LinkIndex: index, Gw: net.ParseIP("10.77.0.2")}, {LinkIndex: index, Gw: net.ParseIP("10.77.0.3")}}})
	p.route(t, &netlink.Route{Dst: network("10.99.0.0/24"), Type: unix.RTN_UNREACHABLE})
	p.route(t, &netlink.Route{LinkIndex: index, Dst: network("2001:db8:2::/48"), Gw: net.ParseIP("fd77::3")})
	other := *p.way("10.77.0.8", "10.77.0.9")
	other.Device++
	local := func(from, to string) *Way {
		w := p.way(from, to)
		w.Device = 1
		return w
	}
	forwarded := *p.way("10.77.0.8", "10.77.0.9")
	forwarded.Forwarded, forwarded.Source = true, netip.MustParseAddr("198.51.100.1")
	for _, row := range []struct {
		name string
		w    *Way
		want Relation
	}{
		{"both on the link", p.way("10.77.0.8", "10.77.0.9"), Linked},
		{"both on the link, forwarded", &forwarded, Linked},
		{"both on the link, IPv6", p.way("fd77::8", "fd77::9"), Linked},
		{"it left by another interface", &other, Apart},
		{"the same gateway", p.way("192.168.1.1", "198.51.100.1"), Through},
		{"the same gateway, IPv6", p.way("2001:db8:1::1", "2001:db8:3::1"), Through},
		{"another gateway", p.way("192.168.1.1", "203.0.113.1"), Apart},
		{"another gateway, IPv6", p.way("2001:db8:1::1", "2001:db8:2::1"), Apart},
		{"another MTU", p.way("192.168.1.1", "192.0.2.1"), Apart},
		{"from the link to a gateway", p.way("10.77.0.8", "192.168.1.1"), Apart},
		{"from a gateway to the link", p.way("192.168.1.1", "10.77.0.8"), Apart},
		{"several gateways", p.way("192.168.1.1", "192.0.2.200"), Apart},
		{"from several gateways", p.way("192.0.2.200", "192.168.1.1"), Apart},
		{"unreachable", p.way("192.168.1.1", "10.99.0.1"), Apart},
		{"to this host", p.way("10.77.0.8", "10.77.0.1"), Apart},
		{"from this host to itself", local("127.0.0.1", "10.77.0.1"), Through},
		{"from this host to itself, IPv6", local("::1", "fd77::1"), Through},
		{"from this host to elsewhere", local("127.0.0.1", "10.77.0.8"), Apart},
		{"broadcast", p.way("10.77.0.8", "10.77.0.255"), Apart},
		{"limited broadcast", p.way("10.77.0.8", "255.255.255.255"), Apart},
		{"multicast", p.way("10.77.0.8", "224.0.0.9"), Apart},
		{"link-local", p.way("fd77::8", "fe80::9"), Apart},
		{"no address", p.way("10.77.0.8", "0.0.0.0"), Apart},
		{"the other family", p.way("10.77.0.8", "fd77::9"), Apart},
	} {
		t.Run(row.name, func(t *testing.T) { p.expect(t, row.w, row.want) })
	}
}

// TestChangesAreSeen: known hops are forgotten when routes, rules, policies or interfaces change.
func TestChangesAreSeen(t *testing.T) {
	p := newPlace(t)
	gateway, link := p.way("192.168.1.1", "192.168.2.1"), p.way("10.77.0.8", "10.77.0.9")
	six := p.way("fd77::8", "fd77::9")
	before := func(t *testing.T) {
		t.Helper()
		p.expect(t, gateway, Through)
		p.expect(t, link, Linked)
		p.expect(t, six, Linked)
	}
	// Nothing expires meanwhile: the kernel announced each change that is seen here.
	before(t)
	r := &netlink.Route{LinkIndex: p.LinkA.Index(), Dst: network("192.168.2.0/24"), Gw: net.ParseIP("10.77.0.3")}
	p.route(t, r)
	p.expect(t, gateway, Apart)
	if err := p.nl.RouteDel(r); err != nil {
		t.Fatal(err)
	}
	before(t)

	rule := netlink.NewRule()
	rule.Mark, rule.Table, rule.Family = 7, 100, unix.AF_INET
	if err := p.nl.RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	p.expect(t, gateway, Apart)
	p.expect(t, link, Apart)
	p.expect(t, six, Linked)
	if err := p.nl.RuleDel(rule); err != nil {
		t.Fatal(err)
	}
	before(t)
	rule.Family = unix.AF_INET6
	if err := p.nl.RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	p.expect(t, six, Apart)
	p.expect(t, link, Linked)
	if err := p.nl.RuleDel(rule); err != nil {
		t.Fatal(err)
	}
	before(t)

	t.Run("policies", func(t *testing.T) {
		if p.hops.policies == nil {
			t.Skip("the kernel has no IPsec")
		}
		policy := &netlink.XfrmPolicy{Src: network("10.77.0.1/32"), Dst: network("172.16.0.0/16"), Dir: netlink.XFRM_DIR_OUT}
		err := p.A.Do(func() error { return netlink.XfrmPolicyAdd(policy) })
		if err != nil {
			t.Fatal(err)
		}
		p.expect(t, link, Apart)
		if err := p.A.Do(func() error { return netlink.XfrmPolicyDel(policy) }); err != nil {
			t.Fatal(err)
		}
		before(t)
	})

	if err := p.LinkA.SetUp(false); err != nil {
		t.Fatal(err)
	}
	p.expect(t, link, Apart)
	p.expect(t, gateway, Apart)
}

// TestWhatNobodyTellsExpires: an exception of a path's MTU is taken in when the kernel is asked again.
func TestWhatNobodyTellsExpires(t *testing.T) {
	p := newPlace(t)
	w := p.way("192.168.1.1", "192.168.2.1")
	p.expect(t, w, Through)
	for k, v := range p.hops.known {
		v.device++ // as if the kernel had announced no change
		p.hops.known[k] = v
	}
	p.expect(t, w, Apart)
	for k, v := range p.hops.known {
		v.at -= validFor
		p.hops.known[k] = v
	}
	p.expect(t, w, Through)
}

func TestClosedKnowsNothing(t *testing.T) {
	p := newPlace(t)
	w := p.way("10.77.0.8", "10.77.0.9")
	p.expect(t, w, Linked)
	if err := p.hops.Close(); err != nil {
		t.Fatal(err)
	}
	p.expect(t, w, Apart)
}

// TestKnownIsBounded asks for more destinations than are kept.
func TestKnownIsBounded(t *testing.T) {
	p := newPlace(t)
	for i := range maxKnown + 100 {
		p.hops.mu.Lock()
		p.hops.known[target{to: netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})}] = hop{}
		full := len(p.hops.known) >= maxKnown
		p.hops.mu.Unlock()
		if full {
			break
		}
	}
	p.expect(t, p.way("10.77.0.8", "10.77.0.9"), Linked)
	if n := len(p.hops.known); n > maxKnown {
		t.Errorf("%d are kept", n)
	}
}

func TestCompareAllocatesNothing(t *testing.T) {
	race.CannotCount(t)
	p := newPlace(t)
	w := p.way("10.77.0.8", "10.77.0.9")
	p.expect(t, w, Linked)
	start := time.Now()
	n := testing.AllocsPerRun(1000, func() {
		p.hops.Refresh()
		p.hops.Compare(w)
	})
	if n != 0 && time.Since(start) < time.Duration(validFor)/2 { // unless the kernel had to be asked again
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkCompare measures the question for a packet, and that of a packet that is the first of a call.
func BenchmarkCompare(b *testing.B) {
	p := newPlace(b)
	w := p.way("10.77.0.8", "10.77.0.9")
	for _, row := range []struct {
		name string
		look bool
	}{{"known", false}, {"looking for changes", true}} {
		b.Run(row.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if row.look {
					p.hops.Refresh()
				}
				if p.hops.Compare(w) != Linked {
					b.Fatal("apart")
				}
			}
		})
	}
}

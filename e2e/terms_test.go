//go:build linux

package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// hooked returns the names of divert's chains that see a host's packets.
func hooked(t *testing.T, h *lab.Host) (names []string) {
	t.Helper()
	nft(t, h, func(c *nftables.Conn) {
		all, err := c.ListChains()
		if err != nil {
			t.Error(err)
		}
		for _, chain := range all {
			if chain.Hooknum != nil {
				names = append(names, chain.Name)
			}
		}
	})
	slices.Sort(names)
	return names
}

// TestAFilterTouchesOnlyTheDirectionsItLooksAt: packets of a direction that a filter excludes pass through no chain of
// its handle, and are not reassembled for it, until another filter includes that direction.
func TestAFilterTouchesOnlyTheDirectionsItLooksAt(t *testing.T) {
	t.Parallel()
	out := []string{"outbound", "outbound_origin"}
	in := []string{"forward", "inbound", "inbound_fragments", "inbound_origin", "redirected"}
	both := slices.Sorted(slices.Values(slices.Concat(in, out)))
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	for _, row := range []struct {
		filter string
		chains []string
	}{
		{"false", nil},
		{"ip and tcp and udp", nil},
		{"outbound and udp.DstPort == 9", out},
		{"inbound and udp.DstPort == 9", in},
		{"udp.DstPort == 9", both},
	} {
		d := openAt(t, pair.A, row.filter, divert.WithEngine(divert.EngineKernel))
		if got := hooked(t, pair.A); !slices.Equal(got, row.chains) {
			t.Errorf("%s: the chains %q, want %q", row.filter, got, row.chains)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	d := openAt(t, pair.A, "outbound and udp.DstPort == 9", divert.WithEngine(divert.EngineKernel))
	if err := d.SetFilter("udp.DstPort == 9"); err != nil {
		t.Fatal(err)
	}
	if got := hooked(t, pair.A); !slices.Equal(got, both) {
		t.Errorf("with another filter: %q, want %q", got, both)
	}
}

// TestRulesNeverKeepAwayWhatAFilterMatches sends packets whose ports, protocol and addresses are hard for rules to
// read, and ordinary ones. For each filter the handle receives exactly the matching packets.
func TestRulesNeverKeepAwayWhatAFilterMatches(t *testing.T) {
	t.Parallel()
	udp := func(port byte) []byte { return []byte{0x30, 0x39, 0, port, 0, 12, 0, 0, 'd', 'a', 't', port} }
	header4 := func(protocol byte, options int, rest []byte) []byte {
		b := make([]byte, 20+options, 100)
		for i := 20; i < len(b); i++ {
			b[i] = 1 // the option "no operation"
		}
		b[0], b[8], b[9] = 0x40|byte(len(b)/4), 64, protocol
		return append(b, rest...)
	}
	header6 := func(next byte, rest ...[]byte) []byte {
		b := make([]byte, 40, 100)
		b[0], b[6], b[7] = 0x60, next, 64
		return append(b, slices.Concat(rest...)...)
	}
	option := func(next byte) []byte { return []byte{next, 0, 1, 4, 0, 0, 0, 0} }
	auth := func(next byte) []byte { return []byte{next, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1} }
	packets := []struct {
		name string
		data []byte
		port int // UDP port that filters see, 0: none
	}{
		{"plain", header4(17, 0, udp(7)), 7},
		{"another port", header4(17, 0, udp(8)), 8},
		{"IP options", header4(17, 8, udp(7)), 7},
		{"plain, IPv6", header6(17, udp(7)), 7},
		{"another port, IPv6", header6(17, udp(8)), 8},
		{"destination options", header6(60, option(17), udp(7)), 7},
		{"an authentication header", header6(51, auth(17), udp(7)), 7},
		{"both", header6(60, option(51), auth(60), option(17), udp(7)), 7},
		{"no UDP header", header4(17, 0, udp(7)[:6]), 0},
		{"another protocol", header4(47, 0, udp(7)), 0},
	}
	filters := []struct {
		text  string
		match func(v6 bool, port int) bool
	}{
		{"udp.DstPort == 7", func(_ bool, port int) bool { return port == 7 }},
		{"udp and remotePort != 8", func(_ bool, port int) bool { return port != 0 && port != 8 }},
		{"ipv6 and udp.DstPort in {1, 3-7, 9}", func(v6 bool, port int) bool { return v6 && port == 7 }},
		{"not udp and not icmpv6", func(_ bool, port int) bool { return port == 0 }},
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		sender := openAt(t, pair.A, "false", divert.WithPriority(100), divert.WithFlags(divert.SendOnly))
		for _, f := range filters {
			d := openAt(t, pair.A, fmt.Sprintf("outbound and (%s) and (localAddr == %v or localAddr == %v)", f.text, pair.A.Addr4(), pair.A.Addr6()), e)
			var want []int
			for i, p := range packets {
				b := slices.Clone(p.data)
				v6 := b[0]>>4 == 6
				if v6 {
					b[3] = byte(i) // flow label
					copy(b[8:], pair.A.Addr6().AsSlice())
					copy(b[24:], pair.B.Addr6().AsSlice())
					b[5] = byte(len(b) - 40)
				} else {
					b[3], b[5] = byte(len(b)), byte(i+1) // the kernel fills in an identification of 0
					copy(b[12:], pair.A.Addr4().AsSlice())
					copy(b[16:], pair.B.Addr4().AsSlice())
				}
				q := divert.Packet{Data: b}
				q.Addr.Layer, q.Addr.Outbound, q.Addr.IPv6 = divert.LayerNetwork, true, v6
				if err := sender.Send(&q); err != nil {
					t.Fatalf("%s: %v", p.name, err)
				}
				if f.match(v6, p.port) {
					want = append(want, i)
				}
			}
			var got []int
			for _, p := range taken(t, d, len(want)) {
				if p.Data[0]>>4 == 6 {
					got = append(got, int(p.Data[3]))
				} else {
					got = append(got, int(p.Data[5])-1)
				}
			}
			if !slices.Equal(got, want) || stats(t, d).Matched != uint64(len(want)) {
				t.Errorf("%s: packets %v, want %v; %d matched", f.text, got, want, stats(t, d).Matched)
			}
			d.Close()
		}
	})
}

// TestManyHandlesShareAGate: packets that match no handle cost a few comparisons for all handles together. Each handle
// receives its matching packets even after its filter is changed and while others come and go.
func TestManyHandlesShareAGate(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	gate := func() (rules int) {
		nft(t, pair.A, func(c *nftables.Conn) {
			all, err := c.GetRules(&nftables.Table{Name: "divert", Family: nftables.TableFamilyINet}, &nftables.Chain{Name: "outbound_gate"})
			if err == nil { // otherwise the chain does not exist yet
				rules = len(all)
			}
		})
		return rules
	}
	other, expectOther := receiver(t, pair.B, pair.B.Addr4())
	toOther := dialUDP(t, pair.A, other.LocalAddr())
	passes := func() {
		t.Helper()
		fmt.Fprint(toOther, "passes")
		expectOther("passes")
	}
	to := func(port int) net.Conn {
		return dialUDP(t, pair.A, &net.UDPAddr{IP: pair.B.Addr6().AsSlice(), Port: port})
	}
	var handles []*divert.Handle
	var conns []net.Conn
	for i := range 4 {
		handles = append(handles, openAt(t, pair.A, fmt.Sprintf("outbound and udp.DstPort == %d", 1000+i), divert.WithEngine(divert.EngineKernel)))
		conns = append(conns, to(1000+i))
	}
	if gate() == 0 {
		t.Error("four handles have no gate")
	}
	check := func() {
		t.Helper()
		passes()
		for i, d := range handles {
			fmt.Fprint(conns[i], i)
			if p := taken(t, d, 1)[0]; string(p.Data[48:]) != fmt.Sprint(i) {
				t.Errorf("handle %d receives %x", i, p.Data)
			}
		}
	}
	check()
	conns[2] = to(2000)
	if err := handles[2].SetFilter("outbound and udp.DstPort == 2000"); err != nil {
		t.Fatal(err)
	}
	check()
	all := openAt(t, pair.A, "outbound", divert.WithEngine(divert.EngineKernel), divert.WithFlags(divert.Sniff))
	if gate() != 0 {
		t.Error("a handle for all packets has a gate before it")
	}
	check()
	if err := all.Close(); err != nil {
		t.Fatal(err)
	}
	if gate() == 0 {
		t.Error("the four have no gate any more")
	}
	check()
	for _, d := range handles[2:] {
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if handles = handles[:2]; gate() != 0 {
		t.Error("two handles have a gate")
	}
	check()
}

// TestBusyPolling: a handle that polls before it sleeps receives and sends on like any other, ends when it is closed,
// and refuses a time out of range.
func TestBusyPolling(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, d := range []time.Duration{-1, divert.MaxBusyPoll + 1} {
		if _, err := divert.Open("true", divert.WithBusyPoll(d)); !errors.Is(err, divert.ErrInvalid) {
			t.Errorf("%v: %v", d, err)
		}
	}
	echo := echoAt(t, pair.B, "udp", pair.B.Addr4())
	d := openAt(t, pair.A, fmt.Sprintf("udp and remotePort == %d", echo.Addr().Port()), divert.WithBusyPoll(divert.MaxBusyPoll))
	w := passthru(t, d)
	c := dialUDP(t, pair.A, net.UDPAddrFromAddrPort(echo.Addr()))
	for i := range 20 {
		if _, err := fmt.Fprint(c, i); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 10)
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(b); err != nil || string(b[:n]) != fmt.Sprint(i) {
			t.Fatalf("%q, %v", b[:n], err)
		}
	}
	finish(t, d, w)
	balanced(t, stats(t, d))
}

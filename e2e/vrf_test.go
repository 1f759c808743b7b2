//go:build linux

package e2e_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// TestVRF: a packet of an interface in a VRF passes through the kernel's hooks twice. Handles see it once, with that
// interface, and it goes on.
func TestVRF(t *testing.T) {
	t.Parallel()
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			vrf := needVRF(t, pair)
			needEngine(t, pair.B, e.engine)
			for _, f := range families {
				for _, flags := range []divert.Flag{0, divert.Fragments, divert.Sniff, divert.Sniff | divert.Fragments} {
					t.Run(f.name+"/"+flags.String(), func(t *testing.T) {
						echo := pinger(t, pair.A, f.addr(pair.B).String(), f.name)
						local := knownInVRF(t, pair, f.name, func() { echo(1) }) // this also resolves the neighbours
						d := openAt(t, pair.B, "icmp.Type == 8 or icmp.Type == 0 or icmpv6.Type == 128 or icmpv6.Type == 129",
							divert.WithEngine(e.engine), divert.WithFlags(flags))
						var seen []string
						w := each(t, d, func(p *divert.Packet) {
							way := "in"
							if p.Addr.Outbound {
								way = "out"
							}
							want := uint32(pair.LinkB.Index())
							if !p.Addr.Outbound && !local {
								want = vrf
							}
							if got := p.Addr.Network().IfIdx; got != want {
								t.Errorf("%s: interface %d, want %d", way, got, want)
							}
							seen = append(seen, way)
							if flags&divert.Sniff == 0 {
								if err := d.Accept(p); err != nil {
									t.Error(err)
								}
							}
						})
						echo(2)
						echo(3)
						finish(t, d, w)
						if want := []string{"in", "out", "in", "out"}; fmt.Sprint(seen) != fmt.Sprint(want) {
							t.Errorf("seen: %q, want %q", seen, want)
						}
					})
				}
			}
			t.Run("injected", func(t *testing.T) {
				if echo := pinger(t, pair.A, pair.B.Addr4().String(), "IPv4"); !knownInVRF(t, pair, "IPv4", func() { echo(4) }) {
					t.Skip("the kernel's fib takes addresses in a VRF for those of other hosts")
				}
				low := collectPayloads(t, pair.B, "udp.DstPort == 9", divert.WithEngine(e.engine), divert.WithPriority(-10))
				d := openAt(t, pair.B, "udp.DstPort == 9", divert.WithEngine(e.engine))
				var in divert.Address
				in.SetNetwork(packet.NetworkData{IfIdx: uint32(pair.LinkB.Index())})
				if err := d.Send(&divert.Packet{Data: datagram(t, pair.A.Addr4().String(), pair.B.Addr4().String(), "in"), Addr: in}); err != nil {
					skipWithoutDevice(t, err)
					t.Fatal(err)
				}
				if s := quiet(t, d); s.Matched != 0 {
					t.Errorf("the injector: %+v", s)
				}
				low.expect(t, "lower handle", "in")
			})
		})
	}
}

// knownInVRF reports whether the kernel's fib accepts inbound packets for B while ping to B runs: before 6.16, unless
// the fix was backported, it does not know addresses in a VRF.
func knownInVRF(t *testing.T, pair *lab.Pair, family string, ping func()) bool {
	t.Helper()
	echo := byte(unix.IPPROTO_ICMP)
	if family == "IPv6" {
		echo = unix.IPPROTO_ICMPV6
	}
	table := &nftables.Table{Name: "known", Family: nftables.TableFamilyINet}
	chain := &nftables.Chain{Name: "known", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter}
	nft(t, pair.B, func(c *nftables.Conn) {
		c.AddTable(table)
		c.AddRule(&nftables.Rule{Table: table, Chain: c.AddChain(chain), Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIF, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(uint32(pair.LinkB.Index()))},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{echo}},
			&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
			&expr.Counter{},
		}})
	})
	defer nft(t, pair.B, func(c *nftables.Conn) { c.DelTable(table) })
	ping()
	known := false
	nft(t, pair.B, func(c *nftables.Conn) {
		rules, err := c.GetRules(table, chain)
		if err != nil || len(rules) != 1 {
			t.Fatalf("%d rules, %v", len(rules), err)
		}
		for _, e := range rules[0].Exprs {
			if counter, ok := e.(*expr.Counter); ok {
				known = counter.Packets > 0
			}
		}
	})
	return known
}

// needVRF puts the link of B into a VRF and returns the index of its device, or skips.
func needVRF(t *testing.T, pair *lab.Pair) uint32 {
	t.Helper()
	nl, err := pair.B.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	vrf := &netlink.Vrf{LinkAttrs: netlink.LinkAttrs{Name: "red"}, Table: 10}
	if err := nl.LinkAdd(vrf); err != nil {
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skipf("this kernel has no VRF: %v", err)
		}
		t.Fatal(err)
	}
	link, err := nl.LinkByName(pair.LinkB.Name())
	if err != nil {
		t.Fatal(err)
	}
	// The routes of addresses that exist when a link joins a VRF may stay in the main table.
	addr4 := &netlink.Addr{IPNet: &net.IPNet{IP: pair.B.Addr4().AsSlice(), Mask: net.CIDRMask(24, 32)}}
	addr6 := &netlink.Addr{IPNet: &net.IPNet{IP: pair.B.Addr6().AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD}
	for _, step := range []func() error{
		func() error { return nl.LinkSetUp(vrf) },
		func() error { return nl.AddrDel(link, addr4) },
		func() error { return nl.LinkSetMaster(link, vrf) },
		func() error { return nl.AddrAdd(link, addr4) },
		func() error { return nl.AddrReplace(link, addr6) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return uint32(vrf.Index)
}

// pinger returns a function that sends an echo request with a sequence number and waits for the reply.
func pinger(t *testing.T, from *lab.Host, to, family string) func(seq uint16) {
	t.Helper()
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if family == "IPv6" {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	c, err := from.Dial(t.Context(), network, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return func(seq uint16) {
		t.Helper()
		b := []byte{request, 0, 0, 0, 0x5a, 0xa5, 0, 0}
		binary.BigEndian.PutUint16(b[6:], seq)
		if family == "IPv4" { // the kernel computes the checksum of ICMPv6
			binary.BigEndian.PutUint16(b[2:], ^uint16(uint32(request)<<8+0x5aa5+uint32(seq)))
		}
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		for buf := make([]byte, 100); ; {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("echo %d: %v", seq, err)
			}
			b := buf[:n]
			if family == "IPv4" { // raw sockets of IPv4 deliver the header
				b = b[min(n, packet.IPv4HeaderLen):]
			}
			if len(b) >= 8 && b[0] == reply && binary.BigEndian.Uint16(b[6:]) == seq {
				return
			}
		}
	}
}

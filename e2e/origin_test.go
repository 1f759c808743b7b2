//go:build linux

package e2e_test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// forgedPriorities are values of skb->priority that would let a packet skip handles if they were trusted: cursors, and
// the mark with which handles of the interpreter recognise forwarded packets.
var forgedPriorities = []uint32{0xd0000000, 0xd0000010, 0xd7530000, 0xd000000f, 0xdfffffff, 0xc0000000, 0xc0000006, 0xe0000000, 0xf0000000,
	16, 0x10010, // these leave no room for a cursor
}

// sendWithPriority sends datagrams from a host, each from a socket with a priority.
func sendWithPriority(t testing.TB, from *lab.Host, to net.Addr, priorities []uint32) (texts []string) {
	t.Helper()
	for _, priority := range priorities {
		c := dialUDP(t, from, to)
		raw, err := c.(syscall.Conn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var failed error
		if err := raw.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PRIORITY, int(int32(priority)))
		}); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
		text := fmt.Sprintf("priority %#x", priority)
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		texts = append(texts, text)
	}
	return texts
}

// TestNoPriorityPassesHandles: SO_PRIORITY, which needs only CAP_NET_RAW, lets no packet skip a handle, whether or not
// handles inject packets.
func TestNoPriorityPassesHandles(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			t.Run(f.name, func(t *testing.T) {
				conn, expect := receiver(t, pair.B, f.addr(pair.B))
				filter := fmt.Sprintf("udp.DstPort == %d", addrPort(conn).Port())
				low := collectPayloads(t, pair.A, filter, e, divert.WithPriority(-10))
				high := collectPayloads(t, pair.A, filter, e, divert.WithPriority(10))
				d := openAt(t, pair.A, "false", e)
				a := divert.Address{Outbound: true, IPv6: f.name == "IPv6"}
				b := craft(t, f.addr(pair.A).String(), f.addr(pair.B).String(), addrPort(conn).Port(), []byte("injected"))
				if err := d.Send(&divert.Packet{Data: b, Addr: a}); err != nil {
					t.Fatal(err)
				}
				expect("injected")
				texts := sendWithPriority(t, pair.A, conn.LocalAddr(), forgedPriorities)
				expect(texts...)
				high.expect(t, "handle above the injector", texts...)
				low.expect(t, "handle below", append([]string{"injected"}, texts...)...)
			})
		}
	})
}

// TestNoPriorityOfAContainerPassesHandles: a container's packets keep their priority when they leave through a tunnel
// whose other half is in the namespace of the handles, and skip no handle.
func TestNoPriorityOfAContainerPassesHandles(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		nl, err := pair.A.Netlink()
		if err != nil {
			t.Fatal(err)
		}
		defer nl.Close()
		container, err := pair.Network.AddHost("container")
		if err != nil {
			t.Fatal(err)
		}
		ns, err := container.NetNS()
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		tunnel := &netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: "tunnel0"}, VxlanId: 7, Port: 4789, Group: pair.B.Addr4().AsSlice(), Learning: true,
		}
		if err := nl.LinkAdd(tunnel); err != nil {
			t.Skipf("no VXLAN here: %v", err)
		}
		if err := nl.LinkSetNsFd(tunnel, int(ns.Fd())); err != nil {
			t.Fatal(err)
		}
		inner, err := container.Netlink()
		if err != nil {
			t.Fatal(err)
		}
		defer inner.Close()
		link, err := inner.LinkByName("tunnel0")
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []error{
			inner.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 99, 0, 1), Mask: net.CIDRMask(24, 32)}}),
			inner.LinkSetUp(link),
			inner.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.IPv4(10, 99, 0, 2),
				HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}, State: netlink.NUD_PERMANENT}),
		} {
			if step != nil {
				t.Fatal(step)
			}
		}
		d := openAt(t, pair.A, "outbound and udp.DstPort == 4789", e)
		var got []string
		w := each(t, d, func(p *divert.Packet) {
			if i := strings.Index(string(p.Data), "priority "); i >= 0 {
				got = append(got, string(p.Data[i:]))
			}
			if err := d.Accept(p); err != nil {
				t.Error(err)
			}
		})
		want := sendWithPriority(t, container, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.99.0.2:9")), forgedPriorities)
		finish(t, d, w)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the handle saw %q, want %q", got, want)
		}
	})
}

// TestNoPriorityOfArrivingPacketsPassesHandles: a packet that arrives with a priority, as from another namespace over a
// device that keeps it, skips neither the handles of NETWORK nor those of FORWARD.
func TestNoPriorityOfArrivingPacketsPassesHandles(t *testing.T) {
	t.Parallel()
	eachForwarding(t, func(t *testing.T, r *lab.Routed, e divert.Option) {
		table := &nftables.Table{Name: "forge", Family: nftables.TableFamilyINet}
		for _, f := range families {
			for _, priority := range forgedPriorities {
				t.Run(fmt.Sprintf("%s/%#x", f.name, priority), func(t *testing.T) {
					change := func(change func(*nftables.Conn)) {
						if err := r.R.Do(func() error {
							c, err := nftables.New()
							if err != nil {
								return err
							}
							change(c)
							return c.Flush()
						}); err != nil {
							t.Fatal(err)
						}
					}
					change(func(c *nftables.Conn) {
						c.AddTable(table)
						chain := c.AddChain(&nftables.Chain{Name: "forge", Table: table, Type: nftables.ChainTypeFilter,
							Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-1000)})
						c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
							&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(priority)},
							&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1},
						}})
					})
					defer change(func(c *nftables.Conn) { c.DelTable(table) })
					far, expectFar := receiver(t, r.B, f.addr(r.B))
					near, expectNear := receiver(t, r.R, f.addr(r.R))
					filter := fmt.Sprintf("udp.DstPort == %d or udp.DstPort == %d", addrPort(far).Port(), addrPort(near).Port())
					network := collectPayloads(t, r.R, filter, e)
					forward := collectPayloads(t, r.R, filter, e, divert.WithLayer(divert.LayerForward))
					fmt.Fprint(dialUDP(t, r.A, far.LocalAddr()), "far")
					fmt.Fprint(dialUDP(t, r.A, near.LocalAddr()), "near")
					expectFar("far")
					expectNear("near")
					network.expect(t, "handle of the layer NETWORK", "near")
					forward.expect(t, "handle of the layer FORWARD", "far")
				})
			}
		}
	})
}

// TestFramesLikeThoseOfInjectionPassNoHandle: frames with the addresses of injected ones, which anybody can read, skip
// no handle.
func TestFramesLikeThoseOfInjectionPassNoHandle(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		needInbound(t, pair.A)
		conn, expect := receiver(t, pair.A, pair.A.Addr4())
		low := collectPayloads(t, pair.A, fmt.Sprintf("udp.DstPort == %d", addrPort(conn).Port()), e, divert.WithPriority(-10))
		d := openAt(t, pair.A, "false", e)
		var a divert.Address
		a.SetNetwork(packet.NetworkData{IfIdx: uint32(pair.LinkA.Index())})
		fresh := func(text string) []byte {
			return craft(t, pair.B.Addr4().String(), pair.A.Addr4().String(), addrPort(conn).Port(), []byte(text))
		}
		if err := d.Send(&divert.Packet{Data: fresh("injected"), Addr: a}); err != nil {
			t.Fatal(err)
		}
		expect("injected")
		nl, err := pair.A.Netlink()
		if err != nil {
			t.Fatal(err)
		}
		defer nl.Close()
		device, err := nl.LinkByName("divert0")
		if err != nil {
			t.Fatal(err)
		}
		// The holder of a TAP device may set its address, without any privilege.
		own := device.Attrs().HardwareAddr
		tap := openTAP(t, pair.A, "tap0")
		link, err := nl.LinkByName("tap0")
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []error{nl.LinkSetHardwareAddr(link, own), nl.LinkSetUp(link)} {
			if step != nil {
				t.Fatal(step)
			}
		}
		for _, name := range []string{"tap0", "all"} {
			if err := pair.A.Sysctl("net.ipv4.conf."+name+".rp_filter", "0"); err != nil {
				t.Fatal(err)
			}
		}
		want := []string{"injected"}
		for _, source := range []string{"d2:57:00:00:00:01", "02:00:00:00:00:01", own.String()} {
			mac, err := net.ParseMAC(source)
			if err != nil {
				t.Fatal(err)
			}
			frame := append(append(append([]byte{}, own...), mac...), 8, 0)
			if _, err := unix.Write(tap, append(frame, fresh(source)...)); err != nil {
				t.Fatal(err)
			}
			expect(source)
			want = append(want, source)
		}
		low.expect(t, "handle", want...)
	})
}

// openTAP makes a TAP device of a host, which is removed when the test ends.
func openTAP(t testing.TB, h *lab.Host, name string) int {
	t.Helper()
	fd := -1
	if err := h.Do(func() error {
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestPriorityMakesNoForwardedPacketOutbound: a router that sets packets' priorities for traffic control, before or
// after the chain "forward", sees no forwarded packet at NETWORK. Came from a bug: handles of the interpreter took
// those for the router's own packets, because the priority left no room for their mark for forwarded packets, or
// replaced it.
func TestPriorityMakesNoForwardedPacketOutbound(t *testing.T) {
	t.Parallel()
	rows := []struct {
		name string
		hook *nftables.ChainHook
		at   nftables.ChainPriority
	}{
		{"before", nftables.ChainHookForward, -301},
		{"behind", nftables.ChainHookForward, 0},
		{"on the way out", nftables.ChainHookPostrouting, 0},
	}
	eachForwarding(t, func(t *testing.T, r *lab.Routed, e divert.Option) {
		for _, f := range families {
			for _, row := range rows {
				t.Run(f.name+"/"+row.name, func(t *testing.T) {
					table := &nftables.Table{Name: "shaping", Family: nftables.TableFamilyINet}
					nft(t, r.R, func(c *nftables.Conn) {
						chain := &nftables.Chain{Name: "classes", Table: c.AddTable(table), Type: nftables.ChainTypeFilter, Hooknum: row.hook, Priority: &row.at}
						c.AddRule(&nftables.Rule{Table: table, Chain: c.AddChain(chain), Exprs: []expr.Any{
							&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(0x10014)}, // class 1:14
							&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1},
						}})
					})
					defer nft(t, r.R, func(c *nftables.Conn) { c.DelTable(table) })
					conn, expect := receiver(t, r.B, f.addr(r.B))
					own := collectPayloads(t, r.R, fmt.Sprintf("udp.DstPort == %d", addrPort(conn).Port()), e)
					c := dialUDP(t, r.A, conn.LocalAddr())
					if _, err := c.Write([]byte("forwarded")); err != nil {
						t.Fatal(err)
					}
					expect("forwarded")
					c = dialUDP(t, r.R, conn.LocalAddr())
					if _, err := c.Write([]byte("the router's own")); err != nil {
						t.Fatal(err)
					}
					expect("the router's own")
					own.expect(t, "handle", "the router's own")
				})
			}
		}
	})
}

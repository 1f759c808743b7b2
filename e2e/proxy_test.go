//go:build linux

package e2e_test

import (
	"context"
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

// proxied is the port that the router's rules redirect to its own proxy.
const proxied = 8054

// proxyRules redirect UDP datagrams for the port to a local one: by address translation, or by TPROXY.
func proxyRules(c *nftables.Conn, local uint16, transparent bool) {
	table := c.AddTable(&nftables.Table{Name: "proxy", Family: nftables.TableFamilyINet})
	kind, place := nftables.ChainTypeNAT, nftables.ChainPriorityNATDest
	if transparent {
		kind, place = nftables.ChainTypeFilter, nftables.ChainPriorityMangle
	}
	chain := c.AddChain(&nftables.Chain{Name: "proxy", Table: table, Type: kind,
		Hooknum: nftables.ChainHookPrerouting, Priority: place})
	e := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Register: 1, Data: binaryutil.BigEndian.PutUint16(proxied)},
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(local)},
	}
	if transparent {
		e = append(e, &expr.TProxy{Family: unix.NFPROTO_UNSPEC, TableFamily: unix.NFPROTO_INET, RegPort: 1},
			&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(1)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1})
	} else {
		e = append(e, &expr.Redir{RegisterProtoMin: 1})
	}
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: e})
}

// transparentRoute makes a host deliver packets with mark 1 to itself.
func transparentRoute(t *testing.T, h *lab.Host) {
	t.Helper()
	nl, err := h.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
		if family == unix.AF_INET6 {
			all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		}
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table = family, 1, 100
		if err := nl.RuleAdd(rule); err != nil {
			t.Fatal(err)
		}
		if err := nl.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: all, Table: 100, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST}); err != nil {
			t.Fatal(err)
		}
	}
}

// proxySocket is a socket that can receive datagrams for foreign addresses from TPROXY.
func proxySocket(t *testing.T, h *lab.Host, family string) net.PacketConn {
	t.Helper()
	level, option, address := unix.SOL_IP, unix.IP_TRANSPARENT, "0.0.0.0:0"
	if family == "IPv6" {
		level, option, address = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "[::]:0"
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); e != nil {
			return e
		}
		return err
	}}
	var conn net.PacketConn
	if err := h.Do(func() (err error) {
		conn, err = config.ListenPacket(context.Background(), map[string]string{"IPv4": "udp4", "IPv6": "udp6"}[family], address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestClientsOfATransparentProxy: packets that a router redirects to its own proxy end on the router, so handles of
// NETWORK see them once, as inbound, and handles of FORWARD do not. Each handle may change them.
func TestClientsOfATransparentProxy(t *testing.T) {
	t.Parallel()
	eachForwarding(t, func(t *testing.T, r *lab.Routed, e divert.Option) {
		transparentRoute(t, r.R)
		for _, f := range families {
			for _, transparent := range []bool{false, true} {
				for _, flags := range []divert.Flag{0, divert.Fragments, divert.Sniff} {
					way := map[bool]string{false: "redirected", true: "TPROXY"}[transparent]
					t.Run(f.name+"/"+way+"/"+flags.String(), func(t *testing.T) {
						conn := proxySocket(t, r.R, f.name)
						nft(t, r.R, func(c *nftables.Conn) { proxyRules(c, addrPort(conn).Port(), transparent) })
						defer nft(t, r.R, func(c *nftables.Conn) {
							c.DelTable(&nftables.Table{Name: "proxy", Family: nftables.TableFamilyINet})
						})
						const filter = "udp"
						to := netip.AddrPortFrom(f.addr(r.B), proxied)
						low := collectPayloads(t, r.R, filter, e, divert.WithPriority(-10))
						forward := collectPayloads(t, r.R, filter, e, divert.WithLayer(divert.LayerForward))
						d := openAt(t, r.R, filter, e, divert.WithFlags(flags))
						seen := 0
						w := each(t, d, func(p *divert.Packet) {
							seen++
							if p.Addr.Outbound || p.Addr.Loopback || p.Addr.Network().IfIdx != uint32(r.LinkRA.Index()) {
								t.Errorf("the address is %+v, interface %d; want inbound on %d", p.Addr, p.Addr.Network().IfIdx, r.LinkRA.Index())
							}
							if flags&divert.Sniff != 0 {
								return
							}
							var parsed packet.Parsed
							parsed.Parse(p.Data)
							copy(parsed.Payload(p.Data), "changed")
							p.Addr.UDPChecksum = false
							if err := d.Send(p); err != nil {
								t.Error(err)
							}
						})
						fmt.Fprint(dialUDP(t, r.A, net.UDPAddrFromAddrPort(to)), "request")
						want := "changed"
						if flags&divert.Sniff != 0 {
							want = "request"
						}
						expectLong(t, conn, want)
						finish(t, d, w)
						if seen != 1 {
							t.Errorf("the handle saw %d packets, want 1", seen)
						}
						low.expect(t, "lower handle", want)
						forward.expect(t, "handle of the layer FORWARD")
					})
				}
			}
			t.Run(f.name+"/others go on through the router", func(t *testing.T) {
				conn, expect := receiver(t, r.B, f.addr(r.B))
				network := collectPayloads(t, r.R, "udp", e)
				forward := collectPayloads(t, r.R, "udp", e, divert.WithLayer(divert.LayerForward))
				fmt.Fprint(dialUDP(t, r.A, conn.LocalAddr()), strings.Repeat("x", 5))
				expect("xxxxx")
				network.expect(t, "handle of the layer NETWORK")
				forward.expect(t, "handle of the layer FORWARD", "xxxxx")
			})
		}
	})
}

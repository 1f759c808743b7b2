//go:build linux

package e2e_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// eachForwarding runs a test with each engine, each time with a new host, router and peer.
func eachForwarding(t *testing.T, f func(t *testing.T, r *lab.Routed, e divert.Option)) {
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			r := lab.HostRouterPeerT(t, lab.LinkOptions{})
			needEngine(t, r.R, e.engine)
			f(t, r, divert.WithEngine(e.engine))
		})
	}
}

// payloads collects the payloads of a handle's packets in order, and accepts diverted packets.
type payloads struct {
	d    *divert.Handle
	w    *worker
	list []string
}

func collectPayloads(t testing.TB, h *lab.Host, filter string, opts ...divert.Option) *payloads {
	t.Helper()
	p := &payloads{d: openAt(t, h, filter, opts...)}
	p.w = each(t, p.d, func(pk *divert.Packet) {
		var parsed packet.Parsed
		parsed.Parse(pk.Data)
		p.list = append(p.list, string(parsed.Payload(pk.Data)))
		if p.d.Flags()&divert.Sniff == 0 {
			if err := p.d.Accept(pk); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

// expect ends the handle and compares.
func (p *payloads) expect(t testing.TB, name string, want ...string) {
	t.Helper()
	finish(t, p.d, p.w)
	if got := strings.Join(p.list, ","); got != strings.Join(want, ",") {
		t.Errorf("the %s saw %q, want %q", name, got, want)
	}
}

// TestForwardInjection: a packet injected into the forward path reaches its destination. Only lower handles of the
// layer see it, once.
func TestForwardInjection(t *testing.T) {
	t.Parallel()
	eachForwarding(t, func(t *testing.T, r *lab.Routed, e divert.Option) {
		for _, rp := range []string{"0", "1", "2"} {
			for _, name := range []string{"all", "eth0", "eth1"} {
				if err := r.R.Sysctl("net.ipv4.conf."+name+".rp_filter", rp); err != nil {
					t.Fatal(err)
				}
			}
			for _, f := range families {
				for _, own := range []bool{true, false} {
					t.Run(fmt.Sprintf("rp_filter %s/%s/captured %v", rp, f.name, own), func(t *testing.T) {
						conn, expect := receiver(t, r.B, f.addr(r.B))
						filter := fmt.Sprintf("udp.DstPort == %d", addrPort(conn).Port())
						layer := divert.WithLayer(divert.LayerForward)
						high := collectPayloads(t, r.R, filter, e, layer, divert.WithPriority(10), divert.WithFlags(divert.Sniff))
						d := openAt(t, r.R, filter, e, layer)
						low := collectPayloads(t, r.R, filter, e, layer, divert.WithPriority(-10))
						network := collectPayloads(t, r.R, filter, e, divert.WithFlags(divert.Sniff))
						seen := []string{"injected"}
						if own {
							fmt.Fprint(dialUDP(t, r.A, conn.LocalAddr()), "captured")
							var p [1]divert.Packet
							if _, err := d.RecvBatch(p[:]); err != nil {
								t.Fatal(err)
							}
							a := p[0].Addr
							if !a.Outbound || a.Loopback || a.Network().IfIdx != uint32(r.LinkRB.Index()) {
								t.Errorf("the address is %+v, interface %d; want outbound over %d", a, a.Network().IfIdx, r.LinkRB.Index())
							}
							for range 2 { // once as itself, once as a new packet
								if err := d.Send(&divert.Packet{Data: p[0].Data, Addr: a}); err != nil {
									skipWithoutDevice(t, err)
									t.Fatal(err)
								}
							}
							seen = []string{"captured", "captured"}
						} else {
							a := divert.Address{Outbound: true, Layer: divert.LayerForward, IPv6: f.name == "IPv6"}
							a.SetNetwork(packet.NetworkData{IfIdx: uint32(r.LinkRB.Index())})
							b := craft(t, f.addr(r.A).String(), f.addr(r.B).String(), addrPort(conn).Port(), []byte("injected"))
							if err := d.Send(&divert.Packet{Data: b, Addr: a}); err != nil {
								skipWithoutDevice(t, err)
								t.Fatal(err)
							}
						}
						expect(seen...)
						low.expect(t, "lower handle", seen...)
						network.expect(t, "handle of the layer NETWORK")
						if own {
							high.expect(t, "higher handle", "captured")
						} else {
							high.expect(t, "higher handle")
						}
						if s := quiet(t, d); s.Waiting != 0 {
							t.Errorf("the injecting handle saw its own packet: %+v", s)
						}
					})
				}
			}
		}
	})
}

// natRules is address translation as routers do it: masquerading towards B, and a port of the router that leads to B.
func natRules(c *nftables.Conn, to netip.Addr, port, toPort uint16, out string) {
	family, nfproto := nftables.TableFamilyIPv4, uint32(unix.NFPROTO_IPV4)
	if to.Is6() {
		family, nfproto = nftables.TableFamilyIPv6, unix.NFPROTO_IPV6
	}
	nat := c.AddTable(&nftables.Table{Name: "router", Family: family})
	post := c.AddChain(&nftables.Chain{Name: "post", Table: nat, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	name := make([]byte, 16)
	copy(name, out)
	c.AddRule(&nftables.Rule{Table: nat, Chain: post, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Masq{},
	}})
	pre := c.AddChain(&nftables.Chain{Name: "pre", Table: nat, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	c.AddRule(&nftables.Rule{Table: nat, Chain: pre, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(toPort)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: nfproto, RegAddrMin: 1, RegProtoMin: 2},
	}})
}

// TestForwardWithNAT records the packets that handles see on a router that translates addresses. At FORWARD the
// destination is already translated, but the source is not. NETWORK comes earlier, so packets for one of the router's
// addresses count as the router's own and have that address.
func TestForwardWithNAT(t *testing.T) {
	t.Parallel()
	const publicPort = 8053
	eachForwarding(t, func(t *testing.T, r *lab.Routed, e divert.Option) {
		for _, f := range families {
			t.Run(f.name, func(t *testing.T) {
				echo := echoAt(t, r.B, "udp", f.addr(r.B))
				nft(t, r.R, func(c *nftables.Conn) {
					natRules(c, f.addr(r.B), publicPort, echo.Addr().Port(), r.LinkRB.Name())
				})
				defer nft(t, r.R, func(c *nftables.Conn) {
					for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
						c.AddTable(&nftables.Table{Name: "router", Family: family})
						c.DelTable(&nftables.Table{Name: "router", Family: family})
					}
				})
				inside, outside := r.LinkRA.Addrs()[0].Addr(), r.LinkRB.Addrs()[0].Addr()
				if f.name == "IPv6" {
					inside, outside = r.LinkRA.Addrs()[1].Addr(), r.LinkRB.Addrs()[1].Addr()
				}
				for _, row := range []struct {
					name    string
					to      netip.AddrPort
					network []string // packets of a datagram and its echo that handles of the layer NETWORK see
				}{
					{"masquerade", echo.Addr(), []string{
						fmt.Sprintf("%v>%v", f.addr(r.B), outside),
					}},
					{"destination NAT", netip.AddrPortFrom(inside, publicPort), []string{
						fmt.Sprintf("%v>%v", f.addr(r.A), inside),
						fmt.Sprintf("%v>%v", f.addr(r.B), outside),
					}},
				} {
					t.Run(row.name, func(t *testing.T) {
						var ways []string
						d := openAt(t, r.R, "udp", e, divert.WithLayer(divert.LayerForward))
						w := each(t, d, func(p *divert.Packet) {
							ways = append(ways, endpoints(p.Data))
							if err := d.Send(p); err != nil {
								t.Error(err)
							}
						})
						var own []string
						network := openAt(t, r.R, "udp", e, divert.WithFlags(divert.Sniff))
						watch := each(t, network, func(p *divert.Packet) {
							own = append(own, endpoints(p.Data))
							if p.Addr.Outbound {
								t.Errorf("%s is outbound", endpoints(p.Data))
							}
						})
						if x := exchange(t, r.A, row.to, lab.Exchange{Count: 3}); x.Echoed != 3 {
							t.Fatalf("%+v", x)
						}
						finish(t, d, w)
						there := fmt.Sprintf("%v>%v", f.addr(r.A), f.addr(r.B))
						back := fmt.Sprintf("%v>%v", f.addr(r.B), f.addr(r.A))
						if got, want := strings.Join(ways, " "), strings.Join([]string{there, back, there, back, there, back}, " "); got != want {
							t.Errorf("FORWARD saw %s, want %s", got, want)
						}
						finish(t, network, watch)
						if got, want := strings.Join(own, " "), strings.Join(slices.Repeat(row.network, 3), " "); got != want {
							t.Errorf("NETWORK saw %s, want %s", got, want)
						}
					})
				}
				t.Run("dropped", func(t *testing.T) {
					d := openAt(t, r.R, "udp", e, divert.WithLayer(divert.LayerForward), divert.WithFlags(divert.Drop))
					if x := exchange(t, r.A, echo.Addr(), lab.Exchange{Count: 5, Wait: 20 * time.Millisecond}); x.Echoed != 0 || x.Refused != 0 {
						t.Errorf("%+v", x)
					}
					if s := quiet(t, d); s.Dropped != 5 {
						t.Errorf("%+v", s)
					}
				})
			})
		}
	})
}

// endpoints returns source and destination of a packet.
func endpoints(b []byte) string {
	addr := func(v4, v6 int) netip.Addr {
		if b[0]>>4 == 4 {
			return netip.AddrFrom4([4]byte(b[v4:]))
		}
		return netip.AddrFrom16([16]byte(b[v6:]))
	}
	return fmt.Sprintf("%v>%v", addr(12, 8), addr(16, 24))
}

//go:build linux

package e2e_test

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// TestFreshInjection sends packets that were never captured, on every path, with handles above and below: each handle
// below sees every packet once; those above and the sender itself see none.
func TestFreshInjection(t *testing.T) {
	notInShort(t)
	t.Parallel()
	type row struct {
		name     string
		outbound bool
		on       string // the inbound interface
		src, dst string
		at       string // the host that receives it
		seen     bool   // by lower handles: packets from this host to itself count as outbound only
	}
	rows := []row{
		{"out, own source, IPv4", true, "", "10.77.0.1", "10.77.0.2", "B", true},
		{"out, own source, IPv6", true, "", "fd77::1", "fd77::2", "B", true},
		{"out, foreign source, IPv4", true, "", "198.51.100.7", "10.77.0.2", "B", true},
		{"out, foreign source, IPv6", true, "", "2001:db8::7", "fd77::2", "B", true},
		{"out, to this host, IPv4", true, "", "10.77.0.1", "10.77.0.1", "A", true},
		{"out, to this host, IPv6", true, "", "fd77::1", "fd77::1", "A", true},
		{"out, loopback, IPv4", true, "", "127.0.0.1", "127.0.0.1", "A", true},
		{"out, loopback, IPv6", true, "", "::1", "::1", "A", true},
		{"in on a link, neighbour, IPv4", false, "eth0", "10.77.0.2", "10.77.0.1", "A", true},
		{"in on a link, neighbour, IPv6", false, "eth0", "fd77::2", "fd77::1", "A", true},
		{"in on a link, far source, IPv4", false, "eth0", "198.51.100.7", "10.77.0.1", "A", true},
		{"in on a link, far source, IPv6", false, "eth0", "2001:db8::7", "fd77::1", "A", true},
		{"in on a TUN, IPv4", false, "tun0", "10.88.0.9", "10.88.0.1", "A", true},
		{"in on a TUN, IPv6", false, "tun0", "fd88::9", "fd88::1", "A", true},
		{"in, own source, IPv4", false, "eth0", "10.77.0.1", "10.77.0.1", "A", false},
		{"in, own source, IPv6", false, "eth0", "fd77::1", "fd77::1", "A", false},
		{"in on lo, IPv4", false, "lo", "127.0.0.1", "127.0.0.1", "A", false},
		{"in on lo, IPv6", false, "lo", "::1", "::1", "A", false},
	}
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		index := map[string]int{"": 0, "lo": 1, "eth0": pair.LinkA.Index()}
		tun, err := pair.A.AddTUN("tun0", netip.MustParsePrefix("10.88.0.1/24"), netip.MustParsePrefix("fd88::1/64"))
		if err == nil {
			defer tun.Close()
			index["tun0"] = tun.Index()
		}
		for _, rp := range []string{"0", "1", "2"} {
			for _, name := range []string{"all", "eth0"} {
				if err := pair.A.Sysctl("net.ipv4.conf."+name+".rp_filter", rp); err != nil {
					t.Fatal(err)
				}
			}
			for _, r := range rows {
				t.Run("rp_filter "+rp+"/"+r.name, func(t *testing.T) {
					if rp != "1" && strings.HasSuffix(r.name, "IPv6") {
						t.Skip("IPv6 has no rp_filter")
					}
					idx, ok := index[r.on]
					if !ok {
						t.Skip("no TUN device here")
					}
					host := map[string]*lab.Host{"A": pair.A, "B": pair.B}[r.at]
					conn, expect := receiver(t, host, netip.MustParseAddr(r.dst))
					filter := fmt.Sprintf("udp.DstPort == %d", addrPort(conn).Port())
					high := collectPayloads(t, pair.A, filter, e, divert.WithPriority(10), divert.WithFlags(divert.Sniff))
					d := openAt(t, pair.A, filter, e)
					low := collectPayloads(t, pair.A, filter, e, divert.WithPriority(-10))
					a := divert.Address{Outbound: r.outbound}
					a.SetNetwork(packet.NetworkData{IfIdx: uint32(idx)})
					if err := d.Send(&divert.Packet{Data: craft(t, r.src, r.dst, addrPort(conn).Port(), []byte("fresh")), Addr: a}); err != nil {
						skipWithoutDevice(t, err)
						t.Fatal(err)
					}
					expect("fresh")
					high.expect(t, "higher handle")
					if r.seen {
						low.expect(t, "lower handle", "fresh")
					} else {
						low.expect(t, "lower handle")
					}
					if s := quiet(t, d); s.Matched != 0 || s.Injected != 1 {
						t.Errorf("the sender: %+v", s)
					}
				})
			}
		}
	})
}

// TestInjectedAboveMTU: a packet longer than the link's MTU is fragmented if that is allowed, otherwise it is refused.
func TestInjectedAboveMTU(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{MTU: 1400}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		d := openAt(t, pair.A, "false", e)
		for _, row := range []struct {
			name     string
			src, dst string
			df       bool
		}{
			{"IPv4", "10.77.0.1", "10.77.0.2", false},
			{"IPv4, may not be fragmented", "10.77.0.1", "10.77.0.2", true},
			{"IPv6", "fd77::1", "fd77::2", false},
		} {
			t.Run(row.name, func(t *testing.T) {
				conn, expect := receiver(t, pair.B, netip.MustParseAddr(row.dst))
				text := strings.Repeat("longer than the link ", 200)[:1900]
				b := craft(t, row.src, row.dst, addrPort(conn).Port(), []byte(text))
				if row.df {
					b[6] |= 0x40
					packet.CalcChecksums(b, nil, 0)
				}
				err := d.Send(&divert.Packet{Data: b, Addr: divert.Address{Outbound: true}})
				if row.df {
					refusal{divert.ErrTooLarge, 87}.check(t, "send", err)
					expect()
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				expect(text)
			})
		}
	})
}

// TestImpostorHopLimit: another program's packet loses one hop each time it is sent, and is refused in the end.
func TestImpostorHopLimit(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			t.Run(f.name, func(t *testing.T) {
				conn, expect := receiver(t, pair.B, f.addr(pair.B))
				d := openAt(t, pair.A, "outbound and udp", e)
				from := dialUDP(t, pair.A, conn.LocalAddr())
				seen := make(chan byte, 10)
				each(t, openAt(t, pair.B, "inbound and udp", e, divert.WithFlags(divert.Sniff)), func(p *divert.Packet) {
					seen <- hops(p.Data)
				})
				for _, ttl := range []byte{64, 2, 1} {
					fmt.Fprint(from, "hop")
					b := make([]byte, 100)
					n, a, err := d.Recv(b)
					if err != nil {
						t.Fatal(err)
					}
					if b[0]>>4 == 4 {
						b[8] = ttl
					} else {
						b[7] = ttl
					}
					packet.CalcChecksums(b[:n], nil, 0)
					a.Impostor = true
					err = d.Send(&divert.Packet{Data: b[:n], Addr: a})
					if ttl == 1 {
						refusal{divert.ErrHopLimit, 1232}.check(t, "send", err)
						expect()
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					expect("hop")
					if got := <-seen; got != ttl-1 {
						t.Errorf("a packet with %d hops left arrived with %d", ttl, got)
					}
				}
			})
		}
	})
}

// hops returns the TTL or hop limit.
func hops(b []byte) byte {
	if b[0]>>4 == 4 {
		return b[8]
	}
	return b[7]
}

// TestRedirected: a packet whose destination was changed takes the route to the new one.
func TestRedirected(t *testing.T) {
	t.Parallel()
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			n := lab.NewT(t)
			hosts := map[string]*lab.Host{}
			for _, name := range []string{"A", "B", "C"} {
				h, err := n.AddHost(name)
				if err != nil {
					t.Fatal(err)
				}
				hosts[name] = h
			}
			link := func(to, a4, b4, a6, b6 string) {
				p := netip.MustParsePrefix
				if _, _, err := n.Connect(hosts["A"], hosts[to], lab.LinkOptions{
					AddrsA: []netip.Prefix{p(a4), p(a6)}, AddrsB: []netip.Prefix{p(b4), p(b6)},
				}); err != nil {
					t.Fatal(err)
				}
			}
			link("B", "10.1.0.1/24", "10.1.0.2/24", "fd01::1/64", "fd01::2/64")
			link("C", "10.2.0.1/24", "10.2.0.2/24", "fd02::1/64", "fd02::2/64")
			needEngine(t, hosts["A"], e.engine)
			for _, f := range families {
				t.Run(f.name, func(t *testing.T) {
					atB, expectB := receiver(t, hosts["B"], f.addr(hosts["B"]))
					atC, err := hosts["C"].ListenPacket("udp", netip.AddrPortFrom(f.addr(hosts["C"]), addrPort(atB).Port()).String())
					if err != nil {
						t.Fatal(err)
					}
					defer atC.Close()
					d := openAt(t, hosts["A"], "outbound and udp", divert.WithEngine(e.engine))
					w := each(t, d, func(p *divert.Packet) {
						c := f.addr(hosts["C"]).AsSlice()
						if len(c) == 4 {
							copy(p.Data[16:], c)
						} else {
							copy(p.Data[24:], c)
						}
						p.Addr.IPChecksum, p.Addr.UDPChecksum = false, false
						if err := d.Send(p); err != nil {
							t.Error(err)
						}
					})
					from, err := hosts["A"].Dial(t.Context(), "udp", atB.LocalAddr().String())
					if err != nil {
						t.Fatal(err)
					}
					defer from.Close()
					fmt.Fprint(from, "to C")
					b := make([]byte, 100)
					atC.SetReadDeadline(time.Now().Add(5 * time.Second))
					if k, _, err := atC.ReadFrom(b); err != nil || string(b[:k]) != "to C" {
						t.Errorf("C received %q (%v)", b[:k], err)
					}
					expectB()
					finish(t, d, w)
				})
			}
		})
	}
}

// TestTurnedRound answers pings with the captured packets: the outbound request comes back inbound as its own answer,
// and vice versa.
func TestTurnedRound(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			for _, way := range []string{"outbound", "inbound"} {
				t.Run(f.name+"/"+way, func(t *testing.T) {
					// An address of B answers, though nobody listens there.
					to := netip.AddrPortFrom(f.addr(pair.B), 7)
					host := map[string]*lab.Host{"outbound": pair.A, "inbound": pair.B}[way]
					if way == "outbound" {
						needInbound(t, host) // for the answer
					}
					d := openAt(t, host, way+" and udp.DstPort == 7", e)
					w := each(t, d, func(p *divert.Packet) {
						turn(p)
						if err := d.Send(p); err != nil {
							t.Error(err)
						}
					})
					if x := exchange(t, pair.A, to, lab.Exchange{Count: 5}); x.Echoed != 5 || x.Refused != 0 {
						t.Errorf("%+v", x)
					}
					finish(t, d, w)
					if s := stats(t, d); s.Injected != 5 || s.Reinjected != 0 {
						t.Errorf("counters %+v", s)
					}
				})
			}
		}
	})
}

// turn turns a datagram into its own answer.
func turn(p *divert.Packet) {
	b := p.Data
	swap := func(i, j, n int) {
		x := bytes.Clone(b[i : i+n])
		copy(b[i:], b[j:j+n])
		copy(b[j:], x)
	}
	if b[0]>>4 == 4 {
		swap(12, 16, 4)
		swap(20, 22, 2)
	} else {
		swap(8, 24, 16)
		swap(40, 42, 2)
	}
	p.Addr.Outbound = !p.Addr.Outbound
	p.Addr.UDPChecksum = false
}

// TestFragments: inbound datagrams are seen whole or, with the flag, in fragments. Outbound ones are whole: the kernel
// fragments them after the handles.
func TestFragments(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			for _, row := range []struct {
				name   string
				filter string
				flags  divert.Flag
				in     bool
				want   int  // number of packets
				frags  bool // the field `fragment` is true for them
			}{
				{"inbound, whole", "inbound and not icmp and not icmpv6", 0, true, 1, false},
				{"inbound, no fragment is seen", "inbound and fragment", 0, true, 0, false},
				{"inbound, in fragments", "inbound and not icmp and not icmpv6", divert.Fragments, true, 3, true},
				{"inbound, in fragments, by the field", "inbound and fragment", divert.Fragments, true, 3, true},
				{"inbound, whole is not seen", "inbound and not fragment and udp", divert.Fragments, true, 0, false},
				{"outbound, whole", "outbound and udp", 0, false, 1, false},
				{"outbound, whole, with the flag", "outbound and udp", divert.Fragments, false, 1, false},
				{"outbound, no fragment yet", "outbound and fragment", 0, false, 0, false},
			} {
				for _, sniff := range []divert.Flag{0, divert.Sniff} {
					t.Run(f.name+"/"+row.name+"/"+sniff.String(), func(t *testing.T) {
						conn, _ := receiver(t, pair.B, f.addr(pair.B))
						host := map[bool]*lab.Host{true: pair.B, false: pair.A}[row.in]
						d := openAt(t, host, row.filter, e, divert.WithFlags(row.flags|sniff))
						n := 0
						w := each(t, d, func(p *divert.Packet) {
							var parsed packet.Parsed
							if !parsed.Parse(p.Data) || parsed.Fragment != row.frags {
								t.Errorf("fragment %v, want %v: %d bytes", parsed.Fragment, row.frags, len(p.Data))
							}
							n++
							if sniff == 0 {
								if err := d.Send(p); err != nil {
									t.Error(err)
								}
							}
						})
						text := strings.Repeat("in three fragments ", 200)
						sendLong(t, pair.A, conn.LocalAddr().String(), text)
						expectLong(t, conn, text)
						finish(t, d, w)
						if n != row.want {
							t.Errorf("%d packets, want %d", n, row.want)
						}
					})
				}
			}
		}
	})
}

// TestOutboundFragments: handles below see injected fragments as fragments.
func TestOutboundFragments(t *testing.T) {
	t.Parallel()
	eachEngine(t, lab.LinkOptions{}, func(t *testing.T, pair *lab.Pair, e divert.Option) {
		for _, f := range families {
			t.Run(f.name, func(t *testing.T) {
				conn, _ := receiver(t, pair.B, f.addr(pair.B))
				low := openAt(t, pair.A, "outbound and (udp or fragment)", e, divert.WithPriority(-1))
				w := resend(t, low)
				d := openAt(t, pair.A, "false", e)
				text := strings.Repeat("in three fragments ", 200)
				b := craft(t, f.addr(pair.A).String(), f.addr(pair.B).String(), addrPort(conn).Port(), []byte(text))
				if err := d.Send(&divert.Packet{Data: b, Addr: divert.Address{Outbound: true}}); err != nil {
					t.Fatal(err)
				}
				expectLong(t, conn, text)
				if n := finish(t, low, w); n != 3 {
					t.Errorf("%d packets, want 3", n)
				}
			})
		}
	})
}

// sendLong sends one datagram.
func sendLong(t testing.TB, from *lab.Host, to, text string) {
	t.Helper()
	c, err := from.Dial(t.Context(), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// expectLong receives one datagram of any length.
func expectLong(t testing.TB, c net.PacketConn, want string) {
	t.Helper()
	b := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	n, _, err := c.ReadFrom(b)
	if err != nil || string(b[:n]) != want {
		t.Errorf("%d bytes arrived (%v), want %d", n, err, len(want))
	}
}

//go:build linux

package e2e_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// solUDP and udpSegment are SOL_UDP and UDP_SEGMENT of linux/udp.h.
const (
	solUDP     = 17
	udpSegment = 103
)

// dialSegmented opens a UDP socket; the kernel splits its writes into datagrams of size bytes each.
func dialSegmented(t testing.TB, from *lab.Host, to net.Addr, size int) net.Conn {
	t.Helper()
	c := dialUDP(t, from, to)
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), solUDP, udpSegment, size) }); err != nil {
		t.Fatal(err)
	}
	if failed != nil {
		t.Skipf("no segmentation of UDP here: %v", failed)
	}
	return c
}

// letters are the payloads of the five datagrams that TestDatagramsAreSinglePackets sends with one call.
var letters = []string{
	strings.Repeat("a", 1000), strings.Repeat("b", 1000), strings.Repeat("c", 1000), strings.Repeat("d", 1000), strings.Repeat("e", 500),
}

// short writes payloads as a few letters.
func short(payloads []string) string {
	var b strings.Builder
	for _, p := range payloads {
		fmt.Fprintf(&b, "%.1s%d ", p, len(p))
	}
	return b.String()
}

// arrivals reads datagrams until none arrives for a while. It expects want of them.
func arrivals(t testing.TB, c net.PacketConn, want int) (got []string) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for {
		wait := 20 * time.Second
		if len(got) >= want {
			wait = 30 * time.Millisecond // no further datagram may arrive
		}
		c.SetReadDeadline(time.Now().Add(wait))
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return got
		}
		got = append(got, string(buf[:n]))
	}
}

// waysOfDatagrams are the places that see datagrams on their way from A to B.
var waysOfDatagrams = []struct {
	name, way string
	on        func(*lab.Routed) *lab.Host
	layer     divert.Layer
}{
	{"outbound", "outbound", onA, divert.LayerNetwork},
	{"inbound", "inbound", onB, divert.LayerNetwork},
	{"forwarded", "true", onR, divert.LayerForward},
}

// TestDatagramsAreSinglePackets sends several datagrams with one call (UDP_SEGMENT), as QUIC and WireGuard do. Each is
// one packet for filters, for receivers, for the counters and on the wire.
func TestDatagramsAreSinglePackets(t *testing.T) {
	t.Parallel()
	filters := []struct {
		text  string
		match []int // indexes into letters
	}{
		{"udp.DstPort == %d", []int{0, 1, 2, 3, 4}},
		{"udp.DstPort == %d and udp.PayloadLength == 1000", []int{0, 1, 2, 3}},
		{"udp.DstPort == %d and udp.Length == 508", []int{4}},
		{"udp.DstPort == %d and (udp.Payload[0] == 99 or udp.Payload[400] == 101)", []int{2, 4}},
		{"udp.DstPort == %d and length < 1000", []int{4}},
		{"udp.DstPort == %d and udp.PayloadLength > 1000", nil},
		{"udp.DstPort == %d and random8 <= 255", []int{0, 1, 2, 3, 4}},
	}
	modes := []struct {
		name  string
		flags divert.Flag
		send  func(d *divert.Handle, p *divert.Packet) error
	}{
		{"accepted", 0, (*divert.Handle).Accept},
		{"sent back", 0, func(d *divert.Handle, p *divert.Packet) error { return d.Send(p) }},
		{"rewritten", 0, shoutOne},
		{"sniffed", divert.Sniff, nil},
		{"dropped", divert.Drop, nil},
	}
	for _, e := range engines {
		for _, f := range families {
			t.Run(e.name+"/"+f.name, func(t *testing.T) {
				r := lab.HostRouterPeerT(t, lab.LinkOptions{})
				needEngine(t, r.A, e.engine)
				conn, err := r.B.ListenPacket("udp", netip.AddrPortFrom(f.addr(r.B), 0).String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				from := dialSegmented(t, r.A, conn.LocalAddr(), 1000)
				for _, p := range waysOfDatagrams {
					for _, m := range modes {
						for i, row := range filters {
							if f.name == "IPv6" && i > 1 || m.send != nil && m.name != "rewritten" && i != 1 {
								continue
							}
							t.Run(fmt.Sprintf("%s/%s/%d", p.name, m.name, i), func(t *testing.T) {
								d := openAt(t, p.on(r), fmt.Sprintf("(%s) and %s", p.way, fmt.Sprintf(row.text, addrPort(conn).Port())),
									divert.WithLayer(p.layer), divert.WithFlags(m.flags), divert.WithEngine(e.engine))
								var want, arrive []string
								for i, l := range letters {
									matches := slices.Contains(row.match, i)
									switch {
									case matches && m.name == "rewritten":
										arrive = append(arrive, strings.ToUpper(l))
									case !matches || m.flags != divert.Drop:
										arrive = append(arrive, l)
									}
									if matches {
										want = append(want, l)
									}
								}
								var got []string
								receive := func(p *divert.Packet) {
									var parsed packet.Parsed
									if !parsed.ParseExact(p.Data) || p.Addr.UDPChecksum && !parsed.VerifyTransportChecksum(p.Data) {
										t.Errorf("a packet that is not right: %.100x", p.Data)
									}
									got = append(got, string(parsed.Payload(p.Data)))
									if m.send != nil {
										if err := m.send(d, p); err != nil {
											t.Error(err)
										}
									}
								}
								var w *worker
								if m.flags != divert.Drop {
									w = each(t, d, receive)
								}
								if _, err := from.Write([]byte(strings.Join(letters, ""))); err != nil {
									t.Fatal(err)
								}
								there := arrivals(t, conn, len(arrive))
								if w != nil {
									finish(t, d, w)
								}
								// Datagrams that do not match go on at once, and may overtake the others.
								slices.SortFunc(there, func(a, b string) int { return strings.Compare(strings.ToLower(a), strings.ToLower(b)) })
								if !slices.Equal(there, arrive) {
									t.Errorf("arrived %s, want %s", short(there), short(arrive))
								}
								if m.flags != divert.Drop && !slices.Equal(got, want) {
									t.Errorf("received %s, want %s", short(got), short(want))
								}
								s := stats(t, d)
								for range 100 { // a handle that drops may have some packets left to judge
									if s.Matched == uint64(len(want)) {
										break
									}
									time.Sleep(10 * time.Millisecond)
									s = stats(t, d)
								}
								balanced(t, s)
								if s.Matched != uint64(len(want)) || s.Failed != 0 || m.flags == divert.Drop && s.Dropped != s.Matched {
									t.Errorf("%d match: %+v", len(want), s)
								}
							})
						}
					}
				}
			})
		}
	}
}

// shoutOne sends a packet on in upper case; Send computes the checksum.
func shoutOne(d *divert.Handle, p *divert.Packet) error {
	var parsed packet.Parsed
	parsed.Parse(p.Data)
	payload := parsed.Payload(p.Data)
	copy(payload, bytes.ToUpper(payload))
	p.Addr.TCPChecksum, p.Addr.UDPChecksum = false, false
	return d.Send(p)
}

// TestSegmentsOfTCP: with WithSegments no TCP packet longer than the path's MTU is received, whatever the network card
// does, and segments sent on arrive. Filters see the segments.
func TestSegmentsOfTCP(t *testing.T) {
	t.Parallel()
	modes := []struct {
		name  string
		flags divert.Flag
		send  func(d *divert.Handle, p *divert.Packet) error
	}{
		{"accepted", 0, (*divert.Handle).Accept},
		{"rewritten", 0, shoutOne},
		{"sniffed", divert.Sniff, nil},
	}
	for _, e := range engines {
		for _, f := range families {
			t.Run(e.name+"/"+f.name, func(t *testing.T) {
				pair := lab.TwoHostsT(t, lab.LinkOptions{})
				needEngine(t, pair.A, e.engine)
				for _, way := range []string{"outbound", "inbound"} {
					for _, m := range modes {
						if m.flags == divert.Sniff && e.engine == divert.EngineInterpreter {
							continue
						}
						t.Run(way+"/"+m.name, func(t *testing.T) {
							host := pair.A
							if way == "inbound" {
								host = pair.B
							}
							d := openAt(t, host, way+" and tcp.PayloadLength > 0", divert.WithSegments(), divert.WithFlags(m.flags), divert.WithEngine(e.engine))
							longest, bytes := 0, 0
							w := each(t, d, func(p *divert.Packet) {
								var parsed packet.Parsed
								if !parsed.ParseExact(p.Data) || parsed.TCPOff < 0 || p.Addr.TCPChecksum && !parsed.VerifyTransportChecksum(p.Data) {
									t.Errorf("a segment that is not right: %.100x", p.Data)
								}
								longest, bytes = max(longest, len(p.Data)), bytes+int(parsed.PayloadLen)
								if m.send != nil {
									if err := m.send(d, p); err != nil {
										t.Error(err)
									}
								}
							})
							const n = 400_000
							if m.name == "rewritten" {
								checkUpperTCP(t, pair, f.addr(pair.B), n)
							} else {
								transfer(t, pair.A, pair.B, f.addr(pair.B), n)
							}
							finish(t, d, w)
							if longest > 1500 || longest < 1400 || bytes < n {
								t.Errorf("%d bytes in packets of up to %d", bytes, longest)
							}
							s := stats(t, d)
							balanced(t, s)
							if s.Failed != 0 || s.Lost != 0 || s.Matched != uint64(w.count) {
								t.Errorf("%d received: %+v", w.count, s)
							}
						})
					}
				}
			})
		}
	}
}

// TestSegmentsOfCopiesFromTheLog: copies from the log cannot be segmented, so Open fails.
func TestSegmentsOfCopiesFromTheLog(t *testing.T) {
	t.Parallel()
	host, err := lab.NewT(t).AddHost("h")
	if err != nil {
		t.Fatal(err)
	}
	err = host.Do(func() error {
		d, err := divert.Open("tcp", divert.WithSegments(), divert.WithFlags(divert.Sniff), divert.WithEngine(divert.EngineInterpreter))
		if err == nil {
			d.Close()
		}
		return err
	})
	if !errors.Is(err, divert.ErrNotSupported) {
		t.Errorf("%v, want ErrNotSupported", err)
	}
}

// sendSuperpacket sends a datagram over the link as a superpacket, as a network card or a virtual machine delivers it:
// of segments with size bytes each, whose checksums the segmenting side computes (PACKET_VNET_HDR, struct
// virtio_net_hdr).
func sendSuperpacket(t testing.TB, link *lab.Link, b []byte, size int) {
	t.Helper()
	const needsChecksum, gsoUDP, headerLen = 1, 5, 10
	var p packet.Parsed
	if !p.ParseExact(b) || p.UDPOff < 0 {
		t.Fatalf("no datagram: %.60x", b)
	}
	udp := b[p.UDPOff:]
	binary.BigEndian.PutUint16(udp[6:], p.PseudoHeaderSum(b))
	frame := make([]byte, headerLen, headerLen+14+len(b))
	ne := binary.NativeEndian
	frame[0], frame[1] = needsChecksum, gsoUDP
	ne.PutUint16(frame[2:], uint16(14+len(b)-int(p.PayloadLen)))
	ne.PutUint16(frame[4:], uint16(size))
	ne.PutUint16(frame[6:], uint16(14+p.UDPOff))
	ne.PutUint16(frame[8:], 6)
	frame = append(append(append(frame, link.Peer().MAC()...), link.MAC()...), 0x86, 0xDD)
	frame = append(frame, b...)
	if err := link.Host().Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return err
		}
		return unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: link.Index()})
	}); err != nil {
		t.Skipf("no superpackets of UDP here: %v", err)
	}
}

// TestSegmentsBehindExtensionHeaders delivers superpackets of UDP with extension headers to a host. The kernel cannot
// deliver the segments that it makes of such a superpacket for a queue: it looks for extension headers where a segment
// has its transport header. The segments arrive all the same, whatever a handle does with them: sends them on, does not
// match them, or leaves them to Close. A handle below sees each once.
func TestSegmentsBehindExtensionHeaders(t *testing.T) {
	t.Parallel()
	chains := []struct {
		name  string
		chain headerChain
	}{
		{"none", nil},
		{"hop-by-hop options", headerChain{hopByHop}},
		{"destination options", headerChain{destOpts}},
		{"a route", headerChain{routed}},
		{"all of them", headerChain{hopByHop, destOpts, routed, destOpts}},
	}
	modes := []struct {
		name  string
		test  string
		flags divert.Flag
		send  func(d *divert.Handle, p *divert.Packet) error // nil: nobody receives
	}{
		{"accepted", "true", 0, (*divert.Handle).Accept},
		{"sent back", "true", 0, func(d *divert.Handle, p *divert.Packet) error { return d.Send(p) }},
		{"rewritten", "true", 0, shoutOne},
		{"half of them", "udp.PayloadLength != 1000", 0, (*divert.Handle).Accept},
		{"dropped", "udp.PayloadLength == 500", divert.Drop, nil},
		{"left to Close", "true", 0, nil},
	}
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			needEngine(t, pair.B, e.engine)
			needInbound(t, pair.B)
			if err := errors.Join(pair.B.Sysctl("net.ipv6.conf.all.seg6_enabled", "1"), pair.B.Sysctl("net.ipv6.conf."+pair.LinkB.Name()+".seg6_enabled", "1")); err != nil {
				t.Fatal(err)
			}
			conn, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(pair.B.Addr6(), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, x := range chains {
				payload := strings.Join(letters, "")
				head := make([]byte, packet.UDPHeaderLen)
				binary.BigEndian.PutUint16(head, 4000)
				binary.BigEndian.PutUint16(head[2:], addrPort(conn).Port())
				binary.BigEndian.PutUint16(head[4:], uint16(len(head)+len(payload)))
				b := ends{src: pair.A.Addr6(), dst: pair.B.Addr6()}.v6(x.chain, packet.ProtocolUDP, append(head, payload...))
				sendSuperpacket(t, pair.LinkA, b, 1000)
				if got := arrivals(t, conn, len(letters)); !slices.Equal(got, letters) {
					t.Fatalf("%s: without a handle arrived %s", x.name, short(got))
				}
				for _, m := range modes {
					t.Run(x.name+"/"+m.name, func(t *testing.T) {
						d := openAt(t, pair.B, fmt.Sprintf("inbound and udp.DstPort == %d and %s", addrPort(conn).Port(), m.test),
							divert.WithFlags(m.flags), divert.WithEngine(e.engine))
						below := openAt(t, pair.B, fmt.Sprintf("inbound and udp.DstPort == %d", addrPort(conn).Port()),
							divert.WithPriority(-1), divert.WithEngine(e.engine))
						seen := passthru(t, below)
						want := slices.Clone(letters)
						var w *worker
						if m.send != nil {
							w = each(t, d, func(p *divert.Packet) {
								if err := m.send(d, p); err != nil {
									t.Error(err)
								}
							})
						}
						sendSuperpacket(t, pair.LinkA, b, 1000)
						switch m.name {
						case "rewritten":
							for i := range want {
								want[i] = strings.ToUpper(want[i])
							}
						case "dropped":
							want = want[:4]
						case "left to Close":
							counted(t, d, func(s divert.Stats) bool { return s.Waiting == uint64(len(letters)) })
							if err := d.Close(); err != nil {
								t.Fatal(err)
							}
						}
						got := arrivals(t, conn, len(want))
						slices.Sort(got) // datagrams that do not match go on at once, and may overtake the others
						if !slices.Equal(got, want) {
							t.Errorf("arrived %s, want %s", short(got), short(want))
						}
						if w != nil {
							finish(t, d, w)
						}
						if n := finish(t, below, seen); n != len(want) {
							t.Errorf("the handle below saw %d, want %d", n, len(want))
						}
						if s := stats(t, d); s.Failed != 0 || s.Lost != 0 || w != nil && s.Reinjected != s.Matched {
							t.Errorf("%+v", s)
						}
					})
				}
			}
		})
	}
}

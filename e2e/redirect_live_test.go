//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
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

// redirection sends packets for one address to another, and translates their answers.
type redirection struct {
	aim, real netip.Addr
	d         *divert.Handle
	w         *worker
}

// addressAt returns the destination or the source in an IP header.
func addressAt(b []byte, destination bool) []byte {
	switch six := b[0]>>4 == 6; {
	case six && destination:
		return b[24:40]
	case six:
		return b[8:24]
	case destination:
		return b[16:20]
	}
	return b[12:16]
}

// exchangeAddress replaces an address with another and reports whether it was there.
func exchangeAddress(b []byte, destination bool, from, to netip.Addr) bool {
	field := addressAt(b, destination)
	if a, _ := netip.AddrFromSlice(field); a != from {
		return false
	}
	copy(field, to.AsSlice())
	return true
}

// redirect opens the handle of a redirection. It sends packets on in the batches in which it received them.
func redirect(t *testing.T, h *lab.Host, aim, real netip.Addr, opts ...divert.Option) *redirection {
	t.Helper()
	family := "ip"
	if aim.Is6() {
		family = "ipv6"
	}
	r := &redirection{aim: aim, real: real}
	r.d = openAt(t, h, fmt.Sprintf("(tcp or udp) and (%s.DstAddr == %v or %s.SrcAddr == %v)", family, aim, family, real), opts...)
	r.w = batches(t, r.d, func(ps []divert.Packet) (int, error) {
		for i := range ps {
			p := &ps[i]
			if exchangeAddress(p.Data, true, aim, real) || exchangeAddress(p.Data, false, real, aim) {
				p.Addr.IPChecksum, p.Addr.TCPChecksum, p.Addr.UDPChecksum = false, false, false
			}
		}
		return r.d.SendBatch(ps)
	})
	return r
}

// streamTo sends n bytes from a host to aim, from source if that is valid, and expects them at a listener at real.
func streamTo(t *testing.T, from *lab.Host, source, aim netip.Addr, to *lab.Host, real netip.Addr, n int64) {
	t.Helper()
	l, err := to.Listen("tcp", netip.AddrPortFrom(real, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var sending sync.WaitGroup
	defer sending.Wait()
	sending.Go(func() {
		var local net.Addr
		if source.IsValid() {
			local = &net.TCPAddr{IP: source.AsSlice()}
		}
		c, err := from.DialFrom(ctx, local, "tcp", netip.AddrPortFrom(aim, port).String())
		if err != nil {
			t.Errorf("connect: %v", err)
			l.Close()
			return
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.Copy(c, lab.Stream(n, 7)); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	got, err := lab.DigestOf(c)
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := lab.DigestOf(lab.Stream(n, 7)); got != want {
		t.Errorf("received %v, want %v", got, want)
	}
}

// below is a handle below the redirecting one, which counts the packets it sees.
type below struct {
	d              *divert.Handle
	w              *worker
	old, longest   int
	payload, twice int
	seen           map[[2]uint32]bool // sequence number and length of segments with data
}

func openBelow(t *testing.T, h *lab.Host, r *redirection, opts ...divert.Option) *below {
	t.Helper()
	text := "tcp and tcp.PayloadLength > 0"
	if r.d.Layer() == divert.LayerNetwork {
		text = "outbound and " + text
	}
	b := &below{seen: map[[2]uint32]bool{}}
	b.d = openAt(t, h, text, append(opts, divert.WithPriority(-5))...)
	b.w = each(t, b.d, func(p *divert.Packet) {
		if a, _ := netip.AddrFromSlice(addressAt(p.Data, true)); a == r.aim {
			b.old++
		}
		b.longest = max(b.longest, len(p.Data))
		var parsed packet.Parsed
		if parsed.Parse(p.Data) && parsed.TCP(p.Data) != nil {
			n := len(parsed.Payload(p.Data))
			seq := parsed.TCP(p.Data).Seq()
			key := [2]uint32{seq, uint32(n)}
			if b.seen[key] {
				b.twice++
			}
			b.seen[key] = true
			b.payload += n
		}
		if err := b.d.Accept(p); err != nil {
			t.Error(err)
		}
	})
	return b
}

// redirected is a place where packets get another destination with the same next hop.
type redirected struct {
	name              string
	from, to, at      *lab.Host
	source, aim, real netip.Addr // source: invalid if the kernel chooses
	opts              []divert.Option
	injected          bool // as new packets
}

// TestRedirectedStaysOnePacket: a packet that is redirected to a destination with the same next hop stays the same
// packet, however long, and handles below see it once and whole. With another next hop it still arrives.
func TestRedirectedStaysOnePacket(t *testing.T) {
	addr, any := netip.MustParseAddr, netip.Addr{}
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			needEngine(t, pair.A, e.engine)
			routed := lab.HostRouterPeerT(t, lab.LinkOptions{})
			if err := pair.A.Loopback().SetMTU(16000); err != nil { // no packet exceeds what a queue delivers
				t.Fatal(err)
			}
			for _, a := range []string{"fd77:ff::1/128", "fd77:ff::9/128"} {
				if err := pair.A.Loopback().AddAddr(netip.MustParsePrefix(a)); err != nil {
					t.Fatal(err)
				}
			}
			opts := []divert.Option{divert.WithEngine(e.engine)}
			forward := append(opts, divert.WithLayer(divert.LayerForward))
			for _, row := range []redirected{
				{"on the link, IPv4", pair.A, pair.B, pair.A, any, addr("10.77.0.99"), addr("10.77.0.2"), opts, false},
				{"on the link, IPv6", pair.A, pair.B, pair.A, any, addr("fd77::99"), addr("fd77::2"), opts, false},
				{"by a gateway, IPv4", routed.A, routed.B, routed.A, any, addr("192.0.2.1"), addr("10.77.2.2"), opts, false},
				{"by a gateway, IPv6", routed.A, routed.B, routed.A, any, addr("2001:db8::1"), addr("fd77:2::2"), opts, false},
				{"this host, IPv4", pair.A, pair.A, pair.A, any, addr("127.0.0.9"), addr("127.0.0.1"), opts, false},
				{"this host, IPv6", pair.A, pair.A, pair.A, addr("fd77::1"), addr("fd77:ff::9"), addr("fd77:ff::1"), opts, false},
				{"forwarded, IPv4", routed.A, routed.B, routed.R, any, addr("10.77.2.99"), addr("10.77.2.2"), forward, false},
				{"forwarded, IPv6", routed.A, routed.B, routed.R, any, addr("fd77:2::99"), addr("fd77:2::2"), forward, false},
				{"from the link to a gateway, IPv4", routed.A, routed.B, routed.A, any, addr("10.77.1.99"), addr("10.77.2.2"), opts, true},
				{"from the link to a gateway, IPv6", routed.A, routed.B, routed.A, any, addr("fd77:1::99"), addr("fd77:2::2"), opts, true},
			} {
				t.Run(row.name, func(t *testing.T) { checkRedirected(t, &row) })
			}
		})
	}
}

// TestRedirectedWithAddressTranslation: redirected connections work in both directions where the kernel tracks
// connections, translates their addresses and lets in only packets of known connections. It tests connections through a
// router and those of the host itself.
func TestRedirectedWithAddressTranslation(t *testing.T) {
	t.Parallel()
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			routed := lab.HostRouterPeerT(t, lab.LinkOptions{})
			needEngine(t, routed.R, e.engine)
			for _, f := range families {
				real, aim := f.addr(routed.B), netip.MustParseAddr("10.77.2.99")
				if real.Is6() {
					aim = netip.MustParseAddr("fd77:2::99")
				}
				nft(t, routed.R, func(c *nftables.Conn) { natRules(c, real, 8053, 53, routed.LinkRB.Name()) })
				for _, device := range []bool{true, false} {
					cutBy := map[bool]string{true: "cut by the device", false: "cut by the kernel"}[device]
					t.Run("forwarded, "+cutBy+", "+f.name, func(t *testing.T) {
						if err := errors.Join(routed.LinkRB.SetOffload(lab.OffloadTSO|lab.OffloadTxChecksum, device),
							routed.LinkB.SetOffload(lab.OffloadRxChecksum, device)); err != nil {
							t.Fatal(err)
						}
						needInbound(t, routed.R) // new packets come in again, to be forwarded
						r := redirect(t, routed.R, aim, real, divert.WithEngine(e.engine), divert.WithLayer(divert.LayerForward))
						b := openBelow(t, routed.R, r, divert.WithEngine(e.engine), divert.WithLayer(divert.LayerForward))
						streamTo(t, routed.A, netip.Addr{}, aim, routed.B, real, amount(4<<20))
						finish(t, b.d, b.w)
						finish(t, r.d, r.w)
						// A new packet stays whole too: the kernel segments it after forwarding it.
						if b.old != 0 || b.payload < int(amount(4<<20)) || b.longest < 2*1500 {
							t.Errorf("a handle below saw %d bytes, at most %d in a packet, and %d packets for the old destination", b.payload, b.longest, b.old)
						}
					})
				}
				t.Run("the host's own, "+f.name, func(t *testing.T) {
					nft(t, routed.R, func(c *nftables.Conn) {
						foreignChain(c, "in", nftables.ChainHookInput, nftables.ChainTypeFilter, 0, []expr.Any{
							&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
							&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
							&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
							&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED), Xor: make([]byte, 4)},
							&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
							&expr.Verdict{Kind: expr.VerdictDrop},
						})
					})
					defer nft(t, routed.R, func(c *nftables.Conn) { c.DelTable(foreign) })
					r := redirect(t, routed.R, aim, real, divert.WithEngine(e.engine))
					streamTo(t, routed.R, netip.Addr{}, aim, routed.B, real, amount(1<<20))
					finish(t, r.d, r.w)
				})
			}
		})
	}
}

func checkRedirected(t *testing.T, row *redirected) {
	r := redirect(t, row.at, row.aim, row.real, row.opts...)
	b := openBelow(t, row.at, r, row.opts...)
	size := amount(4 << 20)
	streamTo(t, row.from, row.source, row.aim, row.to, row.real, size)
	finish(t, b.d, b.w) // first, since the sender may retransmit its last segment when nothing redirects it any more
	finish(t, r.d, r.w)
	s := stats(t, r.d)
	t.Logf("%+v; below %+v", s, stats(t, b.d))
	if row.injected != (s.Injected > 5) || !row.injected && s.Injected > 2 || s.Failed != 0 { // a RST never belongs to the connection
		t.Errorf("counters %+v", s)
	}
	if b.old != 0 {
		t.Errorf("a handle below saw %d packets for the old destination", b.old)
	}
	if b.payload < int(size) || b.twice > 0 && b.payload == int(size) {
		t.Errorf("a handle below saw %d bytes of %d, %d packets twice", b.payload, size, b.twice)
	}
	if !row.injected && b.longest < 2*1500 {
		t.Errorf("the longest packet below had %d bytes", b.longest)
	}
}

// TestRedirectedDatagrams sends single datagrams to an address without a host, and expects them at the new destination:
// as the same packets if the next hop is the same, otherwise as new ones.
func TestRedirectedDatagrams(t *testing.T) {
	const link4, link6, gateway4, gateway6 = "10.77.1.99", "fd77:1::99", "192.0.2.1", "2001:db8::1"
	rows := []struct {
		name     string
		aim      string
		to       string // an address of the router or, behind it, of B
		size     int
		raw      func(src, dst netip.Addr, port uint16, payload []byte) []byte // makes the packet for a raw socket
		injected bool
	}{
		{"by a gateway, IPv4", gateway4, "10.77.2.2", 100, nil, false},
		{"by a gateway, IPv6", gateway6, "fd77:2::2", 100, nil, false},
		{"by a gateway, IPv4, longer than the MTU", gateway4, "10.77.2.2", 4000, nil, false},
		{"by a gateway, IPv4, of a raw socket", gateway4, "10.77.2.2", 100, rawUDP, false},
		{"by a gateway, IPv6, behind an extension header", gateway6, "fd77:2::2", 100, rawOptions, true},
		{"on the link, IPv4", link4, "10.77.1.1", 100, nil, true},
		{"on the link, IPv6", link6, "fd77:1::1", 100, nil, true},
		{"on the link, IPv4, of a raw socket", link4, "10.77.1.1", 100, rawUDP, true},
		{"on the link, IPv6, of a raw socket", link6, "fd77:1::1", 100, rawUDP, true},
		{"from a gateway to the link, IPv4", gateway4, "10.77.1.1", 100, nil, true},
		{"from the link to a gateway, IPv6", link6, "fd77:2::2", 100, nil, true},
	}
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			r := lab.HostRouterPeerT(t, lab.LinkOptions{})
			needEngine(t, r.A, e.engine)
			for _, row := range rows {
				t.Run(row.name, func(t *testing.T) {
					aim, to := netip.MustParseAddr(row.aim), netip.MustParseAddr(row.to)
					host := r.B
					if slices.Contains(r.R.Addrs(), to) {
						host = r.R
					}
					l, err := host.ListenPacket("udp", netip.AddrPortFrom(to, 0).String())
					if err != nil {
						t.Fatal(err)
					}
					defer l.Close()
					port := addrPort(l).Port()
					x := redirect(t, r.A, aim, to, divert.WithEngine(e.engine))
					payload := bytes.Repeat([]byte("divert"), row.size)[:row.size]
					if row.raw == nil {
						c, err := r.A.Dial(t.Context(), "udp", netip.AddrPortFrom(aim, port).String())
						if err != nil {
							t.Fatal(err)
						}
						defer c.Close()
						if _, err := c.Write(payload); err != nil {
							t.Fatal(err)
						}
					} else {
						src := r.A.Addr4()
						if aim.Is6() {
							src = r.A.Addr6()
						}
						sendRaw(t, r.A, aim, row.raw(src, aim, port, payload))
					}
					l.SetReadDeadline(time.Now().Add(5 * time.Second))
					got := make([]byte, 5000)
					n, _, err := l.ReadFrom(got)
					if err != nil || !bytes.Equal(got[:n], payload) {
						t.Errorf("%d bytes, %v", n, err)
					}
					finish(t, x.d, x.w)
					if s := stats(t, x.d); s.Received != 1 || (s.Injected == 1) != row.injected || s.Injected+s.Reinjected != 1 {
						t.Errorf("%+v", s)
					}
				})
			}
		})
	}
}

// rawUDP returns a packet with a datagram.
func rawUDP(src, dst netip.Addr, port uint16, payload []byte) []byte {
	return udpPacket(src, dst, port, nil, payload)
}

// rawOptions returns an IPv6 packet with a datagram after destination options, all of them padding.
func rawOptions(src, dst netip.Addr, port uint16, payload []byte) []byte {
	return udpPacket(src, dst, port, []byte{unix.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0}, payload)
}

func udpPacket(src, dst netip.Addr, port uint16, options, payload []byte) []byte {
	udp := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(udp, 4711)
	binary.BigEndian.PutUint16(udp[2:], port)
	binary.BigEndian.PutUint16(udp[4:], uint16(8+len(payload)))
	rest := slices.Concat(options, udp, payload)
	var b []byte
	if src.Is4() {
		b = append([]byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}, slices.Concat(src.AsSlice(), dst.AsSlice(), rest)...)
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	} else {
		next := byte(unix.IPPROTO_UDP)
		if options != nil {
			next = unix.IPPROTO_DSTOPTS
		}
		b = append([]byte{0x60, 0, 0, 0, 0, 0, next, 64}, slices.Concat(src.AsSlice(), dst.AsSlice(), rest)...)
		binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	}
	packet.CalcChecksums(b, nil, 0)
	return b
}

// sendRaw sends a packet through a raw socket, with the packet's own header.
func sendRaw(t *testing.T, h *lab.Host, dst netip.Addr, b []byte) {
	t.Helper()
	if err := h.Do(func() error {
		family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(dst.AsSlice())})
		if dst.Is6() {
			family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: dst.As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, b, 0, to)
	}); err != nil {
		t.Fatal(err)
	}
}

// TestRedirectedIsNotOvertaken sends two packets in a batch: the first goes on as itself, the second as a new packet.
func TestRedirectedIsNotOvertaken(t *testing.T) {
	r := lab.HostRouterPeerT(t, lab.LinkOptions{})
	upper := openAt(t, r.A, "outbound and udp and ip.DstAddr == 192.0.2.1")
	lower := openAt(t, r.A, "outbound and udp", divert.WithPriority(-5))
	seen := make(chan netip.Addr, 10)
	w := each(t, lower, func(p *divert.Packet) {
		a, _ := netip.AddrFromSlice(addressAt(p.Data, true))
		seen <- a
		if err := lower.Accept(p); err != nil {
			t.Error(err)
		}
	})
	aims := []netip.Addr{netip.MustParseAddr("10.77.2.2"), netip.MustParseAddr("10.77.1.1")}
	var ps []divert.Packet
	for _, aim := range aims {
		sendRaw(t, r.A, netip.MustParseAddr("192.0.2.1"), rawUDP(r.A.Addr4(), netip.MustParseAddr("192.0.2.1"), 9, []byte("divert")))
		upper.SetReadDeadline(time.Now().Add(5 * time.Second))
		p := make([]divert.Packet, 1)
		if _, err := upper.RecvBatch(p); err != nil {
			t.Fatal(err)
		}
		copy(addressAt(p[0].Data, true), aim.AsSlice())
		p[0].Addr.IPChecksum, p[0].Addr.UDPChecksum = false, false
		ps = append(ps, p[0])
	}
	if n, err := upper.SendBatch(ps); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	for i, aim := range aims {
		select {
		case got := <-seen:
			if got != aim {
				t.Errorf("packet %d went to %v, want %v", i, got, aim)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("a packet is missing")
		}
	}
	finish(t, lower, w)
	if s := stats(t, upper); s.Reinjected != 1 || s.Injected != 1 {
		t.Errorf("%+v", s)
	}
}

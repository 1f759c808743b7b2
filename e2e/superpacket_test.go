//go:build linux

package e2e_test

import (
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

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// superpackets are what datagramsOf sends with one call each: payloads in bytes, of all and of each datagram.
var superpackets = []struct{ total, size int }{
	{2, 1}, {1001, 1000}, {2000, 1000}, {4500, 1000}, {600, 250}, {700, 0}, {20*1200 + 7, 1200}, {1400, 0}, {64 * 400, 400}, {30_000, 0},
}

// payloadOf returns a payload that differs from others in every place.
func payloadOf(i, length int) string {
	b := make([]byte, length)
	for j := range b {
		b[j] = byte(i*31 + j + j>>8)
	}
	return string(b)
}

// sendSuperpackets sends the superpackets, with a plain datagram where the size is 0, and returns the payloads of the datagrams.
func sendSuperpackets(t *testing.T, from *lab.Host, to net.Addr) (want []string) {
	t.Helper()
	c := dialSegmented(t, from, to, 0)
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range superpackets {
		payload := payloadOf(i, s.total)
		var failed error
		if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), solUDP, udpSegment, s.size) }); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
		if _, err := c.Write([]byte(payload)); err != nil {
			t.Fatal(err)
		}
		if s.size == 0 {
			want = append(want, payload)
			continue
		}
		for rest := payload; rest != ""; rest = rest[min(s.size, len(rest)):] {
			want = append(want, rest[:min(s.size, len(rest))])
		}
	}
	return want
}

// sniffed is all that a copy tells, but for the time and the identification, which no two packets share.
type sniffed struct {
	payload          string
	length           int
	whole            bool // and right, its checksums included
	fragment         bool
	ipSum, udpSum    bool
	outbound, copied bool
	ifIdx            uint32
}

func describe(p *divert.Packet) sniffed {
	var parsed packet.Parsed
	parsed.Parse(p.Data)
	// A checksum that happens to be the sum of the pseudo-header looks unfinished to whoever only sees the copy.
	finished := p.Addr.UDPChecksum || parsed.UDPOff >= 0 && binary.BigEndian.Uint16(p.Data[parsed.UDPOff+6:]) == parsed.PseudoHeaderSum(p.Data)
	return sniffed{
		payload: string(parsed.Payload(p.Data)), length: len(p.Data), fragment: parsed.Fragment,
		whole: parsed.ParseExact(p.Data) && (!p.Addr.UDPChecksum || parsed.VerifyTransportChecksum(p.Data)),
		ipSum: p.Addr.IPChecksum, udpSum: finished, outbound: p.Addr.Outbound, copied: p.Addr.Sniffed, ifIdx: p.Addr.Network().IfIdx,
	}
}

// TestSuperpacketsAreSniffedAsDatagrams: whoever decides, a handle that sniffs has each datagram of a superpacket as a
// packet of its own, beside plain ones, in their order, and changes nothing for who receives them; also where others divert above
// and below. The handles of both engines have the same copies and the same counters.
func TestSuperpacketsAreSniffedAsDatagrams(t *testing.T) {
	t.Parallel()
	beside := []struct {
		name     string
		priority int16
	}{{"alone", 0}, {"below a handle that diverts", 1}, {"above a handle that diverts", -1}}
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			r := lab.HostRouterPeerT(t, lab.LinkOptions{})
			conn, err := r.B.ListenPacket("udp", netip.AddrPortFrom(f.addr(r.B), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for _, p := range waysOfDatagrams {
				for _, x := range beside {
					var by [2][]sniffed
					for i, e := range engines {
						t.Run(p.name+"/"+x.name+"/"+e.name, func(t *testing.T) {
							needEngine(t, p.on(r), e.engine)
							filter := fmt.Sprintf("%s and (udp.DstPort == %d or fragment)", p.way, addrPort(conn).Port())
							opts := []divert.Option{divert.WithLayer(p.layer), divert.WithEngine(e.engine)}
							if x.priority != 0 {
								passthru(t, openAt(t, p.on(r), filter, append(opts, divert.WithPriority(x.priority))...))
							}
							d := openAt(t, p.on(r), filter, append(opts, divert.WithFlags(divert.Sniff))...)
							var got []sniffed
							w := each(t, d, func(p *divert.Packet) { got = append(got, describe(p)) })
							want := sendSuperpackets(t, r.A, conn.LocalAddr())
							arrived := arrivals(t, conn, len(want))
							finish(t, d, w)
							if !slices.Equal(arrived, want) {
								t.Errorf("%d arrived, or others, want %d", len(arrived), len(want))
							}
							var payloads []string
							for _, s := range got {
								if !s.whole && !s.fragment || !s.copied || s.outbound != (p.way == "outbound") && p.layer == divert.LayerNetwork {
									t.Errorf("a copy of %d bytes that is not right: %+.0v", s.length, s)
								}
								if !s.fragment {
									payloads = append(payloads, s.payload)
								}
							}
							if p.layer == divert.LayerForward {
								want = want[:len(want)-1] // the last comes in fragments
							}
							if !slices.Equal(payloads, want) {
								t.Errorf("%d copies of datagrams, or others, want %d", len(payloads), len(want))
							}
							s := stats(t, d)
							balanced(t, s)
							if s.Matched != uint64(len(got)) || s.Lost != 0 {
								t.Errorf("%d copies: %+v", len(got), s)
							}
							by[i] = got
						})
					}
					if by[0] != nil && by[1] != nil && !slices.Equal(by[0], by[1]) {
						t.Errorf("%s, %s: the engines differ:", p.name, x.name)
						for i := range min(len(by[0]), len(by[1])) {
							if a, b := by[0][i], by[1][i]; a != b {
								a.payload, b.payload = "", ""
								t.Fatalf("%d of %d and %d: %+v, %+v", i, len(by[0]), len(by[1]), a, b)
							}
						}
					}
				}
			}
		})
	}
}

// TestSniffedSuperpacketsArrive: superpackets go where they would go without a handle that sniffs, also in new connections, where
// others' rules ask for MAC addresses, while nobody receives the copies, while the program is stopped, and when it has been killed.
func TestSniffedSuperpacketsArrive(t *testing.T) {
	t.Parallel()
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			needEngine(t, pair.A, divert.EngineInterpreter)
			conn, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(f.addr(pair.B), 0).String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			trackAll(t, pair.A)
			trackAll(t, pair.B)
			onlyFrom(t, pair.B, pair.LinkA.MAC())
			arrive := func(when string) {
				t.Helper()
				for range 3 { // each a new connection
					want := sendSuperpackets(t, pair.A, conn.LocalAddr())
					if got := arrivals(t, conn, len(want)); !slices.Equal(got, want) {
						t.Errorf("%s: %d arrived, or others, want %d", when, len(got), len(want))
					}
				}
			}
			arrive("without a handle")
			var sniffers []*talkingChild
			for _, h := range []*lab.Host{pair.A, pair.B} {
				sniffers = append(sniffers, startTalking(t, h, childEnv+"=sniff"))
				d := openAt(t, h, "udp", divert.WithFlags(divert.Sniff), divert.WithEngine(divert.EngineInterpreter), divert.WithPriority(-5))
				defer d.Close()
			}
			arrive("with handles")
			for _, s := range sniffers {
				if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				if err := unix.Waitid(unix.P_PID, s.cmd.Process.Pid, nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil {
					t.Fatal(err)
				}
			}
			arrive("while the program is stopped")
			for _, s := range sniffers {
				if err := s.cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				s.cmd.Wait()
			}
			arrive("when it has been killed")
		})
	}
}

func init() {
	children["sniff"] = func() error {
		d, err := divert.Open("udp", divert.WithFlags(divert.Sniff), divert.WithEngine(divert.EngineInterpreter), divert.WithPriority(5))
		if err != nil {
			return err
		}
		fmt.Println("open")
		for ps := make([]divert.Packet, 64); ; {
			if _, err := d.RecvBatch(ps); err != nil {
				return err
			}
		}
	}
}

// onlyFrom makes a host drop datagrams that do not come from a MAC address.
func onlyFrom(t *testing.T, h *lab.Host, mac net.HardwareAddr) {
	t.Helper()
	nft(t, h, func(c *nftables.Conn) {
		c.AddTable(foreign)
		udp := []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}}}
		foreignChain(c, "mac", nftables.ChainHookInput, nftables.ChainTypeFilter, 0,
			slices.Concat(udp, []expr.Any{
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseLLHeader, Offset: 6, Len: 6},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: mac},
				&expr.Verdict{Kind: expr.VerdictAccept},
			}),
			append(udp, &expr.Verdict{Kind: expr.VerdictDrop}))
	})
}

// TestSetFilterOfSniffedSuperpackets: what is cut follows the filter, and ends with the handle.
func TestSetFilterOfSniffedSuperpackets(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineInterpreter)
	conn, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	from := dialSegmented(t, pair.A, conn.LocalAddr(), 1000)
	d := openAt(t, pair.A, "outbound and udp.DstPort == 9", divert.WithFlags(divert.Sniff), divert.WithEngine(divert.EngineInterpreter))
	link, err := pair.LinkA.Capture()
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	sent := func() (frames []int) {
		t.Helper()
		if _, err := from.Write([]byte(strings.Join(letters, ""))); err != nil {
			t.Fatal(err)
		}
		if got := arrivals(t, conn, len(letters)); !slices.Equal(got, letters) {
			t.Errorf("arrived %s", short(got))
		}
		for total := 0; total < 4500; {
			f, err := link.NextMatch(t.Context(), func(f lab.Frame) bool { return f.Outgoing && len(f.Data) > 400 })
			if err != nil {
				t.Fatal(err)
			}
			n := len(f.Data) - 14 - packet.IPv4HeaderLen - packet.UDPHeaderLen
			frames, total = append(frames, n), total+n
		}
		return frames
	}
	apart, together := []int{1000, 1000, 1000, 1000, 500}, []int{4500}
	if got := sent(); !slices.Equal(got, together) {
		t.Errorf("a filter for another port: %v on the wire", got)
	}
	if err := d.SetFilter(fmt.Sprintf("outbound and udp.DstPort == %d", addrPort(conn).Port())); err != nil {
		t.Fatal(err)
	}
	if got := sent(); !slices.Equal(got, apart) {
		t.Errorf("a filter for the port: %v on the wire", got)
	}
	ps := make([]divert.Packet, 16)
	n := 0
	for n < len(letters) {
		got, err := d.RecvBatch(ps[n:])
		if err != nil {
			t.Fatal(err)
		}
		n += got
	}
	for i := range ps[:n] {
		if got := describe(&ps[i]).payload; got != letters[i] {
			t.Errorf("copy %d is of %d bytes", i, len(got))
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if got := sent(); !slices.Equal(got, together) {
		t.Errorf("after Close: %v on the wire", got)
	}
}

// TestReceivedTogetherSniffedApart: datagrams that the kernel puts together for a socket which asks for that (UDP_GRO) are
// packets of their own for a handle that sniffs, and the socket has them together all the same.
func TestReceivedTogetherSniffedApart(t *testing.T) {
	t.Parallel()
	const udpGRO = 104 // linux/udp.h
	for _, e := range engines {
		for _, f := range families {
			t.Run(e.name+"/"+f.name, func(t *testing.T) {
				pair := lab.TwoHostsT(t, lab.LinkOptions{})
				needEngine(t, pair.B, e.engine)
				// Without them the sender's kernel cuts; then the datagrams come in one after the other.
				if err := errors.Join(pair.LinkA.SetOffload(lab.OffloadTxChecksum, false), pair.LinkB.SetOffload(lab.OffloadGRO, true)); err != nil {
					t.Skip(err)
				}
				conn, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(f.addr(pair.B), 0).String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				raw, err := conn.(*net.UDPConn).SyscallConn()
				if err != nil {
					t.Fatal(err)
				}
				var failed error
				if err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), solUDP, udpGRO, 1) }); err != nil || failed != nil {
					t.Skip(err, failed)
				}
				d := openAt(t, pair.B, fmt.Sprintf("inbound and udp.DstPort == %d", addrPort(conn).Port()), divert.WithFlags(divert.Sniff), divert.WithEngine(e.engine))
				var got []string
				w := each(t, d, func(p *divert.Packet) {
					s := describe(p)
					if !s.whole {
						t.Errorf("a copy of %d bytes that is not right", s.length)
					}
					got = append(got, s.payload)
				})
				from := dialSegmented(t, pair.A, conn.LocalAddr(), 1000)
				var want []string
				together := false
				buf := make([]byte, 1<<16)
				for range 50 {
					if _, err := from.Write([]byte(strings.Join(letters, ""))); err != nil {
						t.Fatal(err)
					}
					want = append(want, letters...)
					for n := 0; n < 4500; {
						conn.SetReadDeadline(time.Now().Add(10 * time.Second))
						m, _, err := conn.ReadFrom(buf)
						if err != nil {
							t.Fatal(err)
						}
						together = together || m > 1000
						n += m
					}
				}
				finish(t, d, w)
				if !slices.Equal(got, want) {
					t.Errorf("%d copies, or others, want %d", len(got), len(want))
				}
				if s := stats(t, d); s.Matched != uint64(len(want)) || s.Lost != 0 {
					t.Errorf("%+v", s)
				}
				if !together {
					t.Skip("the kernel puts no datagrams together here")
				}
			})
		}
	}
}

//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// patience limits every wait.
const patience = 30 * time.Second

// TestMain: the test binary is also the program, and the standard peer, so that each can run in its own namespace.
func TestMain(m *testing.M) {
	switch os.Getenv("RUN_VPN") {
	case "vpn":
		main()
	case "standard":
		if err := standard(os.Args[1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	default:
		lab.Main(m)
	}
}

// standard is the usual peer: wireguard-go with a TUN interface, its address and routes.
func standard(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	c, err := parseConfig(string(text))
	if err != nil {
		return err
	}
	t, err := tun.CreateTUN("wg0", c.mtu)
	if err != nil {
		return err
	}
	wg := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, "standard: "))
	defer wg.Close()
	if err := errors.Join(wg.IpcSet(c.uapi()), wg.Up()); err != nil {
		return err
	}
	link, err := netlink.LinkByName("wg0")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	for _, a := range c.addresses {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	for _, p := range c.allowed() {
		to := &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to}); err != nil {
			return err
		}
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt)
	fmt.Fprintln(os.Stderr, "Ctrl-C ends.")
	<-end
	return nil
}

// program is a running peer.
type program struct {
	*exec.Cmd
	t    *testing.T
	rest *bufio.Reader // of standard error
}

// start starts a peer on a host, with a configuration, and waits until it is ready.
func start(t *testing.T, h *lab.Host, kind, text string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "wg0.conf")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &program{Cmd: exec.Command(self, file), t: t}
	p.Env = append(os.Environ(), "RUN_VPN="+kind)
	errout, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(p.Cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	p.rest = bufio.NewReader(errout)
	if line, err := p.rest.ReadString('\n'); err != nil || !strings.Contains(line, "Ctrl-C ends") {
		rest, _ := io.ReadAll(p.rest)
		t.Fatalf("%s%s%v", line, rest, err)
	}
	return p
}

// stop interrupts the program and returns its standard error.
func (p *program) stop() string {
	p.t.Helper()
	_ = p.Process.Signal(os.Interrupt)
	text, _ := io.ReadAll(p.rest)
	if err := p.Wait(); err != nil {
		p.t.Errorf("%v\n%s", err, text)
	}
	return string(text)
}

// The addresses in the tunnel.
var (
	insideA = []netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")}
	insideB = []netip.Addr{netip.MustParseAddr("10.9.0.2"), netip.MustParseAddr("fd09::2")}
)

// configs returns the configurations of two peers, A and B, where A begins.
func configs(t *testing.T, b netip.Addr) (ofA, ofB string) {
	t.Helper()
	var private, public [2]string
	for i := range private {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		private[i] = base64.StdEncoding.EncodeToString(k.Bytes())
		public[i] = base64.StdEncoding.EncodeToString(k.PublicKey().Bytes())
	}
	of := func(own int, addr, allowed []netip.Addr, more string) string {
		return fmt.Sprintf("[Interface]\nPrivateKey = %s\nAddress = %v/32, %v/128\nListenPort = 51820\n\n[Peer]\nPublicKey = %s\nAllowedIPs = %v/32, %v/128\n%s",
			private[own], addr[0], addr[1], public[1-own], allowed[0], allowed[1], more)
	}
	return of(0, insideA, insideB, fmt.Sprintf("Endpoint = %v:51820\n", b)), of(1, insideB, insideA, "")
}

// needInterface skips the test where the standard peer cannot run.
func needInterface(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("the standard peer needs a TUN interface: %v", err)
	}
	f.Close()
}

// joined returns a network in which A, the program, and B, a standard peer, are joined by a tunnel through R.
func joined(t *testing.T, kind string) (*lab.Routed, *program) {
	t.Helper()
	needInterface(t)
	n := lab.HostRouterPeerT(t, lab.LinkOptions{})
	ofA, ofB := configs(t, n.B.Addr4())
	start(t, n.B, "standard", ofB)
	return n, start(t, n.A, kind, ofA)
}

// exchange sends datagrams to an echo server and expects all of them back.
func exchange(t *testing.T, from *lab.Host, to netip.AddrPort, size int) {
	t.Helper()
	got, err := lab.ExchangeUDP(t.Context(), from, to, lab.Exchange{Count: 3, Size: size, Wait: patience})
	if want := (lab.Exchanged{Sent: 3, Echoed: 3}); err != nil || got != want {
		t.Errorf("to %v: %+v, %v", to, got, err)
	}
}

// volume is the number of bytes in each direction.
func volume() int64 {
	switch {
	case os.Getenv("DIVERT_LONG") != "":
		return 1 << 30
	case testing.Short():
		return 4 << 20
	}
	return 32 << 20
}

// TestBulk: streams both ways, and datagrams longer than the tunnel's MTU, arrive unchanged. An observer between the
// peers sees only their UDP.
func TestBulk(t *testing.T) {
	n, p := joined(t, "vpn")
	seen, err := n.LinkRA.Capture()
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Close()
	for i := range insideB {
		echo, err := n.B.Echo("udp", netip.AddrPortFrom(insideB[i], 7777).String())
		if err != nil {
			t.Fatal(err)
		}
		defer echo.Close()
		exchange(t, n.A, netip.AddrPortFrom(insideB[i], 7777), 100)
		exchange(t, n.A, netip.AddrPortFrom(insideB[i], 7777), 4000)
	}
	frame, err := seen.NextMatch(t.Context(), func(f lab.Frame) bool { return !f.Outgoing && !ofLink(f) })
	if d := frame.Data; err != nil || len(d) < 14+28 || d[14+9] != unix.IPPROTO_UDP || [4]byte(d[14+16:]) != n.B.Addr4().As4() || binary.BigEndian.Uint16(d[14+22:]) != 51820 {
		t.Errorf("on the wire: % x, %v", d, err)
	}
	seen.Close()
	for i := range insideB {
		took, err := lab.TransferTCP(t.Context(), n.A, n.B, netip.AddrPortFrom(insideB[i], 0), volume(), 1)
		if err != nil {
			t.Errorf("to %v: %v", insideB[i], err)
		}
		t.Logf("%d MB to %v: %.0f Mb/s", volume()>>20, insideB[i], float64(8*volume())/1e6/took.Seconds())
	}
	// The other way: B connects to A's tunnel address, which stands for A's own.
	for i, local := range n.A.Addrs() {
		took, err := transferBack(t, n, local, insideA[i])
		if err != nil {
			t.Errorf("to %v: %v", insideA[i], err)
		}
		t.Logf("%d MB to %v: %.0f Mb/s", volume()>>20, insideA[i], float64(8*volume())/1e6/took.Seconds())
	}
	if text := p.stop(); !strings.Contains(text, "packets went through the tunnel") {
		t.Error(text)
	}
}

// ofLink reports whether a frame is traffic of the link itself: ARP, neighbour discovery, multicast listeners.
func ofLink(f lab.Frame) bool {
	switch d := f.Data; {
	case len(d) < 14+40 || binary.BigEndian.Uint16(d[12:]) == 0x0806:
		return true
	case binary.BigEndian.Uint16(d[12:]) == 0x86dd:
		src := netip.AddrFrom16([16]byte(d[14+8:]))
		return src.IsLinkLocalUnicast() || src.IsUnspecified() || d[14+6] == unix.IPPROTO_ICMPV6
	}
	return false
}

// transferBack sends bytes from B to A, which listens at local and is reached at inside.
func transferBack(t *testing.T, n *lab.Routed, local, inside netip.Addr) (time.Duration, error) {
	l, err := n.A.Listen("tcp", netip.AddrPortFrom(local, 7778).String())
	if err != nil {
		return 0, err
	}
	defer l.Close()
	got := make(chan lab.Digest, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		d, err := lab.DigestOf(c)
		if err != nil {
			t.Error(err)
		}
		got <- d
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := n.B.Dial(ctx, "tcp", netip.AddrPortFrom(inside, 7778).String())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	begin := time.Now()
	if _, err := io.Copy(c, lab.Stream(volume(), 2)); err != nil {
		return 0, err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return 0, err
	}
	want, err := lab.DigestOf(lab.Stream(volume(), 2))
	if err != nil {
		return 0, err
	}
	if d := <-got; d != want {
		return 0, fmt.Errorf("got %v, want %v", d, want)
	}
	return time.Since(begin), nil
}

// TestAll: all packets go through the tunnel, even those for the other peer's outer address; only WireGuard's own do
// not.
func TestAll(t *testing.T) {
	needInterface(t)
	n := lab.HostRouterPeerT(t, lab.LinkOptions{})
	ofA, ofB := configs(t, n.B.Addr4())
	ofA = strings.Replace(ofA, "AllowedIPs = ", "AllowedIPs = 0.0.0.0/0, ::/0, ", 1)
	start(t, n.B, "standard", ofB)
	p := start(t, n.A, "vpn", ofA)
	to := []netip.AddrPort{netip.AddrPortFrom(insideB[0], 7777), netip.AddrPortFrom(insideB[1], 7777), netip.AddrPortFrom(n.B.Addr4(), 7777)}
	for _, at := range to {
		echo, err := n.B.Echo("udp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer echo.Close()
	}
	seen, err := n.LinkRA.Capture()
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Close()
	for _, at := range to {
		exchange(t, n.A, at, 100)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 16 { // handshake, and eight or more datagrams each way
		f, err := seen.NextMatch(ctx, func(f lab.Frame) bool { return !ofLink(f) })
		if err != nil {
			t.Fatal(err)
		}
		if d := f.Data[14:]; d[9] != unix.IPPROTO_UDP || binary.BigEndian.Uint16(d[20:]) != 51820 || binary.BigEndian.Uint16(d[22:]) != 51820 {
			t.Errorf("past the tunnel: % x", d)
		}
	}
	if text := p.stop(); !strings.Contains(text, "packets went through the tunnel") {
		t.Error(text)
	}
}

// set sets an option of a socket, and returns its raw connection.
func set(t *testing.T, c syscall.Conn, level, option, value int) syscall.RawConn {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, value) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return raw
}

// untilTold sends packets of 1,421 bytes that may not be fragmented until the host knows the tunnel's limit and refuses
// them at once.
func untilTold(t *testing.T, send func(length int) error) {
	t.Helper()
	if err := send(1421); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) { // the errors would fill the socket
		err := send(1421)
		if errors.Is(err, syscall.EMSGSIZE) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no error arrived: %v", err)
		}
	}
}

// sendWhole sends one of 1,420, despite pending errors of earlier packets.
func sendWhole(send func(length int) error) {
	for errors.Is(send(1420), syscall.EMSGSIZE) {
	}
}

// TestPing: a ping of 1,421 bytes that may not be fragmented gets an error with the MTU 1,420, and one of 1,420 is
// answered.
func TestPing(t *testing.T) {
	n, _ := joined(t, "vpn")
	for i, family := range []struct {
		network                 string
		header, level, discover int
		request, answer         byte
	}{
		{"ip4:icmp", 20, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, 8, 0},
		{"ip6:ipv6-icmp", 40, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, 128, 129},
	} {
		c, err := n.A.Dial(t.Context(), family.network, insideB[i].String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		set(t, c.(*net.IPConn), family.level, family.discover, unix.IP_PMTUDISC_DO)
		ping := func(length int) error {
			b := make([]byte, length-family.header)
			b[0] = family.request
			if i == 0 { // the kernel sums ICMPv6 itself
				binary.BigEndian.PutUint16(b[2:], packet.Checksum(b))
			}
			_, err := c.Write(b)
			return err
		}
		untilTold(t, ping)
		sendWhole(ping)
		_ = c.SetReadDeadline(time.Now().Add(patience))
		for b := make([]byte, 2000); ; {
			m, err := c.Read(b)
			if err != nil && !errors.Is(err, syscall.EMSGSIZE) {
				t.Fatalf("no answer to 1,420 bytes: %v", err)
			}
			answer := b[:m]
			if i == 0 { // with its IP header
				answer = b[min(family.header, m):m]
			}
			if len(answer) == 1420-family.header && answer[0] == family.answer {
				break
			}
		}
	}
}

// TestPathMTU: a sender whose packets may not be fragmented learns that the tunnel carries 1,420 bytes.
func TestPathMTU(t *testing.T) {
	n, _ := joined(t, "vpn")
	for i, family := range []struct{ header, level, discover, option int }{
		{28, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU},
		{48, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU},
	} {
		k, err := n.B.CountUDP(netip.AddrPortFrom(insideB[i], 7779).String())
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		c, err := n.A.Dial(t.Context(), "udp", k.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw := set(t, c.(*net.UDPConn), family.level, family.discover, unix.IP_PMTUDISC_DO)
		send := func(length int) error {
			_, err := c.Write(make([]byte, length-family.header))
			return err
		}
		untilTold(t, send)
		mtu := 0
		var unknown error
		_ = raw.Control(func(fd uintptr) { mtu, unknown = unix.GetsockoptInt(int(fd), family.level, family.option) })
		if unknown != nil || mtu != 1420 {
			t.Errorf("got the MTU %d, %v", mtu, unknown)
		}
		sendWhole(send)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := k.Wait(ctx, 1); err != nil {
			t.Error(err)
		}
	}
}

// TestRoaming: each peer in turn moves to another address, and the tunnel works again with the next packets.
func TestRoaming(t *testing.T) {
	n, _ := joined(t, "vpn")
	for _, h := range []*lab.Host{n.A, n.B} {
		echo, err := h.Echo("udp", ":7777")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { echo.Close() })
	}
	exchange(t, n.A, netip.AddrPortFrom(insideB[0], 7777), 100)
	move(t, n.A, n.LinkA, "10.77.1.2/24", "10.77.1.3/24", n.R.Addr4())
	begin := time.Now()
	until(t, n.A, netip.AddrPortFrom(insideB[0], 7777))
	t.Logf("A has moved, and is there again after %v", time.Since(begin))
	exchange(t, n.B, netip.AddrPortFrom(insideA[0], 7777), 100)
	move(t, n.B, n.LinkB, "10.77.2.2/24", "10.77.2.3/24", n.R.Addrs()[2])
	begin = time.Now()
	until(t, n.B, netip.AddrPortFrom(insideA[0], 7777))
	t.Logf("B has moved, and is there again after %v", time.Since(begin))
	exchange(t, n.A, netip.AddrPortFrom(insideB[0], 7777), 100)
}

// move changes a host's address.
func move(t *testing.T, h *lab.Host, l *lab.Link, from, to string, via netip.Addr) {
	t.Helper()
	nl, err := h.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.Close()
	link, err := l.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Sysctl("net.ipv4.conf.all.promote_secondaries", "1"); err != nil {
		t.Fatal(err)
	}
	if err := l.AddAddr(netip.MustParsePrefix(to)); err != nil {
		t.Fatal(err)
	}
	old, err := netlink.ParseAddr(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := nl.AddrDel(link, old); err != nil {
		t.Fatal(err)
	}
	if err := h.AddRoute(netip.MustParsePrefix("0.0.0.0/0"), via); err != nil && !errors.Is(err, syscall.EEXIST) {
		t.Fatal(err)
	}
}

// until sends datagrams until one comes back.
func until(t *testing.T, from *lab.Host, to netip.AddrPort) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		got, err := lab.ExchangeUDP(t.Context(), from, to, lab.Exchange{Wait: 200 * time.Millisecond})
		if err == nil && got.Echoed == 1 {
			return
		}
	}
	t.Fatal("the tunnel is not there any more")
}

// TestEnd: after kill -9 and ^C packets take their old path, and nothing is left.
func TestEnd(t *testing.T) {
	n := lab.HostRouterPeerT(t, lab.LinkOptions{})
	lab.CheckLeaks(t, n.A)
	ofA, _ := configs(t, n.B.Addr4())
	ofA = strings.Replace(ofA, "AllowedIPs = ", "AllowedIPs = 10.77.2.0/24, ", 1)
	k, err := n.B.CountUDP("10.77.2.2:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	for i, signal := range []os.Signal{os.Kill, os.Interrupt} {
		p := start(t, n.A, "vpn", ofA)
		if err := p.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(p.rest)
		_ = p.Wait()
		if r, err := lab.ExchangeUDP(t.Context(), n.A, k.Addr(), lab.Exchange{Wait: time.Millisecond}); err != nil || r.Sent != 1 {
			t.Fatal(r, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := k.Wait(ctx, int64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRatio compares the program with a standard peer in its place, alternately.
func TestRatio(t *testing.T) {
	if os.Getenv("DIVERT_LONG") == "" {
		t.Skip("takes half a minute: DIVERT_LONG=1 asks for it")
	}
	with, _ := joined(t, "vpn")
	without, _ := joined(t, "standard")
	var took [2]time.Duration
	for range 6 {
		for i, n := range []*lab.Routed{with, without} {
			one, err := lab.TransferTCP(t.Context(), n.A, n.B, netip.AddrPortFrom(insideB[0], 0), 128<<20, 1)
			if err != nil {
				t.Fatal(err)
			}
			took[i] += one
		}
	}
	t.Logf("128 MB six times: %v; with a TUN interface %v: ratio %.2f", took[0], took[1], took[1].Seconds()/took[0].Seconds())
}

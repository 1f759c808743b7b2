package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
	"golang.org/x/sys/unix"
)

// patience limits every wait.
const patience = 20 * time.Second

// TestMain: the test binary is also the program, so that it can run in its own namespace.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_NAT") != "" {
		main()
		return
	}
	lab.Main(m)
}

// home is a network with a NAT: A and C behind R, which routes to S, and S to B. Only R has a route to A and C.
type home struct {
	a, c, r, s, b *lab.Host
	toS           *lab.Link // R's
}

// Addresses: of A, of R as S and B see it, of S, and both of B.
var (
	addrA  = netip.MustParseAddr("10.77.1.2")
	addrR  = netip.MustParseAddr("10.77.2.1")
	addrS  = netip.MustParseAddr("10.77.2.2")
	addrsB = []netip.Addr{netip.MustParseAddr("10.77.4.2"), netip.MustParseAddr("10.77.4.3")}
)

func newHome(t *testing.T) *home {
	n := lab.NewT(t)
	must := func(h *lab.Host, err error) *lab.Host {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := &home{a: must(n.AddHost("A")), c: must(n.AddHost("C")), r: must(n.AddRouter("R")), s: must(n.AddRouter("S")), b: must(n.AddHost("B"))}
	prefixes := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	for _, l := range []struct {
		x, y   *lab.Host
		ax, ay []netip.Prefix
		mtu    int
	}{
		{h.a, h.r, prefixes("10.77.1.2/24", "fd77:1::2/64"), prefixes("10.77.1.1/24", "fd77:1::1/64"), 1500},
		{h.c, h.r, prefixes("10.77.3.2/24"), prefixes("10.77.3.1/24"), 1500},
		{h.r, h.s, prefixes("10.77.2.1/24", "fd77:2::1/64"), prefixes("10.77.2.2/24", "fd77:2::2/64"), 1500},
		{h.s, h.b, prefixes("10.77.4.1/24", "fd77:4::1/64"), prefixes("10.77.4.2/24", "10.77.4.3/24", "fd77:4::2/64"), 1400},
	} {
		at, _, err := n.Connect(l.x, l.y, lab.LinkOptions{MTU: l.mtu, AddrsA: l.ax, AddrsB: l.ay})
		if err != nil {
			t.Fatal(err)
		}
		if l.x == h.r {
			h.toS = at
		}
	}
	for _, r := range []struct {
		h       *lab.Host
		to, via string
	}{
		{h.a, "0.0.0.0/0", "10.77.1.1"}, {h.c, "0.0.0.0/0", "10.77.3.1"}, {h.r, "0.0.0.0/0", "10.77.2.2"}, {h.b, "0.0.0.0/0", "10.77.4.1"},
		{h.a, "::/0", "fd77:1::1"}, {h.r, "::/0", "fd77:2::2"}, {h.b, "::/0", "fd77:4::1"}, {h.s, "2001:db8:1::/64", "fd77:2::1"},
	} {
		if err := r.h.AddRoute(netip.MustParsePrefix(r.to), netip.MustParseAddr(r.via)); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// program is the running program.
type program struct {
	*exec.Cmd
	t    *testing.T
	rest *bufio.Reader // of standard error
}

// start starts the program on R and waits until its handles are open.
func (h *home) start(t *testing.T, args ...string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{Cmd: exec.Command(self, append([]string{"-out", h.toS.Name(), "-inside", "10.77.1.0/24", "-inside", "10.77.3.0/24"}, args...)...), t: t}
	p.Env = append(os.Environ(), "RUN_NAT=1")
	errout, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.r.Start(p.Cmd); err != nil {
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

// stop ends the program by a signal.
func (p *program) stop(s os.Signal) string {
	p.t.Helper()
	_ = p.Process.Signal(s)
	text, _ := io.ReadAll(p.rest)
	if err := p.Wait(); err != nil && s != os.Kill {
		p.t.Errorf("%v\n%s", err, text)
	}
	return string(text)
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

// download has a client read bytes from a server, and compares them. It returns the client's address as the server sees
// it.
func download(t *testing.T, client, server *lab.Host, listen, dial string) netip.Addr {
	t.Helper()
	l, err := server.Listen("tcp", listen)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := make(chan netip.Addr, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		a, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		seen <- a.Addr()
		_, _ = io.Copy(c, lab.Stream(volume(), 3))
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := client.Dial(ctx, "tcp", dial)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * patience))
	got, err := lab.DigestOf(c)
	want, _ := lab.DigestOf(lab.Stream(volume(), 3))
	if err != nil || got != want {
		t.Errorf("from %s: %v, %v; want %v", dial, got, err, want)
	}
	return <-seen
}

// TestThrough: bulk data arrives unchanged in both directions, over connections from behind the NAT, to a forwarded
// port, and back in through the NAT's own address.
func TestThrough(t *testing.T) {
	h := newHome(t)
	p := h.start(t, "-forward", "tcp:8080=10.77.1.2:80")
	if _, err := lab.TransferTCP(t.Context(), h.a, h.b, netip.AddrPortFrom(addrsB[0], 0), volume(), 1); err != nil {
		t.Error(err)
	}
	if got := download(t, h.a, h.b, "10.77.4.2:80", "10.77.4.2:80"); got != addrR {
		t.Errorf("B sees %v, want %v", got, addrR)
	}
	if got := download(t, h.b, h.a, "10.77.1.2:80", "10.77.2.1:8080"); got != addrsB[0] {
		t.Errorf("A sees %v, want %v", got, addrsB[0])
	}
	if got := download(t, h.c, h.a, "10.77.1.2:80", "10.77.2.1:8080"); got != addrR {
		t.Errorf("by the hairpin A sees %v, want %v", got, addrR)
	}
	echo, err := h.b.Echo("udp", "10.77.4.2:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	r, err := lab.ExchangeUDP(t.Context(), h.a, echo.Addr(), lab.Exchange{Count: 3, Size: 4000, Wait: patience})
	if err != nil || r.Echoed != 3 {
		t.Errorf("datagrams of 4,000 bytes: %+v, %v", r, err)
	}
	if text := p.stop(os.Interrupt); !strings.Contains(text, "0 filtered; for 0 there was") {
		t.Error(text)
	}
}

// probe is a socket of A that receives the errors of the path to B.
func probe(t *testing.T, h *lab.Host, to string, set map[int]int) (*net.UDPConn, syscall.RawConn) {
	t.Helper()
	c, err := h.Dial(t.Context(), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for option, value := range set {
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, option, value) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
	}
	return c.(*net.UDPConn), raw
}

// TestICMP: traceroute sees the hops, path MTU discovery finds the narrow link, and an echo is answered.
func TestICMP(t *testing.T) {
	h := newHome(t)
	h.start(t)
	for _, row := range []struct {
		ttl  int
		from netip.Addr
		want error
	}{
		{1, netip.MustParseAddr("10.77.1.1"), syscall.EHOSTUNREACH}, {2, addrS, syscall.EHOSTUNREACH}, {3, addrsB[0], syscall.ECONNREFUSED},
	} {
		c, raw := probe(t, h.a, "10.77.4.2:33434", map[int]int{unix.IP_TTL: row.ttl, unix.IP_RECVERR: 1})
		if _, err := c.Write([]byte("where?")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, row.want) {
			t.Errorf("TTL %d: %v, want %v", row.ttl, err, row.want)
		}
		control := make([]byte, 512)
		var n int
		var err error
		_ = raw.Control(func(fd uintptr) {
			_, n, _, _, err = unix.Recvmsg(int(fd), make([]byte, 64), control, unix.MSG_ERRQUEUE)
		})
		if from := row.from.As4(); err != nil || !strings.Contains(string(control[:n]), string(from[:])) {
			t.Errorf("TTL %d: % x, %v; want one from %v", row.ttl, control[:n], err, row.from)
		}
	}
	c, raw := probe(t, h.a, "10.77.4.2:9", map[int]int{unix.IP_MTU_DISCOVER: unix.IP_PMTUDISC_DO})
	var err error
	for end := time.Now().Add(patience); !errors.Is(err, syscall.EMSGSIZE); {
		if _, err = c.Write(make([]byte, 1472)); time.Now().After(end) {
			t.Fatalf("no error arrived: %v", err)
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)) // until the error comes back
		if _, e := c.Read(make([]byte, 1)); errors.Is(e, syscall.EMSGSIZE) {
			err = e
		}
	}
	mtu := 0
	if _ = raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU) }); mtu != 1400 {
		t.Errorf("got the MTU %d, %v", mtu, err)
	}
	ping, err := h.a.ListenPacket("ip4:icmp", "10.77.1.2")
	if err != nil {
		t.Fatal(err)
	}
	defer ping.Close()
	_ = ping.SetDeadline(time.Now().Add(patience))
	echo := []byte{8, 0, 0, 0, 0x12, 0x34, 0, 1}
	binary.BigEndian.PutUint16(echo[2:], ^uint16(0x0800+0x1234+1))
	if _, err := ping.WriteTo(echo, &net.IPAddr{IP: addrsB[0].AsSlice()}); err != nil {
		t.Fatal(err)
	}
	for b := make([]byte, 100); ; {
		n, from, err := ping.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		if b[0] == 0 && n == 8 && from.String() == addrsB[0].String() && b[4] == 0x12 && b[5] == 0x34 {
			break
		}
	}
}

// The required parts of STUN (RFC 8489, RFC 5780).
const (
	stunRequest  = 0x0001
	stunResponse = 0x0101
	stunCookie   = 0x2112A442
	stunChange   = 0x0003 // attribute CHANGE-REQUEST
	stunMapped   = 0x0020 // attribute XOR-MAPPED-ADDRESS
	stunOther    = 4      // in CHANGE-REQUEST: answer from the other address,
	stunPort     = 2      // from the other port
)

// serveSTUN serves STUN on two addresses and two ports of a host (RFC 5780 section 6).
func serveSTUN(t *testing.T, h *lab.Host, addrs []netip.Addr) {
	t.Helper()
	var sockets [2][2]net.PacketConn
	for i, a := range addrs {
		for j := range 2 {
			c, err := h.ListenPacket("udp", netip.AddrPortFrom(a, uint16(3478+j)).String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			sockets[i][j] = c
		}
	}
	for i := range 2 {
		for j := range 2 {
			go func() {
				b := make([]byte, 1500)
				for {
					n, from, err := sockets[i][j].ReadFrom(b)
					if err != nil {
						return
					}
					if n < 20 || binary.BigEndian.Uint16(b) != stunRequest {
						continue
					}
					change := byte(0)
					if n >= 28 && binary.BigEndian.Uint16(b[20:]) == stunChange {
						change = b[27]
					}
					out := sockets[i^int(change&stunOther/stunOther)][j^int(change&stunPort/stunPort)]
					at := from.(*net.UDPAddr).AddrPort()
					answer := binary.BigEndian.AppendUint16(nil, stunResponse)
					answer = append(answer, 0, 12)
					answer = append(answer, b[4:20]...)
					answer = binary.BigEndian.AppendUint16(answer, stunMapped)
					answer = append(answer, 0, 8, 0, 1)
					answer = binary.BigEndian.AppendUint16(answer, at.Port()^stunCookie>>16)
					four := at.Addr().Unmap().As4()
					answer = binary.BigEndian.AppendUint32(answer, binary.BigEndian.Uint32(four[:])^stunCookie)
					_, _ = out.WriteTo(answer, from)
				}
			}()
		}
	}
}

// ask asks a STUN server for the client's address, and returns it and the source of the answer; both are zero without
// an answer within wait.
func ask(t *testing.T, c net.PacketConn, to netip.AddrPort, change byte, id byte, wait time.Duration) (mapped, from netip.AddrPort) {
	t.Helper()
	request := binary.BigEndian.AppendUint16(nil, stunRequest)
	request = append(request, 0, 8)
	request = binary.BigEndian.AppendUint32(request, stunCookie)
	request = append(append(request, make([]byte, 11)...), id)
	request = append(request, 0, stunChange, 0, 4, 0, 0, 0, change)
	if _, err := c.WriteTo(request, net.UDPAddrFromAddrPort(to)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(wait))
	b := make([]byte, 1500)
	for {
		n, at, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		if n == 32 && b[19] == id {
			addr := binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(b[28:])^stunCookie)
			a, _ := netip.AddrFromSlice(addr)
			return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[26:])^stunCookie>>16), at.(*net.UDPAddr).AddrPort()
		}
	}
}

// TestSTUN: the NAT behaves as RFC 5780 tests for: endpoint-independent mapping that keeps the port, address-dependent
// filtering, and a hairpin.
func TestSTUN(t *testing.T) {
	h := newHome(t)
	h.start(t)
	serveSTUN(t, h.b, addrsB)
	c, err := h.a.ListenPacket("udp", "10.77.1.2:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := netip.AddrPortFrom(addrR, 5000)
	first := netip.AddrPortFrom(addrsB[0], 3478)
	if got, _ := ask(t, c, first, 0, 1, patience); got != want {
		t.Fatalf("mapped to %v, want %v", got, want)
	}
	if _, from := ask(t, c, first, stunOther|stunPort, 2, 300*time.Millisecond); from.IsValid() {
		t.Errorf("an answer of another address came in, from %v: filtering is endpoint-independent", from)
	}
	if _, from := ask(t, c, first, stunPort, 3, patience); from != netip.AddrPortFrom(addrsB[0], 3479) {
		t.Errorf("the answer of the other port came from %v: filtering is address- and port-dependent", from)
	}
	for i, to := range []netip.AddrPort{netip.AddrPortFrom(addrsB[0], 3479), netip.AddrPortFrom(addrsB[1], 3478), netip.AddrPortFrom(addrsB[1], 3479)} {
		if got, _ := ask(t, c, to, 0, byte(4+i), patience); got != want {
			t.Errorf("for %v mapped to %v, want %v: mapping is not endpoint-independent", to, got, want)
		}
	}
	// Two hosts behind the NAT that know each other's mapped addresses.
	d, err := h.c.ListenPacket("udp", "10.77.3.2:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	mapped, _ := ask(t, d, first, 0, 7, patience)
	if mapped.Addr() != addrR || mapped.Port() == 5000 || mapped.Port()%2 != 0 {
		t.Errorf("the other one is mapped to %v: not to an even port of its own", mapped)
	}
	if _, err := c.WriteTo([]byte("to C"), net.UDPAddrFromAddrPort(mapped)); err != nil { // filtered, as C has not sent yet; from now on A has
		t.Fatal(err)
	}
	if _, err := d.WriteTo([]byte("to A"), net.UDPAddrFromAddrPort(want)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		if string(b[:n]) == "to A" {
			if from.String() != mapped.String() {
				t.Errorf("C's datagram came from %v, want %v", from, mapped)
			}
			break
		}
	}
	// C's socket is gone, and A gets the error along the path of its datagram.
	e, err := h.a.DialFrom(t.Context(), &net.UDPAddr{IP: addrA.AsSlice(), Port: 5002}, "udp", mapped.String())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if d.Close(); c.Close() != nil {
		t.Error(err)
	}
	_ = e.SetDeadline(time.Now().Add(patience))
	if _, err := e.Write([]byte("still there?")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Read(b); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

// datagrams sends datagrams from many ports, beginning with first, and returns the ends that the other side saw.
func (h *home) datagrams(t *testing.T, first, many int) map[string]bool {
	t.Helper()
	sink, err := h.b.ListenPacket("udp", "10.77.4.2:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	raw, err := h.a.ListenPacket("ip4:udp", addrA.String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	seen, b := map[string]bool{}, make([]byte, 16)
	_ = sink.SetReadDeadline(time.Now().Add(3 * patience))
	for i := range many {
		var datagram []byte // without a checksum, which UDP over IPv4 allows
		datagram = binary.BigEndian.AppendUint16(datagram, uint16(first+i))
		datagram = append(datagram, 7777>>8, 7777&0xFF, 0, 8, 0, 0)
		if _, err := raw.WriteTo(datagram, &net.IPAddr{IP: addrsB[0].AsSlice()}); err != nil {
			t.Fatal(err)
		}
		_, from, err := sink.ReadFrom(b)
		if err != nil {
			t.Fatalf("datagram %d: %v", i, err)
		}
		seen[from.String()] = true
	}
	return seen
}

// TestTimeout: 10,000 mappings end when no packet has come from behind the NAT for the configured time, and make room
// for others.
func TestTimeout(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const many, first = 10_000, 20_000
	h := newHome(t)
	p := h.start(t, "-host", "10000", "-most", "10000", "-udp-timeout", "2s")
	h.datagrams(t, first, many)
	for _, port := range []uint16{first, first + many/2, first + many - 1} {
		for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			s, err := h.r.ListenPacket("udp", netip.AddrPortFrom(addrR, port).String())
			if err == nil {
				s.Close()
				break
			}
			if time.Since(begun) > patience {
				t.Fatalf("the mapping of port %d does not end: %v", port, err)
			}
		}
	}
	h.datagrams(t, 30_000, many)
	if text := p.stop(os.Interrupt); !strings.Contains(text, "20000 packets were translated, 0 filtered; for 0 there was") {
		t.Error(text)
	}
}

// TestMany: 10,000 mappings at once, each with its own port that no local socket gets; they end with the program.
func TestMany(t *testing.T) {
	const many, first = 10_000, 20_000
	h := newHome(t)
	p := h.start(t, "-host", "10000")
	seen := h.datagrams(t, first, many)
	if len(seen) != many || !seen[netip.AddrPortFrom(addrR, first).String()] {
		t.Errorf("%d mappings", len(seen))
	}
	for _, port := range []uint16{first, first + many/2, first + many - 1} {
		if s, err := h.r.ListenPacket("udp", netip.AddrPortFrom(addrR, port).String()); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a local socket at port %d: %v", port, err)
			if err == nil {
				s.Close()
			}
		}
	}
	if text := p.stop(os.Interrupt); !strings.Contains(text, "10000 packets were translated, 0 filtered; for 0 there was") {
		t.Error(text)
	}
	s, err := h.r.ListenPacket("udp", netip.AddrPortFrom(addrR, first).String())
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// TestLocalPorts: a mapping takes no port that a socket of the router has, and the socket keeps working; no socket gets
// the port of a mapping.
func TestLocalPorts(t *testing.T) {
	h := newHome(t)
	local, err := h.r.Echo("udp", "10.77.2.1:5000")
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	h.start(t)
	serveSTUN(t, h.b, addrsB)
	for _, port := range []uint16{5000, 5002} {
		c, err := h.a.ListenPacket("udp", netip.AddrPortFrom(addrA, port).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		got, _ := ask(t, c, netip.AddrPortFrom(addrsB[0], 3478), 0, 1, patience)
		if !got.IsValid() || (got.Port() == port) != (port == 5002) {
			t.Errorf("port %d is mapped to %v", port, got)
		}
		if s, err := h.r.ListenPacket("udp", got.String()); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("a local socket at %v: %v", got, err)
			if err == nil {
				s.Close()
			}
		}
	}
	r, err := lab.ExchangeUDP(t.Context(), h.b, local.Addr(), lab.Exchange{Count: 3, Wait: patience})
	if err != nil || r.Echoed != 3 {
		t.Errorf("the local socket: %+v, %v", r, err)
	}
}

// TestBothOpen: two hosts that connect to each other get a connection, though one SYN arrives before the other host
// begins: the router does not reset it. If the other host never begins, the first is refused, but not too early.
func TestBothOpen(t *testing.T) {
	h := newHome(t)
	h.start(t)
	seen, err := h.toS.Capture()
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	type dialed struct {
		net.Conn
		error
	}
	ofB := make(chan dialed, 1)
	connect := func(from, port int) {
		c, err := h.b.DialFrom(ctx, &net.TCPAddr{IP: addrsB[0].AsSlice(), Port: from}, "tcp", netip.AddrPortFrom(addrR, uint16(port)).String())
		ofB <- dialed{c, err}
	}
	go connect(6000, 5000)
	if _, err := seen.NextMatch(ctx, func(f lab.Frame) bool {
		return len(f.Data) > 14+20+13 && f.Data[14+9] == unix.IPPROTO_TCP && f.Data[14+20+13] == 2
	}); err != nil {
		t.Fatal(err)
	}
	a, err := h.a.DialFrom(ctx, &net.TCPAddr{IP: addrA.AsSlice(), Port: 5000}, "tcp", netip.AddrPortFrom(addrsB[0], 6000).String())
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b := <-ofB
	if b.error != nil {
		t.Fatal(b.error)
	}
	defer b.Close()
	for _, c := range []net.Conn{a, b.Conn} {
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := io.WriteString(c, "hello"); err != nil {
			t.Error(err)
		}
	}
	for _, c := range []net.Conn{a, b.Conn} {
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Error(err)
		}
	}
	if testing.Short() {
		return // the rest takes 6 s
	}
	b.Close()
	begin := time.Now()
	connect(6001, 5002)
	if b = <-ofB; !errors.Is(b.error, syscall.ECONNREFUSED) || time.Since(begin) < patient {
		t.Errorf("without a listener: %v after %v", b.error, time.Since(begin))
	}
}

// needInjection skips the test where changed packets cannot be routed again.
func needInjection(t *testing.T) {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("packets cannot be injected at layer FORWARD here: %v", err)
	}
	f.Close()
}

// TestRefused: a sender over the limit gets an error.
func TestRefused(t *testing.T) {
	needInjection(t)
	h := newHome(t)
	p := h.start(t, "-host", "2")
	echo, err := h.b.Echo("udp", "10.77.4.2:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	for i, want := range []lab.Exchanged{{Sent: 1, Echoed: 1}, {Sent: 1, Echoed: 1}, {Sent: 1, Refused: 1}} {
		if got, err := lab.ExchangeUDP(t.Context(), h.a, echo.Addr(), lab.Exchange{Wait: patience}); err != nil || got != want {
			t.Errorf("%d: %+v, %v; want %+v", i, got, err, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if got, err := lab.ExchangeUDP(ctx, h.c, echo.Addr(), lab.Exchange{Wait: patience}); err != nil || got.Echoed != 1 {
		t.Errorf("another host: %+v, %v", got, err)
	}
	if text := p.stop(os.Interrupt); !strings.Contains(text, "for 1 there was") {
		t.Error(text)
	}
}

// TestNPTv6: hosts behind the router have addresses of the other prefix outside, both ways, without state: B may begin.
func TestNPTv6(t *testing.T) {
	needInjection(t)
	h := newHome(t)
	h.start(t, "-nptv6", "fd77:1::/64=2001:db8:1::/64")
	outside := netip.MustParseAddr("2001:db8:1:0:cfbe::2")
	if got := download(t, h.b, h.a, "[fd77:1::2]:80", netip.AddrPortFrom(outside, 80).String()); got.String() != "fd77:4::2" {
		t.Errorf("A sees %v", got)
	}
	if got := download(t, h.a, h.b, "[fd77:4::2]:80", "[fd77:4::2]:80"); got != outside {
		t.Errorf("B sees %v, want %v", got, outside)
	}
	// Nobody listens: the ICMPv6 error arrives.
	c, err := h.a.Dial(t.Context(), "udp", "[fd77:4::2]:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("anybody?")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

// TestEnd: kill -9 and ^C leave nothing behind: later packets are for the router itself.
func TestEnd(t *testing.T) {
	h := newHome(t)
	lab.CheckLeaks(t, h.r)
	echo, err := h.b.Echo("udp", "10.77.4.2:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	for _, signal := range []os.Signal{os.Kill, os.Interrupt} {
		p := h.start(t)
		if r, err := lab.ExchangeUDP(t.Context(), h.a, echo.Addr(), lab.Exchange{Wait: patience}); err != nil || r.Echoed != 1 {
			t.Errorf("%+v, %v", r, err)
		}
		p.stop(signal)
		if r, err := lab.ExchangeUDP(t.Context(), h.r, echo.Addr(), lab.Exchange{Wait: patience}); err != nil || r.Echoed != 1 {
			t.Errorf("after %v: %+v, %v", signal, r, err)
		}
	}
}

// TestUsage: errors in the arguments are named.
func TestUsage(t *testing.T) {
	h, err := lab.NewT(t).AddHost("R")
	if err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]options{
		"no interface":          {most: 1, perHost: 1},
		"-most 0":               {out: "lo", perHost: 1},
		"-out nowhere":          {out: "nowhere", most: 1, perHost: 1},
		"-nptv6 fd00::/48":      {out: "lo", most: 1, perHost: 1, prefixes: "fd00::/48"},
		"are not of one length": {out: "lo", most: 1, perHost: 1, prefixes: "fd00::/48=2001:db8::/56"},
		"forwarded already": {out: "lo", most: 9, perHost: 9, forwards: []forward{
			{6, 80, netip.MustParseAddrPort("10.0.0.1:80")}, {6, 80, netip.MustParseAddrPort("10.0.0.2:80")}}},
	} {
		if e := h.Do(func() error { err = run(t.Context(), o); return nil }); e != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v; want %q", err, want)
		}
	}
	var o options
	for _, text := range []string{"", "tcp:80", "sctp:80=10.0.0.1:80", "tcp:0=10.0.0.1:80", "tcp:80=[::1]:80", "tcp:80=host:80"} {
		if o.addForward(text) == nil {
			t.Errorf("-forward %q is taken", text)
		}
	}
	if err := o.addForward("udp:53=10.0.0.1:5353"); err != nil || len(o.forwards) != 1 || o.forwards[0] != (forward{17, 53, netip.MustParseAddrPort("10.0.0.1:5353")}) {
		t.Error(o.forwards, err)
	}
	if o.addInside("fd00::/8") == nil || o.addInside("10.0.0.1/8") == nil || o.addInside("10.0.0.0/8") != nil {
		t.Errorf("-inside: %v", o.inside)
	}
}

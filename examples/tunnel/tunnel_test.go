//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
	"golang.org/x/sys/unix"
)

// patience limits every wait.
const patience = 30 * time.Second

// TestMain: the test binary is also the program, so that it can run in its own namespace, and be killed.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_TUNNEL") != "" {
		main()
		return
	}
	lab.Main(m)
}

// program is the running program.
type program struct {
	*exec.Cmd
	t    *testing.T
	rest *bufio.Reader // of standard error
}

// start starts the program on a host and waits until its handle is open.
func start(t *testing.T, h *lab.Host, args ...string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{Cmd: exec.Command(self, args...), t: t}
	p.Env = append(os.Environ(), "RUN_TUNNEL=1")
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

// served returns a network in which A reaches B through R, with a SOCKS 5 proxy on R.
func served(t *testing.T) (n *lab.Routed, via string) {
	n = lab.HostRouterPeerT(t, lab.LinkOptions{})
	return n, "socks5://" + serveProxy(t, n.R, netip.MustParseAddr("10.77.1.1"))
}

// serveProxy serves SOCKS 5 on a host (RFC 1928), for addresses only, and returns the proxy's address.
func serveProxy(t *testing.T, h *lab.Host, at netip.Addr) string {
	t.Helper()
	l, err := h.Listen("tcp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go proxied(h, at, c.(*net.TCPConn))
		}
	}()
	return l.Addr().String()
}

// proxied serves one connection to the proxy.
func proxied(h *lab.Host, at netip.Addr, c *net.TCPConn) {
	defer c.Close()
	var b [3 + 4]byte // one method, and the head of the request
	if _, err := io.ReadFull(c, b[:3]); err != nil {
		return
	}
	_, _ = c.Write([]byte{5, 0})
	if _, err := io.ReadFull(c, b[3:]); err != nil {
		return
	}
	addr := make([]byte, map[byte]int{1: 4, 4: 16}[b[6]]+2)
	if _, err := io.ReadFull(c, addr); err != nil {
		return
	}
	if b[4] == 3 {
		relayDatagrams(h, at, c)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	up, err := h.Dial(ctx, "tcp", socksAddr(addr).String())
	if err != nil {
		_, _ = c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	_, _ = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
	relayTCP(context.Background(), half{c, func() { reset(c) }}, half{up, func() { reset(up) }})
}

func socksAddr(b []byte) netip.AddrPort {
	a, _ := netip.AddrFromSlice(b[:len(b)-2])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[len(b)-2:]))
}

// relayDatagrams serves a UDP association with one destination.
func relayDatagrams(h *lab.Host, at netip.Addr, control net.Conn) {
	client, err := h.ListenPacket("udp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		return
	}
	defer client.Close()
	_, _ = control.Write(binary.BigEndian.AppendUint16([]byte{5, 0, 0, 1, 0, 0, 0, 0}, uint16(client.LocalAddr().(*net.UDPAddr).Port)))
	go func() {
		b := make([]byte, 1<<16)
		var up net.Conn
		for {
			n, from, err := client.ReadFrom(b)
			if err != nil {
				return
			}
			head := 4 + map[byte]int{1: 4, 4: 16}[b[3]] + 2
			if up == nil {
				if up, err = h.Dial(context.Background(), "udp", socksAddr(b[4:head]).String()); err != nil {
					return
				}
				defer up.Close()
				back := slices.Clone(b[:head])
				go func() {
					b := make([]byte, 1<<16)
					for {
						n, err := up.Read(b[copy(b, back):])
						if err != nil {
							return
						}
						_, _ = client.WriteTo(b[:len(back)+n], from)
					}
				}()
			}
			_, _ = up.Write(b[head:n])
		}
	}()
	_, _ = io.Copy(io.Discard, control)
}

// serveWeb serves, at port 80 of a host, the source address of a request, and its path.
func serveWeb(t *testing.T, h *lab.Host) {
	t.Helper()
	l, err := h.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, host, " ", r.URL.Path)
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
}

// get makes n requests from a host at once, each on its own connection, to the addresses in turn, and compares the
// source that the server saw with seen.
func get(t *testing.T, h *lab.Host, n int, to, seen []netip.Addr) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: h.Dial}}
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			path := "/" + strconv.Itoa(i)
			r, err := client.Get("http://" + netip.AddrPortFrom(to[i%len(to)], 80).String() + path)
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Body.Close()
			text, err := io.ReadAll(r.Body)
			if want := seen[i%len(to)].String() + " " + path; err != nil || string(text) != want {
				t.Errorf("got %q, %v; want %q", text, err, want)
			}
		})
	}
	all.Wait()
}

// TestRequests: 500 simultaneous requests, over IPv4 and IPv6, reach the server, and only through the proxy.
func TestRequests(t *testing.T) {
	n, via := served(t)
	serveWeb(t, n.B)
	p := start(t, n.A, "-via", via, "tcp.DstPort == 80")
	get(t, n.A, 500, n.B.Addrs(), []netip.Addr{netip.MustParseAddr("10.77.2.1"), netip.MustParseAddr("fd77:2::1")})
	if text := p.stop(); !strings.Contains(text, "500 connections and 0 exchanges; 0 more were refused by the proxy, 0 because") {
		t.Error(text)
	}
}

// TestForward: connections and large datagrams that a router forwards for others go through the proxy.
func TestForward(t *testing.T) {
	n := lab.HostRouterPeerT(t, lab.LinkOptions{})
	via := "socks5://" + serveProxy(t, n.B, netip.MustParseAddr("10.77.2.2"))
	serveWeb(t, n.B)
	echo, err := n.B.Echo("udp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	p := start(t, n.R, "-forward", "-via", via, "tcp.DstPort == 80 or udp.DstPort == 7777")
	get(t, n.A, 20, n.B.Addrs(), n.B.Addrs())
	exchange(t, n.A, netip.AddrPortFrom(n.B.Addr4(), 7777), lab.Exchanged{Sent: 3, Echoed: 3})
	if text := p.stop(); !strings.Contains(text, "20 connections and 1 exchanges") {
		t.Error(text)
	}
}

// exchange sends three datagrams that do not fit in an Ethernet packet.
func exchange(t *testing.T, from *lab.Host, to netip.AddrPort, want lab.Exchanged) {
	t.Helper()
	got, err := lab.ExchangeUDP(t.Context(), from, to, lab.Exchange{Count: want.Sent, Size: 4000, Wait: patience})
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
}

// TestDatagrams: datagrams go through the proxy; if it refuses, the sender gets an error.
func TestDatagrams(t *testing.T) {
	n, via := served(t)
	echo, err := n.B.Echo("udp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	p := start(t, n.A, "-via", via, "udp")
	for _, a := range n.B.Addrs() {
		exchange(t, n.A, netip.AddrPortFrom(a, 7777), lab.Exchanged{Sent: 3, Echoed: 3})
	}
	if text := p.stop(); !strings.Contains(text, "0 connections and 2 exchanges") {
		t.Error(text)
	}
	start(t, n.A, "-via", "socks5://10.77.1.1:9", "udp")
	exchange(t, n.A, netip.AddrPortFrom(n.B.Addr4(), 7777), lab.Exchanged{Sent: 1, Refused: 1})
	exchange(t, n.A, netip.AddrPortFrom(n.B.Addr6(), 7777), lab.Exchanged{Sent: 1, Refused: 1})
}

// volume is the number of bytes in each direction.
func volume() int64 {
	if testing.Short() {
		return 8 << 20
	}
	return 100 << 20
}

// TestBulk: a client sends and closes its direction; only then the server answers, with the received bytes and as many
// again.
func TestBulk(t *testing.T) {
	n, via := served(t)
	l, err := n.B.Listen("tcp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	sent, err := lab.DigestOf(lab.Stream(volume(), 1))
	if err != nil {
		t.Fatal(err)
	}
	answered, err := lab.DigestOf(lab.Stream(volume(), 2))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if got, err := lab.DigestOf(c); err != nil || got != sent {
			t.Errorf("the server got %v, %v; want %v", got, err, sent)
		}
		if _, err := io.Copy(c, lab.Stream(volume(), 2)); err != nil {
			t.Error(err)
		}
	}()
	start(t, n.A, "-via", via, "tcp.DstPort == 7777")
	c := dial(t, n.A, netip.AddrPortFrom(n.B.Addr4(), 7777))
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	const sack, scale = 2, 4 // TCPI_OPT_SACK, TCPI_OPT_WSCALE in linux/tcp.h
	if info.Options&(sack|scale) != sack|scale {
		t.Errorf("the stack has answered without SACK or window scaling: options %#x", info.Options)
	}
	begin := time.Now()
	if _, err := io.Copy(c, lab.Stream(volume(), 1)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := lab.DigestOf(c); err != nil || got != answered {
		t.Errorf("the client got %v, %v; want %v", got, err, answered)
	}
	t.Logf("%d MB each way: %.0f Mb/s", volume()>>20, float64(16*volume())/1e6/time.Since(begin).Seconds())
}

func dial(t *testing.T, h *lab.Host, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// TestRefused: a client refused behind the proxy is refused, not connected and reset; so is one over the limit. A reset
// stays a reset.
func TestRefused(t *testing.T) {
	n, via := served(t)
	l, err := n.B.Listen("tcp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	start(t, n.A, "-via", via, "-most", "2", "tcp")
	refused := func(port uint16) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := n.A.Dial(ctx, "tcp", netip.AddrPortFrom(n.B.Addr4(), port).String())
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("port %d: %v", port, err)
		}
	}
	refused(7778) // nobody listens there
	var ends []net.Conn
	for range 2 {
		c := dialUntil(t, n.A, netip.AddrPortFrom(n.B.Addr4(), 7777))
		up, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, c, up)
	}
	refused(7777) // this would be the third
	for _, c := range ends {
		c.Close()
	}
	c := dialUntil(t, n.A, netip.AddrPortFrom(n.B.Addr4(), 7777))
	up, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	reset(up)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a reset: %v", err)
	}
}

// dialUntil connects as soon as there is room.
func dialUntil(t *testing.T, h *lab.Host, to netip.AddrPort) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		c, err := h.Dial(ctx, "tcp", to.String())
		if err == nil {
			t.Cleanup(func() { c.Close() })
			_ = c.SetDeadline(time.Now().Add(patience))
			return c
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal(err)
		}
	}
}

// TestBefore: a connection older than the program is reset, so that nothing bypasses the tunnel.
func TestBefore(t *testing.T) {
	n, via := served(t)
	echo, err := n.B.Echo("tcp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	c := dial(t, n.A, netip.AddrPortFrom(n.B.Addr6(), 7777))
	start(t, n.A, "-via", via, "tcp")
	if _, err := io.WriteString(c, "past it?"); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %d bytes, %v", n, err)
	}
}

// TestEnd: connections go directly after kill -9, and after ^C, which resets those of the tunnel. The next program
// removes the dead rules, and nothing is left.
func TestEnd(t *testing.T) {
	n, via := served(t)
	lab.CheckLeaks(t, n.A)
	l, err := n.B.Listen("tcp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := netip.AddrPortFrom(n.B.Addr4(), 7777)
	expect := func(from string) {
		t.Helper()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() }) // not before the program ends
		if got, _ := netip.ParseAddrPort(c.RemoteAddr().String()); got.Addr().String() != from {
			t.Errorf("the server is connected from %v, want %s", got, from)
		}
	}
	for _, signal := range []os.Signal{os.Kill, os.Interrupt} {
		p := start(t, n.A, "-via", via, "tcp.DstPort == 7777")
		c := dial(t, n.A, to)
		expect("10.77.2.1")
		if err := p.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(p.rest)
		_ = p.Wait()
		if signal == os.Interrupt {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("after ^C: %v", err)
			}
		}
		c.Close()
		if err := dial(t, n.A, to).Close(); err != nil {
			t.Error(err)
		}
		expect("10.77.1.2")
	}
}

// TestMemory: 10,000 connections, a hundred at a time, do not enlarge the program.
func TestMemory(t *testing.T) {
	if os.Getenv("DIVERT_LONG") == "" {
		t.Skip("takes a minute: DIVERT_LONG=1 asks for it")
	}
	n, via := served(t)
	serveWeb(t, n.B)
	p := start(t, n.A, "-via", via, "tcp.DstPort == 80")
	resident := func() int {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		pages, err := strconv.Atoi(strings.Fields(string(text))[1])
		if err != nil {
			t.Fatal(err)
		}
		return pages * os.Getpagesize() >> 20
	}
	seen := []netip.Addr{netip.MustParseAddr("10.77.2.1"), netip.MustParseAddr("fd77:2::1")}
	var after []int // MiB
	for range 4 {   // connections of the last seconds are in TIME-WAIT: the first round makes as many as there will ever be
		for range 50 {
			get(t, n.A, 100, n.B.Addrs(), seen)
		}
		after = append(after, resident())
	}
	t.Logf("MiB resident after 5,000, 10,000, 15,000, 20,000 connections: %v", after)
	if after[3] > after[1]*3/2 {
		t.Errorf("grows: %v MiB", after)
	}
}

// TestUsage: errors in the arguments are named.
func TestUsage(t *testing.T) {
	n := lab.NewT(t)
	h, err := n.AddHost("A") // in case a mistake opens a handle
	if err != nil {
		t.Fatal(err)
	}
	good := options{filter: "tcp", most: 1, idle: time.Minute}
	for name, row := range map[string]struct {
		change func(*options)
		via    string
		want   string
	}{
		"no filter":   {func(o *options) { o.filter = "" }, "socks5://192.0.2.1", "no filter"},
		"no proxy":    {nil, "", "no proxy"},
		"most":        {func(o *options) { o.most = 0 }, "socks5://192.0.2.1", "-most 0"},
		"idle":        {func(o *options) { o.idle = 1 }, "socks5://192.0.2.1", "-idle 1ns"},
		"not a URL":   {nil, "socks5://user:secret@192.0.2.1:x", "invalid port"},
		"no host":     {nil, "socks5://", "has no host"},
		"other proxy": {nil, "ftp://192.0.2.1", `no way "ftp"`},
		"bad filter":  {func(o *options) { o.filter = "tcp.DstPort == many" }, "socks5://192.0.2.1", "many"},
	} {
		t.Run(name, func(t *testing.T) {
			o := good
			if row.change != nil {
				row.change(&o)
			}
			var err error
			_ = h.Do(func() error { err = run(t.Context(), o, row.via); return nil })
			if err == nil || !strings.Contains(err.Error(), row.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("%v; want %q", err, row.want)
			}
		})
	}
}

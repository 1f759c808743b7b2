//go:build linux

package redirect_test

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/redirect"
)

// serveProxy serves connections of a proxy on a host, each in a goroutine.
func serveProxy(t *testing.T, h *lab.Host, at string, serve func(net.Conn) error) {
	t.Helper()
	l, err := h.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				if err := serve(c); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("proxy: %v", err)
				}
			}()
		}
	}()
	t.Cleanup(func() { l.Close() })
}

func pipe(a net.Conn, in io.Reader, b net.Conn) {
	go func() { _, _ = io.Copy(b, in); _ = b.(*net.TCPConn).CloseWrite() }()
	_, _ = io.Copy(a, b)
	_ = b.Close()
}

// socksProxy is a proxy of SOCKS 5 with one user, after RFC 1928 and 1929.
func socksProxy(h *lab.Host, host netip.Addr) func(net.Conn) error {
	return func(c net.Conn) error {
		in := bufio.NewReader(c)
		read := func(n int) []byte { b := make([]byte, n); _, _ = io.ReadFull(in, b); return b }
		methods := read(int(read(2)[1]))
		if methods[len(methods)-1] != 2 {
			_, err := c.Write([]byte{5, 0xFF})
			return err
		}
		_, _ = c.Write([]byte{5, 2})
		user := string(read(int(read(2)[1])))
		password := string(read(int(read(1)[0])))
		if user != "user" || password != "secret" {
			_, err := c.Write([]byte{1, 1})
			return err
		}
		_, _ = c.Write([]byte{1, 0})
		head := read(4)
		addr, _ := netip.AddrFromSlice(read(map[byte]int{1: 4, 4: 16}[head[3]]))
		to := netip.AddrPortFrom(addr, binary.BigEndian.Uint16(read(2)))
		if head[1] == 3 {
			return relayUDP(h, host, c, in)
		}
		up, err := dial(h, nil, "tcp", to)
		if err != nil {
			_, err = c.Write([]byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0})
			return err
		}
		_, _ = c.Write([]byte{5, 0, 0, 1, 0, 0, 0, 0, 0, 0})
		pipe(c, in, up)
		return nil
	}
}

// relayUDP relays datagrams until the control connection ends.
func relayUDP(h *lab.Host, host netip.Addr, c net.Conn, control io.Reader) error {
	client, err := h.ListenPacket("udp", netip.AddrPortFrom(host, 0).String())
	if err != nil {
		return err
	}
	defer client.Close()
	server, err := h.ListenPacket("udp", ":0")
	if err != nil {
		return err
	}
	defer server.Close()
	go func() {
		var from net.Addr
		b := make([]byte, 1<<16)
		for {
			n, a, err := client.ReadFrom(b)
			if err != nil {
				return
			}
			size := map[byte]int{1: 4, 4: 16}[b[3]]
			addr, _ := netip.AddrFromSlice(b[4 : 4+size])
			to := netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[4+size:]))
			head := append([]byte(nil), b[:6+size]...)
			_, _ = server.WriteTo(b[6+size:n], net.UDPAddrFromAddrPort(to))
			if from == nil {
				from = a
				go func() {
					b := make([]byte, 1<<16)
					for {
						n, _, err := server.ReadFrom(b)
						if err != nil {
							return
						}
						_, _ = client.WriteTo(append(head[:len(head):len(head)], b[:n]...), from)
					}
				}()
			}
		}
	}()
	port := uint16(client.LocalAddr().(*net.UDPAddr).Port)
	if _, err := c.Write(binary.BigEndian.AppendUint16([]byte{5, 0, 0, 1, 0, 0, 0, 0}, port)); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, control)
	return nil
}

// httpProxy is a proxy that knows CONNECT and one user, and sends the server's first bytes along with its answer.
func httpProxy(h *lab.Host) func(net.Conn) error {
	return func(c net.Conn) error {
		in := bufio.NewReader(c)
		r, err := http.ReadRequest(in)
		if err != nil {
			return err
		}
		if r.Header.Get("Proxy-Authorization") != "Basic dXNlcjpzZWNyZXQ=" {
			_, err := io.WriteString(c, "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
			return err
		}
		to, err := netip.ParseAddrPort(r.Host)
		if err != nil || r.Method != "CONNECT" {
			return fmt.Errorf("%s %s: %v", r.Method, r.Host, err)
		}
		up, err := dial(h, nil, "tcp", to)
		if err != nil {
			_, err := io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
			return err
		}
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		pipe(c, in, up)
		return nil
	}
}

// TestVia: connections go through a proxy unknown to the client; refusals reach the client, and wrong passwords fail.
func TestVia(t *testing.T) {
	for _, scheme := range []string{"socks5", "http"} {
		for _, family := range []func(*lab.Host) netip.Addr{(*lab.Host).Addr4, (*lab.Host).Addr6} {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			addr := family(pair.B)
			t.Run(scheme+"/"+addr.String(), func(t *testing.T) {
				at := netip.AddrPortFrom(addr, 1080)
				serve := httpProxy(pair.B)
				if scheme == "socks5" {
					serve = socksProxy(pair.B, addr)
				}
				serveProxy(t, pair.B, at.String(), serve)
				to := netip.AddrPortFrom(addr, 7)
				for _, network := range []string{"tcp", "udp"} {
					echo(t, pair.B, network, to)
				}
				via := &url.URL{Scheme: scheme, User: url.UserPassword("user", "secret"), Host: at.String()}
				l := listen(t, pair.A, "tcp or udp", redirect.Options{Via: via, Hold: true}) // connections to the proxy match too
				n := relay(t, l)
				c, err := dial(pair.A, nil, "tcp", to)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if err := ask(c, "through the proxy"); err != nil {
					t.Error(err)
				}
				if c, err := dial(pair.A, nil, "tcp", netip.AddrPortFrom(addr, 9)); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("refused there: %v, %v", c, err)
				}
				u, err := dial(pair.A, nil, "udp", to)
				if err != nil {
					t.Fatal(err)
				}
				defer u.Close()
				err = askDatagram(u, "a datagram")
				if scheme == "socks5" && err != nil || scheme == "http" && !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("UDP: %v", err)
				}
				if n.Load() != 2 {
					t.Errorf("%d accepted", n.Load())
				}
				l.Close()
				via.User = url.UserPassword("user", "wrong")
				relay(t, listen(t, pair.A, "tcp.DstPort == 7", redirect.Options{Via: via, Hold: true}))
				if c, err := dial(pair.A, nil, "tcp", to); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("with a wrong password: %v, %v", c, err)
				}
			})
		}
	}
}

// TestViaWrong: URLs that are not a proxy's are refused.
func TestViaWrong(t *testing.T) {
	for _, text := range []string{"ftp://h", "socks5://", "http://h/path", "//h:1", "socks5://h?q"} {
		via, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := redirect.NewDialer(via, nil); !errors.Is(err, divert.ErrInvalid) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestCloseHalfOpen: Close ends a relay with one ended and one silent direction.
func TestCloseHalfOpen(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	l := listen(t, pair.A, "tcp.DstPort == 7", redirect.Options{})
	relay(t, l)
	to := netip.AddrPortFrom(pair.B.Addr4(), 7)
	half, over := make(chan bool), make(chan bool)
	accepted(t, pair.B, to, func(c *net.TCPConn) {
		_, _ = io.ReadAll(c)
		close(half)
		<-over
	})
	defer close(over)
	c, err := dial(pair.A, nil, "tcp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.(*net.TCPConn).CloseWrite()
	<-half
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client reads: %v", err)
	}
}

// TestSegmentedDatagrams: datagrams that a QUIC program sends in one call (UDP_SEGMENT) come one by one.
func TestSegmentedDatagrams(t *testing.T) {
	eachWay(t, func(t *testing.T, pair *lab.Pair, server *lab.Host, addr netip.Addr, o redirect.Options) {
		to := netip.AddrPortFrom(addr, 443)
		l := listen(t, pair.A, "udp.DstPort == 443", o)
		c, err := dial(pair.A, nil, "udp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		const udpSegment, size, count = 103, 1000, 10 // UDP_SEGMENT (udp(7))
		if e := raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_UDP, udpSegment, size) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
		if _, err := c.Write(make([]byte, size*count)); err != nil {
			t.Fatal(err)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		_ = in.SetReadDeadline(time.Now().Add(patience))
		for i := range count {
			if n, err := in.Read(make([]byte, 1<<16)); n != size || err != nil {
				t.Fatalf("datagram %d: %d bytes, %v", i, n, err)
			}
		}
	})
}

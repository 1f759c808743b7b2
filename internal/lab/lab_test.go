//go:build linux

package lab

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) { Main(m) }

func echoOnce(t *testing.T, from, to *Host, network string, dst netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var serve func(b []byte) error
	var addr string
	if network == "udp" {
		c, err := to.ListenPacket(network, netip.AddrPortFrom(dst, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		addr = c.LocalAddr().String()
		serve = func(b []byte) error {
			n, peer, err := c.ReadFrom(b)
			if err == nil {
				_, err = c.WriteTo(b[:n], peer)
			}
			return err
		}
	} else {
		l, err := to.Listen(network, netip.AddrPortFrom(dst, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addr = l.Addr().String()
		serve = func(b []byte) error {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			n, err := c.Read(b)
			if err == nil {
				_, err = c.Write(b[:n])
			}
			return err
		}
	}
	served := make(chan error, 1)
	go func() { served <- serve(make([]byte, 100)) }()
	c, err := from.Dial(ctx, network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil || string(b[:n]) != "hello" {
		t.Fatalf("%s to %s: %q, %v", network, addr, b[:n], err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

func TestTwoHostsTalk(t *testing.T) {
	p := TwoHostsT(t, LinkOptions{})
	for _, network := range []string{"udp", "tcp"} {
		for _, dst := range []netip.Addr{p.B.Addr4(), p.B.Addr6()} {
			t.Run(network+" "+dst.String(), func(t *testing.T) { echoOnce(t, p.A, p.B, network, dst) })
		}
	}
}

func TestRouterForwards(t *testing.T) {
	r := HostRouterPeerT(t, LinkOptions{})
	for _, dst := range []netip.Addr{r.B.Addr4(), r.B.Addr6()} {
		t.Run(dst.String(), func(t *testing.T) {
			echoOnce(t, r.A, r.B, "udp", dst)
			echoOnce(t, r.B, r.A, "tcp", r.A.firstAddr(func(a netip.Addr) bool { return a.Is4() == dst.Is4() }))
		})
	}
}

func TestNothingElseIsInTheNamespace(t *testing.T) {
	p := TwoHostsT(t, LinkOptions{})
	var names []string
	if err := p.A.Do(func() error {
		list, err := net.Interfaces()
		for _, i := range list {
			names = append(names, i.Name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(names, " "); got != "lo eth0" {
		t.Errorf("interfaces of A: %s, want lo eth0", got)
	}
}

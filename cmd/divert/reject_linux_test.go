package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// rejectWay is a position of a rejecter between a client and a server that would answer.
type rejectWay struct {
	name    string
	args    []string
	needTUN bool // the answers arrive through a TUN device
	hosts   func(t *testing.T) (client, server, at *lab.Host)
}

var rejectWays = []rejectWay{
	{"outbound", []string{"outbound and not loopback"}, true, func(t *testing.T) (client, server, at *lab.Host) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		return pair.A, pair.B, pair.A
	}},
	{"inbound", []string{"inbound"}, false, func(t *testing.T) (client, server, at *lab.Host) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		return pair.A, pair.B, pair.B
	}},
	{"loopback", []string{"loopback"}, false, func(t *testing.T) (client, server, at *lab.Host) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		return pair.A, pair.A, pair.A
	}},
	{"forward", []string{"--layer", "forward", "true"}, true, func(t *testing.T) (client, server, at *lab.Host) {
		routed := lab.HostRouterPeerT(t, lab.LinkOptions{})
		return routed.A, routed.B, routed.R
	}},
}

// tunMissing returns why new packets cannot be injected inbound, nil if they can.
func tunMissing() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err
}

// needTUN skips where the answers to outbound packets cannot be injected.
func needTUN(t *testing.T) {
	t.Helper()
	if err := tunMissing(); err != nil {
		t.Skipf("nothing can be injected on the way in: %v", err)
	}
}

// TestReject connects to running servers, and is refused at once.
func TestReject(t *testing.T) {
	for _, way := range rejectWays {
		for _, engine := range []string{"auto", "interpreter"} {
			t.Run(way.name+"/"+engine, func(t *testing.T) {
				client, server, at := way.hosts(t)
				if way.needTUN {
					needTUN(t)
				}
				testReject(t, client, server, at, append([]string{"reject", "--json", "--engine", engine}, way.args...))
			})
		}
	}
}

func testReject(t *testing.T, client, server, at *lab.Host, args []string) {
	var servers []netip.AddrPort
	for _, addr := range []netip.Addr{server.Addr4(), server.Addr6()} {
		for _, network := range []string{"tcp", "udp"} {
			e, err := server.Echo(network, netip.AddrPortFrom(addr, 7).String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = e.Close() })
		}
		servers = append(servers, netip.AddrPortFrom(addr, 7))
	}
	p := start(t, at, args...)
	for _, to := range servers {
		for _, network := range []string{"tcp", "udp"} {
			if err := ask(t, client, network, to); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s to %v: %v", network, to, err)
			}
		}
	}
	if out, status := p.end(t, os.Interrupt); status != exitOK || out != "" {
		t.Errorf("status %d, output %q", status, out)
	}
	s := lastSummary(t, p.errout.String())
	if s.Answers == nil || s.Answers.Resets != 2 || s.Answers.Unreachables != 2 || s.Injected != 4 || s.Failed != 0 ||
		s.Received != 4+s.Answers.Unanswered || s.Matched != s.Received {
		t.Errorf("summary %+v, %+v: %s", s, s.Answers, p.errout)
	}
	for _, to := range servers {
		if err := ask(t, client, "tcp", to); err != nil {
			t.Errorf("after the end: %v", err)
		}
	}
}

// ask sends a byte to an echo server and waits for its return.
func ask(t *testing.T, from *lab.Host, network string, to netip.AddrPort) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := from.Dial(ctx, network, to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("?")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 10))
	return err
}

// lastSummary reads the summary at the end of standard error.
func lastSummary(t *testing.T, errout string) (s summary) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(errout), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &s); err != nil {
		t.Fatalf("%v in %s", err, errout)
	}
	return s
}

// TestRejectConnection ends an existing connection.
func TestRejectConnection(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	e, err := pair.B.Echo("tcp", netip.AddrPortFrom(pair.B.Addr4(), 7).String())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	c, err := pair.A.Dial(t.Context(), "tcp", e.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	exchange := func() error {
		if _, err := c.Write([]byte("?")); err != nil {
			return err
		}
		_, err := c.Read(buf)
		return err
	}
	if err := exchange(); err != nil {
		t.Fatal(err)
	}
	p := start(t, pair.B, "reject", "inbound and tcp.DstPort == 7 and tcp.PayloadLength > 0")
	if err := exchange(); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection: %v", err)
	}
	if _, status := p.end(t, os.Interrupt); status != exitOK {
		t.Errorf("status %d", status)
	}
	if s := p.errout.String(); !strings.Contains(s, " 1 answered with RST, 0 with ICMP, 0 not answered in ") {
		t.Errorf("standard error: %s", s)
	}
}

// TestRejectVerbose checks the lines of -v, and that broadcasts are not answered.
func TestRejectVerbose(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	p := start(t, pair.B, "reject", "-v", "inbound and udp")
	for _, to := range []string{"10.77.0.2:9", "10.77.0.255:9", "255.255.255.255:9"} {
		c, err := pair.A.ListenPacket("udp4", "10.77.0.1:40000")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteTo([]byte("?"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	lines := make(chan string, 10)
	go func() {
		s := bufio.NewScanner(p.out)
		for s.Scan() {
			lines <- s.Text()
		}
		close(lines)
	}()
	for _, want := range []string{"10.77.0.2", "10.77.0.255", "255.255.255.255"} {
		select {
		case got := <-lines:
			if got != "BLOCK ip.SrcAddr=10.77.0.1 ip.DstAddr="+want+" udp.SrcPort=40000 udp.DstPort=9" {
				t.Errorf("line %q", got)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no line about %s: %s", want, p.errout)
		}
	}
	p.out = io.NopCloser(strings.NewReader(""))
	if _, status := p.end(t, syscall.SIGTERM); status != exitOK {
		t.Errorf("status %d", status)
	}
	if s := p.errout.String(); !strings.Contains(s, "0 answered with RST, 1 with ICMP, 2 not answered in ") {
		t.Errorf("standard error: %s", s)
	}
}

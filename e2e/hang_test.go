//go:build linux

package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// counting sends numbered datagrams, and records which arrive.
type counting struct {
	t       *testing.T
	c       net.Conn
	at      net.PacketConn
	sent    int
	arrived map[int]int
}

// send sends one datagram. The sender never learns of its fate.
func (n *counting) send() int {
	n.t.Helper()
	n.sent++
	if _, err := fmt.Fprint(n.c, n.sent); err != nil {
		n.t.Fatalf("datagram %d: %v", n.sent, err)
	}
	return n.sent
}

// receive records arriving datagrams until none arrives for a while, and reports whether want is among all received so
// far.
func (n *counting) receive(want int) bool {
	n.t.Helper()
	b := make([]byte, 100)
	for {
		_ = n.at.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		l, _, err := n.at.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return n.arrived[want] > 0
		}
		var i int
		if _, scanned := fmt.Sscan(string(b[:l]), &i); err != nil || scanned != nil {
			n.t.Fatal(err, scanned)
		}
		n.arrived[i]++
	}
}

// TestStoppedProgramIsPassedBy stops a process that waits for packets with SIGSTOP. Matching packets wait at first;
// then they pass or are dropped, as the handle's options require. When the process continues, it carries waiting and
// new packets. The counters show all of this.
func TestStoppedProgramIsPassedBy(t *testing.T) {
	t.Parallel()
	for _, family := range families {
		for _, way := range []string{"inbound", "outbound"} {
			for _, what := range []string{"PASS", "DROP"} {
				t.Run(fmt.Sprintf("%s, %s, %s", family.name, way, strings.ToLower(what)), func(t *testing.T) {
					pair := lab.TwoHostsT(t, lab.LinkOptions{})
					needEngine(t, pair.A, divert.EngineKernel)
					conn, _ := receiver(t, pair.B, family.addr(pair.B))
					n := &counting{t: t, c: dialUDP(t, pair.A, conn.LocalAddr()), at: conn, arrived: map[int]int{}}
					at := map[string]*lab.Host{"inbound": pair.B, "outbound": pair.A}[way]
					filter := fmt.Sprintf("%s and udp.DstPort == %d", way, conn.LocalAddr().(*net.UDPAddr).Port)
					c := startCarrier(t, at, filter, "DIVERT_TEST_"+what+"_ON_HANG=100ms")
					for range 3 {
						if i := n.send(); !n.receive(i) {
							eventually(t, "a datagram arrives", func() bool { return n.receive(i) })
						}
						time.Sleep(150 * time.Millisecond) // an idle program does not count as hanging
					}
					c.signal(t, syscall.SIGSTOP)
					first := n.send()
					if what == "PASS" {
						eventually(t, "a datagram passes the process", func() bool { return n.receive(n.send()) })
					} else {
						for range 40 {
							n.receive(n.send())
						}
					}
					if n.arrived[first] > 0 {
						t.Error("the first datagram has not waited for the process")
					}
					c.signal(t, syscall.SIGCONT)
					eventually(t, "the first datagram arrives", func() bool { return n.receive(first) })
					last := n.send()
					eventually(t, "the last datagram arrives", func() bool { return n.receive(last) })
					s := c.end(t)
					n.receive(last)
					balanced(t, s)
					led := s.HangPassed + s.HangDropped
					if led == 0 || (what == "PASS") != (s.HangDropped == 0) || s.Received+led != uint64(n.sent) {
						t.Errorf("%d were sent: %+v", n.sent, s)
					}
					if want := n.sent - int(s.HangDropped); len(n.arrived) != want {
						t.Errorf("%d of %d arrived, want %d: %+v", len(n.arrived), n.sent, want, s)
					}
					for i, times := range n.arrived {
						if times != 1 {
							t.Errorf("datagram %d arrived %d times", i, times)
						}
					}
				})
			}
		}
	}
}

// TestStoppedProgramEndsItsGuard: after a process is killed, its guard drops nothing.
func TestStoppedProgramEndsItsGuard(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	conn, _ := receiver(t, pair.B, pair.B.Addr4())
	n := &counting{t: t, c: dialUDP(t, pair.A, conn.LocalAddr()), at: conn, arrived: map[int]int{}}
	c := startCarrier(t, pair.B, "inbound and udp", "DIVERT_TEST_DROP_ON_HANG=100ms")
	c.signal(t, syscall.SIGSTOP)
	for range 20 {
		n.receive(n.send())
	}
	if len(n.arrived) > 0 {
		t.Errorf("%d datagrams passed a process that is stopped", len(n.arrived))
	}
	c.signal(t, syscall.SIGKILL)
	_ = c.cmd.Wait()
	eventually(t, "a datagram passes a process that is dead", func() bool { return n.receive(n.send()) })
}

// TestSlowProgramIsPassedBy: packets pass a program that does not return from its work, and handles below see them. The
// SYN that it works on is dropped after a while, the next one waits, and another passes.
func TestSlowProgramIsPassedBy(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.B, divert.EngineKernel)
	const filter = "inbound and tcp"
	d := openAt(t, pair.B, filter, divert.WithEngine(divert.EngineKernel), divert.WithPassOnHang(divert.MinHang), divert.WithQueues(2))
	below := openAt(t, pair.B, filter, divert.WithEngine(divert.EngineKernel), divert.WithPriority(-1))
	w := passthru(t, below)
	echo := echoAt(t, pair.B, "tcp", pair.B.Addr4())
	taken := make(chan error, 1)
	go func() {
		_, err := d.RecvBatch(make([]divert.Packet, 1))
		taken <- err
	}()
	c, err := pair.A.DialFrom(t.Context(), nil, "tcp", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	s := stats(t, d)
	balanced(t, s)
	if s.HangPassed == 0 || s.Received != 1 || stats(t, below).Matched < s.HangPassed {
		t.Errorf("%+v, below %+v", s, stats(t, below))
	}
	finish(t, below, w)
}

// TestHangRefused: Open returns an error where a guard is unavailable or makes no sense.
func TestHangRefused(t *testing.T) {
	t.Parallel()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEngine(t, pair.A, divert.EngineKernel)
	for _, row := range []struct {
		name   string
		filter string
		opts   []divert.Option
		want   error
	}{
		{"the interpreter", "udp", []divert.Option{divert.WithPassOnHang(time.Second), divert.WithEngine(divert.EngineInterpreter)}, divert.ErrNotSupported},
		{"a filter that counts", "flow.Packets < 3", []divert.Option{divert.WithDropOnHang(time.Second)}, divert.ErrNotSupported},
		{"a filter that counts, passing", "flow.Packets < 3", []divert.Option{divert.WithPassOnHang(time.Second)}, nil},
		{"copies", "udp", []divert.Option{divert.WithPassOnHang(time.Second), divert.WithFlags(divert.Sniff)}, divert.ErrInvalid},
		{"drops", "udp", []divert.Option{divert.WithDropOnHang(time.Second), divert.WithFlags(divert.Drop)}, divert.ErrInvalid},
		{"too short", "udp", []divert.Option{divert.WithDropOnHang(divert.MinHang - 1)}, divert.ErrInvalid},
		{"too long", "udp", []divert.Option{divert.WithPassOnHang(divert.MaxHang + 1)}, divert.ErrInvalid},
		{"no time", "udp", []divert.Option{divert.WithPassOnHang(0)}, divert.ErrInvalid},
	} {
		err := pair.A.Do(func() error {
			d, err := divert.Open(row.filter, row.opts...)
			if err == nil {
				err = d.Close()
			}
			return err
		})
		if !errors.Is(err, row.want) || row.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", row.name, err, row.want)
		}
	}
	d := openAt(t, pair.A, "udp", divert.WithEngine(divert.EngineKernel), divert.WithDropOnHang(time.Second))
	if err := d.SetFilter("flow.Packets < 3"); !errors.Is(err, divert.ErrNotSupported) {
		t.Errorf("a filter that counts was set: %v", err)
	}
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gdamore/tcell/v2"
	"github.com/opendivert/divert/internal/lab"
	"golang.org/x/sys/unix"
)

// interfaceBytes returns the counters of a host's interface, without the link-layer headers, which have 14 bytes on
// Ethernet and on the loopback device.
func interfaceBytes(t *testing.T, h *lab.Host, name string) (in, out uint64) {
	t.Helper()
	err := h.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/dev")
		for line := range strings.Lines(string(text)) {
			device, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
			if f := strings.Fields(rest); device == name && len(f) >= 10 {
				var n [4]uint64
				for i, at := range []int{0, 1, 8, 9} {
					n[i], _ = strconv.ParseUint(f[at], 10, 64)
				}
				in, out = n[0]-14*n[1], n[2]-14*n[3]
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return in, out
}

// transfer sends bytes over TCP from one host to another.
func transfer(t *testing.T, from, to *lab.Host, at string, bytes int) {
	t.Helper()
	l, err := to.Listen("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var done sync.WaitGroup
	done.Go(func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	})
	c, err := from.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, bytes)); err != nil {
		t.Error(err)
	}
	c.Close()
	done.Wait()
}

// TestTopTotals compares the totals with the interfaces' counters: TCP both ways, IPv6, UDP, ICMP, loopback.
func TestTopTotals(t *testing.T) {
	pair, echo := hosts(t)
	p := start(t, pair.A, "top", "--json", "--interval", "100ms", "--rows", "0")
	in0, out0 := interfaceBytes(t, pair.A, "eth0")
	loIn0, loOut0 := interfaceBytes(t, pair.A, "lo")
	transfer(t, pair.A, pair.B, netip.AddrPortFrom(pair.B.Addr4(), 80).String(), 2_000_000)
	transfer(t, pair.B, pair.A, netip.AddrPortFrom(pair.A.Addr6(), 80).String(), 1_000_000)
	atOnce := 500_000
	if !strings.Contains(p.errout.String(), "(eBPF") {
		atOnce = 30_000 // the interpreter sees no packets of BIG TCP (docs/linux.md)
	}
	transfer(t, pair.A, pair.A, "127.0.0.1:80", atOnce)
	exchange(t, pair.A, echo, 20, 5*time.Second)
	exchange(t, pair.A, netip.AddrPortFrom(pair.B.Addr4(), 9), 1, 50*time.Millisecond) // ICMP: nobody listens
	in1, out1 := interfaceBytes(t, pair.A, "eth0")
	loIn1, loOut1 := interfaceBytes(t, pair.A, "lo")
	in, out := in1-in0+loIn1-loIn0, out1-out0+loOut1-loOut0
	text, status := p.end(t, os.Interrupt)
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if n := checkLines(t, schemas(t), text, "top"); status != exitOK || n["top"] != len(lines) {
		t.Fatalf("status %d: %s", status, p.errout)
	}
	var last jsonTop
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil {
		t.Fatal(err)
	}
	if last.Lost > 0 {
		t.Skipf("%d packets were lost: this machine is busy", last.Lost)
	}
	for _, c := range []struct {
		what       string
		got, want  uint64
		otherTotal uint64
	}{{"in", last.BytesIn, in, 0}, {"out", last.BytesOut, out, 0}} {
		if diff := math.Abs(float64(c.got) - float64(c.want)); diff > float64(c.want)/100 || c.want < 1_000_000 {
			t.Errorf("%s: %d bytes, want the %d of the interfaces", c.what, c.got, c.want)
		}
	}
	var procs, hosts topCounts
	mine := uint64(0)
	for _, p := range last.Processes {
		procs.plus(p.topCounts)
		if p.PID == uint32(os.Getpid()) {
			mine = p.BytesIn + p.BytesOut
		}
	}
	for _, h := range last.Hosts {
		hosts.plus(h.topCounts)
	}
	if procs != last.topCounts || hosts != last.topCounts {
		t.Errorf("processes %+v, hosts %+v, total %+v", procs, hosts, last.topCounts)
	}
	if needProcesses() == nil && float64(mine) < 0.99*float64(in+out) { // this process is both ends of all traffic except the ICMP errors
		t.Errorf("%d of %d bytes are this process's", mine, in+out)
	}
	if !strings.Contains(text, `"protocol_name":"ICMP"`) || !strings.Contains(text, `"local":"127.0.0.1"`) {
		t.Errorf("there is no ICMP, or no loopback:\n%s", lines[len(lines)-1])
	}
}

// TestTopTables prints tables.
func TestTopTables(t *testing.T) {
	pair, echo := hosts(t)
	p := start(t, pair.A, "top", "--interval", "100ms", "-c", "3", "--by", "flow", "udp")
	exchange(t, pair.A, echo, 3, 5*time.Second)
	out, status := p.end(t, nil)
	if status != exitOK || strings.Count(out, "divert top  in") != 3 || !strings.Contains(out, pair.B.Addr4().String()+":7") {
		t.Errorf("status %d: %s%s", status, out, p.errout)
	}
}

// copyScreen is a screen whose content another goroutine may read.
type copyScreen struct {
	tcell.SimulationScreen
	mu   sync.Mutex
	text string
}

// Show shows the screen, and keeps a copy.
func (s *copyScreen) Show() {
	s.SimulationScreen.Show()
	text := onScreen(s.SimulationScreen)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = text
}

func (s *copyScreen) shown() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text
}

// TestTopActs drops the packets of a row, resets a connection, and sets another filter, on real traffic.
func TestTopActs(t *testing.T) {
	pair, echo := hosts(t)
	l, err := pair.B.Listen("tcp", netip.AddrPortFrom(pair.B.Addr4(), 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := pair.A.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()

	s := &copyScreen{SimulationScreen: tcell.NewSimulationScreen("UTF-8")}
	ended := make(chan string)
	go func() {
		var errout strings.Builder
		_ = pair.A.Do(func() error {
			a := &app{in: strings.NewReader(""), out: io.Discard, errout: &errout, terminal: true, newScreen: func() (tcell.Screen, error) { return s, nil }}
			if status := a.run(context.Background(), []string{"top", "--interval", "100ms", "--by", "flow", "--sort", "name", "not loopback"}); status != exitOK {
				fmt.Fprintf(&errout, "status %d", status)
			}
			return nil
		})
		ended <- errout.String()
	}()
	wait := func(what string, ok func() bool) {
		t.Helper()
		for begun := time.Now(); !ok(); time.Sleep(10 * time.Millisecond) {
			select {
			case text := <-ended:
				t.Fatalf("%s: top has ended: %s", what, text)
			default:
			}
			if time.Since(begun) > 20*time.Second {
				t.Fatalf("%s:\n%s", what, s.shown())
			}
		}
	}
	sees := func(text string) func() bool {
		return func() bool {
			if _, err := c.Write([]byte("x")); err == nil {
				_, _ = d.Read(make([]byte, 100))
			}
			return strings.Contains(s.shown(), text)
		}
	}
	press := func(keys string) {
		for _, r := range keys {
			s.InjectKey(tcell.KeyRune, r, 0)
		}
	}
	wait("the connection is not shown", sees(l.Addr().String()))
	// Drop the UDP flow, the only one that matches this filter.
	s.InjectKey(tcell.KeyRune, '/', 0)
	s.InjectKey(tcell.KeyCtrlU, 0, 0)
	press("udp")
	s.InjectKey(tcell.KeyEnter, 0, 0)
	wait("the filter is not set", sees("filter udp"))
	u, err := pair.A.Dial(t.Context(), "udp", echo.String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	answered := func() bool { // the socket stays, so the flow does too
		_, _ = u.Write([]byte("datagram"))
		_ = u.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := u.Read(make([]byte, 100))
		return err == nil
	}
	// A copy from before the change of the filter may still be counted, and its row selected: c clears the counters.
	only := func(shown, old string, again func() bool) func() bool {
		return func() bool {
			if strings.Contains(s.shown(), old) {
				press("c")
				return false
			}
			return again() && strings.Contains(s.shown(), shown)
		}
	}
	wait("the datagrams are not shown", only(echo.String(), l.Addr().String(), answered))
	press("d")
	wait("it does not ask", sees("drop packets that match protocol == 17 and localAddr == "))
	press("y")
	wait("the flow is not dropped", func() bool { return !answered() && strings.Contains(s.shown(), "\nD ") })
	if n := exchange(t, pair.A, echo, 1, 5*time.Second); n != 1 {
		t.Error("another flow is dropped too")
	}
	press("d")
	wait("the flow does not come back", answered)
	// Reset the connection.
	press("/")
	s.InjectKey(tcell.KeyCtrlU, 0, 0)
	press("tcp")
	s.InjectKey(tcell.KeyEnter, 0, 0)
	wait("the filter is not set again", sees("filter tcp"))
	wait("the connection is not shown again", only(l.Addr().String(), echo.String(), sees(l.Addr().String())))
	press("k")
	wait("it does not ask before a reset", sees("reset TCP connections that match protocol == 6"))
	press("y")
	wait("the connection is not reset", func() bool {
		_, err := c.Write([]byte("x"))
		return err != nil
	})
	_ = d.SetReadDeadline(time.Now().Add(20 * time.Second))
	for err = nil; err == nil; {
		_, err = d.Read(make([]byte, 100))
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		t.Error("the other end is not reset")
	}
	press("q")
	if text := <-ended; text != "" {
		t.Error(text)
	}
	if out, status := runIn(t, pair.A, "list"); out != "" || status != exitOK {
		t.Errorf("left: %s", out)
	}
}

// TestTopTerminal runs top on its own terminal, and expects ^C and SIGTERM to restore it.
func TestTopTerminal(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	for _, end := range []string{"^C", "SIGTERM"} {
		master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			t.Skip(err)
		}
		defer master.Close()
		n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
		if err == nil {
			err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
		}
		if err == nil {
			err = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
		}
		if err != nil {
			t.Skip(err)
		}
		slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
		if err != nil {
			t.Skip(err)
		}
		defer slave.Close()
		before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.Command(exe, "top", "--interval", "100ms")
		c.Env = append(os.Environ(), commandVariable+"=1", "TERM=xterm-256color")
		c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
		if err := pair.A.Start(c); err != nil {
			t.Fatal(err)
		}
		var seen syncBuffer
		go func() { _, _ = io.Copy(&seen, master) }()
		for begun := time.Now(); !strings.Contains(seen.String(), "PROGRAM"); time.Sleep(10 * time.Millisecond) {
			if time.Since(begun) > 20*time.Second {
				_ = c.Process.Kill()
				t.Fatalf("top drew nothing: %q", seen.String())
			}
		}
		if end == "^C" {
			_, err = master.Write([]byte{3})
		} else {
			err = c.Process.Signal(syscall.SIGTERM)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Wait(); err != nil {
			t.Errorf("%s: %v", end, err)
		}
		after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil || *after != *before {
			t.Errorf("%s: the terminal is %+v, was %+v, %v", end, after, before, err)
		}
		for begun := time.Now(); !strings.Contains(seen.String(), "\x1b[?1049l"); time.Sleep(10 * time.Millisecond) {
			if time.Since(begun) > 10*time.Second {
				t.Fatalf("%s: the old screen was not restored: %q", end, seen.String())
			}
		}
	}
}

//go:build linux

package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// openEvents opens a handle of a layer with events, and skips where the kernel cannot run its programs.
func openEvents(t testing.TB, h *lab.Host, layer divert.Layer, text string, flags divert.Flag, opts ...divert.Option) *divert.Handle {
	t.Helper()
	err := h.Do(func() error {
		d, err := divert.Open("false", divert.WithLayer(layer), divert.WithFlags(divert.Sniff|divert.RecvOnly))
		if err == nil {
			err = d.Close()
		}
		return err
	})
	if errors.Is(err, divert.ErrNotSupported) && os.Getenv("DIVERT_NEED_KERNEL") == "" {
		t.Skipf("%v", err)
	}
	opts = append([]divert.Option{
		divert.WithLayer(layer), divert.WithFlags(flags | divert.RecvOnly), divert.WithQueueTime(16 * time.Second), // machines may be slow
	}, opts...)
	return openAt(t, h, text, opts...)
}

// act is an action of a test's child process on a socket.
type act struct {
	Do      string // a key of acts
	Socket  string // its name
	Network string // tcp4, tcp6, udp4, udp6, mptcp4, mptcp6
	Addr    string // address and port; the port "@name" is that of another socket
	From    string // accept: the listener
}

// performer is a process that performs acts. It answers each with the errno's name, or "ok".
type performer struct {
	end func() // ends the process
	t   testing.TB
	cmd *exec.Cmd
	in  *json.Encoder
	out *json.Decoder
	pid uint32
}

func init() { children["sockets"] = perform }

// perform is the child: it reads acts from its input.
func perform() error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	s := stage{}
	for {
		var a act
		if err := in.Decode(&a); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		result := "ok"
		if err := s.act(a); err != nil {
			var errno syscall.Errno
			if result = err.Error(); errors.As(err, &errno) {
				result = unix.ErrnoName(errno)
			}
		}
		if err := out.Encode(result); err != nil {
			return err
		}
	}
}

// stage holds the sockets of a performer, by name. It uses plain system calls: package net would make additional ones.
type stage map[string]int

// domains are the families and types of the networks.
var domains = map[string][3]int{
	"tcp4": {unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP}, "tcp6": {unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP},
	"udp4": {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, "udp6": {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP},
	"mptcp4": {unix.AF_INET, unix.SOCK_STREAM, 262}, "mptcp6": {unix.AF_INET6, unix.SOCK_STREAM, 262},
	"icmp4": {unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, "icmp6": {unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6},
}

func (s stage) act(a act) (err error) {
	fd := s[a.Socket]
	switch a.Do {
	case "socket":
		d := domains[a.Network]
		s[a.Socket], err = unix.Socket(d[0], d[1]|unix.SOCK_CLOEXEC, d[2])
		if err == nil && d[1] == unix.SOCK_STREAM {
			err = unix.SetsockoptInt(s[a.Socket], unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
		return err
	case "inherit":
		s[a.Socket] = 3 // the first of exec.Cmd's ExtraFiles
		return nil
	case "share": // shares the port with others
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	case "bind":
		return unix.Bind(fd, sockaddr(fd, a.Addr))
	case "connect":
		return unix.Connect(fd, sockaddr(fd, a.Addr))
	case "nonblock":
		return unix.SetNonblock(fd, true)
	case "finish": // completes a connect
		if err := ready(fd, unix.POLLOUT); err != nil {
			return err
		}
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && v != 0 {
			err = syscall.Errno(v)
		}
		return err
	case "listen":
		return unix.Listen(fd, 16)
	case "accept":
		if err := patience(s[a.From]); err != nil {
			return err
		}
		s[a.Socket], _, err = unix.Accept4(s[a.From], unix.SOCK_CLOEXEC)
		return err
	case "send":
		return unix.Sendto(fd, []byte("hello"), 0, sockaddr(fd, a.Addr))
	case "ping": // echo request; the kernel writes identifier and checksum
		request := []byte{8, 0, 0, 0, 0, 0, 0, 1}
		if domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); domain == unix.AF_INET6 {
			request[0] = 128
		}
		return unix.Sendto(fd, request, 0, sockaddr(fd, a.Addr))
	case "write":
		_, err = unix.Write(fd, []byte("hello"))
		return err
	case "recv":
		if err := patience(fd); err != nil {
			return err
		}
		_, _, err = unix.Recvfrom(fd, make([]byte, 64), 0)
		return err
	case "close":
		return unix.Close(fd)
	case "reset":
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		return unix.Close(fd)
	}
	return fmt.Errorf("no act %q", a.Do)
}

// patience waits until a blocking call on a socket would return, so that a mistake does not block forever.
func patience(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		return err
	}
	return ready(fd, unix.POLLIN)
}

// ready waits, some seconds at most, for an event of a socket. The runtime's signals interrupt poll, which SA_RESTART
// does not resume (signal(7)).
func ready(fd int, events int16) error {
	for deadline := time.Now().Add(5 * time.Second); ; {
		switch n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(time.Until(deadline).Milliseconds())); {
		case err != nil && err != unix.EINTR:
			return err
		case n > 0:
			return nil
		case time.Until(deadline) < time.Millisecond:
			return unix.ETIMEDOUT
		}
	}
}

// sockaddr returns an address of the socket's family.
func sockaddr(fd int, text string) unix.Sockaddr {
	ap := netip.MustParseAddrPort(text)
	domain, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if domain == unix.AF_INET {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

// startPerformer starts a performer on a host.
func startPerformer(t testing.TB, h *lab.Host) *performer {
	t.Helper()
	return startPerformerWith(t, h)
}

// startPerformerWith starts a performer that inherits a socket.
func startPerformerWith(t testing.TB, h *lab.Host, files ...*os.File) *performer {
	t.Helper()
	return startPerformerAs(t, h, os.Args[0], files...)
}

// startPerformerAs starts a performer through a path to the test's program.
func startPerformerAs(t testing.TB, h *lab.Host, path string, files ...*os.File) *performer {
	t.Helper()
	cmd := exec.Command(path)
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), childEnv+"=sockets")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		stdin.Close()
		cmd.Wait()
	})
	t.Cleanup(end)
	return &performer{t: t, cmd: cmd, in: json.NewEncoder(stdin), out: json.NewDecoder(stdout), pid: uint32(cmd.Process.Pid), end: end}
}

// do performs an act and returns the result.
func (p *performer) do(a act) string {
	p.t.Helper()
	var result string
	if err := errors.Join(p.in.Encode(a), p.out.Decode(&result)); err != nil {
		p.t.Fatalf("%+v: %v", a, err)
	}
	return result
}

// script performs acts, one per line, written as "do socket [network or listener] [address] [= result]".
func (p *performer) script(text string) {
	p.t.Helper()
	for line := range strings.Lines(text) {
		words, want, found := strings.Cut(strings.TrimSpace(line), " = ")
		if words == "" {
			continue
		}
		if !found {
			want = "ok"
		}
		f := strings.Fields(words)
		a := act{Do: f[0], Socket: f[1]}
		switch {
		case a.Do == "socket":
			a.Network = f[2]
		case a.Do == "accept":
			a.From = f[2]
		case len(f) > 2:
			a.Addr = f[2]
		}
		if got := p.do(a); got != want {
			p.t.Errorf("%s: %s, want %s", words, got, want)
		}
	}
}

// collect shuts a handle down and returns the received events, one line each.
func collect(t testing.TB, d *divert.Handle, names map[uint32]string) []string {
	t.Helper()
	quiet(t, d) // softirqs have finished
	if err := d.Shutdown(divert.ShutdownBoth); err != nil {
		t.Fatal(err)
	}
	var lines []string
	endpoints := map[uint64]int{}
	for p, err := range d.Packets(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, describeEvent(&p.Addr, names, endpoints))
	}
	return lines
}

// describeEvent writes an event as a line: event, owner, protocol, local and remote side, flags, and the endpoints,
// numbered in order of appearance. Ports chosen by the kernel are "*".
func describeEvent(a *divert.Address, names map[uint32]string, endpoints map[uint64]int) string {
	f := a.Flow()
	number := func(id uint64) int {
		if _, ok := endpoints[id]; !ok && id != 0 {
			endpoints[id] = len(endpoints) + 1
		}
		return endpoints[id]
	}
	side := func(addr netip.Addr, port uint16) string {
		if addr == netip.IPv6Unspecified() && port == 0 {
			return "-"
		}
		text := fmt.Sprint(port)
		if port >= 30000 {
			text = "*"
		}
		return net.JoinHostPort(addr.String(), text)
	}
	var flags []string
	for _, f := range []struct {
		on   bool
		name string
	}{
		{a.Sniffed, "sniffed"}, {!a.Outbound, "in"}, {a.Loopback, "lo"}, {a.IPv6, "v6"},
	} {
		if f.on {
			flags = append(flags, f.name)
		}
	}
	owner, ok := names[f.ProcessID]
	if !ok {
		owner = fmt.Sprint("pid", f.ProcessID)
	}
	parent := ""
	id := number(f.EndpointID)
	if f.ParentEndpointID != 0 {
		parent = fmt.Sprintf("<%d", number(f.ParentEndpointID))
	}
	return fmt.Sprintf("%v %s %d %s %s %s #%d%s", a.Event, owner, f.Protocol, side(f.LocalAddr, f.LocalPort),
		side(f.RemoteAddr, f.RemotePort), strings.Join(flags, ","), id, parent)
}

// compareLines compares the received lines with the expected ones.
func compareLines(t testing.TB, got []string, want string) {
	t.Helper()
	var lines []string
	for line := range strings.Lines(want) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if g, w := strings.Join(got, "\n"), strings.Join(lines, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

var socketSequences = []struct {
	name   string
	filter string
	client string // acts of one process on host A
	want   string
}{
	{
		"TCP over IPv4", "true",
		`socket l tcp4
		 bind l 127.0.0.1:8080
		 listen l
		 socket c tcp4
		 connect c 127.0.0.1:8080
		 accept s l
		 close c
		 close s
		 close l`,
		`BIND client 6 127.0.0.1:8080 - sniffed,lo #1
		 LISTEN client 6 127.0.0.1:8080 - sniffed,lo #1
		 CONNECT client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #2
		 ACCEPT client 6 127.0.0.1:8080 127.0.0.1:* sniffed,in,lo #3<1
		 CLOSE client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #2
		 CLOSE client 6 127.0.0.1:8080 127.0.0.1:* sniffed,lo #3<1
		 CLOSE client 6 127.0.0.1:8080 - sniffed,lo #1`,
	},
	{
		"TCP over IPv6", "true",
		`socket l tcp6
		 bind l [::]:8080
		 listen l
		 socket c tcp6
		 connect c [fd77::1]:8080
		 accept s l
		 close s
		 close c
		 close l`,
		`BIND client 6 [::]:8080 - sniffed,v6 #1
		 LISTEN client 6 [::]:8080 - sniffed,v6 #1
		 CONNECT client 6 [fd77::1]:* [fd77::1]:8080 sniffed,lo,v6 #2
		 ACCEPT client 6 [fd77::1]:8080 [fd77::1]:* sniffed,in,lo,v6 #3<1
		 CLOSE client 6 [fd77::1]:8080 [fd77::1]:* sniffed,lo,v6 #3<1
		 CLOSE client 6 [fd77::1]:* [fd77::1]:8080 sniffed,lo,v6 #2
		 CLOSE client 6 [::]:8080 - sniffed,v6 #1`,
	},
	{
		"an IPv4 client of an IPv6 listener", "true",
		`socket l tcp6
		 bind l [::]:8080
		 listen l
		 socket c tcp6
		 connect c [::ffff:127.0.0.1]:8080
		 accept s l
		 close c
		 close s
		 close l`,
		`BIND client 6 [::]:8080 - sniffed,v6 #1
		 LISTEN client 6 [::]:8080 - sniffed,v6 #1
		 CONNECT client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #2
		 ACCEPT client 6 127.0.0.1:8080 127.0.0.1:* sniffed,in,lo #3<1
		 CLOSE client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #2
		 CLOSE client 6 127.0.0.1:8080 127.0.0.1:* sniffed,lo #3<1
		 CLOSE client 6 [::]:8080 - sniffed,v6 #1`,
	},
	{
		"a port that nobody listens at", "true",
		`socket c tcp4
		 connect c 10.77.0.2:81 = ECONNREFUSED
		 close c`,
		`CONNECT client 6 10.77.0.1:* 10.77.0.2:81 sniffed #1
		 CLOSE client 6 10.77.0.1:* 10.77.0.2:81 sniffed #1`,
	},
	{
		"a connect that does not wait", "true",
		`socket l tcp4
		 bind l 10.77.0.1:8080
		 listen l
		 socket c tcp4
		 nonblock c
		 connect c 10.77.0.1:8080 = EINPROGRESS
		 finish c
		 accept s l
		 close c
		 close s
		 close l`,
		`BIND client 6 10.77.0.1:8080 - sniffed #1
		 LISTEN client 6 10.77.0.1:8080 - sniffed #1
		 CONNECT client 6 10.77.0.1:* 10.77.0.1:8080 sniffed,lo #2
		 ACCEPT client 6 10.77.0.1:8080 10.77.0.1:* sniffed,in,lo #3<1
		 CLOSE client 6 10.77.0.1:* 10.77.0.1:8080 sniffed,lo #2
		 CLOSE client 6 10.77.0.1:8080 10.77.0.1:* sniffed,lo #3<1
		 CLOSE client 6 10.77.0.1:8080 - sniffed #1`,
	},
	{
		"a port that nobody listens at, over IPv6 and without waiting", "true",
		`socket c tcp6
		 nonblock c
		 connect c [fd77::1]:81 = EINPROGRESS
		 finish c = ECONNREFUSED
		 close c`,
		`CONNECT client 6 [fd77::1]:* [fd77::1]:81 sniffed,lo,v6 #1
		 CLOSE client 6 [fd77::1]:* [fd77::1]:81 sniffed,lo,v6 #1`,
	},
	{
		"a server that accepts one after the other", "event == ACCEPT or event == CLOSE and localPort == 8080",
		`socket l tcp6
		 bind l [::1]:8080
		 listen l
		 socket c tcp6
		 connect c [::1]:8080
		 accept s l
		 close s
		 close c
		 socket c tcp6
		 nonblock c
		 connect c [::1]:8080 = EINPROGRESS
		 accept s l
		 finish c
		 close s
		 close c
		 close l`,
		`ACCEPT client 6 [::1]:8080 [::1]:* sniffed,in,lo,v6 #1<2
		 CLOSE client 6 [::1]:8080 [::1]:* sniffed,lo,v6 #1<2
		 ACCEPT client 6 [::1]:8080 [::1]:* sniffed,in,lo,v6 #3<2
		 CLOSE client 6 [::1]:8080 [::1]:* sniffed,lo,v6 #3<2
		 CLOSE client 6 [::1]:8080 - sniffed,lo,v6 #2`,
	},
	{
		"a connection that is never accepted", "event == ACCEPT or event == CLOSE",
		`socket l tcp4
		 bind l 127.0.0.1:8080
		 listen l
		 socket c tcp4
		 connect c 127.0.0.1:8080
		 close l
		 close c`,
		`ACCEPT client 6 127.0.0.1:8080 127.0.0.1:* sniffed,in,lo #1<2
		 CLOSE client 6 127.0.0.1:8080 - sniffed,lo #2
		 CLOSE client 6 127.0.0.1:8080 127.0.0.1:* sniffed,lo #1<2
		 CLOSE client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #3`,
	},
	{
		"an MPTCP listener and a TCP client", "true",
		`socket l mptcp4
		 bind l 127.0.0.1:8080
		 listen l
		 socket c tcp4
		 connect c 127.0.0.1:8080
		 accept s l
		 close c
		 close s
		 close l`,
		`BIND client 6 127.0.0.1:8080 - sniffed,lo #1
		 LISTEN client 6 127.0.0.1:8080 - sniffed,lo #1
		 CONNECT client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #2
		 ACCEPT client 6 127.0.0.1:8080 127.0.0.1:* sniffed,in,lo #3<1
		 CLOSE client 6 127.0.0.1:* 127.0.0.1:8080 sniffed,lo #2
		 CLOSE client 6 127.0.0.1:8080 127.0.0.1:* sniffed,lo #3<1
		 CLOSE client 6 127.0.0.1:8080 - sniffed,lo #1`,
	},
	{
		"UDP that is connected", "true",
		`socket l udp4
		 bind l 127.0.0.1:5353
		 socket c udp4
		 bind c 127.0.0.1:5354
		 connect c 127.0.0.1:5353
		 write c
		 recv l
		 write c
		 recv l
		 close c
		 close l`,
		`BIND client 17 127.0.0.1:5353 - sniffed,lo #1
		 BIND client 17 127.0.0.1:5354 - sniffed,lo #2
		 CONNECT client 17 127.0.0.1:5354 127.0.0.1:5353 sniffed,lo #2
		 ACCEPT client 17 127.0.0.1:5353 127.0.0.1:5354 sniffed,in,lo #1
		 CLOSE client 17 127.0.0.1:5354 127.0.0.1:5353 sniffed,lo #2
		 CLOSE client 17 127.0.0.1:5353 - sniffed,lo #1`,
	},
	{
		"UDP that sends to two peers and is answered", "true",
		`socket l udp6
		 bind l [::1]:5353
		 socket c udp6
		 bind c [::1]:5354
		 send c [::1]:5353
		 recv l
		 send c [::1]:5355
		 send c [::1]:5353
		 recv l
		 send l [::1]:5354
		 recv c
		 close c
		 close l`,
		`BIND client 17 [::1]:5353 - sniffed,lo,v6 #1
		 BIND client 17 [::1]:5354 - sniffed,lo,v6 #2
		 CONNECT client 17 [::1]:5354 [::1]:5353 sniffed,lo,v6 #2
		 ACCEPT client 17 [::1]:5353 [::1]:5354 sniffed,in,lo,v6 #1
		 CONNECT client 17 [::1]:5354 [::1]:5355 sniffed,lo,v6 #2
		 CLOSE client 17 [::1]:5354 - sniffed,lo,v6 #2
		 CLOSE client 17 [::1]:5353 - sniffed,lo,v6 #1`,
	},
	{
		"UDP of an IPv6 socket with an IPv4 peer", "true",
		`socket l udp4
		 bind l 127.0.0.1:5353
		 socket c udp6
		 bind c [::ffff:127.0.0.1]:5354
		 send c [::ffff:127.0.0.1]:5353
		 recv l
		 send l 127.0.0.1:5354
		 recv c
		 connect c [::ffff:127.0.0.1]:5353
		 write c
		 recv l
		 close c
		 close l`,
		`BIND client 17 127.0.0.1:5353 - sniffed,lo #1
		 BIND client 17 127.0.0.1:5354 - sniffed,lo #2
		 CONNECT client 17 127.0.0.1:5354 127.0.0.1:5353 sniffed,lo #2
		 ACCEPT client 17 127.0.0.1:5353 127.0.0.1:5354 sniffed,in,lo #1
		 CONNECT client 17 127.0.0.1:5354 127.0.0.1:5353 sniffed,lo #2
		 CLOSE client 17 127.0.0.1:5354 127.0.0.1:5353 sniffed,lo #2
		 CLOSE client 17 127.0.0.1:5353 - sniffed,lo #1`,
	},
	{
		"UDP over IPv6 that is connected and not bound", "event != BIND and event != CLOSE",
		`socket l udp6
		 bind l [::]:7
		 socket c udp6
		 connect c [fd77::1]:7
		 write c
		 recv l
		 close l
		 write c
		 close c`,
		`CONNECT client 17 - [fd77::1]:7 sniffed,v6 #1
		 ACCEPT client 17 [fd77::1]:7 [fd77::1]:* sniffed,in,lo,v6 #2`,
	},
	{
		"a socket that is only made", "true",
		`socket a tcp4
		 socket b udp6
		 close a
		 close b`,
		``,
	},
}

// blockings are the refusals of a handle that does not sniff: the results of the acts, and the reported events.
var blockings = []struct {
	name   string
	filter string
	flags  divert.Flag
	client string
	want   string
}{
	{
		"CONNECT to a port", "event == CONNECT and remotePort == 80", 0,
		`socket l tcp4
		 bind l 127.0.0.1:80
		 listen l
		 socket c tcp4
		 connect c 127.0.0.1:80 = EACCES
		 connect c 127.0.0.1:80 = EACCES
		 socket m tcp4
		 bind m 127.0.0.1:81
		 listen m
		 connect c 127.0.0.1:81
		 socket u udp4
		 connect u 127.0.0.1:80 = EACCES
		 send u 127.0.0.1:80 = EACCES
		 send u 127.0.0.1:81`,
		`CONNECT client 6 0.0.0.0:0 127.0.0.1:80 lo #1
		 CONNECT client 6 0.0.0.0:0 127.0.0.1:80 lo #1
		 CONNECT client 17 0.0.0.0:0 127.0.0.1:80 lo #2
		 CONNECT client 17 0.0.0.0:* 127.0.0.1:80 lo #2`,
	},
	{
		"CONNECT of IPv6, mapped too", "event == CONNECT and remotePort == 80", 0,
		`socket c tcp6
		 connect c [::1]:80 = EACCES
		 connect c [::ffff:127.0.0.1]:80 = EACCES
		 connect c [::1]:81 = ECONNREFUSED
		 socket u udp6
		 send u [::ffff:127.0.0.1]:80 = EACCES
		 send u [::1]:80 = EACCES`,
		`CONNECT client 6 - [::1]:80 lo,v6 #1
		 CONNECT client 6 0.0.0.0:0 127.0.0.1:80 lo #1
		 CONNECT client 17 0.0.0.0:* 127.0.0.1:80 lo #2
		 CONNECT client 17 [::]:* [::1]:80 lo,v6 #2`,
	},
	{
		"CONNECT from a port, bound", "event == CONNECT and localPort == 7777", 0,
		`socket l tcp4
		 bind l 10.77.0.1:80
		 listen l
		 socket c tcp4
		 bind c 10.77.0.1:7777
		 connect c 10.77.0.1:80 = EACCES
		 socket d tcp4
		 connect d 10.77.0.1:80`,
		`CONNECT client 6 10.77.0.1:7777 10.77.0.1:80 lo #1`,
	},
	{
		"CONNECT from ports that the kernel chooses", "event == CONNECT and remotePort == 80 and localPort > 1024", 0,
		`socket l tcp4
		 bind l 10.77.0.1:80
		 listen l
		 socket c tcp4
		 connect c 10.77.0.1:80 = ECONNABORTED
		 nonblock l
		 accept s l = EAGAIN`,
		`CONNECT client 6 10.77.0.1:* 10.77.0.1:80 lo #1`,
	},
	{
		"BIND to a port", "event == BIND and localPort == 8080", 0,
		`socket a tcp4
		 bind a 127.0.0.1:8080 = EACCES
		 bind a 127.0.0.1:8081
		 socket b udp6
		 bind b [::1]:8080 = EACCES
		 bind b [::1]:8081`,
		`BIND client 6 127.0.0.1:8080 - lo #1
		 BIND client 17 [::1]:8080 - lo,v6 #2`,
	},
	{
		"ACCEPT from an address", "event == ACCEPT and remoteAddr == 10.77.0.1", 0,
		`socket l tcp4
		 bind l 0.0.0.0:8080
		 listen l
		 socket c tcp4
		 bind c 10.77.0.1:8888
		 nonblock c
		 connect c 10.77.0.1:8080 = EINPROGRESS
		 socket d tcp4
		 connect d 127.0.0.1:8080
		 accept s l
		 nonblock l
		 accept s l = EAGAIN`,
		`ACCEPT client 6 10.77.0.1:8080 10.77.0.1:8888 in,lo #0<1`,
	},
	{
		"ACCEPT of datagrams", "event == ACCEPT and udp and remotePort == 5354", 0,
		`socket l udp4
		 bind l 127.0.0.1:5353
		 socket c udp4
		 bind c 127.0.0.1:5354
		 send c 127.0.0.1:5353
		 send c 127.0.0.1:5353
		 nonblock l
		 recv l = EAGAIN`,
		`ACCEPT client 17 127.0.0.1:5353 127.0.0.1:5354 in,lo #1`,
	},
	{
		"CLOSE is told and not refused", "event == CLOSE", 0,
		`socket c udp4
		 bind c 127.0.0.1:5354
		 close c`,
		`CLOSE client 17 127.0.0.1:5354 - sniffed,lo #1`,
	},
	{
		"silently", "event == CONNECT and remotePort == 80 or event == BIND or event == CLOSE", divert.Drop,
		`socket c tcp4
		 connect c 127.0.0.1:80 = EACCES
		 bind c 127.0.0.1:81 = EACCES
		 close c`,
		``,
	},
	{
		"only what matches", "false", 0,
		`socket l tcp4
		 bind l 127.0.0.1:80
		 listen l
		 socket c tcp4
		 connect c 127.0.0.1:80
		 accept s l`,
		``,
	},
}

// TestSocketBlocking has handles refuse acts of processes, which succeed once the handle is closed.
func TestSocketBlocking(t *testing.T) {
	for _, tt := range blockings {
		t.Run(tt.name, func(t *testing.T) {
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			d := openEvents(t, pair.A, packet.LayerSocket, tt.filter, tt.flags)
			p := startPerformer(t, pair.A)
			p.script(tt.client)
			compareLines(t, collect(t, d, map[uint32]string{p.pid: "client"}), tt.want)
			p.script(`socket lz tcp4
				bind lz 10.77.0.1:9080
				listen lz
				socket cz tcp4
				connect cz 10.77.0.1:9080
				accept sz lz`)
		})
	}
}

// TestSocketSequences compares the acts of processes with the events that a handle reports.
func TestSocketSequences(t *testing.T) {
	for _, e := range []divert.Engine{divert.EngineAuto, divert.EngineInterpreter} {
		for _, tt := range socketSequences {
			t.Run(fmt.Sprintf("engine %d/%s", e, tt.name), func(t *testing.T) {
				pair := lab.TwoHostsT(t, lab.LinkOptions{})
				d := openEvents(t, pair.A, packet.LayerSocket, tt.filter, divert.Sniff, divert.WithEngine(e))
				p := startPerformer(t, pair.A)
				p.script(tt.client)
				compareLines(t, collect(t, d, map[uint32]string{p.pid: "client"}), tt.want)
			})
		}
	}
}

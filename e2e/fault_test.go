//go:build linux

package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/lab/fault"
	"github.com/opendivert/divert/packet"
)

// faults are the errors that each system call may return.
var faults = map[int][]unix.Errno{
	unix.SYS_SOCKET:          {unix.EMFILE, unix.ENOBUFS, unix.ENFILE},
	unix.SYS_BIND:            {unix.EADDRINUSE, unix.ENOMEM},
	unix.SYS_CONNECT:         {unix.ENOMEM, unix.EACCES},
	unix.SYS_SENDTO:          {unix.ENOBUFS, unix.EINTR, unix.ENOMEM, unix.EPERM},
	unix.SYS_SENDMSG:         {unix.ENOBUFS, unix.EINTR, unix.ENOMEM, unix.EPERM},
	unix.SYS_SENDMMSG:        {unix.ENOBUFS, unix.EINTR, unix.ENOMEM, unix.EPERM},
	unix.SYS_RECVFROM:        {unix.ENOBUFS, unix.EINTR, unix.ENOMEM},
	unix.SYS_RECVMSG:         {unix.ENOBUFS, unix.ENOMEM}, // EINTR comes only to calls that wait
	unix.SYS_RECVMMSG:        {unix.ENOBUFS, unix.EINTR, unix.ENOMEM},
	unix.SYS_SETSOCKOPT:      {unix.ENOMEM, unix.EPERM, unix.ENOPROTOOPT},
	unix.SYS_GETSOCKOPT:      {unix.ENOMEM},
	unix.SYS_BPF:             {unix.ENOMEM, unix.EPERM, unix.EAGAIN, unix.E2BIG},
	unix.SYS_MMAP:            {unix.ENOMEM, unix.EAGAIN},
	unix.SYS_OPENAT:          {unix.EMFILE, unix.ENOMEM, unix.EACCES, unix.EINTR},
	unix.SYS_PERF_EVENT_OPEN: {unix.EMFILE, unix.ENOMEM, unix.EACCES},
	unix.SYS_EPOLL_CREATE1:   {unix.EMFILE, unix.ENOMEM},
	unix.SYS_EPOLL_CTL:       {unix.ENOMEM, unix.ENOSPC},
	unix.SYS_EVENTFD2:        {unix.EMFILE, unix.ENOMEM},
	unix.SYS_SETNS:           {unix.ENOMEM, unix.EPERM},
	unix.SYS_UNSHARE:         {unix.ENOMEM, unix.EPERM},
	unix.SYS_PIDFD_OPEN:      {unix.EMFILE, unix.ENOMEM},
	unix.SYS_IOCTL:           {unix.ENOMEM, unix.EPERM},
	unix.SYS_PIPE2:           {unix.EMFILE, unix.ENFILE},
}

// faultResult is the child's report on one life of a handle.
type faultResult struct {
	Errors []string // of the calls, in order: "step: text"
	Hangs  string   // the goroutines, if it did not end
	Leaks  []string
}

func init() {
	children["faults"] = func() error {
		var calls []uint32
		for c := range faults {
			calls = append(calls, uint32(c))
		}
		fd, err := fault.Trap(calls...)
		if err != nil {
			return err
		}
		in := bufio.NewScanner(os.Stdin)
		fmt.Println(fd)
		in.Scan() // the supervisor is attached
		before := lab.TakeSnapshot()
		for in.Scan() {
			var r faultResult
			switch words := strings.Fields(in.Text()); words[0] {
			case "leaks":
				r.Leaks = before.Leaks()
			default:
				done := make(chan []string, 1)
				go func() { done <- faultLives[words[0]](words[1]) }()
				select {
				case r.Errors = <-done:
				case <-time.After(20 * time.Second):
					r.Hangs = string(stacks())
				}
			}
			if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
				return err
			}
		}
		return in.Err()
	}
}

func stacks() []byte {
	b := make([]byte, 1<<20)
	return b[:runtime.Stack(b, true)]
}

// faultLives are the lives of handles during which a call fails. Each acts like a real program and returns the errors.
var faultLives = map[string]func(port string) []string{
	"divert":      func(port string) []string { return packetsLife(port, 0, divert.EngineKernel) },
	"sniff":       func(port string) []string { return packetsLife(port, divert.Sniff, divert.EngineKernel) },
	"drop":        func(port string) []string { return packetsLife(port, divert.Drop, divert.EngineKernel) },
	"interpreter": func(port string) []string { return packetsLife(port, 0, divert.EngineInterpreter) },
	"log":         func(port string) []string { return packetsLife(port, divert.Sniff, divert.EngineInterpreter) },
	"flows":       func(port string) []string { return flowsLife(port) },
	"socket":      func(string) []string { return eventsLife(divert.LayerSocket, "true", divert.Sniff|divert.RecvOnly) },
	"flow":        func(string) []string { return eventsLife(divert.LayerFlow, "true", divert.Sniff|divert.RecvOnly) },
	"reflect":     func(string) []string { return eventsLife(divert.LayerReflect, "true", divert.Sniff|divert.RecvOnly) },
}

// steps collects the errors of a life.
type steps []string

func (s *steps) note(step string, err error) bool {
	if err != nil {
		*s = append(*s, step+": "+err.Error())
	}
	return err == nil
}

func packetsLife(port string, flags divert.Flag, e divert.Engine) (s steps) {
	text := "outbound and udp.DstPort == " + port
	d, err := divert.Open(text, divert.WithFlags(flags), divert.WithEngine(e))
	if !s.note("open", err) {
		return s
	}
	if flags&divert.Drop == 0 {
		for range 3 {
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			p, err := d.RecvContext(ctx)
			cancel()
			if s.note("receive", err) && flags&divert.Sniff == 0 {
				s.note("accept", d.Accept(p))
			}
		}
	}
	s.note("filter", d.SetFilter(text+" and udp"))
	s.note("length", d.SetQueueLength(100))
	_, err = d.Stats()
	s.note("stats", err)
	if flags&divert.Drop == 0 {
		number, _ := strconv.Atoi(port)
		b := faultDatagram(uint16(number))
		s.note("send outbound", d.Send(&divert.Packet{Data: slices.Clone(b), Addr: divert.Address{Outbound: true}}))
		p := divert.Packet{Data: b}
		p.Addr.SetNetwork(packet.NetworkData{IfIdx: 1})
		s.note("send inbound", d.Send(&p))
		s.note("shutdown", d.Shutdown(divert.ShutdownBoth))
	}
	s.note("close", d.Close())
	return s
}

// flowsLife decides flows, with a guard against hanging programs.
func flowsLife(port string) (s steps) {
	text := "udp.DstPort == " + port
	d, err := divert.Open(text, divert.WithEngine(divert.EngineKernel), divert.WithDropOnHang(divert.MinHang))
	if !s.note("open", err) {
		return s
	}
	receive := func() (*divert.Packet, bool) {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		p, err := d.RecvContext(ctx)
		return p, s.note("receive", err)
	}
	if p, ok := receive(); ok {
		s.note("accept flow", d.AcceptFlow(p))
		_, err := d.ForgetFlow(p)
		s.note("forget", err)
	}
	if p, ok := receive(); ok {
		s.note("drop flow", d.DropFlow(p))
		_, err := d.Flow(p)
		s.note("flow", err)
	}
	s.note("forget all", d.ForgetFlows())
	s.note("filter", d.SetFilter(text+" and udp"))
	_, err = d.Stats()
	s.note("stats", err)
	s.note("close", d.Close())
	return s
}

// faultDatagram is a datagram over loopback without a number.
func faultDatagram(port uint16) []byte {
	e := ends{src: netip.MustParseAddr("127.0.0.1"), dst: netip.MustParseAddr("127.0.0.1"), sport: 7, dport: port}
	return e.v4(nil, packet.ProtocolUDP, e.udp([]byte("injected")))
}

func eventsLife(l divert.Layer, text string, flags divert.Flag) (s steps) {
	d, err := divert.Open(text, divert.WithLayer(l), divert.WithFlags(flags))
	if !s.note("open", err) {
		return s
	}
	// One event for each: the handle's own namespace gets a socket, and a handle.
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err == nil { // the failing call may be one of the test's own
		if other, err := net.Dial("udp4", c.LocalAddr().String()); err == nil {
			other.Write([]byte("x"))
			other.Close()
		}
		c.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	_, err = d.RecvContext(ctx)
	cancel()
	if err != nil && ctx.Err() == nil {
		s.note("receive", err)
	}
	s.note("filter", d.SetFilter("processId != 0"))
	_, err = d.Stats()
	s.note("stats", err)
	s.note("close", d.Close())
	return s
}

// faulty is a child whose calls fail, and the traffic that its handles receive.
type faulty struct {
	t    *testing.T
	host *lab.Host
	cmd  *exec.Cmd
	in   io.Writer
	out  *bufio.Reader
	s    *fault.Supervisor
	from net.Conn
	to   net.PacketConn
}

func startFaulty(t *testing.T, h *lab.Host) *faulty {
	t.Helper()
	f := &faulty{t: t, host: h, cmd: exec.Command("/proc/self/exe")}
	f.cmd.Env = append(os.Environ(), childEnv+"=faults", "GODEBUG=asyncpreemptoff=1")
	f.cmd.Stderr = os.Stderr
	in, err := f.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(f.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.cmd.Process.Kill(); f.cmd.Wait() })
	f.in, f.out = in, bufio.NewReader(out)
	line, err := f.out.ReadString('\n')
	if err != nil {
		t.Skipf("calls cannot be trapped here: %v", err)
	}
	fd, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if f.s, err = fault.Attach(f.cmd.Process.Pid, fd); err != nil {
		t.Skipf("calls cannot be supervised here: %v", err)
	}
	t.Cleanup(func() {
		f.cmd.Process.Kill()
		if err := f.s.Close(); err != nil {
			t.Error(err)
		}
	})
	fmt.Fprintln(f.in, "go")
	if f.to, err = h.ListenPacket("udp4", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.to.Close() })
	if f.from, err = h.Dial(t.Context(), "udp4", f.to.LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.from.Close() })
	return f
}

// ask sends the child a command, and returns its answer.
func (f *faulty) ask(what string) (r faultResult) {
	f.t.Helper()
	fmt.Fprintln(f.in, what)
	line, err := f.out.ReadBytes('\n')
	if err != nil {
		f.t.Fatalf("the program ended during %q: %v", what, err)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		f.t.Fatalf("%q: %v", line, err)
	}
	return r
}

// live runs a handle's life while datagrams arrive and d decides which calls fail, and checks that nothing is left
// behind.
func (f *faulty) live(kind string, d fault.Decide, what func() string) (errs []string, calls int) {
	f.t.Helper()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				f.from.Write([]byte("through"))
			}
		}
	}()
	f.s.Arm(d)
	r := f.ask(fmt.Sprintf("%s %d", kind, addrPort(f.to).Port()))
	calls, err := f.s.Count()
	if err != nil {
		f.t.Fatal(err)
	}
	f.s.Arm(nil)
	close(stop)
	<-stopped
	if r.Hangs != "" {
		f.t.Fatalf("%s: the handle hangs\nerrors %q\n%s", what(), r.Errors, r.Hangs)
	}
	for _, e := range r.Errors {
		if !strings.Contains(e, "divert: ") {
			f.t.Errorf("%s: the error %q does not name its source", what(), e)
		}
	}
	if l := f.ask("leaks").Leaks; len(l) > 0 {
		f.t.Errorf("%s: left behind %q (errors %q)", what(), l, r.Errors)
	}
	f.passes(what, r.Errors)
	return r.Errors, calls
}

// passes checks that datagrams arrive, whatever the state of the handle.
func (f *faulty) passes(what func() string, errs []string) {
	f.t.Helper()
	b := make([]byte, 64)
	for { // the socket's buffer may be full
		f.to.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, _, err := f.to.ReadFrom(b); err != nil {
			break
		}
	}
	want := fmt.Sprintf("probe %d", time.Now().UnixNano())
	if _, err := f.from.Write([]byte(want)); err != nil {
		f.t.Errorf("%s: sending fails: %v", what(), err)
		return
	}
	f.to.SetReadDeadline(time.Now().Add(5 * time.Second))
	for {
		n, _, err := f.to.ReadFrom(b)
		if err != nil {
			f.t.Errorf("%s: later datagrams do not arrive: %v (errors %q)", what(), err, errs)
			return
		}
		if string(b[:n]) == want {
			return
		}
	}
}

// TestEveryCallFailsOnce makes the n-th system call of a handle's life fail, for every n with DIVERT_LONG and for some
// without. No error causes a panic, a hang, a leak or a stop of the traffic; each is reported, and the next handle
// works.
func TestEveryCallFailsOnce(t *testing.T) {
	t.Parallel()
	for kind := range sorted(faultLives) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h := lab.TwoHostsT(t, lab.LinkOptions{}).A
			needEngine(t, h, divert.EngineKernel)
			f := startFaulty(t, h)
			none := func() string { return "no call fails" }
			var calls int
			for range 2 { // the first handle of a process makes more calls than later ones
				var errs []string
				if errs, calls = f.live(kind, nil, none); len(errs) > 0 {
					t.Fatalf("without a fault: %q", errs)
				}
			}
			step, rounds := max(calls/7, 1), 1
			if long() {
				step, rounds = 1, 4
			}
			silent := 0
			for round := range rounds {
				for n := (round + os.Getpid()) % step; n < calls; n += step { // different calls in each run
					var failed fault.Call
					var e unix.Errno
					count := 0
					what := func() string {
						return fmt.Sprintf("call %d of %d, %s, fails with %q", n, calls, callName(failed), unix.ErrnoName(e))
					}
					errs, _ := f.live(kind, func(c fault.Call) unix.Errno {
						if count++; count != n+1 {
							return 0
						}
						list := faults[c.Number]
						failed, e = c, list[(n+round)%len(list)]
						return e
					}, what)
					if len(errs) == 0 {
						silent++
					}
					if testing.Verbose() {
						t.Logf("%s: %q", what(), errs)
					}
					if errs, _ := f.live(kind, nil, none); len(errs) > 0 {
						t.Errorf("after %s the next handle fails: %q", what(), errs)
					}
					if t.Failed() && !long() {
						return
					}
				}
			}
			t.Logf("%d calls; %d faults did no harm", calls, silent)
		})
	}
}

// callName names the calls that handles make.
func callName(c fault.Call) string {
	for name, number := range map[string]int{
		"socket": unix.SYS_SOCKET, "bind": unix.SYS_BIND, "connect": unix.SYS_CONNECT, "sendto": unix.SYS_SENDTO, "sendmsg": unix.SYS_SENDMSG,
		"sendmmsg": unix.SYS_SENDMMSG, "recvfrom": unix.SYS_RECVFROM, "recvmsg": unix.SYS_RECVMSG, "recvmmsg": unix.SYS_RECVMMSG,
		"setsockopt": unix.SYS_SETSOCKOPT, "getsockopt": unix.SYS_GETSOCKOPT, "mmap": unix.SYS_MMAP,
		"openat": unix.SYS_OPENAT, "perf_event_open": unix.SYS_PERF_EVENT_OPEN, "epoll_create1": unix.SYS_EPOLL_CREATE1,
		"epoll_ctl": unix.SYS_EPOLL_CTL, "eventfd2": unix.SYS_EVENTFD2, "setns": unix.SYS_SETNS, "unshare": unix.SYS_UNSHARE,
		"pidfd_open": unix.SYS_PIDFD_OPEN, "ioctl": unix.SYS_IOCTL, "pipe2": unix.SYS_PIPE2,
	} {
		if number == c.Number {
			return name
		}
	}
	if c.Number == unix.SYS_BPF {
		return fmt.Sprintf("bpf(%d)", c.Args[0])
	}
	return fmt.Sprintf("call %d", c.Number)
}

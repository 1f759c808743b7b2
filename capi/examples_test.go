//go:build linux

package main_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// example returns the source of a C example.
func example(name string) string { return filepath.Join("..", "examples", "c", name) }

// TestExamplesCompile compiles the examples as C and as C++.
func TestExamplesCompile(t *testing.T) {
	for _, source := range []string{
		"netdump.c", "netfilter.c", "passthru.c", "flowtrack.c", "socketdump.c", "windivertctl.c", "rewrite.c",
	} {
		for _, d := range dialects {
			t.Run(source+"/"+d.name, func(t *testing.T) { compile(t, example(source), d) })
		}
	}
}

// TestExamplesRefuse: wrong usage and wrong filters are reported on standard error, with status 1.
func TestExamplesRefuse(t *testing.T) {
	for _, c := range []struct{ name, source, args, want string }{
		{"usage", "netdump.c", "", "usage: "},
		{"too many arguments", "passthru.c", "true 1 1 1 1", "usage: "},
		{"threads", "passthru.c", "true 65", "error: THREADS must be 1 to 64"},
		{"too many filters", "flowtrack.c", "tcp udp", "usage: "},
		{"--block and too many filters", "socketdump.c", "--block tcp udp", "usage: "},
		{"too many filters without --block", "socketdump.c", "tcp udp", "usage: "},
		{"no command", "windivertctl.c", "", "usage: "},
		{"no such command", "windivertctl.c", "uninstal", "usage: "},
		{"filter of another layer", "windivertctl.c", "list tcp", `error: invalid filter "`},
		{"filter", "netfilter.c", "tpc", `error: invalid filter "the filter has a word`},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := exec.Command(compile(t, example(c.source), gccModern), strings.Fields(c.args)...).CombinedOutput()
			if err == nil || !strings.HasPrefix(string(out), c.want) {
				t.Errorf("it says %q, %v; want %q", out, err, c.want)
			}
		})
	}
}

// background is a program running in a host's namespace.
type background struct {
	lines chan string // of its output
}

// startAt starts a program that runs until the test ends.
func startAt(t *testing.T, h *lab.Host, cmd *exec.Cmd) *background {
	t.Helper()
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	b := &background{lines: make(chan string, 10000)}
	go func() {
		defer close(b.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			b.lines <- s.Text()
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
		in.Close()
	})
	return b
}

// eventually calls f until it reports that the program works.
func eventually(t *testing.T, f func() bool) {
	t.Helper()
	for range 100 {
		if f() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the program does not do its work")
}

// printed returns the lines printed until a pause in the output.
func (b *background) printed() string {
	var all []string
	for {
		select {
		case line := <-b.lines:
			all = append(all, line)
		case <-time.After(300 * time.Millisecond):
			return strings.Join(all, "\n")
		}
	}
}

func TestExampleNetdump(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	echo, err := pair.B.Echo("udp", netip.AddrPortFrom(pair.B.Addr6(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	program := compile(t, example("netdump.c"), gccModern)
	dump := startAt(t, pair.A, exec.Command(program, fmt.Sprintf("udp and remotePort == %d", echo.Addr().Port())))
	conn, err := pair.A.Dial(t.Context(), "udp", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var got string
	eventually(t, func() bool {
		fmt.Fprint(conn, "dumped")
		conn.SetReadDeadline(time.Now().Add(3 * time.Second))
		if n, err := conn.Read(make([]byte, 100)); n != 6 {
			t.Errorf("the echo: %d bytes, %v", n, err)
		}
		got = dump.printed()
		return got != ""
	})
	for _, want := range []string{
		"Direction=outbound IfIdx=", "Direction=inbound IfIdx=", "IPv6 [Version=6 TrafficClass=0 FlowLabel=",
		"SrcAddr=fd77::1 DstAddr=fd77::2]", "SrcAddr=fd77::2 DstAddr=fd77::1]",
		fmt.Sprintf("DstPort=%d Length=14 Checksum=0x", echo.Addr().Port()), "dumped", "64756D706564", " Hash=0x",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the dump lacks %q:\n%s", want, got)
		}
	}
}

func TestExampleNetfilter(t *testing.T) {
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("answers go inbound, which needs the device: %v", err)
	}
	tun.Close()
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	program := compile(t, example("netfilter.c"), gccModern)
	wall := startAt(t, pair.A, exec.Command(program, "outbound and (tcp.DstPort == 81 or udp.DstPort == 81)"))
	for _, addr := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6()} {
		to := netip.AddrPortFrom(addr, 81).String()
		l, err := pair.B.Listen("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		eventually(t, func() bool {
			conn, err := pair.A.Dial(t.Context(), "tcp", to)
			if err != nil {
				return strings.Contains(err.Error(), "refused")
			}
			conn.Close() // the connection began before the handle was open
			return false
		})
		refused(t, pair, to)
	}
	if got := wall.printed(); !strings.Contains(got, "ip.DstAddr=10.77.0.2 tcp.SrcPort=") ||
		!strings.Contains(got, "ip.DstAddr=fd77::2 udp.SrcPort=") || !strings.Contains(got, "tcp.Flags=[SYN]") {
		t.Errorf("it prints:\n%s", got)
	}
}

// refused checks that a datagram is answered by "port unreachable".
func refused(t *testing.T, pair *lab.Pair, to string) {
	t.Helper()
	conn, err := pair.A.Dial(t.Context(), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "blocked")
	conn.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := conn.Read(make([]byte, 10)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a datagram to %s: %v, want it refused", to, err)
	}
}

func TestExamplePassthru(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	program := compile(t, example("passthru.c"), gccModern)
	pass := startAt(t, pair.A, exec.Command(program, "tcp", "3", "64", "5"))
	transfer := func(size int64) {
		t.Helper()
		if _, err := lab.TransferTCP(t.Context(), pair.A, pair.B, netip.AddrPortFrom(pair.B.Addr4(), 0), size, 7); err != nil {
			t.Error(err)
		}
	}
	eventually(t, func() bool { transfer(1); return queued(t, pair.A) > 0 })
	transfer(20 << 20)
	if got := pass.printed(); got != "" {
		t.Errorf("it prints %s", got)
	}
	if n := queued(t, pair.A); n < 100 {
		t.Errorf("%d packets have passed it", n)
	}
}

// await returns the next line that matches a pattern.
func (b *background) await(t *testing.T, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var others []string
	timeout := time.After(20 * time.Second)
	for {
		select {
		case line, ok := <-b.lines:
			if ok && re.MatchString(line) {
				return line
			}
			if others = append(others, line); !ok {
				t.Fatalf("no line like %s, and the program has ended; it prints\n%s", pattern, strings.Join(others, "\n"))
			}
		case <-timeout:
			t.Fatalf("no line like %s; it prints\n%s", pattern, strings.Join(others, "\n"))
		}
	}
}

func TestExampleFlowtrack(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEvents(t, pair.A)
	track := startAt(t, pair.A, exec.Command(compile(t, example("flowtrack.c"), gccModern), "tcp"))
	awaitHandle(t, pair.A, divert.LayerFlow)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(program)
	row := fmt.Sprintf(`^%-10d %-20.20s TCP    `, os.Getpid(), name)
	for _, addr := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6()} {
		echo, err := pair.B.Echo("tcp", netip.AddrPortFrom(addr, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer echo.Close()
		conn, err := pair.A.Dial(t.Context(), "tcp", echo.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		local := conn.LocalAddr().(*net.TCPAddr)
		track.await(t, row+regexp.QuoteMeta(fmt.Sprintf("%v:%d ----> %v:%d", local.IP, local.Port, addr, echo.Addr().Port()))+"$")
		conn.Close()
		// A table without rows: one header after the other.
		eventually(t, func() bool {
			first, second := track.await(t, ""), track.await(t, "")
			return strings.HasPrefix(first, "PID ") && strings.HasPrefix(second, "PID ")
		})
	}
}

// startSockets starts testdata/sockets.c on a host, and returns its process id and its output after its last step.
func startSockets(t *testing.T, h *lab.Host, port int) (pid int, printed []string) {
	t.Helper()
	cmd := exec.Command(compile(t, "sockets.c", gccModern), strconv.Itoa(port))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close() })
	b := startAt(t, h, cmd)
	for {
		line := b.await(t, "")
		if line == "done" {
			return cmd.Process.Pid, printed
		}
		printed = append(printed, line)
	}
}

func TestExampleSocketdump(t *testing.T) {
	h := host(t)
	needEvents(t, h)
	name := filepath.Base(compile(t, "sockets.c", gccModern))
	dump := startAt(t, h, exec.Command(compile(t, example("socketdump.c"), gccModern), "localPort == 8080 or remotePort == 8080"))
	awaitHandle(t, h, divert.LayerSocket)
	pid, printed := startSockets(t, h, 8080)
	if len(printed) != 0 {
		t.Errorf("a step fails though nothing is refused: %q", printed)
	}
	const server, client = `\[127\.0\.0\.1\]:8080`, `\[127\.0\.0\.1\]:\d+`
	for _, want := range []struct{ event, parent, sides string }{
		{"BIND", "0", "local=" + server},
		{"LISTEN", "0", "local=" + server},
		{"CONNECT", "0", "local=" + client + " remote=" + server},
		{"ACCEPT", `[1-9]\d*`, "local=" + server + " remote=" + client},
		{"CLOSE", "0", "local=" + client + " remote=" + server},
		{"CLOSE", `[1-9]\d*`, "local=" + server + " remote=" + client},
		{"CLOSE", "0", "local=" + server},
	} {
		pattern := fmt.Sprintf(`^%s pid=%d program=%s endpoint=[1-9]\d* parent=%s protocol=TCP %s$`,
			want.event, pid, name, want.parent, want.sides)
		if line := dump.await(t, ""); !regexp.MustCompile(pattern).MatchString(line) {
			t.Errorf("it prints\n%s, want\n%s", line, pattern)
		}
	}
}

// TestExampleSocketdumpBlocks: refused operations fail, and are printed.
func TestExampleSocketdumpBlocks(t *testing.T) {
	h := host(t)
	needEvents(t, h)
	wall := startAt(t, h, exec.Command(compile(t, example("socketdump.c"), gccModern), "--block"))
	awaitHandle(t, h, divert.LayerSocket)
	pid, printed := startSockets(t, h, 8080)
	want := []string{"bind: Permission denied", "connect: Permission denied", "accept: Invalid argument"}
	if !slices.Equal(printed, want) {
		t.Errorf("the steps fail with %q, want %q", printed, want)
	}
	for _, event := range []string{"BIND", "LISTEN", "CONNECT"} {
		if line := wall.await(t, ""); !strings.HasPrefix(line, fmt.Sprintf("%s pid=%d ", event, pid)) {
			t.Errorf("it prints %s, want %s", line, event)
		}
	}
}

// TestExampleWindivertctl lists, watches and ends other programs.
func TestExampleWindivertctl(t *testing.T) {
	h := host(t)
	program := compile(t, example("windivertctl.c"), gccModern)
	ctl := func(args ...string) string {
		t.Helper()
		var out strings.Builder
		cmd := exec.Command(program, args...)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := h.Exec(cmd); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		return out.String()
	}
	if got := ctl("list"); got != "" {
		t.Errorf("without handles it prints %s", got)
	}
	watch := startAt(t, h, exec.Command(program, "watch"))
	dumper := exec.Command(compile(t, example("netdump.c"), gccModern), "tcp.DstPort == 81 and outbound", "7")
	startAt(t, h, dumper)
	rest := fmt.Sprintf(` time=-?\d+\.\d{3}s pid=%d exe=%s layer=NETWORK flags=SNIFF\|FRAGMENTS priority=7 filter="tcp\.DstPort = 81 and outbound"`,
		dumper.Process.Pid, regexp.QuoteMeta(dumper.Path))
	watch.await(t, "^OPEN"+rest+"$") // of an opening before or after its own
	passer := exec.Command(compile(t, example("passthru.c"), gccModern), "udp")
	startAt(t, h, passer)
	watch.await(t, fmt.Sprintf(`^OPEN .* pid=%d .* layer=NETWORK flags=0 priority=0 filter="udp"$`, passer.Process.Pid))
	if got := ctl("list"); !regexp.MustCompile(`^OPEN` + rest + `\nOPEN time=.* filter="udp"\n$`).MatchString(got) {
		t.Errorf("it lists\n%s, want\n%s, and another", got, rest)
	}
	if got := ctl("kill", "priority == 7"); !regexp.MustCompile("^KILL" + rest + `\n$`).MatchString(got) {
		t.Errorf("it kills\n%s, want\n%s", got, rest)
	}
	var ended *exec.ExitError
	if err := dumper.Wait(); !errors.As(err, &ended) || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the program ended with %v", err)
	}
	watch.await(t, fmt.Sprintf(`^CLOSE .* pid=%d .* priority=7 `, dumper.Process.Pid))
	if got := ctl("list"); strings.Count(got, "\n") != 1 || !strings.Contains(got, `filter="udp"`) {
		t.Errorf("after it has killed one it lists\n%s", got)
	}
}

// queued returns the number of packets queued on a host, in the queue that has had the most.
func queued(t *testing.T, h *lab.Host) (most int) {
	t.Helper()
	queues, err := h.PacketQueues()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range queues {
		most = max(most, q.Last)
	}
	return most
}

// replaced sends datagrams through a program that replaces a word, until it is interrupted.
func replaced(t *testing.T, pair *lab.Pair, to net.PacketConn, text, want string, cmd *exec.Cmd) {
	t.Helper()
	b := startAt(t, pair.A, cmd)
	b.await(t, "^diverting$")
	from, err := pair.A.Dial(t.Context(), "udp", to.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for range 3 {
		fmt.Fprint(from, text)
		got := make([]byte, 100)
		to.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, _, err := to.ReadFrom(got); string(got[:n]) != want {
			t.Fatalf("%q arrives, %v; it prints %s", got[:n], err, b.printed())
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("interrupted, it ends with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("interrupted, it waits on")
		_ = cmd.Process.Kill()
	}
}

// receiver returns a socket on B, and a filter for the packets sent to it.
func receiver(t *testing.T, pair *lab.Pair) (net.PacketConn, string) {
	t.Helper()
	conn, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn, fmt.Sprintf("outbound and udp.DstPort == %d", conn.LocalAddr().(*net.UDPAddr).Port)
}

func TestExampleRewrite(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	conn, filter := receiver(t, pair)
	replaced(t, pair, conn, "a cup of coffee, please", "a cup of black tea, please",
		exec.Command(compile(t, example("rewrite.c"), gccModern), filter, "coffee", "black tea"))
}

// TestExamplePythonDescriptors has one event loop wait for two handles.
func TestExamplePythonDescriptors(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	conn, filter := receiver(t, pair)
	other, otherFilter := receiver(t, pair)
	cmd := python(t, "count.py")
	library := cmd.Args[len(cmd.Args)-1]
	cmd.Args = append(cmd.Args[:len(cmd.Args)-1], library, filter, otherFilter)
	count := startAt(t, pair.A, cmd)
	count.await(t, "^diverting$")
	for n := range 3 {
		for _, to := range []net.PacketConn{other, conn} {
			from, err := pair.A.Dial(t.Context(), "udp", to.LocalAddr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer from.Close()
			fmt.Fprint(from, "counted")
			to.SetReadDeadline(time.Now().Add(20 * time.Second))
			if n, _, err := to.ReadFrom(make([]byte, 100)); n != 7 {
				t.Errorf("%d bytes arrive, %v", n, err)
			}
		}
		count.await(t, fmt.Sprintf("^%d %s$", n+1, regexp.QuoteMeta(otherFilter)))
		count.await(t, fmt.Sprintf("^%d %s$", n+1, regexp.QuoteMeta(filter)))
	}
	_ = cmd.Process.Signal(os.Interrupt)
	count.await(t, "^interrupted$")
}

// python returns a command of a Python script, with the library as its last argument.
func python(t *testing.T, script string, args ...string) *exec.Cmd {
	t.Helper()
	interpreter, err := exec.LookPath("python3")
	if err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command(interpreter, "-c", "import os; os.eventfd").CombinedOutput(); err != nil {
		t.Skipf("Python 3.10 has eventfd: %s", out)
	}
	args = append([]string{"-B", filepath.Join("..", "examples", "python", script)}, args...)
	return exec.Command(interpreter, append(args, filepath.Join(library(t), "libwindivert.so"))...)
}

// TestExamplePython lets Python change datagrams. Control-C ends it while it waits for one.
func TestExamplePython(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	conn, filter := receiver(t, pair)
	replaced(t, pair, conn, "a cup of coffee", "a cup of cocoa!", python(t, "edit.py", filter, "coffee", "cocoa!"))
}

// TestPythonForWindows: with examples/python/onlinux.py a program that calls WinDivert through ctypes as on Windows runs
// unchanged, both with waiting receive calls, which control-C ends, and with overlapped ones in asyncio.
func TestPythonForWindows(t *testing.T) {
	examples, err := filepath.Abs(filepath.Join("..", "examples", "python"))
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"wait", "overlapped"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			pair := lab.TwoHostsT(t, lab.LinkOptions{})
			conn, filter := receiver(t, pair)
			cmd := python(t, filepath.Join("..", "..", "capi", "testdata", "windows.py"), mode, filter, "coffee", "cocoa!")
			library := cmd.Args[len(cmd.Args)-1]
			cmd.Args = cmd.Args[:len(cmd.Args)-1]
			cmd.Env = append(os.Environ(), "WINDIVERT_LIBRARY="+library, "PYTHONPATH="+examples)
			replaced(t, pair, conn, "a cup of coffee", "a cup of cocoa!", cmd)
		})
	}
}

// TestExamplePythonAsyncio lets Python delay datagrams; those still waiting at an interrupt are sent.
func TestExamplePythonAsyncio(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	conn, filter := receiver(t, pair)
	replaced(t, pair, conn, "late", "late", python(t, "lag.py", filter, "0.05"))

	cmd := python(t, "lag.py", filter, "3600")
	lag := startAt(t, pair.A, cmd)
	lag.await(t, "^diverting$")
	from, err := pair.A.Dial(t.Context(), "udp", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	fmt.Fprint(from, "one")
	fmt.Fprint(from, "two")
	eventually(t, func() bool { return queued(t, pair.A) >= 2 })
	_ = cmd.Process.Signal(os.Interrupt)
	lag.await(t, `^sending \d packets$`)
	for range 2 {
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, _, err := conn.ReadFrom(make([]byte, 100)); n != 3 {
			t.Errorf("%d bytes arrive, %v", n, err)
		}
	}
}

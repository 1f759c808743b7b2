//go:build linux

package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
)

// windowsProgram returns the source of a program that includes windows.h.
func windowsProgram(name string) string {
	return filepath.Join("..", "examples", "c", "win32", name+".c")
}

// TestProgramsCompile compiles all programs as C++ and for Windows; the other tests compile them as C.
func TestProgramsCompile(t *testing.T) {
	sources, err := filepath.Glob(windowsProgram("*"))
	if err != nil || len(sources) < 11 {
		t.Fatalf("%q, %v", sources, err)
	}
	for name, command := range map[string][]string{
		"C++":   {"g++", "-std=c++17", "-x", "c++", "-Iwin32"},
		"mingw": {mingw, "-std=gnu17", "-DWINDIVERTEXPORT="},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && name == "mingw" {
				t.Skip("the headers of Windows are long")
			}
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skip(err)
			}
			must(t, command[0], append(append(command[1:], "-Wall", "-Wextra", "-Werror", "-I.", "-fsyntax-only"), sources...)...)
		})
	}
}

// startWindows starts a program that includes windows.h on a host and waits until its handle is open.
func startWindows(t *testing.T, h *lab.Host, layer divert.Layer, name string, args ...string) *background {
	t.Helper()
	needWin32(t)
	b, _ := startCommand(t, h, exec.Command(compile(t, windowsProgram(name), win32C), args...), layer)
	return b
}

// startCommand starts a command and waits until its handle is open.
func startCommand(t *testing.T, h *lab.Host, cmd *exec.Cmd, layer divert.Layer) (*background, *exec.Cmd) {
	t.Helper()
	b := startAt(t, h, cmd)
	awaitHandle(t, h, layer)
	return b, cmd
}

// needTun skips where inbound packets cannot be sent.
func needTun(t *testing.T) {
	t.Helper()
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("packets go inbound, which needs the device: %v", err)
	}
	tun.Close()
}

// answer sends a text over a new connection and returns the whole answer.
func answer(t *testing.T, h *lab.Host, to netip.AddrPort, text string) (string, error) {
	t.Helper()
	return exchange(t, h, to, text, true)
}

// exchange is answer with a choice: the client ends its half of the connection behind the text, or leaves it open, as
// browsers do. A server whose connection was reset answers a FIN with a reset, which may reach the client before the
// injected packets.
func exchange(t *testing.T, h *lab.Host, to netip.AddrPort, text string, ends bool) (string, error) {
	t.Helper()
	conn, err := h.Dial(t.Context(), "tcp", to.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if ends {
		_ = conn.(*net.TCPConn).CloseWrite()
	}
	b, err := io.ReadAll(conn)
	return string(b), err
}

// serve answers each connection to a port of a host with the result of f for the bytes received.
func serve(t *testing.T, h *lab.Host, port uint16, f func(string) string) netip.AddrPort {
	t.Helper()
	l, err := h.Listen("tcp", netip.AddrPortFrom(h.Addr4(), port).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				b, _ := io.ReadAll(conn)
				_, _ = io.WriteString(conn, f(string(b)))
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

func TestProgramNetdump(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	dump := startWindows(t, pair.A, divert.LayerNetwork, "netdump", "udp.DstPort == 7")
	conn, err := pair.A.Dial(t.Context(), "udp", netip.AddrPortFrom(pair.B.Addr6(), 7).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "dumped")
	dump.await(t, `^Packet \[Timestamp=[0-9.e-]+, Direction=outbound IfIdx=[1-9]\d*\]$`)
	dump.await(t, `^IPv6 \[SrcAddr=fd77::1 DstAddr=fd77::2\]$`)
	dump.await(t, `^UDP \[SrcPort=\d+ DstPort=7\] payload=6$`)
}

func TestProgramNetfilter(t *testing.T) {
	needTun(t)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	server := serve(t, pair.B, 81, func(string) string { return "" })
	wall := startWindows(t, pair.A, divert.LayerNetwork, "netfilter", "outbound and tcp.DstPort == 81")
	if _, err := answer(t, pair.A, server, ""); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection: %v, want it refused", err)
	}
	wall.await(t, `^BLOCK ip.SrcAddr=10\.77\.0\.1 ip.DstAddr=10\.77\.0\.2$`)
}

func TestProgramPassthru(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	pass := startWindows(t, pair.A, divert.LayerNetwork, "passthru", "tcp", "3", "64")
	if _, err := lab.TransferTCP(t.Context(), pair.A, pair.B, netip.AddrPortFrom(pair.B.Addr4(), 0), 5<<20, 7); err != nil {
		t.Error(err)
	}
	if got := pass.printed(); got != "" || queued(t, pair.A) < 50 {
		t.Errorf("%d packets have passed it; it prints %s", queued(t, pair.A), got)
	}
}

func TestProgramWebfilter(t *testing.T) {
	needTun(t)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	l, err := pair.B.Listen("tcp", netip.AddrPortFrom(pair.B.Addr4(), 80).String())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "the page") })}
	go server.Serve(l)
	defer server.Close()
	web := startWindows(t, pair.A, divert.LayerNetwork, "webfilter", "bad.example", "half.example/private")
	for _, row := range []struct{ host, path, want, printed string }{
		{"good.example", "/", "the page", "good.example/: allowed"},
		{"www.bad.example", "/x", "This address is blocked.", "www.bad.example/x: BLOCKED!"},
		{"notbad.example", "/", "the page", "notbad.example/: allowed"},
		{"half.example", "/private/2", "This address is blocked.", "half.example/private/2: BLOCKED!"},
		{"half.example", "/public", "the page", "half.example/public: allowed"},
	} {
		request := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", row.path, row.host)
		if got, err := exchange(t, pair.A, netip.AddrPortFrom(pair.B.Addr4(), 80), request, false); !strings.Contains(got, row.want) {
			t.Errorf("%s%s gives %q, %v", row.host, row.path, got, err)
		}
		web.await(t, "^URL "+regexp.QuoteMeta(row.printed)+"$")
	}
}

func TestProgramStreamdump(t *testing.T) {
	needTun(t)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	server := serve(t, pair.B, 4444, func(s string) string { return "you said " + s })
	dump := startWindows(t, pair.A, divert.LayerNetwork, "streamdump", "4444")
	if got, err := answer(t, pair.A, server, "hello"); got != "you said hello" || err != nil {
		t.Errorf("through the proxy comes %q, %v", got, err)
	}
	dump.await(t, `^\[0005\] hello$`)
	dump.await(t, `^\[0014\] you said hello$`)
}

func TestProgramFlowtrack(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needEvents(t, pair.A)
	track := startWindows(t, pair.A, divert.LayerFlow, "flowtrack", "tcp")
	echo, err := pair.B.Echo("tcp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	conn, err := pair.A.Dial(t.Context(), "tcp", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	track.await(t, fmt.Sprintf(`^%d +%.20s +10\.77\.0\.1:\d+ ----> 10\.77\.0\.2:%d$`, os.Getpid(), testProgram(t), echo.Addr().Port()))
}

// testProgram returns the name of the tests' own program.
func testProgram(t *testing.T) string {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(program)
}

func TestProgramSocketdump(t *testing.T) {
	h := host(t)
	needEvents(t, h)
	dump := startWindows(t, h, divert.LayerSocket, "socketdump", "localPort == 8081")
	l, err := h.Listen("tcp", "127.0.0.1:8081")
	if err != nil {
		t.Fatal(err)
	}
	dump.await(t, fmt.Sprintf(`^BIND pid=%d program=%s local=\[127\.0\.0\.1\]:8081`, os.Getpid(), testProgram(t)))
	dump.await(t, `^LISTEN `)
	l.Close()
	dump.await(t, `^CLOSE `)
}

func TestProgramWindivertctl(t *testing.T) {
	h := host(t)
	needWin32(t)
	ctl := func(args ...string) string {
		var out strings.Builder
		cmd := exec.Command(compile(t, windowsProgram("windivertctl"), win32C), args...)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := h.Exec(cmd); err != nil {
			t.Errorf("%q: %v\n%s", args, err, &out)
		}
		return out.String()
	}
	_, victim := startCommand(t, h, exec.Command(compile(t, windowsProgram("passthru"), win32C), "udp.DstPort == 999"), divert.LayerNetwork)
	want := fmt.Sprintf(" pid=%d exe=%s layer=NETWORK priority=0 filter=\"udp.DstPort = 999\"\n", victim.Process.Pid, filepath.Base(victim.Path))
	if got := ctl("list"); got != "OPEN"+want {
		t.Errorf("list prints %q, want %q", got, "OPEN"+want)
	}
	if got := ctl("kill", "layer == NETWORK"); got != "KILL"+want {
		t.Errorf("kill prints %q", got)
	}
	if state, err := victim.Process.Wait(); err != nil || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process ends with %v, %v", state, err)
	}
	if got := ctl("uninstall"); got != "no driver is installed\n" {
		t.Errorf("uninstall prints %q", got)
	}
}

// TestProgramDPI changes requests, in buffers of 9,016 bytes, and ends by signals, whose handlers call the library. On a
// busy machine TCP may send a request again, which counts again.
func TestProgramDPI(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needWin32(t)
	server := serve(t, pair.B, 8000, func(s string) string {
		if len(s) > 1000 {
			return fmt.Sprint(len(s))
		}
		return s
	})
	program := compile(t, windowsProgram("dpi"), win32C)
	for _, row := range []struct {
		name   string
		signal os.Signal
		want   string
	}{
		{"control handler", os.Interrupt, `^[2-9] requests changed; the last error is 232$`},
		{"signal handler", syscall.SIGTERM, `^[2-9] requests changed; the last error is (232|995|6)$`},
	} {
		t.Run(row.name, func(t *testing.T) {
			cmd := exec.Command(program, "8000")
			cmd.Env = append(os.Environ(), "DIVERT_SEGMENTS=1")
			dpi, _ := startCommand(t, pair.A, cmd, divert.LayerNetwork)
			request := "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"
			if got, err := answer(t, pair.A, server, request); got != strings.Replace(request, "Host", "hoSt", 1) || err != nil {
				t.Errorf("the server receives %q, %v", got, err)
			}
			upload := "POST / HTTP/1.1\r\n\r\n" + strings.Repeat("x", 3<<20)
			if got, err := answer(t, pair.A, server, upload); got != fmt.Sprint(len(upload)) || err != nil {
				t.Errorf("of an upload of %d bytes %s arrive, %v", len(upload), got, err)
			}
			if err := cmd.Process.Signal(row.signal); err != nil {
				t.Fatal(err)
			}
			dpi.await(t, row.want)
			if err := cmd.Wait(); err != nil {
				t.Errorf("it ends with %v", err)
			}
		})
	}
}

// TestProgramLag: packets wait, and an interrupt of the program loses none.
func TestProgramLag(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needWin32(t)
	echo, err := pair.B.Echo("udp", netip.AddrPortFrom(pair.B.Addr4(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	conn, err := pair.A.Dial(t.Context(), "udp", echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	start := func(milliseconds string) (*background, *exec.Cmd) {
		b, cmd := startCommand(t, pair.A, exec.Command(compile(t, windowsProgram("lag"), win32C), "outbound and udp", milliseconds),
			divert.LayerNetwork)
		b.await(t, "^control-C ends it$")
		return b, cmd
	}
	exchange := func() {
		t.Helper()
		conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, err := conn.Read(make([]byte, 10)); n != 6 {
			t.Errorf("the echo: %d bytes, %v", n, err)
		}
	}
	lag, cmd := start("150")
	began := time.Now()
	fmt.Fprint(conn, "lagged")
	exchange()
	if d := time.Since(began); d < 140*time.Millisecond {
		t.Errorf("the echo comes after %v", d)
	}
	_ = cmd.Process.Signal(os.Interrupt)
	lag.await(t, "^everything is sent$")
	lag, cmd = start("3600000")
	fmt.Fprint(conn, "lagged")
	eventually(t, func() bool { return queued(t, pair.A) >= 1 })
	_ = cmd.Process.Signal(os.Interrupt)
	lag.await(t, "^everything is sent$")
	exchange()
}

// TestProgramOwner: the table of connections names the owner of a connection while its SYN waits.
func TestProgramOwner(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	direct := serve(t, pair.B, 7001, func(string) string { return "direct" })
	serve(t, pair.B, 7002, func(string) string { return "redirected" })
	owner := startWindows(t, pair.A, divert.LayerNetwork, "owner", "7001", "7002", testProgram(t))
	if got, err := answer(t, pair.A, direct, ""); got != "redirected" || err != nil {
		t.Errorf("a connection of the program: %q, %v", got, err)
	}
	owner.await(t, fmt.Sprintf("^%s pid=%d redirected$", testProgram(t), os.Getpid()))
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(bash, "-c", fmt.Sprintf("exec 3<>/dev/tcp/%v/7001", pair.B.Addr4()))
	if err := pair.A.Exec(cmd); err != nil {
		t.Error(err)
	}
	owner.await(t, `^bash pid=\d+ direct$`)
}

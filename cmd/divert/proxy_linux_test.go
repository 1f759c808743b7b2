package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/linux/detour"
	"github.com/pires/go-proxyproto"
)

// relayVariable makes the test binary a relay that accepts redirected connections at the address in it: it reads the
// PROXY header and connects to the original destination. fetchVariable makes it fetch a URL once it reads a line.
// speakVariable makes it send a datagram for each line and print the answer.
const (
	relayVariable = "DIVERT_TEST_RELAY"
	fetchVariable = "DIVERT_TEST_FETCH"
	speakVariable = "DIVERT_TEST_SPEAK"
)

// speak prints an address's answer to a datagram for each line, and the answer's source, or the error.
func speak(to string) {
	c, err := net.ListenPacket("udp", ":0")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	at := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		b := make([]byte, 100)
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		n, from := 0, net.Addr(nil)
		_, err := c.WriteTo(lines.Bytes(), at)
		if err == nil {
			n, from, err = c.ReadFrom(b)
		}
		fmt.Printf("%s from %v, %v\n", b[:n], from, err)
	}
	os.Exit(0)
}

func relayHeaders(at string) {
	l, err := net.Listen("tcp", at)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	in := proxyproto.Listener{Listener: l}
	for {
		c, err := in.Accept()
		if err != nil {
			os.Exit(1)
		}
		go func() {
			defer c.Close()
			up, err := net.Dial("tcp", c.LocalAddr().String()) // the destination in the header
			if err != nil {
				return
			}
			defer up.Close()
			go func() { _, _ = io.Copy(up, c); _ = up.(*net.TCPConn).CloseWrite() }()
			_, _ = io.Copy(c, up)
		}()
	}
}

func fetch(url string) {
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	r, err := http.Get(url)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_, _ = io.Copy(os.Stdout, r.Body)
	os.Exit(0)
}

// serveWeb serves a greeting with the client's address at port 80 of a host.
func serveWeb(t *testing.T, h *lab.Host) {
	t.Helper()
	l, err := h.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "greetings") })}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

// fetcher is a program that waits for a line and then fetches a URL.
type fetcher struct {
	name string
	cmd  func(url string) *exec.Cmd
}

var fetchers = []fetcher{
	{"curl", func(url string) *exec.Cmd {
		return exec.Command("sh", "-c", `read x; exec curl -sS --noproxy '*' --max-time 20 "$0"`, url)
	}},
	{"python3", func(url string) *exec.Cmd {
		return exec.Command("sh", "-c", `read x; exec python3 -c 'import sys,urllib.request; print(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(sys.argv[1], timeout=20).read().decode(), end="")' "$0"`, url)
	}},
	{"a program in Go", func(url string) *exec.Cmd {
		exe, _ := os.Executable()
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), fetchVariable+"="+url)
		return cmd
	}},
}

// fetching is a running fetcher.
type fetching struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out syncBuffer
}

func startFetch(t *testing.T, h *lab.Host, f fetcher, url string) *fetching {
	t.Helper()
	p := &fetching{cmd: f.cmd(url)}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := h.Start(p.cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	return p
}

// run lets it fetch, and returns its output.
func (p *fetching) run() (string, error) {
	_, _ = io.WriteString(p.in, "\n")
	err := p.cmd.Wait()
	return p.out.String(), err
}

func needProgram(t *testing.T, f fetcher) {
	t.Helper()
	if !strings.Contains(f.name, " ") {
		if out, err := exec.Command(f.name, "--version").CombinedOutput(); err != nil {
			t.Skipf("no %s: %v %s", f.name, err, out)
		}
	}
}

// roadFlags are the flags for each road, and the reason why a road is missing here.
var roadFlags = map[string]struct {
	args []string
	need func() error
}{
	"packets": {[]string{"--road", "packets"}, needProcesses},
	"sockets": {[]string{"--road", "sockets", "--no-hold"}, detour.Connects.Err},
}

// eachRoad runs a test for each road. start starts the command there.
func eachRoad(t *testing.T, f func(t *testing.T, start func(h *lab.Host, args ...string) *running)) {
	for name, road := range roadFlags {
		t.Run(name, func(t *testing.T) {
			if err := road.need(); err != nil {
				t.Skip(err)
			}
			f(t, func(h *lab.Host, args ...string) *running {
				return start(t, h, append(append([]string{"proxy"}, road.args...), args...)...)
			})
		})
	}
}

// TestProxyTo redirects one process to a relay, which learns the original destination and connects to it. That
// connection matches the filter too, and must not be redirected.
func TestProxyTo(t *testing.T) {
	for _, f := range fetchers {
		t.Run(f.name, func(t *testing.T) {
			needProgram(t, f)
			eachRoad(t, func(t *testing.T, start func(*lab.Host, ...string) *running) { proxyTo(t, f, start) })
		})
	}
}

func proxyTo(t *testing.T, f fetcher, start func(*lab.Host, ...string) *running) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	serveWeb(t, pair.B)
	exe, _ := os.Executable()
	server := exec.Command(exe)
	server.Env = append(os.Environ(), relayVariable+"=127.0.0.1:8080")
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.A.Start(server); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatal(line, err)
	}
	for i, addr := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6()} {
		url := "http://" + netip.AddrPortFrom(addr, 80).String() + "/"
		client, other := startFetch(t, pair.A, f, url), startFetch(t, pair.A, f, url)
		// The filter matches the relay too, whose connections must not be redirected.
		filter := fmt.Sprintf("tcp.DstPort == 80 and (processId == %d or processId == %d)", client.cmd.Process.Pid, server.Process.Pid)
		p := start(pair.A, "--json", "--to", "127.0.0.1:8080", "--proxy-protocol", headerNames[1+i], filter)
		if got, err := client.run(); got != "greetings" || err != nil {
			t.Errorf("%v: fetched %q, %v", addr, got, err)
		}
		if got, err := other.run(); got != "greetings" || err != nil {
			t.Errorf("%v: the other process fetched %q, %v", addr, got, err)
		}
		streams, status := p.end(t, os.Interrupt)
		if status != exitOK || strings.Count(streams, "\n") != 1 || !strings.Contains(streams, fmt.Sprintf(`"dst":"%v","pid":%d`, netip.AddrPortFrom(addr, 80), client.cmd.Process.Pid)) {
			t.Errorf("status %d, streams %s", status, streams)
		}
		if log := p.errout.String(); !strings.Contains(log, `"redirected":1,"spared":1,`) {
			t.Errorf("summary %s", log)
		}
	}
	if tables, err := pair.A.NFTables(); err != nil || len(tables) > 0 {
		t.Errorf("tables %v, %v", tables, err)
	}
}

// TestProxyViaWithoutProcesses: where the process of a connection is unknown, --via still exempts the command's own
// connections and says so; --to fails.
func TestProxyViaWithoutProcesses(t *testing.T) {
	needTUN(t)
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	serveWeb(t, pair.B)
	l, err := pair.B.Listen("tcp", ":3128")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	asked := make(chan string, 10)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		up, err := pair.B.Dial(r.Context(), "tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer up.Close()
		w.WriteHeader(http.StatusOK)
		c, rest, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		go func() { _, _ = io.Copy(up, rest); _ = up.(*net.TCPConn).CloseWrite() }()
		_, _ = io.Copy(c, up)
	}))
	at := netip.AddrPortFrom(pair.B.Addr4(), 80)
	client := startFetch(t, pair.A, fetchers[len(fetchers)-1], "http://"+at.String()+"/")
	p := start(t, pair.A, "proxy", "--engine", "interpreter", "--via", fmt.Sprintf("http://%v:3128", pair.B.Addr4()), "tcp.DstPort == 80 or tcp.DstPort == 3128")
	if got, err := client.run(); got != "greetings" || err != nil {
		t.Errorf("fetched %q, %v", got, err)
	}
	_, status := p.end(t, os.Interrupt)
	if log := p.errout.String(); status != exitOK || !strings.Contains(log, "only this command's own connections are exempt") {
		t.Errorf("status %d: %s", status, log)
	}
	if len(asked) != 1 || <-asked != "CONNECT "+at.String() {
		t.Error("the proxy was not asked once for the server")
	}
	refused := start(t, pair.A, "proxy", "--engine", "interpreter", "--to", "127.0.0.1:8080", "tcp.DstPort == 80")
	if _, status := refused.end(t, nil); status != exitFailed || !strings.Contains(refused.errout.String(), "the program at 127.0.0.1:8080") {
		t.Errorf("status %d: %s", status, refused.errout.String())
	}
}

// TestProxyKilled: after kill -9 new connections go directly to their destination at once.
func TestProxyKilled(t *testing.T) {
	eachRoad(t, func(t *testing.T, start func(*lab.Host, ...string) *running) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		serveWeb(t, pair.B)
		to := netip.AddrPortFrom(pair.B.Addr4(), 80)
		p := start(pair.A, "--to", "127.0.0.1:9", "tcp.DstPort == 80") // nobody listens there
		if err := askWeb(t, pair.A, to); !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("while redirected: %v", err)
		}
		p.end(t, os.Kill)
		if err := askWeb(t, pair.A, to); err != nil {
			t.Errorf("after kill -9: %v", err)
		}
	})
}

func askWeb(t *testing.T, from *lab.Host, to netip.AddrPort) error {
	c, err := from.Dial(t.Context(), "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	_, err = io.ReadAll(c)
	return err
}

// answerDatagrams answers every datagram to a port of a host with a text.
func answerDatagrams(t *testing.T, h *lab.Host, port int, text string) {
	t.Helper()
	c, err := h.ListenPacket("udp", fmt.Sprint(":", port))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_, from, err := c.ReadFrom(make([]byte, 100))
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(text), from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
}

// TestProxyDatagrams redirects the datagrams of one process. Those of the command itself match too but are exempt;
// those of another process are not redirected. After kill -9 the same socket reaches its destination.
func TestProxyDatagrams(t *testing.T) {
	eachRoad(t, func(t *testing.T, start func(*lab.Host, ...string) *running) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		answerDatagrams(t, pair.B, 7, "direct")
		answerDatagrams(t, pair.B, 9, "redirected")
		for _, addr := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6()} {
			to := netip.AddrPortFrom(addr, 7).String()
			asker := func() func() string {
				exe, _ := os.Executable()
				cmd := exec.Command(exe)
				cmd.Env = append(os.Environ(), speakVariable+"="+to)
				in, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := pair.A.Start(cmd); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
				lines := bufio.NewReader(out)
				return func() string {
					_, _ = io.WriteString(in, "hello\n")
					line, err := lines.ReadString('\n')
					if err != nil {
						t.Fatal(err)
					}
					return strings.TrimSpace(line)
				}
			}
			first, second := asker(), asker()
			direct, redirected := "direct from "+to+", <nil>", "redirected from "+to+", <nil>"
			if got := first(); got != direct {
				t.Errorf("before: %s", got)
			}
			p := start(pair.A, "--json", "--to", netip.AddrPortFrom(addr, 9).String(), "udp.DstPort in {7, 9} and processId != "+fmt.Sprint(os.Getpid()))
			for range 2 {
				if got := first(); got != redirected {
					t.Errorf("redirected: %s", got)
				}
			}
			if streams, status := p.end(t, os.Interrupt); status != exitOK || !strings.Contains(streams, `"network":"udp"`) || !strings.Contains(streams, `"dst":"`+to+`"`) {
				t.Errorf("status %d, streams %s%s", status, streams, p.errout)
			}
			if got := first(); got != direct {
				t.Errorf("afterwards: %s", got)
			}
			p = start(pair.A, "--to", netip.AddrPortFrom(addr, 9).String(), "udp.DstPort == 7")
			if got := second(); got != redirected {
				t.Errorf("the other: %s", got)
			}
			p.end(t, os.Kill)
			if got := second(); got != direct {
				t.Errorf("after kill -9: %s", got)
			}
		}
	})
}

// TestProxyInterrupted: the command ends within seconds although a connection is open, and resets the connection.
func TestProxyInterrupted(t *testing.T) {
	if err := needProcesses(); err != nil {
		t.Skip(err)
	}
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	e, err := pair.B.Echo("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	l, err := pair.A.Listen("tcp", "127.0.0.1:8080") // by this process, whose connections would be exempt
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	p := start(t, pair.A, "proxy", "--no-hold", "--to", netip.AddrPortFrom(pair.B.Addr6(), 7).String(), "tcp.DstPort == 80")
	c, err := pair.A.Dial(t.Context(), "tcp", netip.AddrPortFrom(pair.B.Addr4(), 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, "?"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	out, status := p.end(t, os.Interrupt)
	if status != exitOK || strings.Count(out, "\n") != 1 {
		t.Errorf("status %d, %s%s", status, out, p.errout)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection: %v", err)
	}
	if tables, err := pair.A.NFTables(); err != nil || len(tables) > 0 {
		t.Errorf("tables %v, %v", tables, err)
	}
}

// TestProxyUsage: wrong command lines are refused with the reason.
func TestProxyUsage(t *testing.T) {
	for _, row := range []struct{ args, want string }{
		{"proxy true", "either --to ADDR or --via URL"},
		{"proxy --to 127.0.0.1:1 --via socks5://h true", "either --to ADDR or --via URL"},
		{"proxy --to localhost:80 true", "numeric address"},
		{"proxy --via ftp://user:secret@h tcp", "socks5, http or https"},
		{"proxy --via socks5://h --proxy-protocol v1 tcp", "is for --to"},
		{"proxy --road sockets --to 127.0.0.1:1 tcp", "--road sockets needs --no-hold"},
		{"proxy --road sockets --to 127.0.0.1:1 remotePort == 7", "--road sockets needs --no-hold"},
		{"proxy --road sockets --to localhost:1 udp.DstPort == 7", "numeric address"},
		{"proxy --to 127.0.0.1:1 tcp.Syn", "tcp.Syn, which differs"},
		{"proxy --to 127.0.0.1:1 tcp.DstPrt", "does not compile"},
	} {
		errout := &syncBuffer{}
		a := &app{in: strings.NewReader(""), out: io.Discard, errout: errout}
		status := a.run(t.Context(), strings.Fields(row.args))
		if log := errout.String(); status != exitUsage || !strings.Contains(log, row.want) || strings.Contains(log, "secret") {
			t.Errorf("%s: status %d, %s", row.args, status, log)
		}
	}
}

// FuzzProcAddress: no line of /proc causes a panic.
func FuzzProcAddress(f *testing.F) {
	f.Add("0100007F:1F90")
	f.Add("00000000000000000000000001000000:0050")
	f.Fuzz(func(t *testing.T, s string) {
		readSockets(strings.NewReader("0: "+s+" 0 0A 0 0 0 0 0 17"), "0A", netip.MustParseAddrPort("127.0.0.1:8080"), map[string]bool{})
	})
}

// TestProcAddress: addresses of /proc/net are parsed as the kernel writes them.
func TestProcAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	if ids := socketOwners("tcp", at); len(ids) != 1 || ids[0] != uint32(os.Getpid()) {
		t.Errorf("owners of %v: %v, want %d", at, ids, os.Getpid())
	}
}

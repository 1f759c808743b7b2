package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// countedListener counts the bytes that clients send.
type countedListener struct {
	net.Listener
	n atomic.Int64
}

type countedConn struct {
	net.Conn
	n *atomic.Int64
}

func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countedConn{c, &l.n}, nil
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// sites serves a greeting at a host's ports 80 and 443, and returns the listeners, which count the clients' bytes.
func sites(t *testing.T, h *lab.Host) (plain, encrypted *countedListener) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "greetings of %s", r.Host) }),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: private}}},
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	t.Cleanup(func() { s.Close() })
	plain, encrypted = &countedListener{}, &countedListener{}
	if plain.Listener, err = h.Listen("tcp", ":80"); err != nil {
		t.Fatal(err)
	}
	if encrypted.Listener, err = h.Listen("tcp", ":443"); err != nil {
		t.Fatal(err)
	}
	go s.Serve(plain)
	go s.ServeTLS(encrypted, "", "")
	return plain, encrypted
}

// piecewise sends segments of at most size bytes.
type piecewise struct {
	net.Conn
	size int
}

func (c piecewise) Write(b []byte) (n int, err error) {
	for piece := range slices.Chunk(b, c.size) {
		m, err := c.Conn.Write(piece)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// visit fetches a page over one connection, in segments of at most size bytes, 0 for no limit. It returns the status
// and the text.
func visit(t *testing.T, from *lab.Host, to netip.Addr, url string, size int) (int, string, error) {
	t.Helper()
	dial := func(ctx context.Context, _, address string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		c, err := from.Dial(ctx, "tcp", net.JoinHostPort(to.String(), port))
		if err == nil && size > 0 {
			_ = c.(*net.TCPConn).SetNoDelay(true)
			c = piecewise{c, size}
		}
		return c, err
	}
	transport := &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	r, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r.StatusCode, string(b), err
}

// blockList returns a file that lists a name.
func blockList(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(path, []byte(name+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestWeb blocks sites on real connections, even if the client sends each byte in its own segment.
func TestWeb(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needTUN(t)
	plain, encrypted := sites(t, pair.B)
	list := blockList(t, "blocked.test")
	p := start(t, pair.A, "web", "--json", "--fail-closed", "--block-nameless", list)
	each := func(f func(to netip.Addr, size int)) {
		for _, to := range []netip.Addr{pair.B.Addr4(), pair.B.Addr6()} {
			f(to, 0)
			f(to, 1)
		}
	}
	each(func(to netip.Addr, size int) {
		if status, text, err := visit(t, pair.A, to, "http://www.blocked.test/", size); err != nil || status != http.StatusForbidden || !strings.Contains(text, "www.blocked.test") {
			t.Errorf("%v: HTTP, blocked: %d %q %v", to, status, text, err)
		}
		if _, text, err := visit(t, pair.A, to, "https://www.blocked.test/", size); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v: TLS, blocked: %q %v", to, text, err)
		}
	})
	if plain.n.Load()+encrypted.n.Load() != 0 {
		t.Error("the server has seen bytes of blocked requests")
	}
	each(func(to netip.Addr, size int) {
		for _, scheme := range []string{"http", "https"} {
			if status, text, err := visit(t, pair.A, to, scheme+"://other.test/", size); err != nil || status != http.StatusOK || text != "greetings of other.test" {
				t.Errorf("%v: %s, not blocked: %d %q %v", to, scheme, status, text, err)
			}
		}
	})
	keepAlive(t, pair)
	out, status := p.end(t, os.Interrupt)
	lines := checkLines(t, schemas(t), out, "blocked")["blocked"]
	if status != exitOK || lines != 9 || strings.Count(out, `"host":"www.blocked.test","entry":"blocked.test"`) != 8 {
		t.Errorf("status %d: %s", status, out)
	}
	errout := p.errout.String()
	if n := checkLines(t, schemas(t), errout, "start", "web-summary"); n["start"] != 1 || n["web-summary"] != 1 || !strings.Contains(errout, `"http":11,"tls":8,"quic":0,"blocked":9,`) {
		t.Errorf("standard error: %s", errout)
	}
	if tables, err := pair.A.NFTables(); err != nil || len(tables) > 0 {
		t.Errorf("tables %v, %v", tables, err)
	}
}

// TestWebReordered: reordered segments hide no name.
func TestWebReordered(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needTUN(t)
	plain, encrypted := sites(t, pair.B)
	list := blockList(t, "blocked.test")
	p := start(t, pair.A, "web", "--fail-closed", list)
	// It receives packets before the other command does.
	disorder := start(t, pair.A, "impair", "--json", "--priority", "100", "--reorder", "50%", "--seed", "4", "outbound and tcp and tcp.PayloadLength > 0")
	addresses := []netip.Addr{pair.B.Addr4(), pair.B.Addr6()}
	for _, to := range addresses {
		if status, _, err := visit(t, pair.A, to, "http://www.blocked.test/", 10); err != nil || status != http.StatusForbidden {
			t.Errorf("%v: HTTP, blocked: %d %v", to, status, err)
		}
		if _, text, err := visit(t, pair.A, to, "https://www.blocked.test/", 100); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v: TLS, blocked: %q %v", to, text, err)
		}
	}
	if plain.n.Load()+encrypted.n.Load() != 0 {
		t.Error("the server has seen bytes of blocked requests")
	}
	for _, to := range addresses {
		for _, scheme := range []string{"http", "https"} {
			var status int
			var err error
			for range 5 { // on a slow machine a name may come too late
				if status, _, err = visit(t, pair.A, to, scheme+"://other.test/", 50); status == http.StatusOK {
					break
				}
			}
			if status != http.StatusOK {
				t.Errorf("%v: %s, not blocked: %d %v", to, scheme, status, err)
			}
		}
	}
	if _, status := disorder.end(t, os.Interrupt); status != exitOK || strings.Contains(disorder.errout.String(), `"reordered":0,`) {
		t.Errorf("status %d: %s", status, disorder.errout.String())
	}
	if out, status := p.end(t, os.Interrupt); status != exitOK || strings.Count(out, " www.blocked.test (blocked.test)\n") != 4 {
		t.Errorf("status %d: %s", status, out)
	}
}

// TestWebEnds: SIGHUP has the command read the list again, and does not end it; after kill -9 and ^C nothing is
// blocked, and nothing is left behind.
func TestWebEnds(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needTUN(t)
	lab.CheckLeaks(t, pair.A)
	sites(t, pair.B)
	list := blockList(t, "blocked.test")
	visited := func() int {
		t.Helper()
		status, _, err := visit(t, pair.A, pair.B.Addr4(), "http://blocked.test/", 0)
		if err != nil {
			t.Error(err)
		}
		return status
	}
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		p := start(t, pair.A, "web", list)
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		p.says(t, "was read again, with 1 name\n", 1)
		if got := visited(); got != http.StatusForbidden {
			t.Errorf("while the command runs: %d", got)
		}
		if _, status := p.end(t, signal); status != exitOK && signal != syscall.SIGKILL {
			t.Errorf("status %d", status)
		}
		if got := visited(); got != http.StatusOK {
			t.Errorf("after %v: %d", signal, got)
		}
	}
}

// keepAlive requests two sites over one connection; the second one is blocked.
func keepAlive(t *testing.T, pair *lab.Pair) {
	t.Helper()
	c, err := pair.A.Dial(t.Context(), "tcp", netip.AddrPortFrom(pair.B.Addr4(), 80).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(c)
	for _, want := range []struct {
		host   string
		status int
	}{{"a.test", http.StatusOK}, {"b.test", http.StatusOK}, {"blocked.test", http.StatusForbidden}} {
		if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", want.host); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("%s: %v", want.host, err)
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil || r.StatusCode != want.status {
			t.Errorf("%s: %s, %v", want.host, r.Status, err)
		}
	}
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("after the page: %v", err)
	}
}

// TestWebForward: a router judges the connections of the hosts behind it, even those with packets that it must hold.
func TestWebForward(t *testing.T) {
	n := lab.HostRouterPeerT(t, lab.LinkOptions{})
	needTUN(t)
	plain, encrypted := sites(t, n.B)
	list := blockList(t, "blocked.test")
	p := start(t, n.R, "web", "--layer", "forward", list)
	late := 0 // visits that took more than 2 s, after which connections pass
	for _, to := range []netip.Addr{n.B.Addr4(), n.B.Addr6()} {
		for _, scheme := range []string{"http", "https"} {
			status, text, err := visit(t, n.A, to, scheme+"://blocked.test/", 1)
			for ; err == nil && status == http.StatusOK && late < 5; late++ {
				status, text, err = visit(t, n.A, to, scheme+"://blocked.test/", 1)
			}
			if scheme == "http" && (err != nil || status != http.StatusForbidden) || scheme == "https" && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v: %s, blocked: %d %q %v", to, scheme, status, text, err)
			}
		}
	}
	if plain.n.Load()+encrypted.n.Load() != 0 && late == 0 {
		t.Error("the server has seen bytes of blocked requests")
	}
	for _, to := range []netip.Addr{n.B.Addr4(), n.B.Addr6()} {
		for _, scheme := range []string{"http", "https"} {
			if status, text, err := visit(t, n.A, to, scheme+"://other.test/", 1); err != nil || status != http.StatusOK {
				t.Errorf("%v: %s, not blocked: %d %q %v", to, scheme, status, text, err)
			}
		}
	}
	if out, status := p.end(t, os.Interrupt); status != exitOK || strings.Count(out, " blocked.test\n") != 4 {
		t.Errorf("status %d: %s", status, out)
	}
	text, told := p.errout.String(), 0
	if before, _, ok := strings.Cut(text, " passed because nothing could be said"); ok {
		if _, err := fmt.Sscan(before[strings.LastIndexByte(before, ' ')+1:], &told); err != nil {
			t.Error(err)
		}
	}
	if told < late {
		t.Errorf("%d visits passed, but the summary has %d: %s", late, told, text)
	}
}

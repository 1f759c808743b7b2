//go:build linux

package examples

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

func TestWebFilter(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	needInbound(t)
	l, err := pair.B.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "greetings") })}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	list := filepath.Join(t.TempDir(), "blocked.txt")
	if err := os.WriteFile(list, []byte("example.org\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := start(t, pair.A, io.Discard, build(t, "webfilter"), list)
	for host, want := range map[string]int{"www.example.org": http.StatusForbidden, "example.net": http.StatusOK} {
		c, err := pair.A.Dial(t.Context(), "tcp", netip.AddrPortFrom(pair.B.Addr4(), 80).String())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ask(c, host); err != nil || got != want {
			t.Errorf("%s: %d, %v", host, got, err)
		}
		c.Close()
	}
	if text := stop(); !strings.Contains(text, `blocked http "www.example.org" for 10.77.0.1:`) || !strings.Contains(text, "2 names judged, 1 blocked") {
		t.Errorf("printed %s", text)
	}
}

// ask requests a page and returns the status.
func ask(c net.Conn, host string) (int, error) {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host); err != nil {
		return 0, err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, r.Body)
	return r.StatusCode, err
}

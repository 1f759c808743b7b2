//go:build linux

package examples

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// TestEnd: after kill -9 and after ^C, traffic blocked by the programs passes, and nothing is left. The next program
// removes the rules of the killed one.
func TestEnd(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: blocked.test\r\n\r\n"
	dir := t.TempDir()
	rules, list := filepath.Join(dir, "rules"), filepath.Join(dir, "list")
	for file, text := range map[string]string{rules: `reject tcp any any -> any 80 (msg:"a test"; content:"blocked.test"; sid:7;)`, list: "blocked.test"} {
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	programs := map[string]string{"ids": build(t, "ids"), "webfilter": build(t, "webfilter")}
	for name, row := range map[string]struct {
		program string
		args    []string
		router  bool
	}{
		"ids on the host":  {"ids", []string{"-inline", rules}, false},
		"ids on a router":  {"ids", []string{"-inline", "-forward", "-filter", "true", rules}, true},
		"ids that watches": {"ids", []string{rules}, false},
		"webfilter":        {"webfilter", []string{list}, false},
	} {
		t.Run(name, func(t *testing.T) {
			program := programs[row.program]
			n := lab.HostRouterPeerT(t, lab.LinkOptions{})
			at := n.A
			if row.router {
				at = n.R
			}
			if row.program == "webfilter" {
				needInbound(t)
			}
			lab.CheckLeaks(t, n.A, n.R)
			echo, err := n.B.Echo("tcp", ":80")
			if err != nil {
				t.Fatal(err)
			}
			defer echo.Close()
			passes := func(wait time.Duration) bool {
				c, err := n.A.Dial(t.Context(), "tcp", netip.AddrPortFrom(n.B.Addr4(), 80).String())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(wait))
				if _, err := io.WriteString(c, request); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, len(request))
				_, err = io.ReadFull(c, b)
				return err == nil && string(b) == request
			}
			for _, signal := range []os.Signal{os.Kill, os.Interrupt} {
				end := launch(t, at, io.Discard, program, row.args...)
				if name != "ids that watches" {
					if passes(time.Second) { // where no reset can be injected the client gets no answer
						t.Error("while the program runs the request passes")
					}
				} else if !passes(patience) {
					t.Error("while the program watches the request does not pass")
				}
				if text := end(signal); !passes(patience) {
					t.Errorf("after %v the request does not pass:\n%s", signal, text)
				}
			}
		})
	}
}

// patience limits every wait.
const patience = 20 * time.Second

// needInbound skips the test where packets cannot be injected inbound.
func needInbound(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("a page cannot be injected: %v", err)
	}
	f.Close()
}

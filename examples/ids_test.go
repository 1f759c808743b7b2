//go:build linux

package examples

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// TestIDS sends text through the program inline: text that no rule drops comes back; text that a rule drops does not,
// even sent byte by byte.
func TestIDS(t *testing.T) {
	program := build(t, "ids")
	t.Run("on the host", func(t *testing.T) {
		pair := lab.TwoHostsT(t, lab.LinkOptions{})
		tryIDS(t, program, pair.A, pair.A, pair.B)
	})
	t.Run("on a router", func(t *testing.T) {
		n := lab.HostRouterPeerT(t, lab.LinkOptions{})
		tryIDS(t, program, n.R, n.A, n.B, "-forward", "-filter", "true")
	})
}

// tryIDS runs the program on a host.
func tryIDS(t *testing.T, program string, at, client, server *lab.Host, flags ...string) {
	echo, err := server.Echo("tcp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	rules := filepath.Join(t.TempDir(), "rules")
	text := `reject tcp any any -> any 7777 (msg:"a test"; flow:established,to_server; content:"attack"; sid:7;)`
	if err := os.WriteFile(rules, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out output
	stop := start(t, at, &out, program, append(append([]string{"-inline"}, flags...), rules)...)
	c, err := client.Dial(t.Context(), "tcp", netip.AddrPortFrom(server.Addr6(), 7777).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 11)
	if _, err := io.WriteString(c, "nothing bad"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "nothing bad" {
		t.Errorf("%q, %v", b, err)
	}
	for _, letter := range []string{"a", "t", "t", "a", "c"} {
		if _, err := io.WriteString(c, letter); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, b[:1]); err != nil || string(b[:1]) != letter {
			t.Errorf("%q, %v", b[:1], err)
		}
	}
	if _, err := io.WriteString(c, "k"); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(c, b[:1]); err == nil {
		t.Errorf("%q came back", b[:n])
	}
	log := stop()
	if !strings.HasPrefix(log, "ids: begun with 1 rules, 0 left out\n") || !strings.Contains(log, " 1 alerts") {
		t.Errorf("printed %s", log)
	}
	if text := out.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `"action":"blocked","gid":1,"signature_id":7,"rev":0,"signature":"a test"`) {
		t.Errorf("wrote %s", text)
	}
	if tables, err := at.NFTables(); err != nil || len(tables) > 0 {
		t.Errorf("tables %v, %v", tables, err)
	}
}

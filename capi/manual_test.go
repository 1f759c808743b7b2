//go:build linux

package main_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// TestManual compiles the program of the manual and runs it: it prints a query and lets it go on.
func TestManual(t *testing.T) {
	manual, err := os.ReadFile(filepath.Join("..", "docs", "c-interface.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, source, _ := strings.Cut(string(manual), "```c\n")
	source, _, found := strings.Cut(source, "```")
	if !found {
		t.Fatal("the manual has no program")
	}
	file := filepath.Join(t.TempDir(), "program.c")
	if err := os.WriteFile(file, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	program := compile(t, file, gccModern)
	line, err := exec.LookPath("stdbuf") // the program does not flush its output
	if err != nil {
		t.Skip(err)
	}

	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	server, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(pair.B.Addr4(), 53).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	b := startAt(t, pair.A, exec.Command(line, "-oL", program))
	client, err := pair.A.Dial(t.Context(), "udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	eventually(t, func() bool {
		if _, err := client.Write([]byte("query")); err != nil {
			t.Fatal(err)
		}
		server.SetReadDeadline(time.Now().Add(20 * time.Second))
		if n, _, err := server.ReadFrom(make([]byte, 100)); n != 5 || err != nil {
			t.Fatalf("%d bytes of the query arrive: %v", n, err)
		}
		return b.printed() == "33 bytes"
	})
}

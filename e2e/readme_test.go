//go:build linux

package e2e_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// TestReadme builds the program of the README and runs it: it prints a query and lets it go on.
func TestReadme(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip(err)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, source, _ := strings.Cut(string(readme), "```go\n")
	source, _, found := strings.Cut(source, "```")
	if !found {
		t.Fatal("the README has no program")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program+".go", []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-o", program, program+".go").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}

	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	server, err := pair.B.ListenPacket("udp", netip.AddrPortFrom(pair.B.Addr4(), 53).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	cmd := exec.Command(program)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.A.Start(cmd); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	told := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(log).ReadString('\n')
		told <- line
	}()
	if line := ask(t, dialUDP(t, pair.A, server.LocalAddr()), server, told); !strings.HasSuffix(line, "a query of 33 bytes\n") {
		t.Errorf("the program printed %q", line)
	}
}

// ask sends queries until the program prints one, and returns that line. Every query must arrive.
func ask(t *testing.T, client net.Conn, server net.PacketConn, told <-chan string) string {
	t.Helper()
	for range 400 {
		fmt.Fprint(client, "query")
		server.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, _, err := server.ReadFrom(make([]byte, 100)); err != nil {
			t.Fatalf("a query does not arrive: %v", err)
		}
		select {
		case line := <-told:
			return line
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatal("the program does not tell of queries")
	return ""
}

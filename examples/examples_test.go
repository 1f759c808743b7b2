//go:build linux

package examples

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// build builds an example and returns the program's path.
func build(t *testing.T, name string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip(err)
	}
	program := filepath.Join(t.TempDir(), name)
	if out, err := exec.Command("go", "build", "-o", program, "./"+name).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return program
}

// TestVet: every folder is a program that builds and passes go vet.
func TestVet(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip(err)
	}
	programs, err := filepath.Glob("*/main.go")
	if err != nil || len(programs) < 3 {
		t.Fatalf("programs %v, %v", programs, err)
	}
	for _, goos := range []string{"linux", "windows"} {
		cmd := exec.Command("go", "vet", "./...")
		cmd.Env = append(os.Environ(), "GOOS="+goos)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", goos, err, out)
		}
	}
}

// output holds the output of a program so far.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write implements io.Writer.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

// String returns the text.
func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// start starts a program on a host and waits until it reports that its handle is open. The returned function interrupts
// it and returns its standard error.
func start(t *testing.T, h *lab.Host, out io.Writer, program string, args ...string) (stop func() string) {
	t.Helper()
	end := launch(t, h, out, program, args...)
	return func() string { return end(os.Interrupt) }
}

// launch starts a program like start; the returned function ends it with a signal.
func launch(t *testing.T, h *lab.Host, out io.Writer, program string, args ...string) (end func(os.Signal) string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Stdout = out
	errout, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(errout)
	first, err := lines.ReadString('\n')
	end = func(s os.Signal) string {
		t.Helper()
		_ = cmd.Process.Signal(s) // fails only if the program has ended
		rest, err := io.ReadAll(lines)
		if err := errors.Join(err, cmd.Wait()); err != nil && s != os.Kill {
			t.Errorf("%s: %v\n%s%s", program, err, first, rest)
		}
		return first + string(rest)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, end(os.Interrupt))
	}
	return end
}

// exchange sends datagrams to port 7777 of B.
func exchange(t *testing.T, pair *lab.Pair, wait time.Duration) lab.Exchanged {
	t.Helper()
	r, err := lab.ExchangeUDP(t.Context(), pair.A, netip.AddrPortFrom(pair.B.Addr6(), 7777), lab.Exchange{Count: 5, Wait: wait})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// network returns two hosts with an echo server at port 7777 of B.
func network(t *testing.T) *lab.Pair {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	echo, err := pair.B.Echo("udp", ":7777")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	return pair
}

func TestSniffer(t *testing.T) {
	pair := network(t)
	var out output
	stop := start(t, pair.A, &out, build(t, "sniffer"), "udp")
	if r := exchange(t, pair, 5*time.Second); r.Echoed != 5 {
		t.Errorf("while sniffed: %+v", r)
	}
	for end := time.Now().Add(10 * time.Second); strings.Count(out.String(), "\n") < 10 && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // copies arrive in groups
	}
	stop()
	text := out.String()
	for _, want := range []string{"out fd77::1 > fd77::2 protocol 17", "in  fd77::2 > fd77::1 protocol 17"} {
		if strings.Count(text, want) != 5 {
			t.Errorf("want 5 lines with %q:\n%s", want, text)
		}
	}
}

func TestDropPort(t *testing.T) {
	pair := network(t)
	stop := start(t, pair.A, io.Discard, build(t, "dropport"), "7777")
	if r := exchange(t, pair, 10*time.Millisecond); r.Echoed != 0 || r.Refused != 0 {
		t.Errorf("while dropped: %+v", r)
	}
	if text := stop(); !strings.Contains(text, "5 packets dropped") {
		t.Errorf("printed %s", text)
	}
	if r := exchange(t, pair, 5*time.Second); r.Echoed != 5 {
		t.Errorf("afterwards: %+v", r)
	}
}

func TestRewrite(t *testing.T) {
	pair := network(t)
	stop := start(t, pair.A, io.Discard, build(t, "rewrite"), "7777", "red", "tan")
	defer stop()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	c, err := pair.A.Dial(ctx, "udp", netip.AddrPortFrom(pair.B.Addr4(), 7777).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	for text, want := range map[string]string{"a red rose is red": "a tan rose is tan", "violets are blue": "violets are blue"} {
		b := make([]byte, 100)
		if _, err := io.WriteString(c, text); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		if err != nil || string(b[:n]) != want {
			t.Errorf("sent %q, got %q back, want %q: %v", text, b[:n], want, err)
		}
	}
}

func TestFlowFirewall(t *testing.T) {
	pair := network(t)
	file := filepath.Join(t.TempDir(), "blocked.txt")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	write("192.0.2.0/24 # a network that is not there\n")
	stop := start(t, pair.A, io.Discard, build(t, "flowfirewall"), file)
	if r := exchange(t, pair, 5*time.Second); r.Echoed != 5 {
		t.Errorf("not blocked: %+v", r)
	}
	write(netip.PrefixFrom(pair.B.Addr6(), 64).Masked().String() + "\n")
	for end := time.Now().Add(20 * time.Second); ; {
		r := exchange(t, pair, 500*time.Millisecond)
		if r.Echoed == 0 && r.Refused == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("not blocked by the file that has changed: %+v", r)
		}
	}
	text := stop()
	if !strings.Contains(text, " dropped with their flow") || strings.Contains(text, " 0 accepted") || strings.Contains(text, " 0 dropped") {
		t.Error(text)
	}
}

func TestBadline(t *testing.T) {
	pair := network(t)
	const lag = 20 * time.Millisecond
	stop := start(t, pair.A, io.Discard, build(t, "badline"), "7777", lag.String(), "1")
	begun := time.Now()
	r := exchange(t, pair, time.Second)
	if took := time.Since(begun); took < time.Duration(r.Echoed)*2*lag || r.Changed != 0 || r.Refused != 0 {
		t.Errorf("on a bad line: %+v after %v", r, took)
	}
	var delayed, lost int
	text := stop()
	if _, err := fmt.Sscanf(text[strings.Index(text, "\n")+1:], "%d packets delayed, %d lost", &delayed, &lost); err != nil {
		t.Fatalf("printed %s: %v", text, err)
	}
	// Each datagram that survived the outbound path has an echo, which may be lost too.
	if lost != 5-r.Echoed || delayed < 2*r.Echoed || delayed > r.Echoed+5 {
		t.Errorf("%+v, and the program printed: %s", r, text)
	}
	if r := exchange(t, pair, 5*time.Second); r.Echoed != 5 {
		t.Errorf("afterwards: %+v", r)
	}
}

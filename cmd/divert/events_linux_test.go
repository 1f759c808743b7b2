package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/lab"
)

// startEvents starts a command at a layer with events, or skips where that is not to be had.
func startEvents(t *testing.T, h *lab.Host, args ...string) *process {
	t.Helper()
	p := start(t, h, args...)
	if text := p.errout.String(); strings.Contains(text, "not supported") {
		t.Skip(text)
	}
	return p
}

// connectTCP makes a connection to a listener of a host's own.
func connectTCP(t *testing.T, h *lab.Host, port int) {
	t.Helper()
	l, err := h.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := h.Dial(t.Context(), "tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
}

// shape replaces what differs from run to run in the output of a command.
func shape(text string) []string {
	for _, r := range [...]struct{ pattern, with string }{
		{`\d\d:\d\d:\d\d\.\d+`, "TIME"}, {`endpoint=\d+`, "endpoint=N"}, {`parent=[1-9]\d*`, "parent=N"},
		{`time=-?\d+\.\d{3}s`, "time=T"}, {fmt.Sprintf(`\b%d\b`, os.Getpid()), "PID"},
		{`(\]?):[3-6]\d{4}\b`, "$1:PORT"}, {`[\w./-]+\.test\b`, "TEST"}, {` +`, " "},
	} {
		text = regexp.MustCompile(r.pattern).ReplaceAllString(text, r.with)
	}
	return strings.Split(strings.TrimSpace(text), "\n")
}

func TestSocketsCommand(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	p := startEvents(t, pair.A, "sockets", "(event == LISTEN or event == CONNECT or event == ACCEPT) and (localPort == 80 or remotePort == 80)")
	connectTCP(t, pair.A, 80)
	time.Sleep(100 * time.Millisecond)
	out, status := p.end(t, syscall.SIGINT)
	want := []string{
		"TIME LISTEN pid=PID program=TEST endpoint=N parent=0 protocol=TCP local=[127.0.0.1]:80",
		"TIME CONNECT pid=PID program=TEST endpoint=N parent=0 protocol=TCP local=[127.0.0.1]:PORT remote=[127.0.0.1]:80",
		"TIME ACCEPT pid=PID program=TEST endpoint=N parent=N protocol=TCP local=[127.0.0.1]:80 remote=[127.0.0.1]:PORT",
	}
	if got := shape(out); status != 0 || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("status %d, got\n%s\nwant\n%s", status, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if !strings.Contains(p.errout.String(), "3 events matched, 3 received") {
		t.Errorf("summary: %s", p.errout)
	}
}

func TestSocketsBlockCommand(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	p := startEvents(t, pair.A, "sockets", "--block", "--json", "event", "==", "BIND", "and", "localPort", "==", "81")
	if l, err := pair.A.Listen("tcp4", "127.0.0.1:81"); err == nil {
		l.Close()
		t.Error("the bind was not refused")
	}
	l, err := pair.A.Listen("tcp4", "127.0.0.1:82")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	time.Sleep(100 * time.Millisecond)
	out, status := p.end(t, syscall.SIGTERM)
	var e jsonEvent
	if err := json.Unmarshal([]byte(out), &e); err != nil || status != 0 {
		t.Fatalf("status %d, %v: %s", status, err, out)
	}
	if !e.Refused || e.Event != "BIND" || e.LocalPort != 81 || int(e.PID) != os.Getpid() || e.ProtocolName != "TCP" || e.Remote != nil {
		t.Errorf("%s", out)
	}
}

func TestFlowsCommand(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	p := startEvents(t, pair.A, "flows", "localPort == 80")
	top := startEvents(t, pair.A, "flows", "--top", "--interval", "10s", "localPort == 80")
	connectTCP(t, pair.A, 80)
	time.Sleep(100 * time.Millisecond)
	out, status := p.end(t, syscall.SIGINT)
	want := []string{
		"TIME ESTABLISHED PID TEST TCP 127.0.0.1:80 <---- 127.0.0.1:PORT",
		"TIME DELETED PID TEST TCP 127.0.0.1:80 <---- 127.0.0.1:PORT",
	}
	if got := shape(out); status != 0 || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("status %d, got\n%s", status, strings.Join(got, "\n"))
	}
	out, status = top.end(t, syscall.SIGINT)
	want = []string{"PID PROGRAM OPEN TOTAL IN TCP UDP OTHER", "PID TEST 0 1 1 1 0 0"}
	if got := shape(out); status != 0 || strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("status %d, got\n%s", status, strings.Join(got, "\n"))
	}
}

// runIn runs the command on a host to its end.
func runIn(t *testing.T, h *lab.Host, args ...string) (out string, status int) {
	t.Helper()
	err := h.Do(func() error {
		r := runCommand(t, "", args...)
		out, status = r.out+r.errout, r.status
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, status
}

func TestHandlesCommands(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	if out, status := runIn(t, pair.A, "list"); out != "" || status != 0 {
		t.Errorf("list of nothing: %d, %q", status, out)
	}
	watch := start(t, pair.A, "watch")
	drop := start(t, pair.A, "drop", "--priority", "7", "udp.DstPort == 9")
	pid := drop.cmd.Process.Pid
	line := fmt.Sprintf(`time=T pid=%d exe=TEST layer=NETWORK flags=DROP priority=7 filter="udp.DstPort = 9"`, pid)
	out, status := runIn(t, pair.A, "list")
	if got := shape(out); status != 0 || len(got) != 1 || got[0] != "OPEN "+line {
		t.Errorf("list: %d, %q", status, got)
	}
	if out, status := runIn(t, pair.A, "list", "priority < 7"); out != "" || status != 0 {
		t.Errorf("list of others: %d, %q", status, out)
	}
	if out, status := runIn(t, pair.A, "kill", "1"); status != exitFailed || !strings.Contains(out, "process 1 has no handle open here") {
		t.Errorf("kill 1: %d, %q", status, out)
	}
	if out, status := runIn(t, pair.A, "kill"); status != exitUsage {
		t.Errorf("kill nobody: %d, %q", status, out)
	}
	out, status = runIn(t, pair.A, "kill", fmt.Sprint(pid))
	if got := shape(out); status != 0 || len(got) != 1 || got[0] != "KILL "+line {
		t.Errorf("kill: %d, %q", status, got)
	}
	if _, status := drop.end(t, nil); status != -1 {
		t.Errorf("the killed ended with %d", status)
	}
	if out, status := runIn(t, pair.A, "clean"); status != 0 {
		t.Errorf("clean: %d, %q", status, out)
	}
	time.Sleep(500 * time.Millisecond)
	out, status = watch.end(t, syscall.SIGINT)
	if got := shape(out); status != 0 || len(got) != 2 || !strings.HasPrefix(got[0], "OPEN time=T pid=") || !strings.HasPrefix(got[1], "CLOSE time=T pid=") {
		t.Errorf("watch: %d, %q", status, got)
	}
	tables, err := pair.A.NFTables()
	if err != nil || len(tables) != 0 {
		t.Errorf("left: %q, %v", tables, err)
	}
}

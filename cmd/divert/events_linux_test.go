package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"github.com/opendivert/divert/internal/lab"
)

// startEvents starts a command at a layer with events, or skips where the layer is missing.
func startEvents(t *testing.T, h *lab.Host, args ...string) *running {
	t.Helper()
	p := start(t, h, args...)
	if text := p.errout.String(); strings.Contains(text, "not supported") {
		t.Skip(text)
	}
	return p
}

// connectTCP connects a host to a listener of its own.
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

// shape replaces the parts that differ from run to run in the output of a command.
func shape(text string) []string {
	for _, r := range [...]struct{ pattern, with string }{
		{`"\d{4}-\d\d-\d\dT[^"]+"`, `"N"`}, {`\d{4}-\d\d-\d\d \d`, "DATE 0"},
		{`\d\d:\d\d:\d\d\.\d+`, "TIME"}, {`(timestamp"?[=:]|(?i:endpoint)(?:Id=|":))\d+`, "${1}N"},
		{`remotePort=[3-6]\d{4}`, "remotePort=PORT"}, {`endpoint=\d+`, "endpoint=N"}, {`parent=[1-9]\d*`, "parent=N"},
		{`opened (now|[\dms ]+ ago)`, "opened T"}, {fmt.Sprintf(`\b%d\b`, os.Getpid()), "PID"},
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
	p.lines(t, 3)
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
	p.lines(t, 1)
	out, status := p.end(t, syscall.SIGTERM)
	var e jsonEvent
	if err := json.Unmarshal([]byte(out), &e); err != nil || status != 0 {
		t.Fatalf("status %d, %v: %s", status, err, out)
	}
	if !e.Refused || e.Event != "BIND" || e.LocalPort != 81 || int(e.PID) != os.Getpid() || e.ProtocolName != "TCP" || e.Remote != nil {
		t.Errorf("event: %s", out)
	}
}

func TestFlowsCommand(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	p := startEvents(t, pair.A, "flows", "localPort == 80")
	top := startEvents(t, pair.A, "flows", "--top", "--interval", "10s", "localPort == 80")
	connectTCP(t, pair.A, 80)
	p.lines(t, 2) // as soon as one handle has the events, all have
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

// TestDumpEvents prints the events of each layer in each form.
func TestDumpEvents(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	const (
		sockets = "(event == LISTEN or event == ACCEPT) and localPort == 80"
		local   = "127.0.0.1:80"
		remote  = "127.0.0.1:PORT"
		fields  = " loopback=1 protocol=6 processId=PID endpointId=N parentEndpointId=N localAddr=127.0.0.1 localPort=80"
		handle  = `pid=NUMBER exe=TEST layer=SOCKET flags=SNIFF|RECV_ONLY priority=-7 filter="event = CLOSE"`
	)
	socket := func(more ...string) []string {
		return append([]string{"--layer", "socket"}, append(more, sockets)...)
	}
	flow := func(more ...string) []string {
		return append([]string{"--layer", "flow"}, append(more, "localPort == 80")...)
	}
	reflect := func(more ...string) []string {
		return append([]string{"--layer", "reflect"}, append(more, "priority == -7")...)
	}
	tests := []struct {
		args []string
		want []string
		run  *running
		read int // lines read before the end of the other command
	}{
		{args: socket(), want: []string{
			"TIME LISTEN pid=PID program=TEST endpoint=N parent=0 protocol=TCP local=[127.0.0.1]:80",
			"TIME ACCEPT pid=PID program=TEST endpoint=N parent=N protocol=TCP local=[127.0.0.1]:80 remote=[127.0.0.1]:PORT",
		}},
		{args: socket("-q", "--priority", "3", "--strict", "--queue-length", "32"), want: []string{
			"TIME LISTEN pid=PID protocol=TCP local=[127.0.0.1]:80",
			"TIME ACCEPT pid=PID protocol=TCP local=[127.0.0.1]:80 remote=[127.0.0.1]:PORT",
		}},
		{args: socket("-v", "-c", "1"), want: []string{
			"DATE TIME LISTEN pid=PID program=TEST endpoint=N parent=0 protocol=TCP local=[127.0.0.1]:80",
			"\tevent event=LISTEN outbound=1" + fields + " remoteAddr=:: remotePort=0 timestamp=N",
		}},
		{args: socket("--json", "-c", "1"), want: []string{`{"time":"N","timestamp":N,"layer":"socket","event":"LISTEN","pid":PID,` +
			`"program":"TEST","name":"TEST","endpoint":N,"protocol":6,"protocol_name":"TCP","direction":"out","loopback":true,"local":"127.0.0.1","lport":80}`}},
		{args: flow(), want: []string{
			"TIME ESTABLISHED PID TEST TCP " + local + " <---- " + remote,
			"TIME DELETED PID TEST TCP " + local + " <---- " + remote,
		}},
		{args: flow("-q", "-c", "1"), want: []string{"TIME ESTABLISHED pid=PID protocol=TCP local=[127.0.0.1]:80 remote=[127.0.0.1]:PORT"}},
		{args: flow("-v", "-c", "1"), want: []string{
			"DATE TIME ESTABLISHED pid=PID program=TEST endpoint=N parent=N protocol=TCP local=[127.0.0.1]:80 remote=[127.0.0.1]:PORT",
			"\tevent event=ESTABLISHED outbound=0" + fields + " remoteAddr=127.0.0.1 remotePort=PORT timestamp=N",
		}},
		{args: reflect(), want: []string{"OPEN opened T " + handle, "CLOSE opened T " + handle}},
		{args: reflect("-q", "-c", "1"), want: []string{`OPEN pid=NUMBER layer=SOCKET priority=-7 filter="event = CLOSE"`}},
		{args: reflect("-v", "-c", "1"), want: []string{
			"DATE TIME OPEN opened T " + handle,
			"\thandle event=OPEN processId=N layer=SOCKET priority=-7 timestamp=N",
		}},
		{args: reflect("--json", "-c", "1"), want: []string{`{"time":"N","timestamp":N,"event":"OPEN","opened":"N","pid":N,"program":"TEST",` +
			`"layer":"SOCKET","flags":["SNIFF","RECV_ONLY"],"priority":-7,"filter":"event = CLOSE"}`}},
	}
	for i := range tests {
		tests[i].run = startEvents(t, pair.A, append([]string{"dump"}, tests[i].args...)...)
	}
	other := start(t, pair.A, "sockets", "--priority=-7", "event == CLOSE")
	connectTCP(t, pair.A, 80)
	for i, tt := range tests {
		if slices.Contains(tt.args, "reflect") {
			tests[i].read = 1 // whose is a handle cannot be told any more when its process is at its end
			tt.run.lines(t, 1)
		}
	}
	if _, status := other.end(t, syscall.SIGINT); status != 0 {
		t.Errorf("status %d", status)
	}
	pid := regexp.MustCompile(fmt.Sprintf(`\b%d\b`, other.cmd.Process.Pid))
	for _, tt := range tests {
		tt.run.lines(t, len(tt.want)-tt.read)
		name := strings.Join(tt.args, " ")
		signal := os.Signal(syscall.SIGINT)
		if strings.Contains(name, "-c 1") {
			signal = nil // it ends by itself
		}
		out, status := tt.run.end(t, signal)
		out = strings.ReplaceAll(pid.ReplaceAllString(out, "NUMBER"), `"pid":NUMBER`, `"pid":N`)
		got, want := strings.Join(shape(out), "\n"), strings.Join(tt.want, "\n")
		if status != 0 || strings.ReplaceAll(got, "processId=NUMBER", "processId=N") != want {
			t.Errorf("%s: status %d, got\n%s\nwant\n%s", name, status, got, want)
		}
		if signal != nil && !strings.Contains(tt.run.errout.String(), "2 events matched, 2 received") {
			t.Errorf("%s: summary: %s", name, tt.run.errout)
		}
	}
}

// TestDropSockets refuses socket operations silently.
func TestDropSockets(t *testing.T) {
	pair := lab.TwoHostsT(t, lab.LinkOptions{})
	p := startEvents(t, pair.A, "drop", "--layer", "socket", "event == BIND and localPort == 81")
	if l, err := pair.A.Listen("tcp4", "127.0.0.1:81"); !errors.Is(err, syscall.EACCES) {
		t.Errorf("the bind was not refused: %v, %v", l, err)
	}
	l, err := pair.A.Listen("tcp4", "127.0.0.1:82")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if out, status := p.end(t, syscall.SIGINT); out != "" || status != 0 {
		t.Errorf("status %d: %s", status, out)
	}
	if !strings.Contains(p.errout.String(), "1 event matched, 1 dropped") {
		t.Errorf("summary: %s", p.errout)
	}
}

// runIn runs the command on a host until it ends.
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
	line := fmt.Sprintf(`opened T pid=%d exe=TEST layer=NETWORK flags=DROP priority=7 filter="udp.DstPort = 9"`, pid)
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
	if out, status := runIn(t, pair.A, cobra.ShellCompRequestCmd, "kill", ""); status != 0 || !strings.Contains(out, fmt.Sprintf("\n%d\t", pid)) {
		t.Errorf("completion of kill: %d, %q", status, out)
	}
	out, status = runIn(t, pair.A, "kill", fmt.Sprint(pid))
	if got := shape(out); status != 0 || len(got) != 1 || got[0] != "KILL "+line {
		t.Errorf("kill: %d, %q", status, got)
	}
	if _, status := drop.end(t, nil); status != -1 {
		t.Errorf("the killed command ended with status %d", status)
	}
	if out, status := runIn(t, pair.A, "clean"); status != 0 {
		t.Errorf("clean: %d, %q", status, out)
	}
	watch.lines(t, 2)
	out, status = watch.end(t, syscall.SIGINT)
	if got := shape(out); status != 0 || len(got) != 2 || !strings.HasPrefix(got[0], "OPEN opened T pid=") || !strings.HasPrefix(got[1], "CLOSE opened T pid=") {
		t.Errorf("watch: %d, %q", status, got)
	}
	tables, err := pair.A.NFTables()
	if err != nil || len(tables) != 0 {
		t.Errorf("left: %q, %v", tables, err)
	}
}

package main

import (
	"os"
	"testing"

	"github.com/opendivert/divert/internal/lab"
)

// TestSchemaLive validates the commands' output for real traffic against the schema.
func TestSchemaLive(t *testing.T) {
	all := schemas(t)
	pair, echo := hosts(t)
	type run struct {
		args []string
		out  string
	}
	runs := []run{
		{[]string{"dump", "--json", "udp"}, "packet"},
		{[]string{"passthru", "--json", "--priority", "10", "udp"}, ""},
		{[]string{"impair", "--json", "--priority", "20", "--lag", "1ms", "udp"}, ""},
		{[]string{"reject", "--json", "-v", "-c", "1", "--priority", "-10", "inbound and udp"}, "packet"},
		{[]string{"drop", "--json", "--priority", "-20", "tcp"}, ""},
		{[]string{"watch", "--json"}, "handle"},
	}
	if needProcesses() == nil {
		runs = append(runs, run{[]string{"sockets", "--json"}, "event"}, run{[]string{"flows", "--json"}, "event"}, run{[]string{"flows", "--top", "--json"}, "process-flows"})
	}
	var started []*running
	for _, r := range runs {
		started = append(started, start(t, pair.A, r.args...))
	}
	exchange(t, pair.A, echo, 1, answersIn(0)) // rejected on the way back
	exchange(t, pair.A, echo, 1, answersIn(1))
	if out, status := runIn(t, pair.A, "list", "--json"); status != exitOK || checkLines(t, all, out, "handle")["handle"] < 4 {
		t.Errorf("list: %d: %s", status, out)
	}
	if out, status := runIn(t, pair.A, "kill", "--json", "1"); status != exitFailed || checkLines(t, all, out, "error")["error"] != 1 {
		t.Errorf("kill: %d: %s", status, out)
	}
	for i, p := range started {
		out, status := p.end(t, os.Interrupt)
		if n := checkLines(t, all, out, runs[i].out); status != exitOK || (runs[i].out == "") != (out == "") || runs[i].out != "" && n[runs[i].out] == 0 {
			t.Errorf("%v: status %d: %s%s", runs[i].args, status, out, p.errout)
		}
		if n := checkLines(t, all, p.errout.String(), "start", "summary", "warning"); n["start"] != 1 || n["summary"] != 1 {
			t.Errorf("%v: %s", runs[i].args, p.errout)
		}
	}
	dead := start(t, pair.A, "drop", "tcp.DstPort == 9")
	dead.end(t, os.Kill)
	if out, status := runIn(t, pair.A, "clean", "--json"); status != exitOK || checkLines(t, all, out, "removed")["removed"] != 1 {
		t.Errorf("clean: %d: %s", status, out)
	}
}

func TestSchemaDoctor(t *testing.T) {
	lab.Need(t)
	r := runCommand(t, "", "doctor", "--json")
	if checkLines(t, schemas(t), r.out, "doctor")["doctor"] != 1 {
		t.Errorf("%+v", r)
	}
}

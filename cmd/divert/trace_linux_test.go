package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestTraces has commands write what they decide, and tshark say what is in the file.
func TestTraces(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("there is no tshark (Debian: apt-get install tshark)")
	}
	self := ""
	if needProcesses() == nil {
		self = filepath.Base(os.Args[0]) + "[" + strconv.Itoa(os.Getpid()) + "]"
	}
	for _, test := range []struct {
		name    string
		args    []string
		back    int
		summary string
		// Interface, direction, checksum's state, and verdict of each packet; those that the command sends have no process.
		want []string
	}{
		{"drop", []string{"drop", "-c", "2"}, 0, "2 packets matched, 2 received, 2 written", []string{
			"eth0|0x00000002|verdict: dropped", "eth0|0x00000002|verdict: dropped"}},
		{"drop, interpreter", []string{"drop", "-c", "2", "--engine", "interpreter"}, 0, "2 received, 2 written", []string{
			"eth0|0x00000002|verdict: dropped", "eth0|0x00000002|verdict: dropped"}},
		{"reject", []string{"reject", "-c", "2"}, 0, "2 with ICMP, 0 not answered, 4 written", []string{
			"eth0|0x00000002|verdict: rejected", "eth0:sent|0x00000001|verdict: sent",
			"eth0|0x00000002|verdict: rejected", "eth0:sent|0x00000001|verdict: sent"}},
		{"passthru", []string{"passthru", "-c", "2"}, 2, "2 received, 2 sent, 2 written", []string{
			"eth0|0x00000002|verdict: accepted", "eth0|0x00000002|verdict: accepted"}},
		{"passthru, rewrite", []string{"passthru", "--rewrite", "-c", "1"}, 2, "1 received, 1 sent, 2 written", []string{
			"eth0|0x00000002|verdict: rewritten", "eth0:sent|0x00000002|verdict: sent"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pair, echo := hosts(t)
			file := filepath.Join(t.TempDir(), "x.pcapng")
			p := start(t, pair.A, append(test.args, "-w", file, "udp.DstPort == 7")...)
			if n := exchange(t, pair.A, echo, 2, answersIn(test.back)); n != test.back {
				t.Errorf("%d datagrams came back", n)
			}
			if _, status := p.end(t, nil); status != exitOK || !strings.Contains(p.errout.String(), test.summary) {
				t.Errorf("status %d: %s", status, p.errout)
			}
			c := exec.Command(tshark, "-r", file, "-T", "fields", "-E", "separator=|", "-E", "aggregator=;", "-e", "frame.interface_name",
				"-e", "frame.packet_flags_direction", "-e", "frame.comment", "-e", "frame.packet_id")
			c.Env = append(os.Environ(), "HOME="+t.TempDir(), "LC_ALL=C.UTF-8")
			var errout bytes.Buffer
			c.Stderr = &errout
			out, err := c.Output()
			if err != nil || strings.Count(errout.String(), "\n") > strings.Count(errout.String(), "Running as user") {
				t.Fatalf("%v\n%s", err, &errout)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			if len(lines) != len(test.want) {
				t.Fatalf("tshark shows\n%s", out)
			}
			for i, want := range test.want {
				f := strings.Split(lines[i], "|")
				comments := strings.SplitN(f[2], ";", 2)
				if test.name == "drop" && self != "" && (len(comments) != 2 || !strings.HasPrefix(comments[0], self)) {
					t.Errorf("packet %d: %s, want the process %s", i, lines[i], self)
				}
				if got := f[0] + "|" + f[1] + "|" + comments[len(comments)-1]; got != want || f[3] != strconv.Itoa(i+1) {
					t.Errorf("packet %d: %s, want %s", i, lines[i], want)
				}
			}
			if r := runCommand(t, "", "dump", "-r", file); r.status != exitOK || strings.Count(r.out, "\n") != len(test.want) {
				t.Errorf("read back: %+v", r)
			}
		})
	}
}

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Wireshark's values for a right checksum (PROTO_CHECKSUM_E_GOOD) and for comments among its expert infos (PI_COMMENT).
// Higher values are warnings.
// that warns is more.
const (
	goodChecksum    = "1"
	commentSeverity = "1048576"
)

// TestTraces has each command that writes packets write a file, and compares it with tshark's reading, field by field.
func TestTraces(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("there is no tshark (Debian: apt-get install tshark)")
	}
	if out, err := exec.Command(tshark, "--version").Output(); err != nil || !bytes.Contains(out, []byte("with Lua")) {
		t.Skipf("this tshark has no Lua, which the fields of processes and verdicts are made with: %v", err)
	}
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	self := []string{filepath.Base(os.Args[0]), strconv.Itoa(os.Getpid()), path}
	if needProcesses() != nil {
		self = []string{"", "", ""}
	}
	for _, test := range []struct {
		name    string
		args    []string
		back    int
		summary string
		want    []string // interface, direction, length and verdict of each packet
	}{
		{"dump", []string{"dump", "-c", "2"}, 2, "2 received", []string{
			"eth0|0x00000002|92|", "eth0|0x00000002|92|"}},
		{"drop", []string{"drop", "-c", "2"}, 0, "2 packets matched, 2 received, 2 written", []string{
			"eth0|0x00000002|92|dropped", "eth0|0x00000002|92|dropped"}},
		{"drop, interpreter", []string{"drop", "-c", "2", "--engine", "interpreter"}, 0, "2 received, 2 written", []string{
			"eth0|0x00000002|92|dropped", "eth0|0x00000002|92|dropped"}},
		{"reject", []string{"reject", "-c", "2"}, 0, "2 with ICMP, 0 not answered, 4 written", []string{
			"eth0|0x00000002|92|rejected", "eth0:sent|0x00000001|56|sent",
			"eth0|0x00000002|92|rejected", "eth0:sent|0x00000001|56|sent"}},
		{"passthru", []string{"passthru", "-c", "2"}, 2, "2 received, 2 sent, 2 written", []string{
			"eth0|0x00000002|92|accepted", "eth0|0x00000002|92|accepted"}},
		{"passthru, rewrite", []string{"passthru", "--rewrite", "-c", "1"}, 2, "1 received, 1 sent, 2 written", []string{
			"eth0|0x00000002|92|rewritten", "eth0:sent|0x00000002|92|sent"}},
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
			args := []string{"-r", file, "-X", "lua_script:" + filepath.Join("wireshark", "divert.lua"), "-o", "ip.check_checksum:TRUE", "-T", "fields", "-E", "separator=|", "-E", "aggregator=;"}
			const ( // the fields, in order
				device = iota
				direction
				length
				captured
				id
				comments
				program
				pid
				programPath
				verdict
				ipChecksum
				severity
				fields
			)
			for _, f := range [fields]string{"frame.interface_name", "frame.packet_flags_direction", "frame.len", "frame.cap_len", "frame.packet_id",
				"frame.comment", "divert.process", "divert.pid", "divert.path", "divert.verdict", "ip.checksum.status", "_ws.expert.severity"} {
				args = append(args, "-e", f)
			}
			c := exec.Command(tshark, args...)
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
			process := self
			if strings.Contains(test.name, "interpreter") {
				process = []string{"", "", ""}
			}
			for i, want := range test.want {
				f := strings.Split(lines[i], "|")
				if got := strings.Join([]string{f[device], f[direction], f[length], f[verdict]}, "|"); got != want || f[id] != strconv.Itoa(i+1) || f[captured] != f[length] {
					t.Errorf("packet %d: %s, want %s", i, lines[i], want)
				}
				if got := f[program : programPath+1]; !slices.Equal(got, process) {
					t.Errorf("packet %d: the process is %q, want %q", i, got, process)
				}
				var told []string // as Wireshark shows it without the dissector
				if process[0] != "" {
					told = append(told, fmt.Sprintf("%s[%s] %s", process[0], process[1], process[2]))
				}
				if f[verdict] != "" {
					told = append(told, "verdict: "+f[verdict])
				}
				if f[comments] != strings.Join(told, ";") {
					t.Errorf("packet %d: the comments are %q, want %q", i, f[comments], told)
				}
				for _, status := range strings.Split(f[ipChecksum], ";") { // an answer also has that of the packet inside
					if status != goodChecksum {
						t.Errorf("packet %d: the checksum of an IP header is wrong", i)
					}
				}
				for _, s := range strings.FieldsFunc(f[severity], func(c rune) bool { return c == ';' }) {
					if s != commentSeverity {
						t.Errorf("packet %d: Wireshark warns of it: %s", i, lines[i])
					}
				}
			}
			if r := runCommand(t, "", "dump", "-r", file); r.status != exitOK || strings.Count(r.out, "\n") != len(test.want) {
				t.Errorf("read back: %+v", r)
			}
		})
	}
}

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// capture writes packets of two processes on two interfaces.
func processCapture(t *testing.T, program string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := newCaptureWriter(&b, "true")
	if err != nil {
		t.Fatal(err)
	}
	packet := make([]byte, 33)
	packet[0], packet[3], packet[8] = 0x45, 33, 64
	for i, r := range []record{
		{device: "eth0", direction: directionOut, pid: 4711, program: program, path: "/usr/bin/" + program},
		{device: "eth0", direction: directionIn, pid: 4712, program: "d\u00e9mon"},
		{device: "lo", direction: directionLoopback},
	} {
		r.data, r.length, r.when = packet, len(packet), time.Unix(1_700_000_000+int64(i), 123456789)
		if err := w.write(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.statistics(7); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestProcessesInCaptures reads back the processes that were written.
func TestProcessesInCaptures(t *testing.T) {
	for _, program := range []string{"curl", "a[5] b", "x\ny", strings.Repeat("\u00e9", 20000)} {
		r := runCommand(t, string(processCapture(t, program)), "dump", "-t", "-r", "-")
		lines := strings.Split(r.out, "\n")
		if r.status != exitOK || len(lines) != 4 || !strings.HasSuffix(lines[1], fmt.Sprintf(" [%s 4712]", printable("d\u00e9mon"))) || strings.Contains(lines[2], "[") {
			t.Errorf("%.40q: status %d\n%.300s\n%.300s", program, r.status, r.out, r.errout)
		}
		if len(program) < 100 && !strings.HasSuffix(lines[0], fmt.Sprintf(" [%s 4711]", printable(program))) {
			t.Errorf("%q became %s", program, lines[0])
		}
	}
}

// TestFilesByNames: filters find processes and interfaces that a capture file tells.
func TestFilesByNames(t *testing.T) {
	file := string(processCapture(t, "curl"))
	for filter, want := range map[string]int{
		`process == "curl"`: 1, `process in {"curl", "démon"}`: 2, `process != "curl" and outbound`: 1, "processId == 4712": 1,
		`iface == "eth0"`: 2, `iface != "eth0"`: 1, `iface in {"lo", "eth1"}`: 1, `iface == "eth0" and process == "curl"`: 1,
	} {
		r := runCommand(t, file, append([]string{"dump", "-q", "-r", "-"}, filter)...)
		if n := strings.Count(r.out, "\n"); n != want || r.status != exitOK {
			t.Errorf("%q matches %d packets, want %d: %s", filter, n, want, r.errout)
		}
	}
}

// TestWiresharkReadsProcesses asks tshark for what a capture file says beside the packets.
func TestWiresharkReadsProcesses(t *testing.T) {
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("there is no tshark (Debian: apt-get install tshark)")
	}
	file := filepath.Join(t.TempDir(), "x.pcapng")
	if err := os.WriteFile(file, processCapture(t, "curl"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(tshark, "-r", file, "-T", "fields", "-E", "separator=|", "-e", "frame.packet_id", "-e", "frame.interface_name",
		"-e", "frame.packet_flags_direction", "-e", "frame.time_epoch", "-e", "frame.comment")
	c.Env = append(os.Environ(), "HOME="+t.TempDir(), "TZ=UTC", "LC_ALL=C.UTF-8")
	var errout bytes.Buffer
	c.Stderr = &errout
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &errout)
	}
	const want = `1|eth0|0x00000002|1700000000.123456789|curl[4711] /usr/bin/curl
2|eth0|0x00000001|1700000001.123456789|démon[4712]
3|lo|0x00000002|1700000002.123456789|
`
	if string(out) != want {
		t.Errorf("tshark reads\n%s, want\n%s", out, want)
	}
	for line := range strings.Lines(errout.String()) {
		if !strings.HasPrefix(line, "Running as user") {
			t.Error(line)
		}
	}
}

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/diverttest"
)

// processCapture writes packets of two processes on two interfaces.
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
		{device: "lo", direction: directionLoopback, lost: 1 << 40},
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

// TestProcessesInCaptures reads back the processes written to a file.
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

// TestLossesInCaptures: losses between packets are read back, and written again.
func TestLossesInCaptures(t *testing.T) {
	file := filepath.Join(t.TempDir(), "again.pcapng")
	if r := runCommand(t, string(processCapture(t, "curl")), "dump", "-r", "-", "-w", file); r.status != exitOK {
		t.Fatalf("%+v", r)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := newCaptureReader(f, divert.LayerNetwork)
	if err != nil {
		t.Fatal(err)
	}
	var got []uint64
	for r := (record{}); ; {
		if err := c.next(&r); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.lost)
	}
	if want := []uint64{0, 0, 1 << 40}; !slices.Equal(got, want) {
		t.Errorf("lost %v, want %v", got, want)
	}
}

// TestLosses: a handle is queried at intervals, and each loss is reported once.
func TestLosses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := diverttest.New()
		h, err := network.Open("true", divert.WithFlags(divert.Sniff), divert.WithQueueLength(32))
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		b := make([]byte, 33)
		b[0], b[3], b[8], b[9] = 0x45, 33, 64, 253
		send := func(n int) {
			for range n {
				network.Outbound(b, diverttest.Link)
			}
		}
		l := losses{handle: h}
		for i, step := range []struct {
			packets int
			pause   time.Duration
			want    uint64
		}{{40, 0, 8}, {5, 0, 0}, {0, lossesEvery, 5}, {0, lossesEvery, 0}, {1, time.Hour, 1 + 32}} {
			send(step.packets)
			time.Sleep(step.pause)
			if i == 4 { // the queued packets are too old by now
				ps := make([]divert.Packet, 1)
				send(1)
				if _, err := h.RecvBatch(ps); err != nil {
					t.Fatal(err)
				}
			}
			if got := l.next(); got != step.want {
				t.Errorf("step %d: %d were lost, want %d", i, got, step.want)
			}
		}
		if l = (losses{}); l.next() != 0 {
			t.Error("the zero losses has some")
		}
	})
}

// TestFilesByNames: filters find the processes and interfaces recorded in a capture file.
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

// TestWiresharkReadsProcesses has tshark print the processes and other options of a capture file.
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
		"-e", "frame.packet_flags_direction", "-e", "frame.time_epoch", "-e", "frame.comment", "-e", "frame.drop_count")
	c.Env = append(os.Environ(), "HOME="+t.TempDir(), "TZ=UTC", "LC_ALL=C.UTF-8")
	var errout bytes.Buffer
	c.Stderr = &errout
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &errout)
	}
	const want = `1|eth0|0x00000002|1700000000.123456789|curl[4711] /usr/bin/curl|
2|eth0|0x00000001|1700000001.123456789|démon[4712]|
3|lo|0x00000002|1700000002.123456789||1099511627776
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

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/internal/capfile"
)

// TestVerdictsInCaptures writes packets with every verdict and reads them back.
func TestVerdictsInCaptures(t *testing.T) {
	var b bytes.Buffer
	w, err := newCaptureWriter(&b, "true")
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 33)
	data[0], data[3], data[8] = 0x45, 33, 64
	for v := range capfile.Sent + 1 {
		r := record{data: data, length: len(data), when: time.Unix(1_700_000_000, 0), device: "eth0", direction: directionOut,
			verdict: v, sent: v == capfile.Sent, queue: int(v)}
		if v%2 == 0 {
			r.pid, r.program, r.path = 4711, "verdict: dropped", "/bin/verdict: dropped"
		}
		if err := w.write(&r); err != nil {
			t.Fatal(err)
		}
	}
	r := runCommand(t, b.String(), "dump", "--json", "-r", "-")
	lines := strings.Split(strings.TrimSpace(r.out), "\n")
	if r.status != exitOK || len(lines) != int(capfile.Sent)+1 {
		t.Fatalf("%+v", r)
	}
	for v, line := range lines {
		var j jsonPacket
		if err := json.Unmarshal([]byte(line), &j); err != nil {
			t.Fatal(err)
		}
		device := "eth0"
		if capfile.Verdict(v) == capfile.Sent {
			device = "eth0:sent"
		}
		if j.Verdict != capfile.Verdict(v).String() || j.IfName != device || (j.PID == 4711) != (v%2 == 0) {
			t.Errorf("%s became %s", capfile.Verdict(v).String(), line)
		}
	}
	text := runCommand(t, b.String(), "dump", "-t", "-r", "-").out
	if !strings.Contains(text, " [dropped]\n") || !strings.Contains(text, " [verdict: dropped 4711] [sent]\n") && !strings.Contains(text, "[sent]\n") {
		t.Errorf("as text:\n%s", text)
	}
}

func TestTraceErrors(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"reject -v -w - udp", "-v prints to standard output, where -w - writes the file; choose one"},
		{"drop --layer socket -w x true", "--write applies to packets, but the layer socket has events"},
	} {
		if r := runCommand(t, "", words(test.args)...); r.status != exitUsage || !strings.Contains(r.errout, test.want) {
			t.Errorf("%s: %+v", test.args, r)
		}
	}
	for _, command := range []string{"drop", "reject", "passthru"} {
		r := runCommand(t, "", command, "-w", filepath.Join(t.TempDir(), "no", "x"), "udp")
		if r.status != exitFailed || !strings.Contains(r.errout, "no such file") && !strings.Contains(r.errout, "cannot find") && !strings.Contains(r.errout, "not found") {
			t.Errorf("%s: %+v", command, r)
		}
		a := &app{in: strings.NewReader(""), out: os.Stderr, errout: new(bytes.Buffer), colour: true}
		if _, err := (&traceFlag{path: "-"}).open(a, "true", nil); err != errTerminal {
			t.Errorf("%s to a terminal: %v", command, err)
		}
	}
}

// BenchmarkTrace writes packets as passthru -w does.
func BenchmarkTrace(b *testing.B) {
	ps, names := received()
	t := &trace{sink: &fileSink{}, clock: newWallClock(), names: names, record: record{live: true}}
	s := t.sink.(*fileSink)
	var err error
	if s.capture, err = newCaptureWriter(io.Discard, "true"); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := t.received(ps, 1, func(int) capfile.Verdict { return capfile.Accepted }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(ps)), "ns/packet")
}

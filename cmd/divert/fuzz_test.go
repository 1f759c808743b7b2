package main

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
)

// FuzzPrint prints any bytes as a packet in every form, whole and cut.
func FuzzPrint(f *testing.F) {
	for i := range samples {
		f.Add(samples[i].data, uint16(samples[i].length), uint8(samples[i].direction), "eth0")
	}
	f.Add([]byte{}, uint16(0), uint8(0), "")
	f.Fuzz(func(t *testing.T, data []byte, length uint16, way uint8, device string) {
		addr := divert.Address{Layer: packet.LayerNetwork, Outbound: way&1 != 0, Impostor: way&2 != 0}
		r := &record{
			data: data, length: max(int(length), len(data)), addr: &addr, when: time.Unix(0, int64(length)), device: device,
			direction: direction(int(way) % len(directions)), live: way&64 != 0,
		}
		for _, p := range []printer{{}, {quiet: true}, {verbose: 1, hex: true}, {verbose: 2, colour: true}} {
			b := p.append(nil, r)
			if len(b) == 0 || b[len(b)-1] != '\n' {
				t.Fatalf("%q is no line", b)
			}
			for _, c := range b { // nothing from outside may reach the terminal as it is
				if (c < ' ' && c != '\n' && c != '\t' && !(p.colour && c == '\x1b')) || c >= utf8.RuneSelf {
					t.Fatalf("%q has the byte %#x", b, c)
				}
			}
			if p.verbose == 0 && bytes.Count(b, []byte("\n")) != 1 {
				t.Fatalf("%q are several lines", b)
			}
		}
		p := printer{hex: true}
		b, err := p.appendJSON(nil, r)
		if err != nil || bytes.Count(b, []byte("\n")) != 1 {
			t.Fatalf("%q, %v", b, err)
		}
		w, err := newCaptureWriter(io.Discard, "true")
		if err == nil {
			err = w.write(r)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzCapture reads any bytes as a capture file. What is printed of it must be printed again of the copy.
func FuzzCapture(f *testing.F) {
	f.Add(sampleFile(f))
	for _, file := range captureFiles {
		f.Add(file.pcap())
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		var out, errout, copied writer
		a := &app{in: bytes.NewReader(file), out: &out, errout: &errout}
		status := a.run(context.Background(), []string{"dump", "-r", "-", "--json"})
		if status != exitOK && status != exitFailed {
			t.Fatalf("status %d: %s", status, errout)
		}
		if status == exitFailed && len(errout) == 0 {
			t.Fatal("no reason given")
		}
		a = &app{in: bytes.NewReader(file), out: &copied, errout: io.Discard}
		if got := a.run(context.Background(), []string{"dump", "-r", "-", "-w", "-"}); got != status {
			t.Fatalf("status %d, and %d for the copy", status, got)
		}
		if len(copied) == 0 {
			return
		}
		var again writer
		a = &app{in: bytes.NewReader(copied), out: &again, errout: &errout}
		if status := a.run(context.Background(), []string{"dump", "-r", "-", "--json"}); status != exitOK {
			t.Fatalf("the copy: status %d: %s", status, errout)
		}
		if strings.Count(string(again), "\n") != strings.Count(string(out), "\n") {
			t.Fatalf("%s\nbecomes\n%s", out, again)
		}
	})
}

package main

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/capfile"
	"github.com/opendivert/divert/packet"
)

// FuzzPrint prints arbitrary bytes as a packet in every form, whole and cut.
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
		for _, p := range []printer{{}, {quiet: true}, {verbose: 1, bytes: bytesBoth}, {verbose: 2, colour: true}} {
			b := p.append(nil, r)
			if len(b) == 0 || b[len(b)-1] != '\n' {
				t.Fatalf("%q does not end like a line", b)
			}
			for _, c := range b { // no byte from outside may reach the terminal unescaped
				if (c < ' ' && c != '\n' && c != '\t' && !(p.colour && c == '\x1b')) || c >= utf8.RuneSelf {
					t.Fatalf("%q has the byte %#x", b, c)
				}
			}
			if p.verbose == 0 && bytes.Count(b, []byte("\n")) != 1 {
				t.Fatalf("%q has several lines", b)
			}
		}
		p := printer{bytes: bytesBoth}
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

// FuzzCapture reads arbitrary bytes as a capture file, writes its packets to another, and reads that.
func FuzzCapture(f *testing.F) {
	f.Add(sampleFile(f))
	for _, file := range captureFiles {
		f.Add(file.pcap())
	}
	for _, v := range pcapVariants {
		f.Add(v.file())
	}
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		w := &ngWriter{order: order}
		w.section(0).device(1, 96, w.option(capfile.OptionName, []byte("eth0\x1b[2J")...), w.option(capfile.OptionResolution, 9)).device(101, 0)
		f.Add(w.packet(1, 1e15, w.option(capfile.OptionFlags, 1, 0, 0, 1)).block(capfile.BlockSimplePacket, w.words(4, 5)...).block(77, 1).section(2).b)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		first, copied := reread(t, file)
		if len(copied) == 0 {
			return
		}
		second, _ := reread(t, copied)
		if !slices.Equal(first, second) {
			t.Fatalf("%q\nbecomes\n%q", first, second)
		}
	})
}

// FuzzCaptureWriter writes packets to a file and reads them back unchanged.
func FuzzCaptureWriter(f *testing.F) {
	f.Add([]byte("payload"), uint8(9), int64(1), "eth0", uint8(1), uint8(2), uint32(7), "curl", "/usr/bin/curl", uint8(3))
	f.Add([]byte{}, uint8(0), int64(1e18), "", uint8(0), uint8(0), uint32(0), "", "", uint8(0))
	f.Add([]byte("x"), uint8(4), int64(5), "eth0\xff", uint8(2), uint8(5), uint32(1), "a[1]", "/b c", uint8(1))
	f.Fuzz(func(t *testing.T, payload []byte, cut uint8, when int64, device string, way, verdict uint8, pid uint32, program, path string, queue uint8) {
		if when < 0 || strings.ContainsRune(device, 0) || len(device) > 200 || len(payload) > 1<<15 || strings.HasSuffix(device, ":sent") {
			return
		}
		b := append(make([]byte, packet.IPv4HeaderLen), payload...)
		b[0], b[9] = 0x45, 253
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		r := record{
			data: b[:max(packet.IPv4HeaderLen, len(b)-int(cut))], length: len(b), addr: &divert.Address{}, when: time.Unix(0, when), device: device,
			direction: directionsOfFiles[way%uint8(len(directionsOfFiles))], verdict: capfile.Verdict(verdict) % (capfile.Sent + 1),
			pid: pid, program: program, path: path, queue: int(queue),
		}
		var file writer
		w, err := newCaptureWriter(&file, "true")
		if err != nil {
			t.Fatal(err)
		}
		sent := r
		sent.sent = true
		for _, one := range []*record{&r, &sent, &r} {
			if err := w.write(one); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.statistics(uint64(cut)); err != nil {
			t.Fatal(err)
		}
		c, err := newCaptureReader(bytes.NewReader(file), divert.LayerNetwork)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			var got record
			if err := c.next(&got); err != nil {
				t.Fatalf("packet %d: %v", i, err)
			}
			device := strings.ToValidUTF8(r.device, "\uFFFD")
			if i == 1 {
				device += ":sent"
			}
			if !bytes.Equal(got.data, r.data) || got.length != r.length || !got.when.Equal(r.when) || got.direction != r.direction ||
				got.verdict != r.verdict || got.pid != r.pid || got.device != device {
				t.Fatalf("packet %d: %+v\nis read as %+v, device %q", i, r, got, device)
			}
		}
		var more record
		if err := c.next(&more); err != io.EOF {
			t.Fatalf("after the last packet: %v", err)
		}
	})
}

// reread reads a file as far as possible; it returns the text of its packets and a new file with them.
func reread(t *testing.T, file []byte) (lines []string, copied writer) {
	t.Helper()
	c, err := newCaptureReader(bytes.NewReader(file), divert.LayerNetwork)
	if err != nil {
		return nil, nil
	}
	w, err := newCaptureWriter(&copied, "true")
	if err != nil {
		t.Fatal(err)
	}
	var (
		p printer
		r record
	)
	for {
		if err := c.next(&r); err != nil {
			return lines, copied
		}
		if len(r.data) > r.length || r.addr.Layer != divert.LayerNetwork {
			t.Fatalf("record %+v", r)
		}
		if n := r.when.UnixNano(); n < 0 || !time.Unix(0, n).Equal(r.when) {
			r.when = sampleTime // the copy's form, nanoseconds in 64 bits, cannot hold it
		}
		lines = append(lines, string(p.append(nil, &r)))
		if err := w.write(&r); err != nil {
			t.Fatal(err)
		}
	}
}

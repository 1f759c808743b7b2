package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/opendivert/divert/internal/capfile"
)

// pcapVariant is a pcap file of any version and variant, with a frame for each element of lengths.
type pcapVariant struct {
	name         string
	order        binary.AppendByteOrder // nil: little endian
	magic        uint32                 // 0: with microseconds
	major, minor uint16                 // 0: 2.4
	snap         uint32
	lengths      [][2]uint32 // the captured and the original length, as in the file; nil: one frame of true length
	cut          int         // bytes missing at the end
	want         int         // frames that must be read
	fails        string
	foreign      bool // tcpdump cuts packets above a limit, and does not print those longer than their original
}

// frameLen is the length in bytes of the frame that each file has.
const frameLen = 29

var pcapVariants = []pcapVariant{
	{name: "2.4", want: 1},
	{name: "2.4, big endian", order: binary.BigEndian, want: 1},
	{name: "nanoseconds", magic: capfile.MagicNanoseconds, want: 1},
	{name: "nanoseconds, big endian", magic: capfile.MagicNanoseconds, order: binary.BigEndian, want: 1},
	{name: "Kuznetzov's", magic: capfile.MagicPatched, want: 1},
	{name: "Kuznetzov's, big endian", magic: capfile.MagicPatched, order: binary.BigEndian, want: 1},
	{name: "2.3", major: 2, minor: 3, lengths: [][2]uint32{{frameLen, 60}}, want: 1},
	{name: "2.3 with lengths exchanged", major: 2, minor: 3, lengths: [][2]uint32{{60, frameLen}}, want: 1},
	{name: "2.2", major: 2, minor: 2, lengths: [][2]uint32{{60, frameLen}, {60, frameLen}}, want: 2},
	{name: "2.1, big endian", major: 2, minor: 1, order: binary.BigEndian, lengths: [][2]uint32{{60, frameLen}}, want: 1},
	{name: "2.0", major: 2, lengths: [][2]uint32{{60, frameLen}}, want: 1},
	{name: "of DG/UX", major: 543, lengths: [][2]uint32{{60, frameLen}}, want: 1},
	{name: "2.5", major: 2, minor: 5, fails: "it is a pcap file of version 2.5; only 2.0 to 2.4 are known"},
	{name: "1.4", major: 1, minor: 4, fails: "it is a pcap file of version 1.4"},
	{name: "no limit announced", snap: 0, want: 1},
	{name: "any limit announced", snap: 1<<32 - 1, want: 1},
	{name: "less announced than captured", snap: 20, want: 1, foreign: true},
	{name: "more captured than there was", lengths: [][2]uint32{{frameLen, frameLen}, {frameLen, 20}, {frameLen, frameLen}}, want: 3, foreign: true},
	{name: "of no length", lengths: [][2]uint32{{frameLen, 0}, {frameLen, frameLen}}, want: 2, foreign: true},
	{name: "cut off in a frame", lengths: [][2]uint32{{frameLen, frameLen}, {frameLen, frameLen}}, cut: 9, want: 1,
		fails: "behind frame 1: it is cut off: of frame 2, 29 bytes, only 20 are there"},
	{name: "cut off before a frame", lengths: [][2]uint32{{frameLen, frameLen}, {frameLen, frameLen}}, cut: frameLen, want: 1,
		fails: "of frame 2, 29 bytes, only 0 are there"},
	{name: "cut off in a frame's header", lengths: [][2]uint32{{frameLen, frameLen}, {frameLen, frameLen}}, cut: frameLen + 1, want: 1,
		fails: "of the header of frame 2, 16 bytes, only 15 are there"},
	{name: "cut off in the file's header", cut: frameLen + 16 + 4, fails: "of the header of the file, 24 bytes, only 20 are there"},
	{name: "longer than any frame", lengths: [][2]uint32{{frameLen, frameLen}, {262145, 262145}}, want: 1,
		fails: "frame 2 says that it has 262145 bytes, and no frame has more than 262144"},
	{name: "longer than memory", lengths: [][2]uint32{{1<<32 - 1, 1<<32 - 1}}, fails: "frame 1 says that it has 4294967295 bytes"},
}

// file returns the file.
func (v *pcapVariant) file() []byte {
	order, magic, lengths := v.order, v.magic, v.lengths
	if order == nil {
		order = binary.LittleEndian
	}
	if magic == 0 {
		magic = capfile.MagicMicroseconds
	}
	if lengths == nil {
		lengths = [][2]uint32{{frameLen, frameLen}}
	}
	fraction := uint32(sampleTime.Nanosecond())
	if magic != capfile.MagicNanoseconds {
		fraction /= 1000
	}
	major, minor := v.major, v.minor
	if major == 0 {
		major, minor = 2, 4
	}
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(order.AppendUint16(b, major), minor)
	b = append(b, make([]byte, 8)...)
	b = order.AppendUint32(order.AppendUint32(b, v.snap), uint32(capfile.LinkTypeRaw))
	for _, l := range lengths {
		b = order.AppendUint32(order.AppendUint32(b, uint32(sampleTime.Unix())), fraction)
		b = order.AppendUint32(order.AppendUint32(b, l[0]), l[1])
		if magic == capfile.MagicPatched {
			b = append(b, 0, 0, 0, 2, 8, 0, capfile.OutgoingPacket, 0)
		}
		b = append(b, datagram...)
	}
	return b[:len(b)-v.cut]
}

// TestCapturesOfEveryVersion reads every file that tcpdump and Wireshark read, and compares with tcpdump where it is
// installed.
func TestCapturesOfEveryVersion(t *testing.T) {
	if len(datagram) != frameLen {
		t.Fatalf("the frame has %d bytes", len(datagram))
	}
	tcpdump, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Log("not compared with tcpdump, which is not installed")
	}
	for _, v := range pcapVariants {
		t.Run(v.name, func(t *testing.T) {
			file := v.file()
			r := runCommand(t, string(file), "dump", "-r", "-")
			arrow := ""
			if v.magic == capfile.MagicPatched {
				arrow = "-> "
			}
			lines := strings.SplitAfter(r.out, "\n")
			if n := len(lines) - 1; n != v.want {
				t.Errorf("%d packets, want %d: %s%s", n, v.want, r.out, r.errout)
			}
			for _, line := range lines[:len(lines)-1] {
				if !strings.HasPrefix(line, "05:06:07.123456 "+arrow+"IP 10.77.0.1.5353 > 10.77.0.2.53: UDP, length 1") {
					t.Errorf("%q", line)
				}
			}
			if status := map[bool]int{true: exitOK, false: exitFailed}[v.fails == ""]; r.status != status || !strings.Contains(r.errout, v.fails) || v.fails == "" && r.errout != "" {
				t.Errorf("status %d, errors %q, want %d and %q", r.status, r.errout, status, v.fails)
			}
			if tcpdump != "" && !v.foreign {
				compareWithTcpdump(t, tcpdump, file, strings.ReplaceAll(r.out, arrow, ""), r.status)
			}
		})
	}
}

// compareWithTcpdump compares the packets and the status of a run with tcpdump's for the same file.
func compareWithTcpdump(t *testing.T, tcpdump string, file []byte, got string, status int) {
	t.Helper()
	var out, errout bytes.Buffer
	cmd := exec.Command(tcpdump, "-n", "-q", "-r", "-")
	cmd.Env = []string{"TZ=UTC"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(file), &out, &errout
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if strings.Contains(errout.String(), "Couldn't change to") {
		t.Log("not compared with tcpdump, which cannot become another user here")
		return
	}
	theirs := packetLines(out.String())
	if ours := packetLines(got); ours != theirs || (status == exitOK) != (err == nil) {
		t.Errorf("status %d and\n%stcpdump: %v and\n%s%s", status, ours, err, theirs, &errout)
	}
}

// packetLines returns the lines with packets, without either program's remarks about lengths that disagree.
func packetLines(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if line, _, _ = strings.Cut(line, "length 1"); strings.Contains(line, "> ") {
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}

// ngWriter makes pcapng blocks in either byte order.
type ngWriter struct {
	order binary.AppendByteOrder
	b     []byte
}

// block appends a block and fills in its length.
func (w *ngWriter) block(kind uint32, body ...byte) *ngWriter {
	for len(body)%4 != 0 {
		body = append(body, 0)
	}
	n := uint32(len(body) + 12)
	w.b = w.order.AppendUint32(w.order.AppendUint32(w.b, kind), n)
	w.b = w.order.AppendUint32(append(w.b, body...), n)
	return w
}

// words returns 32-bit numbers in the byte order.
func (w *ngWriter) words(v ...uint32) (b []byte) {
	for _, v := range v {
		b = w.order.AppendUint32(b, v)
	}
	return b
}

// option returns an option with its padding.
func (w *ngWriter) option(code uint16, value ...byte) []byte {
	b := w.order.AppendUint16(w.order.AppendUint16(nil, code), uint16(len(value)))
	for b = append(b, value...); len(b)%4 != 0; {
		b = append(b, 0)
	}
	return b
}

// section begins a section of version 1.minor.
func (w *ngWriter) section(minor uint16) *ngWriter {
	b := w.order.AppendUint32(nil, capfile.ByteOrderMagic)
	b = w.order.AppendUint16(w.order.AppendUint16(b, 1), minor)
	return w.block(capfile.BlockSection, w.order.AppendUint64(b, unknownLength)...)
}

// device appends the description of an interface.
func (w *ngWriter) device(link uint16, snap uint32, options ...[]byte) *ngWriter {
	b := w.order.AppendUint32(w.order.AppendUint16(w.order.AppendUint16(nil, link), 0), snap)
	return w.block(capfile.BlockInterface, append(b, bytes.Join(options, nil)...)...)
}

// packet appends the usual datagram.
func (w *ngWriter) packet(device uint32, at uint64, options ...[]byte) *ngWriter {
	b := w.words(device, uint32(at>>32), uint32(at), frameLen, frameLen)
	b = append(append(b, datagram...), 0, 0, 0)
	return w.block(capfile.BlockPacket, append(b, bytes.Join(options, nil)...)...)
}

func TestPcapngOfEveryKind(t *testing.T) {
	little := func() *ngWriter { return &ngWriter{order: binary.LittleEndian} }
	big := func() *ngWriter { return &ngWriter{order: binary.BigEndian} }
	micro := uint64(sampleTime.UnixMicro())
	ends := little().option(capfile.OptionEnd)
	const at, what = "05:06:07.123456 ", "IP 10.77.0.1.5353 > 10.77.0.2.53: UDP, length 1\n"
	damaged := little().section(0).device(101, 0).packet(0, micro).packet(0, micro)
	damaged.b[len(damaged.b)-4]++
	offset := func(w *ngWriter, seconds int64) []byte {
		return w.option(capfile.OptionOffset, w.order.AppendUint64(nil, uint64(seconds))...)
	}
	for _, test := range []struct {
		name  string
		file  *ngWriter
		want  string
		fails string
	}{
		{"one packet", little().section(0).device(101, 0).packet(0, micro), at + what, ""},
		{"big endian", big().section(0).device(101, 0, big().option(capfile.OptionName, []byte("eth0")...)).packet(0, micro, big().option(capfile.OptionFlags, 0, 0, 0, 2)), at + "eth0 -> " + what, ""},
		{"version 1.2", little().section(2).device(101, 0).packet(0, micro), at + what, ""},
		{"both byte orders", &ngWriter{order: binary.LittleEndian, b: append(big().section(0).device(101, 0).packet(0, micro).b, little().section(0).device(101, 0).packet(0, micro).b...)}, at + what + at + what, ""},
		{"nanoseconds", little().section(0).device(101, 0, little().option(capfile.OptionResolution, 9), ends).packet(0, uint64(sampleTime.UnixNano())), at + what, ""},
		{"seconds", little().section(0).device(101, 0, little().option(capfile.OptionResolution, 0)).packet(0, uint64(sampleTime.Unix())), "05:06:07.000000 " + what, ""},
		{"units of 10 picoseconds", little().section(0).device(101, 0, little().option(capfile.OptionResolution, 11), offset(little(), sampleTime.Unix())).packet(0, 12345600000), at + what, ""},
		{"units of 2^-20 seconds", little().section(0).device(101, 0, little().option(capfile.OptionResolution, capfile.BinaryResolution|20)).packet(0, uint64(sampleTime.Unix())<<20|1<<19), "05:06:07.500000 " + what, ""},
		{"units of 2^-64 seconds", big().section(0).device(101, 0, big().option(capfile.OptionResolution, capfile.BinaryResolution|64), offset(big(), sampleTime.Unix())).packet(0, 1<<62), "05:06:07.250000 " + what, ""},
		{"units of 2^-65 seconds", big().section(0).device(101, 0, big().option(capfile.OptionResolution, capfile.BinaryResolution|65), offset(big(), sampleTime.Unix())).packet(0, 1<<63), "05:06:07.250000 " + what, ""},
		{"before 1970", little().section(0).device(101, 0, offset(little(), -sampleTime.Unix()-1)).packet(0, micro), "23:59:59.123456 " + what, ""},
		{"simple packets", little().section(0).device(101, 0).block(capfile.BlockSimplePacket, append(little().words(frameLen), datagram...)...), "00:00:00.000000 " + what, ""},
		{"simple packets, cut", little().section(0).device(101, 28).block(capfile.BlockSimplePacket, append(little().words(frameLen), datagram[:28]...)...),
			"00:00:00.000000 IP 10.77.0.1.5353 > 10.77.0.2.53: UDP, length 1 [captured 28 of 29 bytes]\n", ""},
		{"simple packets, damaged", little().section(0).device(101, 0).block(capfile.BlockSimplePacket, little().words(64)...), "", "block 3: it is damaged"},
		{"old packets", big().section(0).device(101, 0).block(capfile.BlockOldPacket, append(append(big().words(7, uint32(micro>>32), uint32(micro), frameLen, frameLen), datagram...), 0, 0, 0)...), at + what, ""},
		{"unknown blocks", little().section(0).block(0x80000BAD, 1, 2, 3).device(101, 0).block(5, 1).packet(0, micro).block(4, 0, 0, 0, 0), at + what, ""},
		{"unknown options", little().section(0).device(101, 0, little().option(4000, 1, 2, 3)).packet(0, micro, little().option(3000, 1), little().option(capfile.OptionFlags, 1, 0, 0, 0)), at + "<- " + what, ""},
		{"options that do not fit", little().section(0).device(101, 0, []byte{2, 0, 255, 255}).packet(0, micro, []byte{2, 0, 4, 0}), at + what, ""},
		{"options too short", little().section(0).device(101, 0, little().option(capfile.OptionResolution), little().option(capfile.OptionOffset, 1)).packet(0, micro, little().option(capfile.OptionFlags, 1)), at + what, ""},
		{"two link types", little().section(0).device(101, 0).device(189, 0).packet(1, micro).packet(0, micro), at + what, "1 of 2 frames are left out\ndivert: warning: link type 189 (USB) is not understood"},
		{"another link type", little().section(0).device(147, 0).packet(0, micro), "", "nothing in the capture file could be read: link type 147 (USER0) is not understood"},
		{"another version", &ngWriter{order: binary.LittleEndian, b: append(little().block(capfile.BlockSection, append(little().words(capfile.ByteOrderMagic, 2), make([]byte, 8)...)...).packet(0, micro).b, little().section(0).device(101, 0).packet(0, micro).b...)},
			at + what, "a section of pcapng version 2.0 is left out"},
		{"more captured than there was", little().section(0).device(101, 0).block(capfile.BlockPacket, append(append(little().words(0, uint32(micro>>32), uint32(micro), frameLen, 20), datagram...), 0, 0, 0)...), at + what, ""},
		{"no such interface", little().section(0).device(101, 0).packet(0, micro).packet(1, micro), at + what, "block 4: it has a packet of interface 1, but only 1 were described"},
		{"no interface", little().section(0).packet(0, micro), "", "block 2: it has a packet of interface 0, but only 0 were described"},
		{"interfaces of the section before", little().section(0).device(101, 0).section(0).packet(0, micro), "", "block 4: it has a packet of interface 0"},
		{"a length that is odd", &ngWriter{b: append(little().section(0).b, 1, 0, 0, 0, 21, 0, 0, 0)}, "", "block 2 is damaged: its length is 21 bytes"},
		{"a length of nothing", &ngWriter{b: append(little().section(0).b, 1, 0, 0, 0, 0, 0, 0, 0)}, "", "block 2 is damaged: its length is 0 bytes"},
		{"a length beyond memory", &ngWriter{b: append(little().section(0).b, 6, 0, 0, 0, 0xfc, 0xff, 0xff, 0xff)}, "", "block 2 is damaged, or too long: 4294967292 bytes"},
		{"two lengths", damaged, at + what, "block 4 is damaged: its length is 64 in front and 65 behind"},
		{"cut off in a block", &ngWriter{b: little().section(0).device(101, 0).packet(0, micro).b[:28+20+40]}, "", "it is cut off: of block 3, 64 bytes, only 40 are there"},
		{"cut off in an unknown block", &ngWriter{b: little().section(0).block(77, make([]byte, 52)...).b[:28+40]}, "", "it is cut off: of block 2, 64 bytes, only 40 are there"},
		{"no byte order", little().block(capfile.BlockSection, make([]byte, 16)...), "", "block 1 is damaged: it begins a section and does not tell its byte order"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := runCommand(t, string(test.file.b), "dump", "-r", "-")
			if r.out != test.want || !strings.Contains(r.errout, test.fails) || test.fails == "" && r.errout != "" {
				t.Errorf("%s%s\nwant\n%s%s", r.out, r.errout, test.want, test.fails)
			}
			if failed := test.fails != "" && !strings.Contains(test.fails, "left out"); failed != (r.status == exitFailed) {
				t.Errorf("status %d", r.status)
			}
		})
	}
}

func TestNoCaptureFile(t *testing.T) {
	for in, want := range map[string]string{
		"":                   "divert: the capture file is empty\n",
		"\xd4\xc3":           "divert: the capture file: it is cut off: of the header of the file, 24 bytes, only 2 are there (unexpected EOF)\n",
		"#!/bin/sh\n":        "divert: the file is not a pcap or pcapng file: it begins with 23 21 2f 62\n",
		"\x1f\x8b\x08broken": "divert: the capture file: ",
	} {
		r := runCommand(t, in, "dump", "-r", "-")
		if r.status != exitFailed || r.out != "" || !strings.HasPrefix(r.errout, want) {
			t.Errorf("%q: status %d, %s", in, r.status, fmt.Sprint(r.out, r.errout))
		}
	}
}

package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"
)

// captureFile is a pcap file with one frame.
type captureFile struct {
	name     string
	linkType uint32
	frame    []byte
	arrow    string // of the direction, if the frame has one
	fails    string // the expected error
}

var datagram = ip4(17, udp("x")...)

var captureFiles = []captureFile{
	{name: "raw", linkType: 101, frame: datagram},
	{name: "raw, old number", linkType: 12, frame: datagram},
	{name: "IPv4", linkType: 228, frame: datagram},
	{name: "IPv6", linkType: 229, frame: ip6(17, udp("x")...)},
	{name: "loopback of BSD", linkType: 0, frame: slices.Concat([]byte{2, 0, 0, 0}, datagram)},
	{name: "loopback of OpenBSD", linkType: 108, frame: slices.Concat([]byte{0, 0, 0, 24}, ip6(17, udp("x")...))},
	{name: "Ethernet", linkType: 1, frame: slices.Concat(make([]byte, 12), []byte{8, 0}, datagram)},
	{name: "Ethernet, padded", linkType: 1, frame: slices.Concat(make([]byte, 12), []byte{8, 0}, datagram, make([]byte, 17))},
	{name: "VLAN", linkType: 1, frame: slices.Concat(make([]byte, 12), []byte{0x81, 0, 0, 5, 8, 0}, datagram)},
	{name: "two VLANs", linkType: 1, frame: slices.Concat(make([]byte, 12), []byte{0x88, 0xa8, 0, 5, 0x81, 0, 0, 6, 0x86, 0xdd}, ip6(17, udp("x")...))},
	{name: "cooked, sent", linkType: 113, frame: slices.Concat([]byte{0, 4}, make([]byte, 12), []byte{8, 0}, datagram), arrow: "-> "},
	{name: "cooked, received", linkType: 113, frame: slices.Concat(make([]byte, 14), []byte{8, 0}, datagram), arrow: "<- "},
	{name: "cooked 2, sent", linkType: 276, frame: slices.Concat([]byte{8, 0, 0, 0, 0, 0, 0, 2, 0, 1, 4, 6}, make([]byte, 8), datagram), arrow: "-> "},
	{name: "cooked 2, received", linkType: 276, frame: slices.Concat([]byte{0x86, 0xdd}, make([]byte, 18), ip6(17, udp("x")...)), arrow: "<- "},
	{name: "VLAN of the old number", linkType: 1, frame: slices.Concat(make([]byte, 12), []byte{0x91, 0, 0, 5, 8, 0}, datagram)},
	{name: "Ethernet with SNAP", linkType: 1, frame: slices.Concat(make([]byte, 12), []byte{0, 60, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0}, datagram)},
	{name: "Ethernet with PPPoE", linkType: 1, frame: slices.Concat(make([]byte, 12), []byte{0x88, 0x64, 0x11, 0, 0, 1, 0, 31, 0, 0x21}, datagram)},
	{name: "Ethernet with check sequence", linkType: 0x24000001, frame: slices.Concat(make([]byte, 12), []byte{8, 0}, datagram, make([]byte, 4))},
	{name: "PPP", linkType: 9, frame: slices.Concat([]byte{0, 0x21}, datagram)},
	{name: "PPP, compressed protocol", linkType: 9, frame: slices.Concat([]byte{0x57}, ip6(17, udp("x")...))},
	{name: "PPP, framed", linkType: 50, frame: slices.Concat([]byte{0xff, 3, 0, 0x57}, ip6(17, udp("x")...))},
	{name: "PPPoE", linkType: 51, frame: slices.Concat([]byte{0x11, 0, 0, 1, 0, 31, 0, 0x21}, datagram)},
	{name: "PPPoE, discovery", linkType: 51, frame: []byte{0x11, 9, 0, 0, 0, 0}, fails: "divert: warning: 1 of 1 frames have no IP packet\n"},
	{name: "Cisco's HDLC", linkType: 104, frame: slices.Concat([]byte{0x0f, 0, 8, 0}, datagram)},
	{name: "Cisco's HDLC with PPP", linkType: 104, frame: slices.Concat([]byte{0xff, 3, 0, 0x21}, datagram)},
	{name: "IPsec of OpenBSD", linkType: 109, frame: slices.Concat([]byte{2, 0, 0, 0}, make([]byte, 8), datagram)},
	{name: "pf log, in", linkType: 117, frame: slices.Concat([]byte{61, 2}, make([]byte, 58), []byte{1, 0, 0, 0}, datagram), arrow: "<- "},
	{name: "pf log, out", linkType: 117, frame: slices.Concat([]byte{61, 2}, make([]byte, 58), []byte{2, 0, 0, 0}, datagram), arrow: "-> "},
	{name: "802.11", linkType: 105, frame: slices.Concat([]byte{0x08, 1}, make([]byte, 22), snap(8, 0), datagram)},
	{name: "802.11 with priority", linkType: 105, frame: slices.Concat([]byte{0x88, 2}, make([]byte, 24), snap(0x86, 0xdd), ip6(17, udp("x")...))},
	{name: "802.11 between stations", linkType: 105, frame: slices.Concat([]byte{0x88, 0x83}, make([]byte, 34), snap(8, 0), datagram)},
	{name: "802.11, encrypted", linkType: 105, frame: slices.Concat([]byte{0x08, 0x41}, make([]byte, 22), snap(8, 0), datagram), fails: "divert: warning: 1 of 1 frames have no IP packet\n"},
	{name: "802.11, beacon", linkType: 105, frame: append([]byte{0x80, 0}, make([]byte, 40)...), fails: "divert: warning: 1 of 1 frames have no IP packet\n"},
	{name: "radiotap", linkType: 127, frame: slices.Concat([]byte{0, 0, 12, 0}, make([]byte, 8), []byte{0x08, 1}, make([]byte, 22), snap(8, 0), datagram)},
	{name: "nflog", linkType: 239, frame: slices.Concat([]byte{2, 0, 0, 1, 5, 0, 10, 0, 'x', 0, 0, 0, 33, 0, 9, 0}, datagram, make([]byte, 3))},
	{name: "nflog, big endian", linkType: 239, frame: slices.Concat([]byte{2, 0, 0, 1, 0, 5, 0, 10, 'x', 0, 0, 0, 0, 33, 0, 9}, datagram, make([]byte, 3))},
	{name: "nflog, damaged", linkType: 239, frame: []byte{2, 0, 0, 1, 3, 0, 9, 0}, fails: "divert: warning: 1 of 1 frames have no IP packet\n"},
	{name: "other link type", linkType: 189, frame: datagram, fails: "divert: the capture file: link type 189 (USB) is not understood\n"},
	{name: "unknown link type", linkType: 9999, frame: datagram, fails: "divert: the capture file: link type 9999 is not understood\n"},
	{name: "ARP", linkType: 1, frame: append(make([]byte, 12), 8, 6, 0, 1), fails: "divert: warning: 1 of 1 frames have no IP packet\n"},
	{name: "Ethernet, short", linkType: 1, frame: make([]byte, 13), fails: "divert: warning: 1 of 1 frames have no IP packet\n"},
	{name: "cooked, short", linkType: 113, frame: make([]byte, 15), fails: "divert: warning: 1 of 1 frames have no IP packet\n"},
	{name: "loopback, short", linkType: 0, frame: make([]byte, 3), fails: "divert: warning: 1 of 1 frames have no IP packet\n"},
	{name: "empty", linkType: 101, fails: "divert: warning: 1 of 1 frames have no IP packet\n"},
}

// snap is the header of LLC and SNAP with an EtherType.
func snap(etherType ...byte) []byte { return append([]byte{0xaa, 0xaa, 3, 0, 0, 0}, etherType...) }

// pcap returns the file.
func (f *captureFile) pcap() []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0xa1b23c4d) // nanoseconds
	b = le.AppendUint16(b, 2)
	b = le.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...)
	b = le.AppendUint32(b, 65535)
	b = le.AppendUint32(b, f.linkType)
	b = le.AppendUint32(b, uint32(sampleTime.Unix()))
	b = le.AppendUint32(b, uint32(sampleTime.Nanosecond()))
	b = le.AppendUint32(b, uint32(len(f.frame)))
	b = le.AppendUint32(b, uint32(len(f.frame)))
	return append(b, f.frame...)
}

func TestLinkTypes(t *testing.T) {
	for _, f := range captureFiles {
		t.Run(f.name, func(t *testing.T) {
			r := runCommand(t, string(f.pcap()), "dump", "-r", "-")
			want := ""
			if f.fails == "" {
				want = "05:06:07.123456 " + f.arrow + "IP 10.77.0.1.5353 > 10.77.0.2.53: UDP, length 1\n"
				if strings.Contains(r.out, "IP6") {
					want = "05:06:07.123456 " + f.arrow + "IP6 fd77::1.5353 > fd77::2.53: UDP, length 1\n"
				}
			}
			if r.out != want || r.errout != f.fails {
				t.Errorf("output %q, errors %q\nwant   %q and    %q", r.out, r.errout, want, f.fails)
			}
			if failed := strings.Contains(f.fails, "not understood"); failed != (r.status == exitFailed) {
				t.Errorf("status %d", r.status)
			}
		})
	}
}

func TestCompressedFile(t *testing.T) {
	for _, file := range [][]byte{sampleFile(t), captureFiles[0].pcap()} {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write(file); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		got, want := runCommand(t, b.String(), "dump", "-r", "-"), runCommand(t, string(file), "dump", "-r", "-")
		if got != want || got.out == "" {
			t.Errorf("compressed %+v\nplain %+v", got, want)
		}
	}
}

// TestCutFile reads files that end in the middle: dump prints the packets before the cut, then reports an error.
func TestCutFile(t *testing.T) {
	file := sampleFile(t)
	whole := runCommand(t, string(file), "dump", "-r", "-").out
	for _, n := range []int{1, 3, 20, len(file) / 2, len(file) - 2} {
		r := runCommand(t, string(file[:n]), "dump", "-r", "-")
		if r.status != exitFailed || !strings.Contains(r.errout, "the ") || !strings.HasPrefix(whole, r.out) {
			t.Errorf("the first %d bytes: %+v", n, r)
		}
	}
}

// TestFilterDirection filters capture files by direction.
func TestFilterDirection(t *testing.T) {
	for filter, want := range map[string]int{"outbound": 3, "inbound": 26, "ifIdx == 0": 29, "tcp and outbound": 2,
		`iface == "nosuch"`: 0, `iface != "nosuch"`: 29} {
		r := runCommand(t, string(sampleFile(t)), append([]string{"dump", "-q", "-r", "-"}, filter)...)
		if n := strings.Count(r.out, "\n"); n != want {
			t.Errorf("%q matches %d packets, want %d", filter, n, want)
		}
	}
}

// TestFollowFile reads a file while it is being written, and is interrupted while it waits for more.
func TestFollowFile(t *testing.T) {
	in, feed := io.Pipe()
	defer feed.Close()
	lines, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	var errout bytes.Buffer
	status := make(chan int, 1)
	go func() {
		a := &app{in: in, out: out, errout: &errout}
		status <- a.run(ctx, []string{"dump", "-r", "-"})
		out.Close()
	}()
	if _, err := feed.Write(captureFiles[0].pcap()); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(lines).ReadString('\n'); err != nil || !strings.Contains(line, "UDP, length 1") {
		t.Errorf("%q, %v", line, err)
	}
	cancel()
	if s := <-status; s != exitOK || errout.Len() > 0 {
		t.Errorf("status %d: %s", s, &errout)
	}
}

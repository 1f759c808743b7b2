package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/linux/probe"
	"github.com/opendivert/divert/packet"
	"github.com/opendivert/divert/process"
)

// screensFile shows the commands' output in 80 columns. go test ./cmd/divert -run TestScreens -update writes it.
const screensFile = "../../docs/screens.md"

// TestScreens compares the page of the manual with the commands' output.
func TestScreens(t *testing.T) {
	var page bytes.Buffer
	page.WriteString(`# Screens

What the commands show on a terminal of 80 columns. A test writes this page with the code of the commands, from packets and
events made by hand.
`)
	for _, s := range []struct{ title, about, command, text string }{
		{"top, by process", "Who uses the network now; the line above the list is the last minute. `?` tells the keys. Names with characters that a terminal takes for commands are in quotes.", "divert top", topScreenText(byProcess)},
		{"top, by flow", "Key `f`. `d` drops the packets of the chosen row, `k` resets its connections.", "divert top --by flow", topScreenText(byFlow)},
		{"dump", "Times, interfaces and directions, then as tcpdump prints packets, shorter with `-q`, and the process.", "divert dump -q", dumpScreen(t)},
		{"flows", "Connections as they begin and end, with their process.", "divert flows", flowsScreen(t)},
		{"doctor", "What this system has of what handles need.", "divert doctor", doctorScreen(t)},
	} {
		fmt.Fprintf(&page, "\n## %s\n\n%s\n\n```text\n$ %s\n%s```\n", s.title, s.about, s.command, wrapped(s.text))
	}
	if *update {
		if err := os.WriteFile(screensFile, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(screensFile)
	if err != nil {
		t.Fatal(err)
	}
	if page.String() != strings.ReplaceAll(string(want), "\r\n", "\n") {
		t.Errorf("%s differs from the output of the commands: go test ./cmd/divert -run TestScreens -update\n%s", screensFile, &page)
	}
}

func topScreenText(by topBy) string {
	v := sampleView(sampleTop(), by)
	v.filter = "true"
	return screenText(v, 80, 12)
}

// screenProcesses names the processes of the screens.
var screenProcesses = &processes{lookup: func(pid uint32, _ string) (process.Process, error) {
	names := map[uint32]string{4711: "curl", 812: "sshd", 980: "chronyd"}
	return process.Process{ID: pid, Name: names[pid], Executable: "/usr/bin/" + names[pid]}, nil
}}

func dumpScreen(t *testing.T) string {
	var b bytes.Buffer
	s := &textSink{w: bufio.NewWriter(&b), printer: &printer{quiet: true, processes: screenProcesses}}
	at := time.Date(2026, 3, 4, 5, 6, 7, 123456000, time.UTC)
	for i, p := range []struct {
		p   divert.Packet
		pid uint32
	}{
		{topPacket(6, "10.0.0.1:50412", "192.0.2.80:443", 60, true, 4711), 4711}, {topPacket(6, "192.0.2.80:443", "10.0.0.1:50412", 60, false, 4711), 4711},
		{topPacket(17, "10.0.0.1:323", "192.0.2.123:123", 76, true, 980), 980}, {topPacket(6, "10.0.0.1:22", "198.51.100.7:61022", 200, true, 812), 812},
		{topPacket(1, "192.0.2.1:0", "10.0.0.1:0", 84, false, 0), 0},
	} {
		r := record{data: p.p.Data, length: len(p.p.Data), when: at.Add(time.Duration(i*i) * 1234567), device: "eth0", direction: directionOf(&p.p.Addr), addr: &p.p.Addr, live: true}
		r.pid, r.program = p.pid, screenProcesses.program(p.pid, "")
		if p.pid == 0 {
			r.program = ""
		}
		packet.CalcChecksums(r.data, nil, 0)
		var parsed packet.Parsed
		if parsed.Parse(r.data) {
			r.length = int(parsed.Length)
			r.data = append(r.data, make([]byte, r.length)...)[:r.length]
		}
		if err := s.write(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func flowsScreen(t *testing.T) string {
	var b bytes.Buffer
	p := newEventPrinter(&app{out: &b}, false)
	p.processes = screenProcesses
	// A stopped clock: timestamps are nanoseconds of that day.
	p.clock = &wallClock{length: 1, when: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC).UnixNano(), expires: 1 << 62}
	for i, f := range []struct {
		event packet.Event
		out   bool
		data  packet.FlowData
	}{
		{packet.EventFlowEstablished, true, packet.FlowData{ProcessID: 4711, Protocol: 6, LocalAddr: netip.MustParseAddr("10.0.0.1"), RemoteAddr: netip.MustParseAddr("192.0.2.80"), LocalPort: 50412, RemotePort: 443}},
		{packet.EventFlowEstablished, true, packet.FlowData{ProcessID: 980, Protocol: 17, LocalAddr: netip.MustParseAddr("10.0.0.1"), RemoteAddr: netip.MustParseAddr("192.0.2.5"), LocalPort: 323, RemotePort: 123}},
		{packet.EventFlowEstablished, false, packet.FlowData{ProcessID: 812, Protocol: 6, LocalAddr: netip.MustParseAddr("10.0.0.1"), RemoteAddr: netip.MustParseAddr("192.0.2.7"), LocalPort: 22, RemotePort: 6102}},
		{packet.EventFlowDeleted, true, packet.FlowData{ProcessID: 4711, Protocol: 6, LocalAddr: netip.MustParseAddr("10.0.0.1"), RemoteAddr: netip.MustParseAddr("192.0.2.80"), LocalPort: 50412, RemotePort: 443}},
	} {
		e := divert.Packet{Addr: divert.Address{Layer: divert.LayerFlow, Event: f.event, Outbound: f.out, Timestamp: int64(i) * 345678000}}
		e.Addr.SetFlow(f.data)
		if err := p.print(&e); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// wrapped wraps lines that are too long, as a terminal does.
func wrapped(s string) string {
	var text strings.Builder
	for line := range strings.Lines(s) {
		runes := []rune(strings.TrimSuffix(line, "\n"))
		for len(runes) > 80 {
			text.WriteString(trimRight(string(runes[:80])) + "\n")
			runes = runes[80:]
		}
		text.WriteString(string(runes) + "\n")
	}
	return text.String()
}

func doctorScreen(t *testing.T) string {
	var b bytes.Buffer
	a := &app{out: &b}
	err := a.diagnosis(&probe.Report{
		Kernel: "6.12.9", Machine: "x86_64", Probed: "namespace", Here: true, Engine: "eBPF in netfilter",
		Features: []probe.Result{
			{Name: "nf_tables", Since: probe.Version{Major: 3, Minor: 14}, For: "rules", OK: true, Tried: true},
			{Name: "eBPF in netfilter", Since: probe.Version{Major: 5, Minor: 8}, For: "filters in the kernel", OK: true, Tried: true},
			{Name: "/dev/net/tun", For: "injecting on the way in", Tried: true, Error: "/dev/net/tun not available: no such file or directory",
				Without: "packets cannot be injected inbound", Remedy: "modprobe tun"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestTutorials runs command lines of tcpdump's tutorials, on a file whose packets have 14-byte Ethernet headers for
// tcpdump. A filter in tcpdump's language is refused, with its translation; the translation must select the same
// packets as another filter, written by hand.
func TestTutorials(t *testing.T) {
	file := string(sampleFile(t))
	lines := func(args ...string) (n int, r result) {
		r = runCommand(t, file, append([]string{"dump", "-r", "-"}, args...)...)
		return strings.Count(r.out, " IP"), r
	}
	for _, test := range []struct{ line, same string }{
		{"-n", "true"},
		{"-nn tcp", "tcp"},
		{"-n udp", "udp"},
		{"-n icmp", "icmp"},
		{"-n ip6", "ipv6"},
		{"-nn port 53", "localPort == 53 or remotePort == 53"},
		{"-nn tcp port 80", "tcp.SrcPort == 80 or tcp.DstPort == 80"},
		{"-nn udp port 53", "udp.SrcPort == 53 or udp.DstPort == 53"},
		{"-nn host 10.77.0.1", "ip.SrcAddr == 10.77.0.1 or ip.DstAddr == 10.77.0.1"},
		{"-nn src host 10.77.0.1", "ip.SrcAddr == 10.77.0.1"},
		{"-nn dst 10.77.0.2", "ip.DstAddr == 10.77.0.2"},
		{"-nn net 10.77.0.0/16", "ip.SrcAddr == 10.77.0.0/16 or ip.DstAddr == 10.77.0.0/16"},
		{"-nn src port 40022", "tcp.SrcPort == 40022 or udp.SrcPort == 40022"},
		{"-nn dst port 80 and tcp", "tcp.DstPort == 80"},
		{"-nn portrange 50-90", "tcp.SrcPort in {50-90} or tcp.DstPort in {50-90} or udp.SrcPort in {50-90} or udp.DstPort in {50-90}"},
		{"-nn tcp[tcpflags] & tcp-syn != 0", "tcp.Syn"},
		{"-nn tcp[13] & 4 != 0", "tcp.Rst"},
		{"-nn host 10.77.0.1 and not port 80", "(ip.SrcAddr == 10.77.0.1 or ip.DstAddr == 10.77.0.1) and not (tcp.SrcPort == 80 or tcp.DstPort == 80 or udp.SrcPort == 80 or udp.DstPort == 80)"},
		{"-nn greater 50", "length >= 36"},
		{"-nn icmp[icmptype] == icmp-echo", "icmp.Type == 8"},
		{"-nnvvS src 10.77.0.1 and dst port 80", "ip.SrcAddr == 10.77.0.1 and (tcp.DstPort == 80 or udp.DstPort == 80)"},
	} {
		args := strings.Fields(test.line)
		n, r := lines(args...)
		if _, pasted, ok := strings.Cut(r.errout, "the same filter here:\n  "); ok && r.status == exitUsage {
			pasted, _, _ = strings.Cut(pasted, "\n")
			n, r = lines(args[0], pasted)
		}
		want, _ := lines(args[0], test.same)
		if r.status != exitOK || n != want || want == 0 {
			t.Errorf("tcpdump %s: status %d, %d packets, want %d\n%s", test.line, r.status, n, want, r.errout)
		}
	}
}

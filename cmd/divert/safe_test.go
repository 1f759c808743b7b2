package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/capfile"
	"github.com/opendivert/divert/packet"
	"github.com/opendivert/divert/process"
)

// nasty is text that must not reach a terminal unescaped: it sets the title, clears the screen (with C0 and C1
// sequences), deletes, reorders, hides, ends the line, and is not valid UTF-8.
const nasty = "a\x1b]0;owned\x07\x1b[2J\u009b2J\x7f\r\u202eb\u2066c\u200bd\u2028e\U000e0041f\xff\xc3g\nfrom"

// clean reports anything in text that must not reach a terminal. It also decodes lines of JSON.
func clean(t *testing.T, text string, asJSON bool) {
	t.Helper()
	if !utf8.ValidString(text) {
		t.Errorf("no UTF-8: %q", text)
	}
	for _, r := range text {
		if r != '\n' && r != '\t' && !strconv.IsPrint(r) {
			t.Errorf("it has %q: %q", r, text)
			break
		}
	}
	if strings.Contains(text, "\nfrom") {
		t.Errorf("a name begins a line: %q", text)
	}
	if !asJSON {
		return
	}
	for line := range strings.Lines(text) {
		if !json.Valid([]byte(line)) || line[len(line)-1] != '\n' {
			t.Errorf("no line of JSON: %q", line)
		}
	}
}

// TestNamesCannotCommandTerminals puts nasty names into each form of output.
func TestNamesCannotCommandTerminals(t *testing.T) {
	names := &processes{lookup: func(uint32, string) (process.Process, error) {
		return process.Process{Name: nasty, Executable: "/bin/" + nasty}, nil
	}}
	flow := divert.Packet{Addr: divert.Address{Layer: divert.LayerFlow, Event: packet.EventFlowEstablished}}
	flow.Addr.SetFlow(packet.FlowData{ProcessID: 4711, Protocol: 6, LocalAddr: netip.IPv6Loopback(), RemoteAddr: netip.IPv6Loopback()})
	socket := divert.Packet{Addr: divert.Address{Layer: divert.LayerSocket, Event: packet.EventSocketConnect}}
	socket.Addr.SetFlow(packet.FlowData{ProcessID: 4711, Protocol: 6, LocalAddr: netip.IPv6Loopback(), RemoteAddr: netip.IPv6Loopback()})
	var called [packet.ProcessNameSize]byte
	copy(called[:len(called)-1], nasty)
	flow.Addr.SetProcessName(called)
	socket.Addr.SetProcessName(called)
	reflect := divert.Packet{Data: []byte(nasty), Addr: divert.Address{Layer: divert.LayerReflect, Event: packet.EventReflectOpen}}
	reflect.Addr.SetReflect(packet.ReflectData{ProcessID: 4711})
	event := func(e *divert.Packet) func(a *app, asJSON bool) error {
		return func(a *app, asJSON bool) error {
			for _, p := range []eventPrinter{{}, {quiet: true}, {verbose: true}} {
				q := newEventPrinter(a, asJSON)
				q.quiet, q.verbose, q.processes = p.quiet, p.verbose, names
				if err := q.print(e); err != nil {
					return err
				}
				if err := q.flush(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	addr := divert.Address{Layer: divert.LayerNetwork}
	addr.SetNetwork(packet.NetworkData{ProcessID: 4711})
	addr.SetProcessName(called)
	for name, run := range map[string]func(a *app, asJSON bool) error{
		"flow": event(&flow), "socket": event(&socket), "handle": event(&reflect),
		"packet": func(a *app, asJSON bool) error {
			for _, p := range []printer{{}, {quiet: true}, {verbose: 1, bytes: bytesBoth}} {
				p.processes = names
				s := &textSink{w: bufio.NewWriter(a.out), printer: &p, json: asJSON}
				data := append(ip4(17, udp(nasty)...), nasty...)
				if err := s.write(&record{data: data, length: len(data), addr: &addr, device: nasty, live: true}); err != nil {
					return err
				}
				if err := s.close(); err != nil {
					return err
				}
			}
			return nil
		},
		"totals of flows": func(a *app, asJSON bool) error {
			p := newEventPrinter(a, asJSON)
			p.processes = names
			top := &topFlows{printer: p, byProcess: map[uint32]*flowTotals{}}
			top.count(&flow)
			return top.table()
		},
		"warning": func(a *app, asJSON bool) error {
			(&report{app: a, json: asJSON}).warn(&os.PathError{Op: "open", Path: nasty, Err: os.ErrNotExist})
			return nil
		},
	} {
		for _, asJSON := range []bool{false, true} {
			t.Run(name+"/json="+strconv.FormatBool(asJSON), func(t *testing.T) {
				var b bytes.Buffer
				w := &safeWriter{w: &b}
				if err := run(&app{out: w, errout: w}, asJSON); err != nil {
					t.Fatal(err)
				}
				if b.Len() == 0 {
					t.Fatal("nothing is written")
				}
				clean(t, b.String(), asJSON)
				var direct bytes.Buffer
				if err := run(&app{out: &direct, errout: &direct}, asJSON); err != nil {
					t.Fatal(err)
				}
				if asJSON {
					clean(t, direct.String(), true)
				}
			})
		}
	}
}

// TestArgumentsCannotCommandTerminals passes nasty text to the command as arguments, as names of files, and in files.
func TestArgumentsCannotCommandTerminals(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, strings.NewReplacer("/", "", "\xff", "", "\xc3", "").Replace(nasty))
	w := &ngWriter{order: binary.LittleEndian}
	w.section(0).device(uint16(capfile.LinkTypeRaw), 0, w.option(1, []byte(nasty)...), w.option(capfile.OptionName, []byte(nasty)...)).packet(0, 1e15, w.option(1, []byte(nasty)...))
	if err := os.WriteFile(file, w.b, 0o600); err != nil {
		t.Skipf("no file can be called so here: %v", err)
	}
	for _, args := range [][]string{
		{"dump", "-r", file},
		{"dump", "-v", "-x", "-r", file},
		{"dump", "--json", "-r", file},
		{"dump", "-r", file + "x"},
		{"dump", "-r", file, "-w", file},
		{"dump", "-r", file, "-w", dir + "/" + nasty + "/x"},
		{"dump", "-r", dir},
		{nasty},
		{"help", nasty},
		{"dump", "--" + nasty},
		{"dump", "-" + nasty},
		{"dump", "-c", nasty},
		{"dump", "--layer", nasty},
		{"dump", "--queue-time", nasty},
		{"version", nasty},
		{"kill", nasty},
		{"filter", "check", nasty},
		{"filter", "check", "tcp.DstPort == " + nasty},
		{"filter", "check", "@WinDiv_" + nasty},
		{"filter", "explain", "tcp\n and\tudp"},
		{"filter", "format", nasty},
		{"filter", "eval", "tcp", "-p", nasty},
		{"filter", "eval", "udp", "-r", file},
		{"filter", "eval", "udp", "-r", file + "x"},
		{"lab", "--at", nasty},
	} {
		r := runCommand(t, "", args...)
		if r.out == "" && r.errout == "" && r.status == exitOK {
			t.Errorf("%q: nothing is said", args)
		}
		clean(t, r.out, slices.Contains(args, "--json"))
		clean(t, r.errout, false)
		if t.Failed() {
			t.Fatalf("%q", args)
		}
	}
}

// TestStylesPassAndNothingElse writes text in pieces of every size: the output is the same, the command's own sequences
// pass where colours are on, and split characters are joined.
func TestStylesPassAndNothingElse(t *testing.T) {
	text := styleBad.begin + "näïve\t日本" + styleEnd + emptyScreen + "\x1b[35mx\x1b" + nasty + "é\xc3"
	for _, styles := range []bool{false, true} {
		var want string
		for i := range 200 {
			var b bytes.Buffer
			w := &safeWriter{w: &b, styles: styles}
			for rest := []byte(text); len(rest) > 0; {
				n := len(rest)
				if i > 0 {
					n = 1 + rand.IntN(n)
				}
				if got, err := w.Write(rest[:n]); got != n || err != nil {
					t.Fatalf("%d, %v", got, err)
				}
				rest = rest[n:]
			}
			w.finish()
			if i == 0 {
				want = b.String()
			} else if b.String() != want {
				t.Fatalf("in pieces %q\nat once   %q", &b, want)
			}
		}
		stripped := want
		if styles {
			for _, s := range sequences {
				stripped = strings.ReplaceAll(stripped, s, "")
			}
			if !strings.HasPrefix(want, styleBad.begin+"näïve\t日本"+styleEnd+emptyScreen+`\x1b[35mx\x1ba\x1b]0;owned\a`) {
				t.Errorf("%q", want)
			}
		} else if !strings.HasPrefix(want, `\x1b[31m`) {
			t.Errorf("%q", want)
		}
		clean(t, strings.ReplaceAll(stripped, "\nfrom", ""), false)
	}
}

// FuzzSafeText writes arbitrary text, plain and as JSON.
func FuzzSafeText(f *testing.F) {
	f.Add(nasty, nasty)
	f.Fuzz(func(t *testing.T, a, b string) {
		var out bytes.Buffer
		w := &safeWriter{w: &out}
		for _, s := range []string{a, b} {
			if _, err := w.Write([]byte(s)); err != nil {
				t.Fatal(err)
			}
		}
		w.finish()
		clean(t, strings.ReplaceAll(out.String(), "\nfrom", ""), false)
		line, err := appendJSONLine(nil, []string{a, b})
		if err != nil {
			t.Fatal(err)
		}
		clean(t, string(line), true)
		var back []string
		if err := json.Unmarshal(line, &back); err != nil || len(back) != 2 || back[0] != strings.ToValidUTF8(a, "\ufffd") && utf8.ValidString(a) {
			t.Fatalf("%q is read as %q, %v", line, back, err)
		}
		if q := printable(a); strings.ContainsAny(q, "\n\t\x1b") || plainASCII([]byte(q)) != len(q) {
			t.Fatalf("%q", q)
		}
	})
}

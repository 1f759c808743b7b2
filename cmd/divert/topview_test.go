package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gdamore/tcell/v2"
	"github.com/opendivert/divert"
	"github.com/opendivert/divert/packet"
	"github.com/opendivert/divert/process"
)

// sampleTop returns a counter that has seen a minute of traffic of some processes, always the same.
func sampleTop() *counter {
	now := time.Unix(1000, 0)
	names := map[uint32]string{4711: "firefox", 812: "sshd", 1207: "post\x1b[31mgres", 6: "Ünïcödé"}
	c := newCounter(&processes{lookup: func(pid uint32, _ string) (process.Process, error) {
		return process.Process{ID: pid, Name: names[pid], Executable: "/usr/bin/" + names[pid]}, nil
	}}, now)
	v6 := func(out bool, length int, pid uint32) divert.Packet {
		b := make([]byte, 60)
		src, dst := "2001:db8:1111:2222:3333:4444:5555:6666", "2001:db8::1"
		if !out {
			src, dst = dst, src
		}
		b[0], b[6], b[7], b[4], b[5] = 0x60, 17, 64, byte((length-40)>>8), byte(length-40)
		copy(b[8:], netip.MustParseAddr(src).AsSlice())
		copy(b[24:], netip.MustParseAddr(dst).AsSlice())
		b[40], b[41], b[42], b[43] = 0x13, 0x88, 0x01, 0xbb
		if !out {
			b[40], b[41], b[42], b[43] = 0x01, 0xbb, 0x13, 0x88
		}
		p := divert.Packet{Data: b, Addr: divert.Address{Outbound: out, IPv6: true}}
		p.Addr.SetNetwork(packet.NetworkData{ProcessID: pid})
		return p
	}
	for second := range 60 {
		var ps []divert.Packet
		for i := range 20 + 15*(second%7) {
			ps = append(ps, topPacket(6, "10.0.0.1:50412", "192.0.2.80:443", 120, true, 4711), topPacket(6, "192.0.2.80:443", "10.0.0.1:50412", 1480, false, 4711))
			if i%5 == 0 {
				ps = append(ps, topPacket(6, "10.0.0.1:22", "198.51.100.7:61022", 200, true, 812), topPacket(6, "198.51.100.7:61022", "10.0.0.1:22", 90, false, 812))
			}
			if i%7 == 0 {
				ps = append(ps, topPacket(6, "127.0.0.1:40022", "127.0.0.1:5432", 300, true, 4711), topPacket(6, "127.0.0.1:5432", "127.0.0.1:40022", 700, true, 1207))
			}
			if i%9 == 0 {
				ps = append(ps, v6(true, 90, 6), v6(false, 1232, 6))
			}
		}
		ps = append(ps, topPacket(1, "192.0.2.1:0", "10.0.0.1:0", 84, false, 0), topPacket(1, "10.0.0.1:0", "192.0.2.1:0", 84, true, 0))
		c.count(ps, now)
		now = now.Add(time.Second)
		c.tick(now)
	}
	return c
}

func sampleView(c *counter, by topBy) *topView {
	v := &topView{by: by, filter: "not loopback or tcp", layer: "network", marks: map[string]rune{}, selected: 1}
	c.view(v)
	return v
}

// screenText returns the lines of a view.
func screenText(v *topView, width, height int) string {
	var b strings.Builder
	for _, l := range v.lines(width, height) {
		b.WriteString(trimRight(l.text) + "\n")
	}
	return b.String()
}

// TestTopScreens compares screens of 80 and 200 columns with golden files.
func TestTopScreens(t *testing.T) {
	c := sampleTop()
	for by, name := range topByNames {
		for _, size := range [][2]int{{80, 12}, {200, 12}} {
			v := sampleView(c, topBy(by))
			text := screenText(v, size[0], size[1])
			golden(t, fmt.Sprintf("top-%s-%d.txt", name, size[0]), text)
			for line := range strings.Lines(text) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > size[0] {
					t.Errorf("%s: %d columns: %s", name, n, line)
				}
				if strings.ContainsRune(line, '\x1b') {
					t.Errorf("%s: a name commands the terminal: %q", name, line)
				}
			}
		}
	}
	for _, size := range [][2]int{{1, 1}, {5, 3}, {20, 5}, {500, 4}, {80, 0}} { // no size causes a panic
		v := sampleView(c, byFlow)
		v.help = size[0] == 20
		v.lines(size[0], size[1])
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 7: "7", 999: "999", 999.6: "1.00k", 1000: "1.00k", 9994: "9.99k", 9996: "10.0k", 12345: "12.3k", 123456: "123k",
		999_600: "1.00M", 1e9: "1.00G", 1e18: "1.00E", 1e21: "1000E"} {
		if got := bytesText(n); got != want {
			t.Errorf("%v: %s, want %s", n, got, want)
		}
	}
}

// fakeTop makes a top on a simulated screen, without a handle.
func fakeTop(t *testing.T) (*topScreen, tcell.SimulationScreen) {
	t.Helper()
	s := tcell.NewSimulationScreen("UTF-8")
	if err := s.Init(); err != nil {
		t.Fatal(err)
	}
	s.SetSize(80, 24)
	top := &top{counter: sampleTop(), interval: time.Second}
	top.flags.layers = packetLayers
	u := &topScreen{t: top, s: s, v: sampleView(top.counter, byProcess), says: make(chan string, 1), ended: make(chan error, 1), tick: time.Hour, ctx: t.Context()}
	u.v.selected = 0
	u.actions = newTopActions(t.Context(), &top.flags, u.say)
	return u, s
}

// onScreen returns the text on a screen.
func onScreen(s tcell.SimulationScreen) string {
	cells, width, height := s.GetContents()
	var b strings.Builder
	for y := range height {
		for x := range width {
			if r := cells[y*width+x].Runes; len(r) > 0 {
				b.WriteRune(r[0])
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// TestTopKeys presses keys and checks the screen.
func TestTopKeys(t *testing.T) {
	u, s := fakeTop(t)
	press := func(keys ...any) bool {
		end := false
		for _, k := range keys {
			switch k := k.(type) {
			case tcell.Key:
				end = u.key(tcell.NewEventKey(k, 0, 0))
			case string:
				for _, r := range k {
					end = u.key(tcell.NewEventKey(tcell.KeyRune, r, 0))
				}
			}
		}
		u.draw()
		return end
	}
	for _, step := range []struct {
		keys []any
		want string
		not  string
	}{
		{[]any{"f"}, "by flow, sorted by rate", "by process"},
		{[]any{"h"}, "HOST ", ""},
		{[]any{tcell.KeyTab}, "by process", ""},
		{[]any{"s"}, "sorted by in ", ""},
		{[]any{"S", "S"}, "sorted by name", ""},
		{[]any{"r"}, "sorted by name reversed", ""},
		{[]any{"rS"}, "sorted by packets", ""},
		{[]any{" "}, "PAUSED", ""},
		{[]any{" ?"}, "type another filter", "PAUSED"},
		{[]any{"?"}, "firefox", "type another filter"},
		{[]any{"/"}, "filter: not loopback or tcp", ""},
		{[]any{tcell.KeyCtrlU, "udq", tcell.KeyBackspace2, "p\u202e"}, "filter: udp ", ""},
		{[]any{tcell.KeyEscape}, "filter not loopback or tcp", "filter: "},
		{[]any{"/", tcell.KeyCtrlU, "tcp and udpp", tcell.KeyEnter}, "wrong filter, column 9: unknown word \"udpp\" (did you mean", ""},
		{[]any{tcell.KeyEnd, "d"}, "no filter matches the packets of this row: choose a flow", ""},
		{[]any{tcell.KeyHome, "d"}, "drop packets that match processId == ", ""},
		{[]any{"n"}, "? help  q quit", "drop packets that"},
		{[]any{"f", tcell.KeyHome, "k"}, "reset TCP connections that match protocol == 6 and localAddr == ", ""},
		{[]any{"n", tcell.KeyEnd, "k"}, "only connections of TCP can be reset; d drops", ""},
		{[]any{"ps", tcell.KeyUp, tcell.KeyDown, tcell.KeyPgDn, tcell.KeyPgUp, tcell.KeyCtrlL}, "by process", ""},
	} {
		if press(step.keys...) {
			t.Fatalf("%q ends the run", step.keys)
		}
		if text := onScreen(s); !strings.Contains(text, step.want) || step.not != "" && strings.Contains(text, step.not) {
			t.Errorf("%q: want %q, not %q\n%s", step.keys, step.want, step.not, text)
		}
	}
	u.v.marks["processId == 4711"] = 'D'
	if press(); !strings.Contains(onScreen(s), "D     4711 firefox") {
		t.Errorf("no mark:\n%s", onScreen(s))
	}
	u.v.rows = nil
	for _, end := range []any{"q", tcell.KeyCtrlC} {
		if press("dk", tcell.KeyDown, tcell.KeyEnd); !press(end) {
			t.Errorf("%v does not end the run", end)
		}
	}
}

// fakeScreen is a screen that records whether it was released.
type fakeScreen struct {
	tcell.SimulationScreen
	finished bool
}

func (s *fakeScreen) Fini() { s.finished = true; s.SimulationScreen.Fini() }

// TestTopGivesTheTerminalBack ends runs in every way.
func TestTopGivesTheTerminalBack(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(u *topScreen, s *fakeScreen, cancel context.CancelFunc)
		err  string
	}{
		{"q", func(_ *topScreen, s *fakeScreen, _ context.CancelFunc) { s.InjectKey(tcell.KeyRune, 'q', 0) }, ""},
		{"a signal", func(_ *topScreen, _ *fakeScreen, cancel context.CancelFunc) { cancel() }, ""},
		{"an error", func(u *topScreen, _ *fakeScreen, _ context.CancelFunc) { u.ended <- io.ErrUnexpectedEOF }, "unexpected EOF"},
		{"a panic of another goroutine", func(u *topScreen, _ *fakeScreen, _ context.CancelFunc) { u.ended <- panicked{"boo", nil} }, "panic: boo"},
		{"a panic", func(u *topScreen, s *fakeScreen, _ context.CancelFunc) {
			u.ask = func() { panic(errors.New("boo")) }
			s.InjectKey(tcell.KeyRune, 'y', 0)
		}, "boo"},
	} {
		t.Run(test.name, func(t *testing.T) {
			u, _ := fakeTop(t)
			s := &fakeScreen{SimulationScreen: tcell.NewSimulationScreen("UTF-8")}
			if err := s.Init(); err != nil {
				t.Fatal(err)
			}
			u.s = s
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			test.end(u, s, cancel)
			got := func() (got string) {
				defer func() {
					if p := recover(); p != nil {
						got = fmt.Sprint(p)
					}
				}()
				if err := u.run(ctx); err != nil {
					return err.Error()
				}
				return ""
			}()
			if !s.finished || !strings.Contains(got, test.err) || test.err == "" && got != "" {
				t.Errorf("terminal restored: %v, error %q, want %q", s.finished, got, test.err)
			}
		})
	}
}

func TestTopErrors(t *testing.T) {
	for args, want := range map[string]string{
		"top --interval 1ms":    "--interval 1ms is less than 100ms",
		"top -n -1":             "--rows -1 is negative",
		"top --by nothing":      "--by nothing: must be one of process, flow, host",
		"top --sort nothing":    "--sort nothing: must be one of rate, in, out, total, packets, name",
		"top --layer flow":      "--layer flow: must be one of network, forward",
		"top --interval 5 true": "--interval 5 has no unit",
	} {
		if r := runCommand(t, "", words(args)...); r.status != exitUsage || !strings.HasPrefix(r.errout, "divert: "+want) {
			t.Errorf("%s: %+v", args, r)
		}
	}
	if r := runCommand(t, "", "top", "--json", "--plain"); r.status != exitUsage || !strings.Contains(r.errout, "--json and --plain cannot be combined") {
		t.Errorf("%+v", r)
	}
}

package firewall

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opendivert/divert/process"
)

// asked returns a connection of a program that a rule can name.
func asked(t *testing.T, remote string) *Conn {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &Conn{
		Outbound: true, Protocol: protocolTCP, Local: netip.MustParseAddrPort("10.0.0.1:40000"), Remote: netip.MustParseAddrPort(remote), Time: time.Now(),
		Program: Program{Process: process.Process{ID: 7, Executable: path, File: fileOf(path), UID: 1000}},
	}
}

// TestAnswers: an answer holds for its program, user, host and port, by name if there is one, also when another firewall
// reads the file; the last one counts; the user's own lines in the file stay.
func TestAnswers(t *testing.T) {
	path := AnswersPath(filepath.Join(folder(t), "rules.yaml"))
	if filepath.Base(path) != "rules.answers.yaml" {
		t.Error(path)
	}
	load := func() *Answers {
		t.Helper()
		a, err := LoadAnswers(path)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := load()
	c := asked(t, "192.0.2.7:443")
	if _, ok := a.of(c); ok || a.Len() != 0 {
		t.Error("there is an answer before one was given")
	}
	if err := a.add(c, Allow, false); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	named := asked(t, "[2001:db8::7]:443")
	named.Names = []string{"www.example.org", "other.example.org"}
	if err := a.add(named, Deny, false); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]*Answers{"at once": a, "read again": load()} {
		if got, ok := a.of(c); !ok || got != Allow {
			t.Errorf("%s: %v, %t", name, got, ok)
		}
		elsewhere := *named
		elsewhere.Remote = netip.MustParseAddrPort("192.0.2.99:443")
		if got, ok := a.of(&elsewhere); !ok || got != Deny {
			t.Errorf("%s: by name: %v, %t", name, got, ok)
		}
		for what, change := range map[string]func(*Conn){
			"another host":     func(c *Conn) { c.Remote = netip.MustParseAddrPort("192.0.2.8:443") },
			"another port":     func(c *Conn) { c.Remote = netip.MustParseAddrPort("192.0.2.7:444") },
			"another user":     func(c *Conn) { c.Program.Process.UID = 0 },
			"another protocol": func(c *Conn) { c.Protocol = protocolUDP },
			"incoming":         func(c *Conn) { c.Outbound = false },
			"another program": func(c *Conn) {
				c.Program.Process.Executable, c.Program.Process.File = "/other", process.File{Device: 1, Inode: 1}
			},
			"unknown": func(c *Conn) { c.Program = Program{} },
		} {
			other := *c
			change(&other)
			if got, ok := a.of(&other); ok {
				t.Errorf("%s: %s: %v", name, what, got)
			}
		}
	}

	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const mine = "  # my own\n  - {action: reject, port: 25} # mail\n"
	if err := errors.Join(os.WriteFile(path, append(b, mine...), 0), os.Chmod(path, 0o640)); err != nil {
		t.Fatal(err)
	}
	if changed, err := a.Refresh(); !changed || err != nil || a.Len() != 3 {
		t.Errorf("%t, %v, %d answers", changed, err, a.Len())
	}
	if changed, err := a.Refresh(); changed || err != nil {
		t.Errorf("again: %t, %v", changed, err)
	}
	if err := a.add(c, Reject, false); err != nil { // another answer to the same
		t.Fatal(err)
	}
	if got, ok := a.of(c); !ok || got != Reject {
		t.Errorf("the last answer: %v, %t", got, ok)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(text), answersHeader) || !strings.HasSuffix(string(text), mine) {
		t.Errorf("%v\n%s", err, text)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := a.add(c, Reject, false); err != nil {
		t.Fatal(err)
	}
	if again, err := os.ReadFile(path); err != nil || string(again) != string(text) {
		t.Errorf("the same answer is written twice: %v\n%s", err, again)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if changed, err := a.Refresh(); !changed || err != nil || a.Len() != 0 {
		t.Errorf("removed: %t, %v, %d answers", changed, err, a.Len())
	}
}

// TestAnswersRefused: an answer that no rule can express, or that would not be a rule in the file, is refused with the
// reason; the file stays as it is.
func TestAnswersRefused(t *testing.T) {
	path := filepath.Join(folder(t), "answers.yaml")
	good := asked(t, "192.0.2.7:443")
	unknown, moved := *good, *good
	unknown.Program = Program{}
	moved.Program.Process.Executable = "/nowhere/else"
	for _, row := range []struct {
		name, text string
		c          *Conn
		anonymous  bool
		want       string // "" if the answer is written
	}{
		{"unknown", "", &unknown, false, "process is not known"},
		{"nobody is known here", "", &unknown, true, ""},
		{"another file system", "", &moved, false, "not in this file system"},
		{"no rules", "default: ask\n", good, false, "no line with rules:"},
		{"a list in one line", "default: ask\nrules: [{action: allow, port: 1}]\n", good, false, "no line with rules:"},
		{"another indentation", "default: ask\nrules:\n      - {action: allow, port: 1}\n", good, false, "answers.yaml with a further answer"},
		{"comments", "# mine\ndefault: ask # too\nrules:\n\n  # first\n  - {action: allow, port: 1}\n# end", good, false, ""},
	} {
		_ = os.Remove(path)
		if row.text != "" {
			if err := os.WriteFile(path, []byte(row.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		a, err := LoadAnswers(path)
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		err = a.add(row.c, Allow, row.anonymous)
		after, _ := os.ReadFile(path)
		if row.want == "" {
			if got, ok := a.of(row.c); err != nil || !ok || got != Allow {
				t.Errorf("%s: %v; %v, %t", row.name, err, got, ok)
			}
			for _, line := range strings.Split(row.text, "\n") {
				if !strings.Contains(string(after), line) {
					t.Errorf("%s: %q is lost:\n%s", row.name, line, after)
				}
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), row.want) || string(after) != row.text {
			t.Errorf("%s: %v, want %s; now\n%s", row.name, err, row.want, after)
		}
	}
	if err := os.WriteFile(path, []byte("default: ask\nrules:\n  - {action: alow}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var wrong *FileError
	if _, err := LoadAnswers(path); !errors.As(err, &wrong) || wrong.Line != 3 {
		t.Error(err)
	}
}

// TestAnswerAlways: a permanent answer is written, and a firewall opened later uses it.
func TestAnswerAlways(t *testing.T) {
	path := filepath.Join(folder(t), "answers.yaml")
	for round, want := range []string{"", "out SYN"} {
		run(t, "default: ask\nask: {timeout: 5s, default: reject}", func(t *testing.T, b *bench) {
			answers, err := LoadAnswers(path)
			if err != nil {
				t.Fatal(err)
			}
			b.Firewall.config.Answers, b.Firewall.noProcesses = answers, errors.New("nobody is known here")
			b.want("first", b.out(tcpPacket(t, host4, peer4, syn, nil)), want)
			if round > 0 {
				b.want("log", b.logged(), "allow by default at answer")
				return
			}
			if err := b.Answer(b.question().ID, Allow, true); err != nil {
				t.Error(err)
			}
			b.want("answered", b.left(), "out SYN")
			if n := len(b.Firewall.questions.remembered.young); n != 0 || answers.Len() != 1 {
				t.Errorf("%d answers are remembered, %d are in the file", n, answers.Len())
			}
			b.want("another port of the client", b.out(tcpPacket(t, "10.0.0.1:40001", peer4, syn, nil)), "out SYN")
			b.logged()
		})
	}
}

// FuzzExtend: a file that takes an answer has one rule more, and keeps all its lines.
func FuzzExtend(f *testing.F) {
	f.Add(answersHeader)
	f.Add("default: ask\nrules:\n  - {action: allow, port: 1} # mine\n")
	f.Add("default: deny\nrules:\n- {action: allow}\nlog: all")
	path := filepath.Join(folder(f), "answers.yaml")
	f.Fuzz(func(t *testing.T, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		after, err := extend(path, []byte("  - action: allow\n    port: 443\n"))
		if err != nil {
			return
		}
		if len(after) < len(text) {
			t.Errorf("%d bytes, before %d", len(after), len(text))
		}
		if _, err := Parse(after, filepath.Dir(path)); err != nil {
			t.Error(err)
		}
	})
}

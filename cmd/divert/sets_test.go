package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSetFiles evaluates a packet to port 80 with sets from files, and expects errors for bad files.
func TestSetFiles(t *testing.T) {
	const tcp80 = "4500002800010000400666cd0a0000010a000002c3500050000000010000000050022000b83e0000"
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ports, other := file("ports.txt", "# web\n80\n443\n"), file("other.txt", "81-90\n")
	wrong := file("wrong.txt", "80\n10.0.0.0/8\n")
	for _, row := range []struct {
		name   string
		args   []string
		status int
		says   string
	}{
		{"in the filter", []string{"eval", "tcp.DstPort", "in", "@p=" + ports, "and", "tcp", "-p", tcp80}, 0, "match"},
		{"in the filter, in parentheses", []string{"eval", "not (tcp.DstPort not in @p=" + ports + ")", "-p", tcp80}, 0, "match"},
		{"not in it", []string{"eval", "tcp.DstPort in @p=" + other, "-p", tcp80}, 0, "no match"},
		{"by a flag", []string{"eval", "tcp.DstPort in @p", "--set", "p=" + ports, "-p", tcp80}, 0, "match"},
		{"the same twice", []string{"eval", "tcp.DstPort in @p=" + ports + " or tcp.SrcPort in @p", "--set", "p=" + ports, "-p", tcp80}, 0, "match"},
		{"two files", []string{"eval", "tcp.DstPort in @p=" + ports, "--set", "p=" + other, "-p", tcp80}, 2, "two files"},
		{"no file", []string{"eval", "tcp.DstPort in @p", "-p", tcp80}, 2, "--set p=FILE"},
		{"no such set", []string{"eval", "tcp.DstPort in @p=" + ports, "--set", "q=" + ports, "-p", tcp80}, 2, "no set @q"},
		{"no such file", []string{"eval", "tcp.DstPort in @p=" + ports + "x", "-p", tcp80}, 1, "the set @p: "},
		{"a wrong line", []string{"eval", "tcp.DstPort in @p=" + wrong, "-p", tcp80}, 1, "wrong.txt:2: "},
		{"a wrong flag", []string{"eval", "tcp.DstPort in @p", "--set", "p", "-p", tcp80}, 2, "NAME=FILE"},
		{"check", []string{"check", "remoteAddr in @blocked"}, 0, "ok"},
		{"check with a file", []string{"check", "remoteAddr in @blocked=x.txt"}, 0, "ok"},
		{"check of both kinds", []string{"check", "remoteAddr in @a and remotePort in @a"}, 2, "^^"},
		{"explain", []string{"explain", "remoteAddr in @blocked=x.txt"}, 0, "layers:  network, flow, socket"},
		{"format", []string{"format", "not remoteAddr in @blocked=x.txt"}, 0, "remoteAddr not in @blocked"},
		{"object", []string{"object", "remoteAddr in @blocked"}, 1, "@blocked"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var out strings.Builder
			a := &app{in: strings.NewReader(""), out: &out, errout: &out}
			if status := a.run(t.Context(), append([]string{"filter"}, row.args...)); status != row.status || !strings.Contains(out.String(), row.says) {
				t.Errorf("status %d, want %d with %q:\n%s", status, row.status, row.says, &out)
			}
			if row.says == "match" && strings.Contains(out.String(), "no match") {
				t.Errorf("no match:\n%s", &out)
			}
		})
	}
}

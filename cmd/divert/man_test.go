package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manual writes the pages and returns them by name.
func manual(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	if r := runCommand(t, "", "man", dir); r.status != exitOK || r.out != "" || r.errout != "" {
		t.Fatalf("%+v", r)
	}
	pages := map[string]string{}
	for _, section := range []string{"man1", "man7"} {
		files, err := os.ReadDir(filepath.Join(dir, section))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(filepath.Join(dir, section, f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			pages[f.Name()] = string(text)
		}
	}
	return pages
}

// TestManual expects a page for each command, with every flag, and every field in the page of filters.
func TestManual(t *testing.T) {
	pages := manual(t)
	list := []*cobra.Command{(&app{}).newRoot()}
	count := 0
	for ; len(list) > 0; list = list[1:] {
		c := list[0]
		list = append(list, shownCommands(c)...)
		page := pages[pageName(c)+".1"]
		if page == "" {
			t.Errorf("%s has no page", c.CommandPath())
			continue
		}
		count++
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && !strings.Contains(page, roffText("--"+f.Name)+`\fR`) {
				t.Errorf("the page of %s lacks --%s", c.CommandPath(), f.Name)
			}
		})
		for _, s := range []string{".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n", ".SH EXAMPLES\n", ".SH \"EXIT STATUS\"\n", ".SH SEE ALSO\n"} {
			if !strings.Contains(page, s) {
				t.Errorf("the page of %s lacks %q", c.CommandPath(), s)
			}
		}
	}
	if count < 25 {
		t.Errorf("only %d pages", count)
	}
	for _, f := range filter.Fields() {
		if !strings.Contains(pages["divert-filter.7"], `\fB`+roffText(fieldName(f))+`\fR`) {
			t.Errorf("divert-filter(7) lacks %s", f.Name)
		}
	}
	again := manual(t)
	for name, text := range pages {
		if again[name] != text {
			t.Errorf("%s differs the second time", name)
		}
	}
}

// TestManualIsRoff has groff format the pages; it must not warn.
func TestManualIsRoff(t *testing.T) {
	if _, err := exec.LookPath("groff"); err != nil {
		t.Skip("groff is not installed")
	}
	pages := manual(t)
	var all strings.Builder
	for _, text := range pages {
		all.WriteString(text)
	}
	c := exec.Command("groff", "-man", "-Tutf8", "-ww", "-Wbreak", "-P-cbou")
	c.Stdin = strings.NewReader(all.String())
	var errout strings.Builder
	c.Stderr = &errout
	out, err := c.Output()
	if err != nil || errout.Len() > 0 {
		t.Errorf("%v: %s", err, &errout)
	}
	for _, want := range []string{"tcp.DstPort == 443", "--queue-length"} {
		if !strings.Contains(strings.ReplaceAll(string(out), "\u2212", "-"), want) { // some macros turn \- into a minus
			t.Errorf("%q is missing in groff's output", want)
		}
	}
}

// TestRoffText tries the characters that roff would interpret.
func TestRoffText(t *testing.T) {
	for in, want := range map[string]string{
		".TH x": `\&.TH x`, "'quoted'": `\&\(aqquoted\(aq`, `a\b`: `a\(rsb`, "a-b": `a\-b`, "~^`": "\\(ti\\(ha\\(ga", "…": `\[u2026]`,
	} {
		if got := roffText(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestManualErrors(t *testing.T) {
	if r := runCommand(t, "", "man"); r.status != exitUsage || !strings.Contains(r.errout, "man needs a folder") {
		t.Errorf("%+v", r)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := runCommand(t, "", "man", file); r.status != exitFailed || !strings.Contains(r.errout, "file") {
		t.Errorf("%+v", r)
	}
}

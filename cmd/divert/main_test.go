package main

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func init() { time.Local = time.UTC } // times of day in golden files

// result is the outcome of a run of the command.
type result struct {
	status      int
	out, errout string
}

// runCommand runs the command in this process.
func runCommand(t testing.TB, in string, args ...string) result {
	t.Helper()
	var out, errout bytes.Buffer
	a := &app{in: strings.NewReader(in), out: &out, errout: &errout}
	status := a.run(context.Background(), args)
	return result{status, out.String(), errout.String()}
}

// golden compares a text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got == string(want) {
		return
	}
	a, b := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Errorf("%s:%d\n got %s\nwant %s", path, i+1, a[i], b[i])
		}
	}
	if len(a) != len(b) {
		t.Errorf("%s has %d lines, want %d", path, len(a), len(b))
	}
}

func TestDumpFile(t *testing.T) {
	file := string(sampleFile(t))
	// The last sample is not an IP packet.
	const skipped = "divert: warning: 1 of 30 frames have no IP packet\n"
	for _, test := range []struct {
		golden string
		args   []string
	}{
		{"dump.txt", nil},
		{"dump-q.txt", []string{"-q"}},
		{"dump-v.txt", []string{"-v"}},
		{"dump-x.txt", []string{"-x"}},
		{"dump-both.txt", []string{"-X"}},
		{"dump-ascii.txt", []string{"-A"}},
		{"dump-letters.txt", []string{"-e", "-#", "-nn", "-K", "-S", "-p", "-l", "-t", "-v"}},
		{"dump.json", []string{"--json"}},
	} {
		t.Run(test.golden, func(t *testing.T) {
			r := runCommand(t, file, append([]string{"dump", "-r", "-"}, test.args...)...)
			if r.status != exitOK || r.errout != skipped && !slices.Contains(test.args, "--json") {
				t.Fatalf("status %d: %s", r.status, r.errout)
			}
			golden(t, test.golden, r.out)
		})
	}
}

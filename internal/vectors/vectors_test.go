package vectors

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recorder records the reports of run.
type recorder struct{ errors, fatals, skips []string }

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.fatals = append(r.fatals, fmt.Sprintf(format, args...))
}
func (r *recorder) Skipf(format string, args ...any) {
	r.skips = append(r.skips, fmt.Sprintf(format, args...))
}

type row struct {
	Layer  Layer
	Packet Bytes
	OK     bool
}

func checkOK(r row) error {
	if len(r.Packet) > 0 && r.Packet[0] == 0xFF {
		panic("the check gives up")
	}
	if !r.OK {
		return errors.New("not ok")
	}
	return nil
}

func write(t *testing.T, path, text string) {
	t.Helper()
	data := []byte(text)
	if strings.HasSuffix(path, ".gz") {
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		w.Write(data)
		w.Close()
		data = buf.Bytes()
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRun(t *testing.T) {
	good := `{"packet":"4500","ok":true}` + "\n"
	bad := `{"packet":"","ok":false}` + "\n"
	panics := `{"packet":"ff","ok":true}` + "\n"
	long := `{"packet":"` + strings.Repeat("45", maxRow) + `","ok":false}` + "\n"
	tests := []struct {
		name, file, text      string
		errors, fatals, skips int
		first                 string // the first report contains this
	}{
		{name: "plain", file: "ttl.jsonl", text: good + good},
		{name: "compressed", file: "ttl.jsonl.gz", text: good + good},
		{name: "no newline at the end", file: "ttl.jsonl", text: strings.TrimSpace(good)},
		{name: "a failed row names its line", file: "ttl.jsonl", text: good + bad, errors: 1, first: "ttl line 2: not ok"},
		{name: "at most 20 rows are reported", file: "ttl.jsonl", text: strings.Repeat(bad, 30), errors: 21},
		{name: "broken JSON is a failed row", file: "ttl.jsonl", text: good + "{\n", errors: 1, first: "line 2"},
		{name: "broken hex is a failed row", file: "ttl.jsonl", text: `{"packet":"4x","ok":true}`, errors: 1},
		{name: "a panic is a failed row", file: "ttl.jsonl", text: good + panics + bad + good, errors: 2, first: "ttl line 2: panic: the check gives up\n"},
		{name: "the row of a panic is told", file: "ttl.jsonl", text: panics, errors: 1, first: "\n\t" + strings.TrimSpace(panics)},
		{name: "a long row is clipped", file: "ttl.jsonl", text: long, errors: 1, first: "not ok\n\t" + long[:maxRow] + fmt.Sprintf("… (%d bytes)", len(long)-1)},
		{name: "a layer", file: "ttl.jsonl", text: `{"layer":"REFLECT","ok":true}`},
		{name: "an unknown layer is a failed row", file: "ttl.jsonl", text: good + `{"layer":"NETWROK","ok":true}`, errors: 1, first: `line 2: unknown layer "NETWROK"`},
		{name: "no name of a layer is a failed row", file: "ttl.jsonl", text: `{"layer":"","ok":true}`, errors: 1, first: `unknown layer ""`},
		{name: "no rows", file: "ttl.jsonl", errors: 1, first: "no rows"},
		{name: "another kind is there", file: "hash.jsonl", text: good, skips: 1, first: "no ttl.jsonl"},
		{name: "no kind is there", file: "other.jsonl", text: good, fatals: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, tt.file), tt.text)
			t.Setenv(Env, dir)
			var r recorder
			run(&r, "ttl", checkOK)
			if len(r.errors) != tt.errors || len(r.fatals) != tt.fatals || len(r.skips) != tt.skips {
				t.Fatalf("reported %+v", r)
			}
			all := append(append(r.errors, r.fatals...), r.skips...)
			if tt.first != "" && !strings.Contains(all[0], tt.first) {
				t.Errorf("reported %q, want %q in it", all[0], tt.first)
			}
		})
	}
}

func TestClipped(t *testing.T) {
	whole := strings.Repeat("x", maxRow)
	for text, want := range map[string]string{
		whole: whole, whole + "y": whole + fmt.Sprintf("… (%d bytes)", maxRow+1),
		whole[1:] + "é": whole[1:] + fmt.Sprintf("… (%d bytes)", maxRow+1),
	} {
		if got := clipped([]byte(text)); got != want {
			t.Errorf("%d bytes: %q", len(text), got)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	t.Run("an unknown kind", func(t *testing.T) {
		var r recorder
		run(&r, "nothing", checkOK)
		if len(r.fatals) != 1 {
			t.Errorf("reported %+v", r)
		}
	})
	t.Run("a damaged archive", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "plain"), "not gzip")
		if err := os.Rename(filepath.Join(dir, "plain"), filepath.Join(dir, "ttl.jsonl.gz")); err != nil {
			t.Fatal(err)
		}
		t.Setenv(Env, dir)
		var r recorder
		run(&r, "ttl", checkOK)
		if len(r.fatals) != 1 {
			t.Errorf("reported %+v", r)
		}
	})
}

// TestOwnCopy checks that every kind is in the repository and every line is a JSON object.
func TestOwnCopy(t *testing.T) {
	t.Setenv(Env, "")
	for _, kind := range Kinds {
		Run(t, kind, func(fields map[string]json.RawMessage) error {
			if len(fields) < 2 {
				return errors.New("too few fields")
			}
			return nil
		})
	}
}

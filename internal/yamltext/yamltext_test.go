package yamltext

import (
	"errors"
	"strings"
	"testing"
)

// read reads a mapping of names to texts.
func read(b []byte) error {
	doc, err := Parse(b)
	if err != nil {
		return err
	}
	all, err := Entries(doc, "a file", "a: b")
	if err != nil {
		return err
	}
	for i := range all {
		e := &all[i]
		if !strings.HasPrefix(e.Name, "x") {
			return e.Unknown("a file", "x")
		}
		if err := e.Texts(func(text string) error {
			if text == "bad" {
				return errors.New("it is bad")
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ file, snippet, text string }{
		{"x: 1\nx2: [a, 2.5, true, \"q\"]\nx3: |\n  text\n", "", ""},
		{"", "", "empty"},
		{"# only a comment\n", "", "empty"},
		{"x: 1\n---\nx: 2\n", "x: 2\n^", "second document"},
		{"x: [a, bad]", "x: [a, bad]\n       ^", "line 1, column 8: x: it is bad"},
		{"x: ä\ny: 1", "y: 1\n^", "line 2, column 1: a file has no y; it may have x"},
		{"xä: bad", "xä: bad\n    ^", "it is bad"},
		{"x: [[a]]", "x: [[a]]\n    ^", "needs one value"},
		{"x: *a", "x: *a\n   ^", ""},
		{"- a", "- a\n^", "a file consists of names with values"},
		{"x:", "x:\n^", "x has no value"},
		{"x: []", "x: []\n^", "empty list"},
		{"x: {", "", "not YAML"},
		{strings.Repeat("- ", 40) + "a", "", "nests"},
	} {
		err := read([]byte(tt.file))
		if err == nil {
			if tt.text != "" || tt.snippet != "" {
				t.Errorf("%q: no error", tt.file)
			}
			continue
		}
		var wrong *Error
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%q: %v; want %q", tt.file, err, tt.text)
			continue
		}
		if got := wrong.Snippet([]byte(tt.file)); tt.snippet != "" && got != tt.snippet {
			t.Errorf("%q: %v\n%s\nwant\n%s", tt.file, err, got, tt.snippet)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("x: [a, {b: c}]\nx2: &a |\n  text\nx3: *a\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := read(b); err != nil {
			var wrong *Error
			if !errors.As(err, &wrong) {
				t.Fatalf("%T %v", err, err)
			}
			wrong.Snippet(b)
		}
	})
}

package web

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
)

func TestHostsMatch(t *testing.T) {
	h := NewHosts()
	if err := h.Replace("example.org", "*.Below.test", "deep.a.b.test", "b.test.", "192.0.2.1", "2001:DB8::1", "xn--bcher-kva.test", "com"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"example.org": "example.org", "www.example.org": "example.org", "a.b.c.example.org": "example.org", "EXAMPLE.org.": "example.org",
		"badexample.org": "", "example.org.evil.test": "", "org": "", "": "", ".": "", ".example.org": "example.org",
		"below.test": "", "www.below.test": "below.test", "notbelow.test": "",
		"x.deep.a.b.test": "deep.a.b.test", "a.b.test": "b.test", "test": "",
		"192.0.2.1": "192.0.2.1", "x.192.0.2.1": "", "192.0.2.11": "", "2001:db8::1": "2001:db8::1", "2001:db8:0::0001": "2001:db8::1",
		"xn--bcher-kva.test": "xn--bcher-kva.test", "anything.com": "com",
	} {
		if got, ok := h.Match(name); got != want || ok != (want != "") {
			t.Errorf("Match(%q) = %q, %v, want %q", name, got, ok, want)
		}
	}
}

func TestHostsRead(t *testing.T) {
	h := NewHosts()
	text := "\ufeff# a list\n\n  example.org # it\r\n127.0.0.1 localhost\n0.0.0.0 ads.test more.test\n::1 ip6-localhost\nfe80::1%lo0 localhost\n"
	if err := h.Read(strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	if h.Len() != 3 {
		t.Errorf("%d names", h.Len())
	}
	for text, want := range map[string]string{
		"a.test\nb c\n":                "line 2: there must be one name a line",
		"a_b.test\nbücher.test\n":      "line 2: \"bücher.test\" is not a host name: write names with other letters",
		"http://a.test/\n":             "line 1: \"http://a.test/\" is not a host name: it has the character ':'",
		"a..test\n":                    "between dots",
		"*.\n":                         "the character '*'",
		strings.Repeat("a", 64) + "\n": "63 characters",
		"a.test\n" + strings.Repeat(" ", maxLine+1) + "\n": "line 2: the line is longer than",
	} {
		err := h.Read(strings.NewReader(text))
		var line *LineError
		if !errors.As(err, &line) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30q: %v, want %q", text, err, want)
		}
	}
	if h.Len() != 3 {
		t.Errorf("%d names after lists that are wrong", h.Len())
	}
}

// TestHostsMany: 10,000 names, all found, none of 1,000 others.
func TestHostsMany(t *testing.T) {
	var text strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&text, "site%d.test\n", i)
	}
	h := NewHosts()
	if err := h.Read(strings.NewReader(text.String())); err != nil {
		t.Fatal(err)
	}
	for i := range 10000 {
		if _, ok := h.Match(fmt.Sprintf("www.site%d.test", i)); !ok {
			t.Fatalf("site %d is not found", i)
		}
	}
	for i := range 1000 {
		if entry, ok := h.Match(fmt.Sprintf("www.othersite%d.test", i)); ok {
			t.Fatalf("other site %d is found as %s", i, entry)
		}
	}
}

func TestHostsFollow(t *testing.T) { synctest.Test(t, testHostsFollow) }

func testHostsFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	write := func(text string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	h := NewHosts()
	if err := h.Follow(t.Context(), path, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	write("a.test\n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changed := make(chan error, 1)
	if err := h.Follow(ctx, path, func(err error) { changed <- err }); err != nil {
		t.Fatal(err)
	}
	write("b.test\nc.test\n")
	if err := <-changed; err != nil || h.Len() != 2 {
		t.Errorf("changed: %v, %d names", err, h.Len())
	}
	write("not a name\n")
	var line *LineError
	if err := <-changed; !errors.As(err, &line) || line.File != path || h.Len() != 2 {
		t.Errorf("wrong: %v, %d names", err, h.Len())
	}
}

func FuzzHosts(f *testing.F) {
	f.Add("example.org\n0.0.0.0 ads.test\n*.x.test", "www.example.org")
	f.Add("::1\n1.2.3.4 a b c\n", "[::1]")
	f.Fuzz(func(t *testing.T, list, name string) {
		h := NewHosts()
		if h.Read(strings.NewReader(list)) != nil && h.Len() != 0 {
			t.Error("a wrong list has changed the names")
		}
		entry, ok := h.Match(name)
		if !ok {
			return
		}
		low := strings.ToLower(strings.TrimSuffix(name, "."))
		if low != entry && !strings.HasSuffix(low, "."+entry) && !strings.Contains(low, ":") {
			t.Errorf("%q is found as %q", name, entry)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	h := NewHosts()
	names := make([]string, 10000)
	for i := range names {
		names[i] = fmt.Sprintf("site%d.test", i)
	}
	if err := h.Replace(names...); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		h.Match("static.images.www.example.org")
	}
}

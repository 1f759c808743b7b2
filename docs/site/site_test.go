package main

import (
	"bytes"
	"html"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func root(t *testing.T) string {
	t.Helper()
	dir, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestSite: every page of docs/ is in the book, every link and anchor has a target, and no page contacts a server.
func TestSite(t *testing.T) {
	out := t.TempDir()
	if err := makeSite(root(t), out); err != nil {
		t.Fatal(err)
	}
	outside := regexp.MustCompile(`(?:src|srcset|action)="[a-z]*:?//|<link[^>]+href="(?:https?:)?//|url\(|@import|fetch\(\s*"`)
	inside := regexp.MustCompile(` (?:href|src|id)="([^"]*)"`)
	pages, ids, links := 0, map[string]bool{}, map[string]string{}
	err := filepath.WalkDir(out, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(out, file)
		if err != nil {
			return err
		}
		ids[name] = true
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if m := outside.Find(b); m != nil && (filepath.Ext(name) == ".html" || filepath.Ext(name) == ".css") {
			t.Errorf("%s asks a server: %s", name, m)
		}
		if filepath.Ext(name) != ".html" {
			return nil
		}
		pages++
		for _, m := range inside.FindAllSubmatch(b, -1) {
			value := html.UnescapeString(string(m[1]))
			if bytes.HasPrefix(m[0], []byte(" id=")) {
				if ids[name+"#"+value] {
					t.Errorf("%s has two elements with the id %s", name, value)
				}
				ids[name+"#"+value] = true
			} else if !strings.Contains(value, ":") {
				path, fragment, found := strings.Cut(value, "#")
				to := name
				if path != "" {
					to = filepath.Join(filepath.Dir(name), filepath.FromSlash(path))
				}
				if found {
					to += "#" + fragment
				}
				links[to] = name
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for to, from := range links {
		if script := filepath.Base(to); script == "divert.js" || script == "wasm_exec.js" {
			continue // belongs to the compiler: TestPlayground
		}
		if !ids[to] {
			t.Errorf("%s has a link to %s, which is not in the site", from, to)
		}
	}
	if pages < 15 || len(links) < 50 {
		t.Errorf("the site has %d pages and %d links: is the book read as it is written?", pages, len(links))
	}
}

// TestGenerated: the generated files of docs/ are up to date.
func TestGenerated(t *testing.T) {
	for name, make := range generated {
		want, err := make()
		if err != nil {
			t.Errorf("docs/%s: %v", name, err)
			continue
		}
		got, err := os.ReadFile(filepath.Join(root(t), "docs", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("docs/%s is out of date (%v): go run ./docs/site -update", name, err)
		}
	}
}

// TestWrongBooks: a book with a mistake makes no site, and the error names the mistake.
func TestWrongBooks(t *testing.T) {
	const contents = "# Book\n\n## Part\n\n- [One](one.md)\n"
	for name, test := range map[string]struct {
		files map[string]string
		want  string
	}{
		"a page that is not listed": {map[string]string{"README.md": contents, "one.md": "# One\n", "two.md": "# Two\n"}, "does not list docs/two.md"},
		"a page that is not there":  {map[string]string{"README.md": contents}, "one.md"},
		"a page listed twice":       {map[string]string{"README.md": contents + "- [One](one.md)\n", "one.md": "# One\n"}, "lists one.md twice"},
		"a link to nothing":         {map[string]string{"README.md": contents, "one.md": "# One\n\n[x](gone.md)\n"}, "the link gone.md leads to no file"},
		"a link out of the tree":    {map[string]string{"README.md": contents, "one.md": "# One\n\n[x](../../etc/)\n"}, "leads to no file of the repository"},
		"an anchor that is not":     {map[string]string{"README.md": contents, "one.md": "# One\n\n[x](#two)\n"}, "the link #two leads to no heading of docs/one.md"},
		"a picture that is not":     {map[string]string{"README.md": contents, "one.md": "# One\n\n![x](no.svg)\n"}, "no.svg"},
		"a picture without text":    {map[string]string{"README.md": contents, "one.md": "# One\n\n![](a.svg)\n", "a.svg": "<svg/>"}, "has no text"},
		"a page without a heading":  {map[string]string{"README.md": contents, "one.md": "One\n"}, "docs/one.md has no heading"},
		"no contents":               {map[string]string{"README.md": "# Book\n"}, "lists no pages"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "docs"), 0o755); err != nil {
				t.Fatal(err)
			}
			for file, text := range test.files {
				if err := os.WriteFile(filepath.Join(dir, "docs", file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			err := makeSite(dir, filepath.Join(dir, "out"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %v, and should say %q", err, test.want)
			}
		})
	}
}

// TestUsage: wrong arguments are refused.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"a", "b"}, {"-update", "a"}, {"-no"}} {
		var errout bytes.Buffer
		if got := run(args, &errout); got != 2 || !strings.Contains(errout.String(), "usage:") {
			t.Errorf("%q: status %d, and the text %q", args, got, errout.String())
		}
	}
}

package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/text"
)

// cover is the page of docs/ with the table of contents.
const cover = "README.md"

// book is the manual: its pages in order.
type book struct {
	root  string // folder of the repository
	parts []part
	pages map[string]*page // by path in the repository, with slashes: docs/linux.md
}

// part is a heading of the table of contents, with the pages below it.
type part struct {
	title string
	pages []*page
}

// page is a file of the manual.
type page struct {
	file    string // path in the repository, with slashes
	out     string // name in the site
	title   string // of its first heading
	short   string // its name in the table of contents
	source  []byte
	tree    ast.Node
	anchors map[string]bool
}

// readBook reads the cover and the pages that it lists.
func readBook(root string) (*book, error) {
	b := &book{root: root, pages: map[string]*page{}}
	first, err := b.read("docs/"+cover, "index.html")
	if err != nil {
		return nil, err
	}
	first.short = "Cover"
	err = b.readContents(first)
	if err == nil && len(b.parts) == 0 {
		err = fmt.Errorf("docs/%s lists no pages: it needs headings with lists of links", cover)
	}
	return b, err
}

// readContents reads the pages in the lists of the cover: every list item below a heading of the second level that
// begins with a link to a page.
func (b *book) readContents(first *page) error {
	for n := first.tree.FirstChild(); n != nil; n = n.NextSibling() {
		switch n := n.(type) {
		case *ast.Heading:
			if n.Level == 2 {
				b.parts = append(b.parts, part{title: plainText(n, first.source)})
			}
		case *ast.List:
			for item := n.FirstChild(); item != nil && len(b.parts) > 0; item = item.NextSibling() {
				if err := b.readItem(first, item); err != nil {
					return err
				}
			}
		}
	}
	b.parts = slices.DeleteFunc(b.parts, func(p part) bool { return len(p.pages) == 0 })
	return nil
}

// readItem reads the page named by a list item of the cover.
func (b *book) readItem(first *page, item ast.Node) error {
	block := item.FirstChild()
	if block == nil {
		return nil
	}
	link, ok := block.FirstChild().(*ast.Link)
	if !ok {
		return nil
	}
	target := string(link.Destination)
	if !strings.HasSuffix(target, ".md") || strings.Contains(target, "://") {
		return nil
	}
	file := path.Join("docs", target)
	if b.pages[file] != nil {
		return fmt.Errorf("docs/%s lists %s twice", cover, target)
	}
	out := strings.ToLower(strings.TrimSuffix(path.Base(file), ".md")) + ".html"
	if path.Dir(file) != "docs" { // docs/security.md differs from SECURITY.md
		out = "project-" + out
	}
	p, err := b.read(file, out)
	if err != nil {
		return fmt.Errorf("docs/%s lists it: %w", cover, err)
	}
	p.short = plainText(link, first.source)
	last := &b.parts[len(b.parts)-1]
	last.pages = append(last.pages, p)
	return nil
}

// read reads a page.
func (b *book) read(file, out string) (*page, error) {
	source, err := os.ReadFile(filepath.Join(b.root, filepath.FromSlash(file)))
	if err != nil {
		return nil, err
	}
	for _, other := range b.pages {
		if other.out == out {
			return nil, fmt.Errorf("%s and %s would both be %s in the site: rename one", other.file, file, out)
		}
	}
	p := &page{file: file, out: out, source: source, anchors: map[string]bool{}}
	p.tree = markdown.Parser().Parse(text.NewReader(source))
	for h := range headings(p.tree) {
		title := plainText(h, source)
		if p.title == "" {
			p.title = title
		}
		id := slug(title)
		for i := 1; p.anchors[id]; i++ { // as GitHub numbers them
			id = fmt.Sprintf("%s-%d", slug(title), i)
		}
		p.anchors[id] = true
		h.SetAttributeString("id", []byte(id))
	}
	if p.title == "" {
		return nil, fmt.Errorf("%s has no heading", file)
	}
	b.pages[file] = p
	return p, nil
}

// order returns all pages in reading order, the cover first.
func (b *book) order() []*page {
	all := []*page{b.pages["docs/"+cover]}
	for _, p := range b.parts {
		all = append(all, p.pages...)
	}
	return all
}

// missing returns the pages in docs/ that the cover does not list.
func (b *book) missing() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(b.root, "docs", "*.md"))
	var names []string
	for _, file := range files {
		if name := "docs/" + filepath.Base(file); b.pages[name] == nil {
			names = append(names, name)
		}
	}
	return names, err
}

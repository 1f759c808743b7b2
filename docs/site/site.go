package main

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"os"
	"path/filepath"
	"strings"

	"github.com/yuin/goldmark/ast"
)

// theme holds the site's styles and scripts.
//
//go:embed theme
var theme embed.FS

var pageTemplate = template.Must(template.ParseFS(theme, "theme/page.html"))

// view is the data for the template of a page.
type view struct {
	Book           *bookView
	Page, Title    string
	Up             string // relative path to the folder of the site
	Body           template.HTML
	Before, Behind *pageView
	Sections       []pageView // headings of the second level
}

type bookView struct{ Parts []partView }

type partView struct {
	Title string
	Pages []pageView
}

type pageView struct{ Out, Title string }

// makeSite writes the site to a folder, without the compiler of the playground. It returns an error if a page of docs/
// is not in the book or a link is broken.
func makeSite(root, out string) error {
	b, err := readBook(root)
	if err != nil {
		return err
	}
	missing, err := b.missing()
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		err = fmt.Errorf("docs/%s does not list %s", cover, strings.Join(missing, ", "))
	}
	if err := errors.Join(err, b.connect()); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"style.css", "book.js"} {
		content, err := theme.ReadFile("theme/" + name)
		if err == nil {
			err = os.WriteFile(filepath.Join(out, name), content, 0o644)
		}
		if err != nil {
			return err
		}
	}
	if err := b.writePages(out); err != nil {
		return err
	}
	if err := b.writePlayground(out); err != nil {
		return err
	}
	return b.writeIndex(out)
}

func (b *book) writePages(out string) error {
	pages := b.order()
	contents := b.view()
	for i, p := range pages {
		var body bytes.Buffer
		if err := markdown.Renderer().Render(&body, p.source, p.tree); err != nil {
			return fmt.Errorf("%s: %w", p.file, err)
		}
		v := view{Book: contents, Page: p.out, Title: p.title, Body: template.HTML(body.String())}
		if i > 0 {
			v.Before = &pageView{pages[i-1].out, pages[i-1].short}
		}
		if i+1 < len(pages) {
			v.Behind = &pageView{pages[i+1].out, pages[i+1].short}
		}
		if i > 0 {
			for h := range headings(p.tree) {
				if h.Level == 2 {
					v.Sections = append(v.Sections, pageView{"#" + idOf(h), plainText(h, p.source)})
				}
			}
		}
		if err := v.write(filepath.Join(out, p.out)); err != nil {
			return err
		}
	}
	return nil
}

// write writes a page of the site.
func (v view) write(file string) error {
	var whole bytes.Buffer
	if err := pageTemplate.Execute(&whole, v); err != nil {
		return err
	}
	return os.WriteFile(file, whole.Bytes(), 0o644)
}

func (b *book) view() *bookView {
	v := &bookView{}
	for _, p := range b.parts {
		part := partView{Title: p.title}
		for _, page := range p.pages {
			part.Pages = append(part.Pages, pageView{page.out, page.short})
		}
		v.Parts = append(v.Parts, part)
	}
	return v
}

// section is a result of the search: a heading with the text below it, up to the next.
type section struct {
	Link  string `json:"link"`
	Page  string `json:"page"`
	Title string `json:"title"`
	Text  string `json:"text"`
}

// writeIndex writes the data of the search as a script, which a page opened from a file may load.
func (b *book) writeIndex(out string) error {
	var all []section
	for _, p := range b.order() {
		var s section
		for n := p.tree.FirstChild(); n != nil; n = n.NextSibling() {
			if h, ok := n.(*ast.Heading); ok {
				if s.Title != "" {
					all = append(all, s)
				}
				s = section{Link: p.out + "#" + idOf(h), Page: p.title, Title: plainText(h, p.source)}
				continue
			}
			s.Text = strings.TrimSpace(s.Text + " " + plainText(n, p.source))
		}
		all = append(all, s)
	}
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "index.js"), append(append([]byte("const sections = "), text...), ";\n"...), 0o644)
}

func idOf(h *ast.Heading) string {
	id, _ := h.AttributeString("id")
	return string(id.([]byte))
}

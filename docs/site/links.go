package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/yuin/goldmark/ast"
)

// sources is the base of links to repository files outside the book.
const sources = "https://github.com/opendivert/divert/blob/main/"

// connect turns links between files of the repository into links of the site, and inlines pictures. Its error lists all
// broken links.
func (b *book) connect() error {
	var wrong []error
	for _, p := range b.order() {
		for link := range nodes[*ast.Link](p.tree) {
			to, err := b.resolve(p, string(link.Destination))
			if err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %w", p.file, err))
				continue
			}
			link.Destination = []byte(to)
		}
		wrong = append(wrong, b.inlinePictures(p)...)
	}
	return errors.Join(wrong...)
}

// resolve returns the site's link for one in a page.
func (b *book) resolve(from *page, link string) (string, error) {
	u, err := url.Parse(link)
	if err != nil {
		return "", err
	}
	if u.Scheme != "" {
		return link, nil
	}
	file := from.file
	if u.Path != "" {
		file = path.Join(path.Dir(from.file), u.Path)
	}
	to := b.pages[file]
	switch {
	case strings.HasPrefix(file, "docs/site/"+playground+"/"):
		return playground + "/index.html", nil
	case to == nil:
		if _, err := os.Stat(filepath.Join(b.root, filepath.FromSlash(file))); err != nil || strings.HasPrefix(file, "..") {
			return "", fmt.Errorf("the link %s leads to no file of the repository", link)
		}
		return sources + file + suffix(u), nil
	case u.Fragment != "" && !to.anchors[u.Fragment]:
		return "", fmt.Errorf("the link %s leads to no heading of %s", link, to.file)
	case u.Path == "":
		return suffix(u), nil
	}
	return to.out + suffix(u), nil
}

// suffix returns the fragment of a link with its #.
func suffix(u *url.URL) string {
	if u.Fragment == "" {
		return ""
	}
	return "#" + u.EscapedFragment()
}

// inlinePictures replaces the images of a page with their files.
func (b *book) inlinePictures(p *page) (wrong []error) {
	var images []*ast.Image
	for image := range nodes[*ast.Image](p.tree) {
		images = append(images, image)
	}
	for _, image := range images {
		name := string(image.Destination)
		file := filepath.Join(b.root, filepath.FromSlash(path.Dir(p.file)), filepath.FromSlash(name))
		svg, err := os.ReadFile(file)
		switch {
		case path.Ext(name) != ".svg":
			err = fmt.Errorf("%s: the picture %s is no SVG file", p.file, name)
		case err != nil:
			err = fmt.Errorf("%s: %w", p.file, err)
		case plainText(image, p.source) == "":
			err = fmt.Errorf("%s: the picture %s has no text for those who do not see it", p.file, name)
		}
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		image.Parent().ReplaceChild(image.Parent(), image, &picture{svg: string(svg), title: plainText(image, p.source)})
	}
	return wrong
}

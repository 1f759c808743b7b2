package main

import (
	"iter"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/renderer"
	"github.com/yuin/goldmark/renderer/html"
	"github.com/yuin/goldmark/util"
)

// markdown reads and writes GitHub's dialect. It omits HTML in pages.
var markdown = goldmark.New(
	goldmark.WithExtensions(extension.Table, extension.Strikethrough),
	goldmark.WithRendererOptions(renderer.WithNodeRenderers(util.Prioritized(writer{html.NewConfig()}, 100))),
)

// plainText returns the text of a node and its children, without markup.
func plainText(n ast.Node, source []byte) string {
	var s strings.Builder
	_ = ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		switch n := n.(type) {
		case *ast.Text:
			if entering {
				s.Write(n.Value(source))
				if n.SoftLineBreak() || n.HardLineBreak() {
					s.WriteByte(' ')
				}
			}
		case *ast.String:
			if entering {
				s.Write(n.Value)
			}
		case *ast.CodeBlock, *ast.FencedCodeBlock:
			if entering {
				s.Write(n.Lines().Value(source))
			}
		default:
			if !entering && n.Type() == ast.TypeBlock {
				s.WriteByte(' ')
			}
		}
		return ast.WalkContinue, nil
	})
	return strings.Join(strings.Fields(s.String()), " ")
}

// headings returns the headings of a page.
func headings(tree ast.Node) iter.Seq[*ast.Heading] { return nodes[*ast.Heading](tree) }

// nodes returns the nodes of one type in a tree, in the order of the text.
func nodes[T ast.Node](tree ast.Node) iter.Seq[T] {
	return func(yield func(T) bool) {
		_ = ast.Walk(tree, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
			if found, ok := n.(T); ok && entering && !yield(found) {
				return ast.WalkStop, nil
			}
			return ast.WalkContinue, nil
		})
	}
}

// slug returns GitHub's anchor for a heading: its text in lower case, with hyphens for spaces and without punctuation.
func slug(title string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsLetter(r), unicode.IsNumber(r), r == '-', r == '_':
			return unicode.ToLower(r)
		case r == ' ':
			return '-'
		}
		return -1
	}, title)
}

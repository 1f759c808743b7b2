package main

import (
	"bytes"
	"go/scanner"
	"go/token"
	"html/template"
	"strings"

	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/renderer"
	"github.com/yuin/goldmark/renderer/html"
	"github.com/yuin/goldmark/util"
)

// writer writes the nodes that look different in the book: code in colour, headings with a link to themselves, inlined
// pictures.
type writer struct{ html.Config }

// RegisterFuncs implements renderer.NodeRenderer.
func (w writer) RegisterFuncs(r renderer.NodeRendererFuncRegisterer) {
	r.Register(ast.KindFencedCodeBlock, writeCode)
	r.Register(ast.KindCodeBlock, writeCode)
	r.Register(ast.KindHeading, writeHeading)
	r.Register(kindPicture, writePicture)
}

func writeHeading(w util.BufWriter, source []byte, node ast.Node, entering bool) (ast.WalkStatus, error) {
	n := node.(*ast.Heading)
	level := "h" + string(rune('0'+n.Level))
	if entering {
		id, _ := n.AttributeString("id")
		anchor := template.HTMLEscapeString(string(id.([]byte)))
		_, _ = w.WriteString(`<` + level + ` id="` + anchor + `"><a class="self" href="#` + anchor + `">`)
		return ast.WalkContinue, nil
	}
	_, err := w.WriteString("</a></" + level + ">\n")
	return ast.WalkContinue, err
}

// picture is an SVG file of docs/, inlined so that it follows the colours of the page.
type picture struct {
	ast.BaseInline
	svg, title string
}

var kindPicture = ast.NewNodeKind("Picture")

// Kind implements ast.Node.
func (*picture) Kind() ast.NodeKind { return kindPicture }

// Dump implements ast.Node.
func (p *picture) Dump(source []byte, level int) { ast.DumpHelper(p, source, level, nil, nil) }

func writePicture(w util.BufWriter, _ []byte, node ast.Node, entering bool) (ast.WalkStatus, error) {
	if !entering {
		return ast.WalkContinue, nil
	}
	p := node.(*picture)
	_, err := w.WriteString(`<span class="picture" role="img" aria-label="` + template.HTMLEscapeString(p.title) + `">` + p.svg + `</span>`)
	return ast.WalkSkipChildren, err
}

func writeCode(w util.BufWriter, source []byte, node ast.Node, entering bool) (ast.WalkStatus, error) {
	if !entering {
		return ast.WalkContinue, nil
	}
	code := node.Lines().Value(source)
	language := ""
	if fenced, ok := node.(*ast.FencedCodeBlock); ok {
		language = string(fenced.Language(source))
	}
	_, _ = w.WriteString(`<pre><code>`)
	if language == "go" {
		writeGo(w, code)
	} else {
		for line := range bytes.Lines(code) {
			writeShell(w, string(line))
		}
	}
	_, err := w.WriteString("</code></pre>\n")
	return ast.WalkSkipChildren, err
}

// writeShell writes a line; a comment, alone or at its end, is dimmed.
func writeShell(w util.BufWriter, line string) {
	at := strings.Index(" "+line, " # ")
	if strings.HasPrefix(line, "#") {
		at = 0
	}
	if at < 0 {
		template.HTMLEscape(w, []byte(line))
		return
	}
	template.HTMLEscape(w, []byte(line[:at]))
	span(w, "c", strings.TrimSuffix(line[at:], "\n"))
	_ = w.WriteByte('\n')
}

// writeGo writes Go code with its keywords, strings and comments in colour, even if the code is incomplete.
func writeGo(w util.BufWriter, code []byte) {
	files := token.NewFileSet()
	file := files.AddFile("", files.Base(), len(code))
	var s scanner.Scanner
	s.Init(file, code, func(token.Position, string) {}, scanner.ScanComments)
	done := 0
	for {
		pos, tok, literal := s.Scan()
		at := file.Offset(pos)
		class := ""
		switch {
		case tok == token.EOF:
			template.HTMLEscape(w, code[done:])
			return
		case tok.IsKeyword():
			class = "k"
		case tok == token.STRING, tok == token.CHAR:
			class = "s"
		case tok == token.COMMENT:
			class = "c"
		}
		if class == "" {
			continue
		}
		template.HTMLEscape(w, code[done:at])
		done = min(at+len(literal), len(code))
		span(w, class, string(code[at:done]))
	}
}

func span(w util.BufWriter, class, s string) {
	_, _ = w.WriteString(`<span class="` + class + `">`)
	template.HTMLEscape(w, []byte(s))
	_, _ = w.WriteString(`</span>`)
}

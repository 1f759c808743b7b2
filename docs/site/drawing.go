package main

import (
	"bytes"
	"fmt"
	"html"
	"strings"
)

// drawing is a picture in the style of the manual: boxes, arrows and words on a plain ground, in light and dark.
type drawing struct {
	w, h int
	b    bytes.Buffer
}

// newDrawing begins a picture of a size in pixels.
func newDrawing(w, h int) *drawing { return &drawing{w: w, h: h} }

// colours are those of the site, each for light and dark. A viewer that does not support light-dark takes the first.
var colours = []struct{ selector, property, light, dark string }{
	{".ground", "fill", "#ffffff", "#15181c"},
	{".box", "fill", "#f4f6f8", "#1e2328"},
	{".box", "stroke", "#8a96a3", "#5b6672"},
	{".own", "fill", "#dcebfb", "#17324d"},
	{".own", "stroke", "#0b5cad", "#78b4f5"},
	{".line", "stroke", "#5b6672", "#9aa6b2"},
	{".way", "stroke", "#0b5cad", "#78b4f5"},
	{".tip", "fill", "#5b6672", "#9aa6b2"},
	{".waytip", "fill", "#0b5cad", "#78b4f5"},
	{"text", "fill", "#1c2127", "#dfe4ea"},
	{"text.faint", "fill", "#5b6672", "#9aa6b2"},
	{".screen", "fill", "#1c2127", "#0d0f12"},
	{"text.shown", "fill", "#dfe4ea", "#dfe4ea"},
	{"text.typed", "fill", "#7fd1a0", "#7fd1a0"},
}

// svg returns the picture. Its name keeps its styles separate from those of other pictures on the page.
func (d *drawing) svg(name, title string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" id=\"%s\" viewBox=\"0 0 %d %d\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n<title>%s</title>\n<style>\n#%s { color-scheme: inherit }\n", name, d.w, d.h, html.EscapeString(title), name)
	for _, c := range colours {
		fmt.Fprintf(&b, "#%s %s { %s: %s; %s: light-dark(%s, %s) }\n", name, c.selector, c.property, c.light, c.property, c.light, c.dark)
	}
	fmt.Fprintf(&b, "#%s .line, #%s .way { fill: none; stroke-width: 1.5 }\n#%s .dashed { stroke-dasharray: 5 4 }\n</style>\n<rect class=\"ground\" width=\"%d\" height=\"%d\" rx=\"8\"/>\n", name, name, name, d.w, d.h)
	b.Write(d.b.Bytes())
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// box draws a box with centred lines of text.
func (d *drawing) box(class string, x, y, w, h int, lines ...string) {
	fmt.Fprintf(&d.b, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"6\"/>\n", class, x, y, w, h)
	for i, line := range lines {
		at := y + h/2 + 5 + 17*i - 17*(len(lines)-1)/2
		style := ""
		if i > 0 {
			style = "faint"
		}
		d.text(style, x+w/2, at, "middle", line)
	}
}

// text writes a line: its class, position, the part of it at that position (start, middle, end), and the words.
func (d *drawing) text(class string, x, y int, anchor, line string) {
	fmt.Fprintf(&d.b, "<text class=\"%s\" x=\"%d\" y=\"%d\" text-anchor=\"%s\">%s</text>\n", class, x, y, anchor, html.EscapeString(line))
}

// arrow draws a line through points, x and y alternately, with a head at its end.
func (d *drawing) arrow(class string, points ...int) {
	var path strings.Builder
	for i := 0; i < len(points); i += 2 {
		command := "L"
		if i == 0 {
			command = "M"
		}
		fmt.Fprintf(&path, "%s%d %d", command, points[i], points[i+1])
	}
	fmt.Fprintf(&d.b, "<path class=\"%s\" d=\"%s\"/>\n", class, &path)
	n := len(points)
	x, y, fromX, fromY := points[n-2], points[n-1], points[n-4], points[n-3]
	dx, dy := sign(x-fromX), sign(y-fromY)
	tip := "tip"
	if strings.HasPrefix(class, "way") {
		tip = "waytip"
	}
	fmt.Fprintf(&d.b, "<path class=\"%s\" d=\"M%d %dL%d %dL%d %dZ\"/>\n", tip, x, y, x-8*dx-4*dy, y-8*dy-4*dx, x-8*dx+4*dy, y-8*dy+4*dx)
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

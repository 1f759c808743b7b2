//go:build linux

package main

import (
	"bufio"
	"encoding/xml"
	"fmt"
	"io"
	"math"
)

// The dimensions of the picture, in pixels.
const (
	svgWidth     = 760
	svgLabel     = 130 // room for the names
	svgBar       = 14
	svgLine      = 20
	svgTitle     = 34
	svgMargin    = 16
	svgValue     = 60
	svgFullWidth = svgWidth - svgLabel - svgValue - 2*svgMargin
)

// writeSVG draws the ratios to "none", one group of horizontal bars per load. A thin line over each bar shows the
// lowest and the highest round; it ends at the edge if that round is far off.
func (r *report) writeSVG(out io.Writer) error {
	w := bufio.NewWriter(out)
	groups := r.groups()
	height := 2 * svgMargin
	for _, g := range groups {
		height += svgTitle + svgLine*len(g.bars)
	}
	fmt.Fprintf(w, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\">\n", svgWidth, height)
	fmt.Fprintf(w, "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", svgWidth, height)
	y := svgMargin
	for _, g := range groups {
		g.draw(w, y)
		y += svgTitle + svgLine*len(g.bars)
	}
	fmt.Fprintln(w, "</svg>")
	return w.Flush()
}

// group is the group of bars for a load.
type group struct {
	title string
	bars  []*summary
	most  float64 // ratio at the full width
}

// groups returns the groups of bars.
func (r *report) groups() (list []*group) {
	for i := range loads {
		word := "rate"
		if loads[i].latency {
			word = "median time"
		}
		g := &group{title: fmt.Sprintf("%s: %s, relative to no divert", loads[i].title, word), most: 1}
		for _, s := range r.Summaries {
			if s.Load == loads[i].name && !math.IsNaN(float64(s.Ratio)) {
				g.bars = append(g.bars, s)
				g.most = max(g.most, 1.25*float64(s.Ratio))
			}
		}
		if len(g.bars) > 0 {
			list = append(list, g)
		}
	}
	return list
}

// draw draws a group at height y.
func (g *group) draw(w *bufio.Writer, y int) {
	fmt.Fprintf(w, "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">", svgMargin, y+20)
	_ = xml.EscapeText(w, []byte(g.title))
	fmt.Fprintln(w, "</text>")
	y += svgTitle
	const left = svgMargin + svgLabel
	at := func(ratio number) float64 { return left + svgFullWidth*min(float64(ratio)/g.most, 1) }
	for i, s := range g.bars {
		top := y + i*svgLine
		middle := float64(top) + svgBar/2
		fmt.Fprintf(w, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">", left-6, top+11)
		_ = xml.EscapeText(w, []byte(s.Contender))
		fmt.Fprintln(w, "</text>")
		fmt.Fprintf(w, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", left, top, at(s.Ratio)-left, svgBar, colour(s))
		fmt.Fprintf(w, "<path d=\"M%.1f %.1fH%.1f\" stroke=\"#333\"/>\n", at(s.RatioLow), middle, at(s.RatioHigh))
		fmt.Fprintf(w, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", at(max(s.Ratio, s.RatioHigh))+5, top+11, fixed(s.Ratio, 2))
	}
	fmt.Fprintf(w, "<path d=\"M%.1f %dV%d\" stroke=\"#999\" stroke-dasharray=\"3 3\"/>\n", at(1), y-4, y+svgLine*len(g.bars)-2)
}

// colour distinguishes the engine's bars from the others.
func colour(s *summary) string {
	switch s.Contender {
	case none:
		return "#b0b7bf"
	case "one-by-one", "c-queue", "ring", "nft-drop", "nft-1", "empty-chain", "c-redirect":
		return "#e0a458"
	}
	return "#3b7dd8"
}

package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// opening returns the first line of a run: its action, its target, and the engine that decides. For a terminal of width
// columns it leaves out notes that do not fit, first those about the engine; width 0 has room for all.
func opening(width int, doing, at, decider string) string {
	short := decider
	if i := strings.IndexAny(decider, ",;:"); i >= 0 {
		short = decider[:i]
	}
	where, _, _ := strings.Cut(at, ",")
	line := ""
	for _, middle := range []string{at + " (" + decider + ")", at + " (" + short + ")", where + " (" + short + ")", where, ""} {
		if line = fmt.Sprintf("divert: %s%s. Ctrl-C ends.", doing, middle); width == 0 || utf8.RuneCountInString(line) <= width {
			break
		}
	}
	return line
}

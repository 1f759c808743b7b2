package main

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// opening returns the line with which a run begins: what it does, at what, and who decides. On a terminal of so many columns it
// leaves out what the line has no room for, first the notes about who decides; width 0 has room for everything.
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

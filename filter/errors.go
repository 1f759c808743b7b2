package filter

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ErrorKind classifies the errors of filters. The values below 64 are codes of the original
// (specification: filter-language.md 8); those from 64 on occur in the extended dialect only.
type ErrorKind uint8

// The kinds of errors.
const (
	ErrTooDeep          ErrorKind = 2 // nested too deeply
	ErrTooLong          ErrorKind = 3 // too many tokens or tests
	ErrBadToken         ErrorKind = 4 // a character or word that the language does not have
	ErrBadTokenForLayer ErrorKind = 5 // a field that the layer does not have
	ErrUnexpectedToken  ErrorKind = 6 // a syntax error
	ErrIndexOutOfBounds ErrorKind = 7 // the index of packet[…] or a payload is out of bounds
	ErrBadObject        ErrorKind = 9 // the object string is malformed
)

// The kinds of errors of the extended dialect.
const (
	ErrOutOfRange ErrorKind = 64 + iota // a comparison that can never hold, or an impossible value of the field
	ErrBadPrefix                        // an address prefix (10.0.0.0/8) that is malformed or out of place
	ErrBadSet                           // a set that is empty, has an element that is no value or range, or is a named set that the field cannot use
)

var errorKindTexts = map[ErrorKind]string{
	ErrTooDeep:          "the filter is nested too deeply",
	ErrTooLong:          "the filter is too long",
	ErrBadToken:         "the filter has a word or character that the language does not know",
	ErrBadTokenForLayer: "the filter has a field that this layer does not have",
	ErrUnexpectedToken:  "the filter has a syntax error",
	ErrIndexOutOfBounds: "the filter has an index that is out of bounds",
	ErrBadObject:        "the compiled filter is malformed",
	ErrOutOfRange:       "the filter has a comparison that can never hold",
	ErrBadPrefix:        "the filter has a wrong address prefix",
	ErrBadSet:           "the filter has a wrong set",
}

// String describes the kind in a sentence without a full stop. The text of a kind never changes while
// the program runs; the C interface hands it out as the error string.
func (k ErrorKind) String() string {
	if s, ok := errorKindTexts[k]; ok {
		return s
	}
	return fmt.Sprintf("unknown filter error %d", uint8(k))
}

// Error is an error in a filter, with its place.
type Error struct {
	Kind ErrorKind

	// Pos is the place in Filter, in bytes. In the extended dialect it is the offset of Token. In the strict dialect it
	// is the number that the original reports: it can be off by one, 0 for errors without a place, or even 4294967295
	// (specification: filter-language.md 8).
	Pos uint32

	Filter string // the whole text
	Token  string // the offending part of it; empty at the end of the text
	Msg    string // the error, one line without a full stop
	Hint   string // how to correct it; may be empty

	// at and end enclose Token in Filter, whatever Pos says.
	at, end int
}

// Error returns one line: the column (counted in characters from 1), the error, and the hint.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("filter: ")
	if e.located() {
		at, _ := e.place()
		b.WriteString("column " + strconv.Itoa(utf8.RuneCountInString(e.Filter[:at])+1) + ": ")
	}
	b.WriteString(e.message())
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

// message is Msg, or the text of the kind if there is none.
func (e *Error) message() string {
	if e.Msg != "" {
		return e.Msg
	}
	return e.Kind.String()
}

// located reports whether the error belongs to a place in the text.
func (e *Error) located() bool {
	return e.Kind != ErrBadObject && e.Filter != "" &&
		(e.Token != "" || e.at > 0)
}

// place returns the offending part of Filter: that of Token, if the compiler made the error, or else the character at
// Pos.
func (e *Error) place() (at, end int) {
	n := len(e.Filter)
	if e.end > e.at && e.end <= n {
		return e.at, e.end
	}
	if at = e.at; at == 0 && int64(e.Pos) <= int64(n) {
		at = int(e.Pos)
	}
	return min(at, n), min(at, n)
}

const (
	snippetWidth = 76 // longest line of filter text in a snippet, in characters
	snippetLead  = 30 // most characters before the place, if the line must be cut
)

// Snippet returns several lines for a terminal: the line of the filter with the error, carets under the
// offending part, the message and the hint. Long lines are cut around the place; tabs, control
// characters and bytes that are not UTF-8 are shown as one character each. The last line has no
// newline at its end.
func (e *Error) Snippet() string {
	if !e.located() {
		return e.Error()
	}
	at, end := e.place()
	s := Mark(e.Filter, at, end) + e.message()
	if e.Hint != "" {
		s += "\nhint: " + e.Hint
	}
	return s
}

// Mark returns two lines: the line of text around text[at:end], in a printable form, and carets under that place.
// A long line is cut. Both lines are indented by two spaces and end with a line feed.
func Mark(text string, at, end int) string {
	at = min(max(at, 0), len(text))
	line, before, marked := snippetLine(text, at, min(max(end, at), len(text)))
	return "  " + string(line) + "\n  " + strings.Repeat(" ", before) + strings.Repeat("^", marked) + "\n"
}

// WithoutHint returns a copy of the error without its hint, for callers with a better one.
func (e *Error) WithoutHint() *Error {
	c := *e
	c.Hint = ""
	return &c
}

// snippetLine returns the line of text around text[at:end] in a printable form, the number of
// characters before the place in it, and the number of characters of the place, at least 1.
func snippetLine(text string, at, end int) (line []rune, before, marked int) {
	first := strings.LastIndexByte(text[:at], '\n') + 1
	last := len(text)
	if i := strings.IndexByte(text[at:], '\n'); i >= 0 {
		last = at + i
	}
	// A filter may have megabytes: look only at the text around the error.
	cutFront, cutBack := false, false
	if lead := at - 4*snippetWidth; lead > first {
		first, cutFront = runeStart(text, lead), true
	}
	if tail := at + 4*snippetWidth; tail < last {
		last, cutBack = runeStart(text, tail), true
	}
	end = min(max(end, at), last)

	line = printable(text[first:last])
	before = utf8.RuneCountInString(text[first:at])
	marked = max(1, utf8.RuneCountInString(text[at:end]))
	if excess := before - snippetLead; len(line) > snippetWidth && excess > 0 {
		line, before, cutFront = line[excess:], snippetLead, true
	}
	if len(line) > snippetWidth {
		line, cutBack = line[:snippetWidth], true
	}
	marked = min(marked, max(1, len(line)-before))
	if cutFront {
		line, before = append([]rune("… "), line...), before+2
	}
	if cutBack {
		line = append(line, ' ', '…')
	}
	return line, before, marked
}

// runeStart returns the start of the character that the byte at i belongs to.
func runeStart(text string, i int) int {
	for n := 0; n < utf8.UTFMax && i > 0 && !utf8.RuneStart(text[i]); n++ {
		i--
	}
	return i
}

// printable turns text into characters of a terminal, one for each character of text.
func printable(text string) []rune {
	line := make([]rune, 0, len(text))
	for _, r := range text {
		switch {
		case r == '\t' || r == '\r' || r == '\v' || r == '\f':
			r = ' '
		case !strconv.IsPrint(r):
			r = utf8.RuneError
		}
		line = append(line, r)
	}
	return line
}

// longestQuote is the longest part of a filter that a message repeats, in bytes.
const longestQuote = 48

// beginning returns s, or only its beginning if it is long.
func beginning(s string) string {
	if len(s) > longestQuote {
		s = s[:runeStart(s, longestQuote-len("…"))] + "…"
	}
	return s
}

// quote returns s in quotes for a message, shortened if it is long.
func quote(s string) string { return strconv.Quote(beginning(s)) }

// shortened returns s in one line without quotes, shortened if it is long.
func shortened(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		return r
	}, beginning(s))
}

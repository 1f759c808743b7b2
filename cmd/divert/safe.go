package main

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"
	"unicode/utf16"
	"unicode/utf8"
)

// Names of processes, interfaces and files, filters of other programs, and errors may hold any bytes. A terminal takes
// some of them as commands; others hide or reorder text. Three functions keep them out by one rule, unprintable:
//
//   - safeWriter filters all text that the command writes;
//   - printable quotes a name, so that it cannot pass for something else within its line;
//   - appendJSONLine writes all JSON.

// unprintable reports whether a character must not be written unchanged: control characters (C0, DEL, C1), line and
// paragraph separators, characters that set the direction of text or are invisible, and those that Unicode does not
// define.
func unprintable(r rune) bool { return !strconv.IsPrint(r) }

// plainASCII returns how many bytes at the beginning of b are printable ASCII, a newline or a tab.
func plainASCII(b []byte) int {
	for i, c := range b {
		if (c < ' ' && c != '\n' && c != '\t') || c > '~' {
			return i
		}
	}
	return len(b)
}

// appendEscaped appends a character, or an invalid byte, as Go writes it in quotes.
func appendEscaped(b []byte, r rune, size int, raw byte) []byte {
	if r == utf8.RuneError && size == 1 {
		return append(b, '\\', 'x', hexDigits[raw>>4], hexDigits[raw&15])
	}
	quoted := strconv.AppendQuoteRuneToASCII(nil, r)
	return append(b, quoted[1:len(quoted)-1]...)
}

// printable returns a name unchanged if all of it is printable ASCII, otherwise in quotes.
func printable(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

// oneLine escapes newlines and tabs too.
func oneLine(s string) string { return strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(s) }

// quotePaths returns the text of an error, with any file name in it made printable.
func quotePaths(err error) string {
	text := err.Error()
	if p := (*fs.PathError)(nil); errors.As(err, &p) && p.Path != "" {
		text = strings.ReplaceAll(text, p.Path, printable(p.Path))
	}
	return text
}

// safeWriter escapes characters that must not reach a terminal. It passes newlines, tabs and, with styles on, the
// command's own sequences. Several goroutines may use it; it joins a character that is split between two calls.
type safeWriter struct {
	w      io.Writer
	styles bool

	mu   sync.Mutex
	rest []byte // the end of the text so far, if it may be the start of a character or a sequence
	buf  []byte
}

// Write writes text. It returns len(text), or an error of the underlying writer.
func (s *safeWriter) Write(text []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.rest) == 0 && plainASCII(text) == len(text) {
		if n, err := s.w.Write(text); err != nil {
			return n, err
		}
		return len(text), nil
	}
	in := append(s.rest, text...)
	s.buf = s.buf[:0]
	for s.rest = nil; len(in) > 0; {
		n := plainASCII(in)
		s.buf, in = append(s.buf, in[:n]...), in[n:]
		if n > 0 {
			continue
		}
		if n = s.next(in); n == 0 {
			s.rest = append([]byte(nil), in...)
			break
		}
		in = in[n:]
	}
	if _, err := s.w.Write(s.buf); err != nil {
		return 0, err
	}
	return len(text), nil
}

// next appends the first character or sequence of in to the buffer, escaped if need be, and returns its length in
// bytes; 0 if more input is needed to decide.
func (s *safeWriter) next(in []byte) int {
	if s.styles && in[0] == escape {
		for _, sequence := range sequences {
			if n := min(len(in), len(sequence)); string(in[:n]) == sequence[:n] {
				if n < len(sequence) {
					return 0
				}
				s.buf = append(s.buf, sequence...)
				return n
			}
		}
	}
	if !utf8.FullRune(in) {
		return 0
	}
	r, size := utf8.DecodeRune(in)
	if unprintable(r) || r == utf8.RuneError && size == 1 {
		s.buf = appendEscaped(s.buf, r, size, in[0])
	} else {
		s.buf = append(s.buf, in[:size]...)
	}
	return size
}

// finish writes the bytes of an incomplete character.
func (s *safeWriter) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = s.buf[:0]
	for _, c := range s.rest {
		s.buf = appendEscaped(s.buf, utf8.RuneError, 1, c)
	}
	if s.rest = nil; len(s.buf) > 0 {
		_, _ = s.w.Write(s.buf) // there is no place to report it
	}
}

// appendJSONLine appends a value as one line of JSON. Unlike encoding/json it escapes all unprintable characters.
func appendJSONLine(b []byte, v any) ([]byte, error) {
	line, err := json.Marshal(v)
	if err != nil {
		return b, err
	}
	if plainASCII(line) == len(line) {
		return append(append(b, line...), '\n'), nil
	}
	for _, r := range string(line) {
		switch {
		case !unprintable(r):
			b = utf8.AppendRune(b, r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			b = appendHex4(appendHex4(b, high), low)
		default:
			b = appendHex4(b, r)
		}
	}
	return append(b, '\n'), nil
}

// appendHex4 appends a 16-bit unit of UTF-16 as a JSON escape (RFC 8259 section 7).
func appendHex4(b []byte, v rune) []byte {
	return append(b, '\\', 'u', hexDigits[v>>12&15], hexDigits[v>>8&15], hexDigits[v>>4&15], hexDigits[v&15])
}

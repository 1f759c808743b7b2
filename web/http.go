package web

import (
	"bytes"
	"errors"
	"net/netip"
	"strconv"
	"strings"
)

// request has the facts in the head of an HTTP request.
type request struct {
	method  string
	names   []string // from the target, if it has one, and from the fields Host; each once
	tunnel  bool     // CONNECT, or a field Upgrade: another protocol may follow
	chunked bool
	length  uint64 // of the body, unless it is chunked
}

var (
	errNotHTTP   = errors.New("no request of HTTP/1")
	errAmbiguous = errors.New("a request that servers may read in different ways")
)

// parseHead reads the head of an HTTP/1 request, with the empty line at its end (RFC 9112). A head that servers read in
// different ways fails with errAmbiguous: browsers do not send such heads, and a filter that took one reading would miss
// the other.
func parseHead(head []byte) (r request, err error) {
	line, lines := nextLine(head)
	words := strings.Fields(string(line))
	if len(words) < 2 || !isToken(words[0]) || !strings.HasPrefix(words[len(words)-1], "HTTP/1.") {
		return r, errNotHTTP
	}
	if len(words) != 3 || bytes.ContainsAny(line, "\x00\r\v\f") {
		return r, errAmbiguous
	}
	r.method = words[0]
	if err := r.target(words[1]); err != nil {
		return r, err
	}
	lengths := 0
	for {
		if line, lines = nextLine(lines); len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !isToken(string(name)) || bytes.ContainsAny(line, "\x00\r") { // also refuses a line that continues another
			return r, errAmbiguous
		}
		text := string(bytes.Trim(value, " \t"))
		switch strings.ToLower(string(name)) {
		case "host":
			if err := r.name(text); err != nil {
				return r, err
			}
		case "upgrade":
			r.tunnel = true
		case "transfer-encoding":
			if r.chunked || !strings.EqualFold(text, "chunked") || words[2] == "HTTP/1.0" {
				return r, errAmbiguous
			}
			r.chunked = true
		case "content-length":
			n, err := strconv.ParseUint(text, 10, 62)
			if err != nil || lengths > 0 && n != r.length {
				return r, errAmbiguous
			}
			r.length = n
			lengths++
		}
	}
	if r.chunked && lengths > 0 {
		return r, errAmbiguous
	}
	return r, nil
}

// nextLine cuts the first line off b; LF ends it, with or without CR (RFC 9112 section 2.2).
func nextLine(b []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(b, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r")), rest
}

// target takes the name out of a request's target, if there is one (RFC 9112 section 3.2).
func (r *request) target(t string) error {
	if r.method == "CONNECT" {
		r.tunnel = true
		return r.name(t)
	}
	scheme, rest, ok := strings.Cut(t, "://")
	if !ok || strings.ContainsAny(scheme, "/?#") {
		return nil
	}
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		authority = authority[i+1:]
	}
	return r.name(authority)
}

// name notes a name with or without a port, but not an empty one, which clients send where a target has no authority.
func (r *request) name(s string) error {
	if s == "" {
		return nil
	}
	host := s
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return errAmbiguous
		}
		a, err := netip.ParseAddr(s[1:end])
		if err != nil {
			return errAmbiguous
		}
		host, s = canonical(a), s[end+1:]
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, s = s[:i], s[i:]
	} else {
		s = ""
	}
	if len(s) > 1 {
		if _, err := strconv.ParseUint(s[1:], 10, 16); s[0] != ':' || err != nil {
			return errAmbiguous
		}
	} else if s != "" && s != ":" {
		return errAmbiguous
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "" || len(host) > 255 || strings.ContainsFunc(host, func(c rune) bool {
		return c <= ' ' || c >= 0x7F || strings.ContainsRune(`%/\@,;"'<>(){}|^`+"`", c)
	}) {
		return errAmbiguous
	}
	if len(r.names) == 0 || r.names[len(r.names)-1] != host {
		r.names = append(r.names, host)
	}
	return nil
}

// isToken reports whether s is a token (RFC 9110 section 5.6.2).
func isToken(s string) bool {
	for i := range len(s) {
		if !tokenChar(s[i]) {
			return false
		}
	}
	return s != ""
}

func tokenChar(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// headEnd looks for the end of a request's head in b, which has no end in the first `looked` bytes. It returns the number
// of bytes up to and including the empty line, 0 if that has not come yet.
func headEnd(b []byte, looked int) int {
	for i := max(0, looked-2); i < len(b); i++ {
		if b[i] != '\n' {
			continue
		}
		if i+1 < len(b) && b[i+1] == '\n' {
			return i + 2
		}
		if i+2 < len(b) && b[i+1] == '\r' && b[i+2] == '\n' {
			return i + 3
		}
	}
	return 0
}

// mayBeHTTP reports whether b can be the beginning of an HTTP/1 request: a method, a space, and a first line that ends
// with a version.
func mayBeHTTP(b []byte) bool {
	const longestMethod = 24
	for i, c := range b {
		if c == ' ' || c == '\t' {
			if i == 0 {
				return false
			}
			line, _, whole := bytes.Cut(b, []byte("\n"))
			words := bytes.Fields(line)
			return !whole || len(words) > 1 && bytes.HasPrefix(words[len(words)-1], []byte("HTTP/1."))
		}
		if i >= longestMethod || !tokenChar(c) {
			return false
		}
	}
	return true
}

// chunks follows the framing of a chunked body (RFC 9112 section 7.1).
type chunks struct {
	state chunkState
	size  uint64 // of the chunk so far, or of its rest
	line  int    // bytes of the line at hand
}

type chunkState uint8

const (
	chunkSize      chunkState = iota // in the digits
	chunkExtension                   // behind them, up to CR
	chunkSizeLF                      // before the LF behind the size
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer
	chunkTrailerLF
	chunkEnd
)

// maxChunkLine is the longest line of the framing, in bytes.
const maxChunkLine = 4096

// data returns how many of the next bytes are a chunk's data, which need not be read.
func (c *chunks) data() uint64 {
	if c.state == chunkData {
		return c.size
	}
	return 0
}

// skip passes over n bytes of data.
func (c *chunks) skip(n uint64) {
	if c.size -= n; c.size == 0 {
		c.state = chunkDataCR
	}
}

// next takes a byte of the framing, and reports whether it is valid.
func (c *chunks) next(b byte) bool {
	if c.line++; c.line > maxChunkLine {
		return false
	}
	switch c.state {
	case chunkSize:
		digit := strings.IndexByte("0123456789abcdef", b|0x20)
		switch {
		case digit >= 0 && (b >= 'A' || b <= '9') && c.line <= 15:
			c.size = c.size<<4 | uint64(digit)
		case c.line == 1:
			return false
		case b == '\r':
			c.state = chunkSizeLF
		case b == ';' || b == ' ' || b == '\t':
			c.state = chunkExtension
		default:
			return false
		}
	case chunkExtension:
		switch {
		case b == '\r':
			c.state = chunkSizeLF
		case b < ' ' && b != '\t':
			return false
		}
	case chunkSizeLF:
		if c.line, c.state = 0, chunkData; c.size == 0 {
			c.state = chunkTrailer
		}
		return b == '\n'
	case chunkDataCR:
		c.line, c.state = 0, chunkDataLF
		return b == '\r'
	case chunkDataLF:
		c.line, c.state = 0, chunkSize
		return b == '\n'
	case chunkTrailer:
		switch {
		case b == '\r':
			c.state = chunkTrailerLF
		case b == '\n' || b == 0:
			return false
		}
	case chunkTrailerLF:
		c.state = chunkTrailer
		if c.line == 2 {
			c.state = chunkEnd
		}
		c.line = 0
		return b == '\n'
	}
	return true
}

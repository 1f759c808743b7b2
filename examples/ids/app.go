package main

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"
)

// fields are the buffers of one request, response, hello or query; nil for absent ones.
type fields [buffers][]byte

// maxHead is the longest head of a request or response, in bytes.
const maxHead = 16 << 10

// httpReader finds the heads of HTTP/1 messages in a stream, and skips their bodies.
type httpReader struct {
	head  []byte
	skip  uint64 // bytes of the body still to come
	chunk bool   // chunks follow
	ended bool   // the stream can be read no further
}

// read processes the next bytes, and calls found with each head.
func (h *httpReader) read(b []byte, response bool, found func(*fields)) {
	for len(b) > 0 && !h.ended {
		if h.skip > 0 {
			n := min(h.skip, uint64(len(b)))
			h.skip -= n
			b = b[n:]
			continue
		}
		n := bytes.IndexByte(b, '\n') + 1
		if n == 0 {
			n = len(b)
		}
		h.head = append(h.head, b[:n]...)
		b = b[n:]
		switch {
		case len(h.head) > maxHead || !h.chunk && !begins(h.head, response):
			h.ended, h.head = true, nil
		case h.head[len(h.head)-1] != '\n': // more of the line follows
		case h.chunk:
			h.chunkLine()
		case bytes.HasSuffix(h.head, []byte("\n\r\n")) || bytes.HasSuffix(h.head, []byte("\n\n")):
			h.message(response, found)
		}
	}
}

// begins reports whether b can begin a message.
func begins(b []byte, response bool) bool {
	if response {
		return strings.HasPrefix("HTTP/1.", string(b[:min(len(b), 7)]))
	}
	for i, c := range b[:min(len(b), 20)] {
		if c == ' ' {
			return i > 0
		}
		if c < 'A' || c > 'Z' {
			return false
		}
	}
	return len(b) < 20
}

// chunkLine processes the line before a chunk, or after the last.
func (h *httpReader) chunkLine() {
	line := strings.TrimSpace(string(h.head))
	h.head = h.head[:0]
	digits, _, _ := strings.Cut(line, ";")
	n, err := strconv.ParseUint(strings.TrimSpace(digits), 16, 60)
	switch {
	case line == "": // after a chunk's data
	case err != nil:
		h.ended = true
	case n == 0:
		h.chunk = false // a trailer would be taken for the next message, and end the reading
	default:
		h.skip = n
	}
}

// message processes a complete head.
func (h *httpReader) message(response bool, found func(*fields)) {
	lines := bytes.Split(h.head, []byte("\n"))
	h.head = nil
	first := bytes.TrimSuffix(lines[0], []byte("\r"))
	words := bytes.SplitN(first, []byte(" "), 3)
	var f fields
	length := uint64(0)
	for _, line := range lines[1:] {
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch strings.ToLower(string(name)) {
		case "host":
			f[httpHost] = fold(withoutPort(value))
		case "user-agent":
			f[httpUserAgent] = value
		case "content-length":
			length, _ = strconv.ParseUint(string(value), 10, 60)
		case "transfer-encoding":
			h.chunk = strings.Contains(strings.ToLower(string(value)), "chunked")
		}
	}
	if response {
		f = fields{} // the fields set above belong to requests
		if len(words) > 1 {
			f[httpStatCode] = words[1]
			if code := string(words[1]); strings.HasPrefix(code, "1") || code == "204" || code == "304" {
				length, h.chunk = 0, false
			}
		}
		if len(words) > 2 {
			f[httpStatMsg] = words[2]
		}
	} else if len(words) > 1 {
		f[httpRequestLine], f[httpMethod], f[httpURIRaw] = first, words[0], words[1]
		f[httpURI] = normalized(words[1])
	}
	if !h.chunk {
		h.skip = length
	}
	found(&f)
}

func withoutPort(host []byte) []byte {
	if i := bytes.LastIndexByte(host, ':'); i >= 0 && bytes.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	return host
}

// normalized returns the path and query of a target, with %xx decoded and without empty segments, . and .. in the path.
func normalized(target []byte) []byte {
	if _, rest, ok := bytes.Cut(target, []byte("://")); ok && target[0] != '/' {
		if i := bytes.IndexByte(rest, '/'); i >= 0 {
			target = rest[i:]
		}
	}
	path, query, hasQuery := bytes.Cut(target, []byte("?"))
	var kept [][]byte
	parts := bytes.Split(decoded(path), []byte("/"))
	for i, p := range parts {
		switch {
		case i == 0, len(p) == 0 && i < len(parts)-1, string(p) == ".":
		case string(p) == "..":
			kept = kept[:max(0, len(kept)-1)]
		default:
			kept = append(kept, p)
		}
	}
	out := parts[0]
	for _, p := range kept {
		out = append(append(bytes.Clone(out), '/'), p...)
	}
	if len(kept) == 0 && len(parts) > 1 {
		out = append(bytes.Clone(out), '/')
	}
	if hasQuery {
		out = append(append(bytes.Clone(out), '?'), decoded(query)...)
	}
	return out
}

// decoded returns b with each %xx decoded.
func decoded(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '%' && i+2 < len(b) {
			if v, err := strconv.ParseUint(string(b[i+1:i+3]), 16, 8); err == nil {
				out = append(out, byte(v))
				i += 2
				continue
			}
		}
		out = append(out, b[i])
	}
	return out
}

// dnsNames returns the names in the questions of a DNS query (RFC 1035 section 4.1), nil if b is not a query.
func dnsNames(b []byte) (names []string) {
	const headerLength = 12
	if len(b) < headerLength || b[2]&0xF8 != 0 { // a response, or another kind of query
		return nil
	}
	count := int(binary.BigEndian.Uint16(b[4:]))
	b = b[headerLength:]
	for range count {
		var name []byte
		for {
			if len(b) == 0 || b[0] > 63 || len(b) <= int(b[0]) {
				return names // questions have no compressed names
			}
			label := b[1 : 1+b[0]]
			b = b[1+len(label):]
			if len(label) == 0 {
				break
			}
			if name != nil {
				name = append(name, '.')
			}
			name = append(name, label...)
		}
		if len(b) < 4 || len(names) == 16 {
			return names
		}
		b = b[4:]
		names = append(names, string(name))
	}
	return names
}

package web

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestParseHead(t *testing.T) {
	for _, c := range []struct {
		head  string
		names []string
		err   error
	}{
		{"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", []string{"a.test"}, nil},
		{"GET / HTTP/1.1\nhoSt:A.Test.:8080 \t\nx: y\n\n", []string{"a.test"}, nil},
		{"GET  /  HTTP/1.0\r\n\r\n", nil, nil},
		{"GET http://u:p@b.test:1/x?http://c.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n", []string{"b.test", "a.test"}, nil},
		{"GET /http://c.test HTTP/1.1\r\nHost: a.test\r\n\r\n", []string{"a.test"}, nil},
		{"CONNECT b.test:443 HTTP/1.1\r\nHost: a.test\r\nHost: c.test\r\n\r\n", []string{"b.test", "a.test", "c.test"}, nil},
		{"GET / HTTP/1.1\r\nHost: [2001:DB8::0:1]:80\r\n\r\n", []string{"2001:db8::1"}, nil},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", nil, nil},
		{"EHLO a.test\r\n\r\n", nil, errNotHTTP},
		{"GET /\r\n\r\n", nil, errNotHTTP},
		{"PRI * HTTP/2.0\r\n\r\n", nil, errNotHTTP},
		{"GET / x HTTP/1.1\r\nHost: a.test\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nHost : a.test\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nX: y\r\n Host: a.test\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nHost: a.test b.test\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nHost: %61.test\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nHost: a.test:80:90\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nX: a\rHost: a.test\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: +1\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: x\r\n\r\n", nil, errAmbiguous},
		{"GET / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n", nil, errAmbiguous},
	} {
		r, err := parseHead([]byte(c.head))
		if !errors.Is(err, c.err) || err == nil && !slices.Equal(r.names, c.names) {
			t.Errorf("%q: names %q, %v", c.head, r.names, err)
		}
	}
}

// findings reads a stream in pieces of n bytes and returns its findings.
func findings(text string, n int) (names []string, last finding) {
	var s stream
	for b := []byte(text); len(b) > 0; {
		for piece := b[:min(n, len(b))]; len(piece) > 0; {
			took, _, f := s.read(piece)
			if took <= 0 || took > len(piece) {
				panic("no progress")
			}
			piece, b = piece[took:], b[took:]
			if f == named {
				names = append(names, s.names...)
			}
			if f != more {
				last = f
			}
			if f > nameless {
				return names, f
			}
		}
	}
	if s.undecided() {
		last = more
	}
	return names, last
}

// TestRequests: consecutive requests, with bodies of each kind, cut anywhere.
func TestRequests(t *testing.T) {
	for _, c := range []struct {
		text string
		want string
		last finding
	}{
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n", "a b", named},
		{"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\nGET / HTTP/1.1\r\nHost: body\r\n\r\n123456GET / HTTP/1.1\r\nHost: b\r\n\r\n", "a b", named},
		{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n12345\r\nA\r\n1234567890\r\n0\r\nT: u\r\n\r\nGET / HTTP/1.1\r\nHost: b\r\n\r\n", "a b", named},
		{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\n12345\r\n0\r\n\r\n", "a", ambiguous},
		{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123456\r\n0\r\n\r\n", "a", ambiguous},
		{"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "a", ambiguous},
		{"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n\x81\x05hello", "a", other},
		{"GET / HTTP/1.1\r\nHost: a\r\n", "", more},
		{"GET / HTTP/1.0\r\n\r\n", "", nameless},
		{"SSH-2.0-x\r\n", "", other},
		{"\x00\x01", "", other},
		{"\x16\x02", "", other},
		{"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", maxHead), "", tooLong},
	} {
		for _, n := range []int{1, 2, 3, 7, 1 << 20} {
			names, last := findings(c.text, n)
			if strings.Join(names, " ") != c.want || last != c.last {
				t.Errorf("%.80q in pieces of %d: names %q, then %d, want %d", c.text, n, names, last, c.last)
			}
		}
	}
}

// FuzzRequest: any bytes are read alike however they are cut, and a request that net/http reads has its name.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"), 3)
	f.Add([]byte("POST http://b/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\nhost:b\n\n"), 1)
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"), 2)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n < 1 {
			n = 1
		}
		whole, lastWhole := findings(string(b), len(b)+1)
		pieces, lastPieces := findings(string(b), n)
		if !slices.Equal(whole, pieces) || lastWhole != lastPieces && lastWhole != tooLong && lastPieces != tooLong {
			t.Errorf("whole: %q, %d; in pieces of %d: %q, %d", whole, lastWhole, n, pieces, lastPieces)
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil || lastWhole > nameless || len(b) > maxHead || lastWhole == more {
			return
		}
		host, _, _ := strings.Cut(strings.ToLower(r.Host), ":")
		if host = strings.TrimSuffix(host, "."); host != "" && !strings.HasPrefix(host, "[") && !slices.Contains(whole, host) {
			t.Errorf("net/http reads host %q, here are %q", r.Host, whole)
		}
	})
}

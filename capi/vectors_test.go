//go:build linux

package main_test

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/vectors"
)

// helper is a running testdata/vectors.c: it answers a line with a line.
type helper struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
}

func startHelper(t *testing.T) *helper {
	t.Helper()
	cmd := exec.Command(compile(t, "vectors.c", gccStrict))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("vectors.c: %v\n%s", err, &stderr)
		}
	})
	s := bufio.NewScanner(out)
	s.Buffer(nil, 1<<20)
	return &helper{t, in, s}
}

// ask returns the answer to a request.
func (h *helper) ask(format string, args ...any) string {
	fmt.Fprintf(h.in, format+"\n", args...)
	if !h.out.Scan() {
		h.t.Fatalf("no answer to %.200s: %v", fmt.Sprintf(format, args...), h.out.Err())
	}
	return h.out.Text()
}

// text and bytes are arguments of requests.
func text(s string) string { return "=" + hex.EncodeToString([]byte(s)) }

func bytes(b []byte) string {
	if b == nil {
		return "-"
	}
	return "=" + hex.EncodeToString(b)
}

// expect compares an answer.
func expect(got, want string) error {
	if got != want {
		return fmt.Errorf("the library answers %q, want %q", got, want)
	}
	return nil
}

// kinds are the errors of the compiler by their names in the vectors.
var kinds = map[string]filter.ErrorKind{
	"TOO_DEEP": filter.ErrTooDeep, "TOO_LONG": filter.ErrTooLong, "BAD_TOKEN": filter.ErrBadToken,
	"BAD_TOKEN_FOR_LAYER": filter.ErrBadTokenForLayer, "UNEXPECTED_TOKEN": filter.ErrUnexpectedToken,
	"INDEX_OOB": filter.ErrIndexOutOfBounds, "OUTPUT_TOO_SHORT": 8,
	"BAD_OBJECT": filter.ErrBadObject,
}

func TestVectorCompile(t *testing.T) {
	type row struct {
		Layer                 vectors.Layer
		Filter, Object, Error string
		OK                    bool
		Pos                   uint32
	}
	h := startHelper(t)
	vectors.Run(t, "compile", func(r row) error {
		got := h.ask("compile %d %s", r.Layer, text(r.Filter))
		if r.OK {
			return expect(got, "ok "+text(r.Object))
		}
		kind, ok := kinds[r.Error]
		if !ok {
			return fmt.Errorf("unknown error %q", r.Error)
		}
		return expect(got, fmt.Sprintf("error %d %s", r.Pos, text(kind.String())))
	})
}

func TestVectorFormat(t *testing.T) {
	type row struct {
		Layer        vectors.Layer
		Filter, Text string
	}
	h := startHelper(t)
	vectors.Run(t, "format", func(r row) error {
		return expect(h.ask("format %d %s", r.Layer, text(r.Filter)), "ok "+text(r.Text))
	})
}

func TestVectorObjects(t *testing.T) {
	type row struct {
		Layer  vectors.Layer
		Object string
		OK     bool
	}
	h := startHelper(t)
	vectors.Run(t, "objects", func(r row) error {
		got := h.ask("compile %d %s", r.Layer, text(r.Object))
		if r.OK {
			if !strings.HasPrefix(got, "ok =") {
				return fmt.Errorf("the library answers %q", got)
			}
			return nil
		}
		return expect(got, "error 0 "+text(filter.ErrBadObject.String()))
	})
}

func TestVectorEval(t *testing.T) {
	type row struct {
		Layer        vectors.Layer // layer of the address
		Filter       string
		Packet, Addr vectors.Bytes
		Match        bool
	}
	h := startHelper(t)
	vectors.Run(t, "eval", func(r row) error {
		want := "0 0"
		if r.Match {
			want = "1 7" // the last error is unchanged
		}
		return expect(h.ask("eval %s %s %s", text(r.Filter), bytes(r.Packet), bytes(r.Addr)), want)
	})
}

// digit returns the helper's notation of a truth value.
func digit(ok bool) string {
	if ok {
		return "1"
	}
	return "0"
}

func TestVectorChecksum(t *testing.T) {
	type row struct {
		Packet    vectors.Bytes
		Addr      vectors.Bytes
		Flags     uint64
		OK        bool
		PacketOut vectors.Bytes `json:"packet_out"`
		AddrOut   vectors.Bytes `json:"addr_out"`
	}
	h := startHelper(t)
	vectors.Run(t, "checksum", func(r row) error {
		want := digit(r.OK) + " =" + hex.EncodeToString(r.PacketOut)
		if r.Addr != nil {
			want += " " + bytes(r.AddrOut)
		}
		return expect(h.ask("checksum %s %s %d", bytes(r.Packet), bytes(r.Addr), r.Flags), want)
	})
}

func TestVectorHash(t *testing.T) {
	type row struct {
		Packet     vectors.Bytes
		Seed, Hash string
	}
	h := startHelper(t)
	vectors.Run(t, "hash", func(r row) error {
		return expect(h.ask("hash %s %s", bytes(r.Packet), r.Seed), r.Hash)
	})
}

func TestVectorTTL(t *testing.T) {
	type row struct {
		Packet    vectors.Bytes
		OK        bool
		PacketOut vectors.Bytes `json:"packet_out"`
	}
	h := startHelper(t)
	vectors.Run(t, "ttl", func(r row) error {
		return expect(h.ask("ttl %s", bytes(r.Packet)), digit(r.OK)+" ="+hex.EncodeToString(r.PacketOut))
	})
}

func TestVectorParse(t *testing.T) {
	type row struct {
		Packet                             vectors.Bytes
		OK, Truncated                      bool
		IPv4, IPv6, ICMP, ICMPv6, TCP, UDP *int
		Data, Next                         *int
		Protocol                           uint8
		PayloadLength                      int `json:"payload_length"`
		NextLength                         int `json:"next_length"`
	}
	h := startHelper(t)
	vectors.Run(t, "parse", func(r row) error {
		want := "0"
		if r.OK && !r.Truncated { // a truncated packet has headers, but does not count as one
			want = "1"
			for _, offset := range []*int{r.IPv4, r.IPv6, r.ICMP, r.ICMPv6, r.TCP, r.UDP, r.Data, r.Next} {
				if offset == nil {
					want += " -1"
				} else {
					want += fmt.Sprintf(" %d", *offset)
				}
			}
			want += fmt.Sprintf(" %d %d %d", r.Protocol, r.PayloadLength, r.NextLength)
		}
		return expect(h.ask("parse %s", bytes(r.Packet)), want)
	})
}

func TestVectorAddresses(t *testing.T) {
	type row struct {
		Family  int
		Text    *string
		OK      bool
		Value   vectors.Bytes
		TextOut string `json:"text_out"`
	}
	h := startHelper(t)
	vectors.Run(t, "addresses", func(r row) error {
		if r.Text == nil {
			return expect(h.ask("formataddr %d %s", r.Family, bytes(r.Value)), "ok "+text(r.TextOut))
		}
		want := "error 87"
		if r.OK {
			want = "ok " + bytes(r.Value)
		}
		return expect(h.ask("parseaddr %d %s", r.Family, text(*r.Text)), want)
	})
}

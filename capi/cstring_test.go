package main

import (
	"bytes"
	"testing"
)

// TestPutCString checks the rule for buffers of packets.md 7.
func TestPutCString(t *testing.T) {
	tests := []struct {
		name, text string
		size       int
		ok         bool
		want       string // of the buffer, which was full of '~'
	}{
		{"room to spare", "1.2.3.4", 10, true, "1.2.3.4\x00~~"},
		{"room for text and NUL", "1.2.3.4", 8, true, "1.2.3.4\x00"},
		{"Quirk: only the NUL does not fit", "1.2.3.4", 7, true, "1.2.3.\x00"},
		{"one too short", "1.2.3.4", 6, false, "1.2.3\x00"},
		{"one byte", "1.2.3.4", 1, false, "\x00"},
		{"one byte for one character", "a", 1, true, "\x00"},
		{"no buffer", "1.2.3.4", 0, false, ""},
		{"no text", "", 3, true, "\x00~~"},
		{"no text in one byte", "", 1, true, "\x00"},
		{"neither text nor buffer", "", 0, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			buf := bytes.Repeat([]byte{'~'}, tt.size)
			if ok := putCString(buf, tt.text); ok != tt.ok || string(buf) != tt.want {
				t.Errorf("%v, %q", ok, buf)
			}
			buf = bytes.Repeat([]byte{'~'}, tt.size)
			if ok := putCString(buf, []byte(tt.text)); ok != tt.ok || string(buf) != tt.want {
				t.Errorf("from bytes: %v, %q", ok, buf)
			}
		})
	}
}

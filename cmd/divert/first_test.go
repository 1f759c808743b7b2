package main

import (
	"strings"
	"testing"
	"time"
)

// TestFirstOfAFile: the command prints the first packets of each flow of a capture file, and all packets without a
// flow. It works with a filter that counts packets itself, too.
func TestFirstOfAFile(t *testing.T) {
	var b writer
	w, err := newCaptureWriter(&b, "true")
	if err != nil {
		t.Fatal(err)
	}
	like := *samples[0].record(0)
	var datagrams [][]byte
	for _, port := range []byte{1, 2} {
		d := append([]byte(nil), datagram...)
		d[21] = port // the source port
		datagrams = append(datagrams, d)
	}
	sctp := ip4(132, make([]byte, 12)...)
	at := time.Unix(1700000000, 0)
	for i, data := range [][]byte{datagrams[0], datagrams[1], datagrams[0], sctp, datagrams[0], sctp, datagrams[1], sctp} {
		r := like
		r.data, r.length, r.when = data, len(data), at.Add(time.Duration(i)*time.Second)
		if err := w.write(&r); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		args []string
		want int
	}{
		{nil, 8},
		{[]string{"--first", "1"}, 5},
		{[]string{"--first", "2"}, 7},
		{[]string{"--first", "9"}, 8},
		{[]string{"--first", "1", "udp"}, 2},
		{[]string{"flow.Packets <= 2"}, 4},
		{[]string{"flow.WayBytes > 57"}, 3},
	} {
		r := runCommand(t, string(b), append([]string{"dump", "-r", "-"}, test.args...)...)
		if got := strings.Count(r.out, "\n"); got != test.want || r.errout != "" {
			t.Errorf("%q: %d lines, want %d: %s%s", test.args, got, test.want, r.out, r.errout)
		}
	}
}

func TestFirstRefused(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"passthru --first 0 udp", "must be 1 or more"},
		{"passthru --first -1 udp", "whole number"},
		{"dump --first 3 --strict udp", "--strict"},
		{"dump --first 3 --layer flow", "the layer flow has events"},
	} {
		r := runCommand(t, "", strings.Fields(test.args)...)
		if r.status != exitUsage || !strings.Contains(r.errout, test.want) {
			t.Errorf("%s: %d %q", test.args, r.status, r.errout)
		}
	}
}

package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestTellReady: the message reaches a service manager at a path or in the abstract namespace; without one nothing is
// sent.
func TestTellReady(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := tellReady(); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
	path := filepath.Join(t.TempDir(), "notify")
	for _, name := range []string{path, "@" + path} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", name)
		if err := tellReady(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		if n, err := l.Read(b); err != nil || string(b[:n]) != "READY=1" {
			t.Errorf("%s: told %q, %v", name, b[:n], err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if name != path {
			if err := tellReady(); err == nil {
				t.Errorf("%s: nobody listens, and there is no error", name)
			}
		}
	}
}

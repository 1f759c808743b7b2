//go:build linux

package main_test

import (
	"os/exec"
	"testing"

	"github.com/opendivert/divert/internal/lab"
)

// host returns a host with only a loopback device, where a program may do anything.
func host(t *testing.T) *lab.Host {
	t.Helper()
	h, err := lab.NewT(t).AddHost("host")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestLive runs testdata/live.c: the behaviour of handles.
func TestLive(t *testing.T) {
	for _, d := range []dialect{gccModern, cxxModern} {
		t.Run(d.name, func(t *testing.T) { runAt(t, host(t), exec.Command(compile(t, "live.c", d))) })
	}
}

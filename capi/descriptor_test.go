//go:build linux

package main_test

import (
	"os/exec"
	"testing"
)

// TestDescriptor runs testdata/descriptor.c: descriptors for handles, and receiving with a time limit.
func TestDescriptor(t *testing.T) {
	for _, d := range []dialect{gccStrict, cxxModern} {
		t.Run(d.name, func(t *testing.T) { runAt(t, host(t), exec.Command(compile(t, "descriptor.c", d))) })
	}
	t.Run("SOCKET", func(t *testing.T) {
		h := host(t)
		needEvents(t, h)
		runAt(t, h, exec.Command(compile(t, "descriptor.c", gccModern), "sockets"))
	})
}

//go:build linux

package main_test

import (
	"os/exec"
	"testing"
)

// TestSignals runs testdata/signals.c: calls from signal handlers work or are refused, and handlers have room.
func TestSignals(t *testing.T) {
	t.Parallel()
	program := compile(t, "signals.c", gccModern)
	h := host(t)
	runAt(t, h, exec.Command(program))
	for range 3 {
		runAt(t, h, exec.Command(program, "end"))
	}
}

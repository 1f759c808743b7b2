//go:build linux

package main_test

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestForeign runs testdata/foreign.c: signals, forks, threads and dlopen.
func TestForeign(t *testing.T) {
	program := compile(t, "foreign.c", gccModern)
	runAt(t, host(t), exec.Command(program, filepath.Join(library(t), "libwindivert.so")))
}

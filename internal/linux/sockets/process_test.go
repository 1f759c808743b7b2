//go:build linux

package sockets

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProcessProgramsLoad asks the verifier.
func TestProcessProgramsLoad(t *testing.T) {
	err := ProbeProcesses()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, ErrNoCgroup) {
		t.Skipf("%v", err)
	}
	if err != nil {
		t.Errorf("%+v", err)
	}
}

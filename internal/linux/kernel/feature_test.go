//go:build linux

package kernel

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFeatureByVersion: without a probe the version decides.
func TestFeatureByVersion(t *testing.T) {
	old, future := &Feature{Since: Version{2, 6}}, &Feature{Since: Version{99, 1}}
	if !old.Has() {
		t.Errorf("%v", old.Err())
	}
	if err := future.Err(); err == nil || !strings.Contains(err.Error(), "Linux 99.1") {
		t.Errorf("%v", err)
	}
	restore := future.Assume(true)
	if !future.Has() {
		t.Error("what is assumed does not count")
	}
	restore()
	defer old.Assume(false)()
	if future.Has() || old.Has() {
		t.Error("what is assumed does not count, or does not end")
	}
}

// TestFeatureIsTriedOnce, unless a right is missing.
func TestFeatureIsTriedOnce(t *testing.T) {
	var answer error
	tries := 0
	f := &Feature{Probe: func() error { tries++; return answer }}
	answer = fmt.Errorf("load: %w", unix.EPERM)
	for range 2 {
		if err := f.Err(); !errors.Is(err, unix.EPERM) {
			t.Errorf("%v", err)
		}
	}
	if tries != 2 {
		t.Errorf("tried %d times without the right", tries)
	}
	answer = unix.EINVAL
	for range 2 {
		if f.Has() {
			t.Error("it is not there")
		}
	}
	if tries != 3 {
		t.Errorf("tried %d times", tries)
	}
	f = &Feature{Mutable: true, Probe: f.Probe}
	for range 2 {
		if f.Has() {
			t.Error("it is not there")
		}
	}
	answer = nil
	for range 2 {
		if !f.Has() {
			t.Error("it is there")
		}
	}
	if tries != 6 {
		t.Errorf("tried %d times where more than the kernel decides", tries)
	}
}

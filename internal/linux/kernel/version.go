//go:build linux

// Package kernel says what the running kernel is.
package kernel

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// AtLeast reports whether the kernel has a version or a later one. One that cannot be read counts as the latest.
func AtLeast(wantMajor, wantMinor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return true
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return true
	}
	return major > wantMajor || major == wantMajor && minor >= wantMinor
}

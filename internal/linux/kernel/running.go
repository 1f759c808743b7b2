//go:build linux

package kernel

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Release returns the release of the running kernel, as uname(2) gives it, and its machine. Both are "" if they cannot be read.
func Release() (release, machine string) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "", ""
	}
	return unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Machine[:])
}

// running is the version of the running kernel.
var running = sync.OnceValues(func() (Version, bool) {
	release, _ := Release()
	return Parse(release)
})

// Running returns the version of the running kernel. It reports false if the version cannot be read; the caller then errs on the
// side that does no harm.
func Running() (Version, bool) { return running() }

// AtLeast reports whether the kernel has a version or a later one. An unreadable version counts as the latest: the kernel itself
// refuses a feature that it lacks.
func AtLeast(v Version) bool {
	is, known := Running()
	return !known || !is.Before(v)
}

//go:build linux

package kernel

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Version is a version of Linux.
type Version struct{ Major, Minor int }

// String returns the version as in "5.18".
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Before reports whether v is older than w.
func (v Version) Before(w Version) bool {
	return v.Major < w.Major || v.Major == w.Major && v.Minor < w.Minor
}

// Parse reads the start of a release, such as "6.1.0-28-amd64".
func Parse(release string) (v Version, ok bool) {
	if _, err := fmt.Sscanf(release, "%d.%d", &v.Major, &v.Minor); err != nil || v.Major < 0 || v.Minor < 0 {
		return Version{}, false
	}
	return v, true
}

// Release returns the release of the running kernel, as uname(2) gives it, and its machine. It returns "" for what
// cannot be read.
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

// Running returns the version of the running kernel. It reports false if that cannot be read: then nothing is known of what the
// kernel has, and the caller chooses the side on which a mistake does no harm.
func Running() (Version, bool) { return running() }

// AtLeast reports whether the kernel has a version or a later one. One that cannot be read counts as the latest: what it
// lacks, it refuses when it is asked for.
func AtLeast(major, minor int) bool {
	v, known := Running()
	return !known || !v.Before(Version{major, minor})
}

//go:build linux

package kernel

import (
	"sync"

	"golang.org/x/sys/unix"
)

// LiftMemlock removes the process's limit of locked memory (RLIMIT_MEMLOCK) on kernels before 5.11, or raises it as far as the
// process may. Those kernels count programs and maps as memory that their user has locked, and the usual limit of 64 KiB is less
// than a handle needs. Later kernels charge them to the memory cgroup instead, and the limit stays as it is.
var LiftMemlock = sync.OnceFunc(func() {
	if !countsAsLocked() {
		return
	}
	all := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &all, nil) == nil {
		return
	}
	var now unix.Rlimit // without CAP_SYS_RESOURCE
	if unix.Prlimit(0, unix.RLIMIT_MEMLOCK, nil, &now) == nil {
		now.Cur = now.Max
		_ = unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &now, nil) // a program too large for the limit fails when it is loaded
	}
})

// countsAsLocked reports whether the kernel counts programs and maps as locked memory: before 5.11. A kernel of unknown version
// counts as one that does.
func countsAsLocked() bool {
	v, known := Running()
	return !known || v.Before(Version{5, 11})
}

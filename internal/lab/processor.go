//go:build linux

package lab

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// OnProcessor runs f on a processor, numbered from 0, and returns its error. It fails if the process may not run there.
func OnProcessor(cpu int, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return os.NewSyscallError("sched_getaffinity", err)
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return os.NewSyscallError("sched_setaffinity", err)
	}
	defer unix.SchedSetaffinity(0, &before)
	return f()
}

//go:build linux

package lab

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// WithoutRights runs f on a thread without capabilities, like an ordinary user's, in the caller's network namespace,
// and returns its error. Goroutines that f starts with `go` have capabilities.
func WithoutRights(f func() error) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had, none [2]unix.CapUserData
	if err := unix.Capget(&header, &had[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for i := range none {
		none[i].Permitted = had[i].Permitted // so that the thread can have the rest back
	}
	if err := unix.Capset(&header, &none[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	defer func() {
		if unix.Capset(&header, &had[0]) != nil {
			runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		}
	}()
	return f()
}

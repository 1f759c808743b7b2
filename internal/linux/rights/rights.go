//go:build linux

package rights

import (
	"os"

	"golang.org/x/sys/unix"
)

// Effective returns the capabilities in force on the calling thread: the bit 1<<unix.CAP_NET_ADMIN, and so on.
func Effective() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, os.NewSyscallError("capget", err)
	}
	return uint64(data[0].Effective) | uint64(data[1].Effective)<<32, nil
}

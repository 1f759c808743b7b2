//go:build linux

// Package tun opens TUN and TAP devices.
package tun

import (
	"os"

	"golang.org/x/sys/unix"
)

// path is the file that devices are made of.
const path = "/dev/net/tun"

// Open opens a descriptor for Make, whose reads do not wait. Its device will belong to the network namespace that the calling
// thread is in now (tun_chr_open, drivers/net/tun.c), and will go with the descriptor.
func Open() (fd int, err error) {
	if fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// Make makes the device of a descriptor: of a name, in which the kernel replaces %d by a number, and with flags (IFF_TUN and
// so on, linux/if_tun.h). It returns the request, which has the name that the device got.
func Make(fd int, name string, flags uint16) (*unix.Ifreq, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	request.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, os.NewSyscallError("ioctl TUNSETIFF", err)
	}
	return request, nil
}

// New makes a TUN device whose packets have no header in front, in the namespace of the calling thread, and returns the name
// that it got. Reads of the file wait, and end with its deadlines.
func New(name string) (f *os.File, got string, err error) {
	fd, err := Open()
	if err != nil {
		return nil, "", err
	}
	request, err := Make(fd, name, unix.IFF_TUN|unix.IFF_NO_PI)
	if err != nil {
		unix.Close(fd)
		return nil, "", err
	}
	// Only now: before, the runtime's poller refuses the descriptor.
	return os.NewFile(uintptr(fd), path), request.Name(), nil
}

//go:build linux

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// TUN is an interface of a host whose other side is this process: Read returns the IP packets that the host sends over
// it, Write passes packets to the host as received on it. Read and Write may run at the same time.
//
// The host also sends packets of IPv6 itself (multicast listener reports).
type TUN struct {
	*Link
	file *os.File
}

// AddTUN adds a TUN interface, up, with an MTU of 1500 bytes. It needs read and write access to /dev/net/tun, which a
// rootless lab does not have everywhere: the error then wraps os.ErrPermission.
func (h *Host) AddTUN(name string, addrs ...netip.Prefix) (*TUN, error) {
	t := &TUN{Link: &Link{host: h, name: name, addrs: addrs}}
	create := func() error { return h.Do(func() error { return t.open(name) }) }
	for _, step := range []func() error{create, t.find, t.up, t.assign} {
		if err := step(); err != nil {
			if t.file != nil {
				t.file.Close()
			}
			return nil, fmt.Errorf("lab: tun %s:%s: %w", h, name, err)
		}
	}
	h.addLink(t.Link)
	tracef("tun %s:%s %v", h, name, addrs)
	return t, nil
}

// open makes the device in the thread's namespace: the one in which the descriptor is opened.
func (t *TUN) open(name string) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return errors.Join(os.NewSyscallError("ioctl TUNSETIFF", err), unix.Close(fd))
	}
	t.file = os.NewFile(uintptr(fd), "tun:"+name) // after TUNSETIFF: before, it cannot be polled
	return nil
}

// Read waits for one IP packet and copies it to b, which should have room for the MTU: the rest of a longer packet is
// lost.
func (t *TUN) Read(b []byte) (int, error) { return t.file.Read(b) }

// Write passes one IP packet to the host.
func (t *TUN) Write(b []byte) (int, error) { return t.file.Write(b) }

// SetReadDeadline limits how long Read waits, like net.Conn's.
func (t *TUN) SetReadDeadline(at time.Time) error { return t.file.SetReadDeadline(at) }

// Close removes the interface; a waiting Read returns an error that wraps os.ErrClosed.
func (t *TUN) Close() error {
	t.host.removeLink(t.Link)
	return t.file.Close()
}

//go:build linux

package inject

import (
	"errors"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
)

// TestInboundClosesAllThatItHas breaks a part of an Inbound, so that closing it fails: the rest is closed all the same.
func TestInboundClosesAllThatItHas(t *testing.T) {
	host := lab.TwoHostsT(t, lab.LinkOptions{}).A
	var in *Inbound
	do(t, host, func() (err error) { in, err = NewInbound(Seal{}, Password{Mark: 0x5aa5}); return err })
	t.Cleanup(func() { in.Close() })
	parts := map[string]int{"events": in.events.fd, "socket of IPv4": in.loop.socks[sockIPv4].fd}
	if in.tun >= 0 {
		parts["/dev/net/tun"] = in.tun
	}
	before := map[string]uint64{}
	for name, fd := range parts {
		before[name] = inode(t, fd)
	}
	// An eventfd that cannot be rung.
	broken, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Dup3(broken, in.loop.wake, unix.O_CLOEXEC), unix.Close(broken)); err != nil {
		t.Fatal(err)
	}
	if err := in.Close(); !errors.Is(err, unix.EBADF) {
		t.Errorf("Close with a broken part: %v, want EBADF", err)
	}
	for name, fd := range parts {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && st.Ino == before[name] {
			t.Errorf("%s is open", name)
		}
	}
	if err := in.Close(); err != net.ErrClosed {
		t.Errorf("the second Close: %v", err)
	}
	if err := in.Send(make([]byte, 40), 1); !errors.Is(err, net.ErrClosed) && !errors.Is(err, ErrMalformed) {
		t.Errorf("Send after Close: %v", err)
	}
}

func inode(t testing.TB, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

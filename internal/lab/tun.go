//go:build linux

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/opendivert/divert/internal/linux/tun"
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
	create := func() error { return h.Do(func() (err error) { t.file, _, err = tun.New(name); return err }) }
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

//go:build linux

package detour

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/tun"
)

// Device gives this host a network of IPv6 addresses, for the aliases of datagrams: a TUN device without carrier, which sends
// nothing, and a local route by it. Both end with its descriptor, so with the process too.
type Device struct {
	Prefix netip.Prefix // a part of the discard prefix 100::/64 (RFC 6666), which no host has
	Index  int          // of the interface: the one by which datagrams to the prefix come in
	file   *os.File
}

// prefixBits is the length of the network of a Device: 32 bits are left for the alias.
const prefixBits = 96

// OpenDevice makes the device in the network namespace of the calling thread.
func OpenDevice() (*Device, error) {
	d := &Device{Prefix: randomPrefix()}
	if err := d.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("a device for addresses of IPv6: %w", err), d.Close())
	}
	return d, nil
}

func (d *Device) open() (err error) {
	var name string
	if d.file, name, err = tun.New("divert%d"); err != nil {
		return err
	}
	const setCarrier = 0x400454e2                                                    // TUNSETCARRIER (linux/if_tun.h, since 5.0)
	if err := unix.IoctlSetPointerInt(int(d.file.Fd()), setCarrier, 0); err != nil { // so IPv6 neither gives it an address nor sends there
		return os.NewSyscallError("ioctl TUNSETCARRIER", err)
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	d.Index = i.Index
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	if err := nl.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: i.Index}}); err != nil {
		return fmt.Errorf("set %s up: %w", i.Name, err)
	}
	dst := &net.IPNet{IP: d.Prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefixBits, 128)}
	if err := nl.RouteAdd(&netlink.Route{LinkIndex: i.Index, Dst: dst, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL}); err != nil {
		return fmt.Errorf("local route to %v by %s: %w", d.Prefix, i.Name, err)
	}
	return nil
}

// discardPrefix is the upper half of addresses in 100::/64.
const discardPrefix = 1 << 56

// randomPrefix returns a part of the discard prefix that very probably no other device has.
func randomPrefix() netip.Prefix {
	var ip [16]byte
	binary.BigEndian.PutUint64(ip[:], discardPrefix)
	_, _ = rand.Read(ip[8:12]) // it never fails
	return netip.PrefixFrom(netip.AddrFrom16(ip), prefixBits)
}

// Close removes the device and its route.
func (d *Device) Close() error {
	if d.file == nil {
		return nil
	}
	return d.file.Close()
}

//go:build linux

package inject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/tun"
)

// The frames written to the device:
//
//	destination  the device's own address                     48 bits of the seal
//	source       a secret, and the number of the target       36 bits of the seal, 12 of the number
//	EtherType    IPv4 or IPv6
//
// The destination makes the frame one for this host: the kernel drops a frame for another host before it looks at it. To forge a
// frame, a program needs a device of the namespace with that address, which the holder of a TAP device can set (SIOCSIFHWADDR,
// drivers/net/tun.c), and the secret, which packet sockets of the namespace show.
const etherHeaderLen = 14

// deviceMTU is below IPv6's smallest, 1280: so the kernel keeps IPv6 off the device altogether, and
// with it neighbour discovery and multicast reports, without a write to /proc/sys, which
// containers forbid (addrconf_notify, net/ipv6/addrconf.c). It does not limit the packets written to
// the device.
const deviceMTU = 1279

// maxTargets is how many interfaces a device leads to at a time: the nodes of one u32 hash bucket, 12 bits.
const maxTargets = 0xfff

// device is a TAP device whose frames the kernel redirects to the ingress of other interfaces:
// traffic control's u32 finds the filter of the target, mirred hands the packet over
// (net/sched/cls_u32.c, act_mirred.c). It has no address and no route, and the kernel sends nothing
// over it. It goes with its descriptor.
type device struct {
	fd    int
	index uint32
	nl    *netlink.Handle
	used  int // u32 nodes taken; they are numbered from 1
}

// openDevice turns fd, of tun.Open, into a device in the namespace in which fd was opened, which must be that of nl
// and of sock, any socket.
//
// The first packet waits for it. Every step takes the machine's lock of network configuration (rtnl), and may wait for the lock
// longer than it takes itself: so the steps are few, and use ioctl(2), which answers nothing.
func openDevice(fd, sock int, nl *netlink.Handle, seal Seal) (*device, error) {
	request, err := tun.Make(fd, "divert%d", unix.IFF_TAP|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
	if err != nil {
		return nil, err
	}
	d := &device{fd: fd, nl: nl}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"index", func() error {
			err := unix.IoctlIfreq(sock, unix.SIOCGIFINDEX, request)
			d.index = request.Uint32()
			return err
		}},
		{"MTU", func() error { request.SetUint32(deviceMTU); return unix.IoctlIfreq(sock, unix.SIOCSIFMTU, request) }},
		{"address", func() error { return setAddress(sock, request.Name(), [6]byte(seal[:6])) }},
		{"ingress", func() error { return nl.QdiscAdd(ingressOf(d.index)) }},
		// Without ARP and multicast, which are on by default.
		{"up", func() error {
			request.SetUint16(unix.IFF_UP | unix.IFF_NOARP)
			return unix.IoctlIfreq(sock, unix.SIOCSIFFLAGS, request)
		}},
	} {
		if err := step.do(); err != nil {
			err = fmt.Errorf("device %s: %s: %w", request.Name(), step.what, err)
			return nil, errors.Join(err, d.remove())
		}
	}
	return d, nil
}

// remove removes the device before its descriptor is closed.
func (d *device) remove() error {
	if d.index == 0 {
		return nil
	}
	return d.nl.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: int(d.index)}})
}

// setAddress gives a device its Ethernet address.
func setAddress(sock int, name string, address [6]byte) error {
	var request struct { // struct ifreq with a struct sockaddr in it (linux/if.h)
		name    [unix.IFNAMSIZ]byte
		family  uint16
		address [22]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	request.family = unix.ARPHRD_ETHER
	copy(request.address[:], address[:])
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(sock), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return errno
	}
	return nil
}

func ingressOf(index uint32) netlink.Qdisc {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: int(index),
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_INGRESS,
	}}
}

// alive tells whether the device still exists.
func (d *device) alive() bool {
	request, err := unix.NewIfreq("")
	return err == nil && unix.IoctlIfreq(d.fd, unix.TUNGETIFF, request) == nil
}

// lead makes frames with the number that it returns come in on the interface target. With ENOSPC all
// places are taken: reset.
func (d *device) lead(target uint32) (number uint16, err error) {
	if d.used == maxTargets {
		return 0, unix.ENOSPC
	}
	number = uint16(d.used + 1)
	if err := d.nl.FilterAdd(d.filter(number, target)); err != nil {
		return 0, fmt.Errorf("u32 and mirred: %w", err)
	}
	d.used++
	return number, nil
}

// filter matches the end of the source address, which is in front of the network header that u32 counts from. It does not
// look at the secret, since anybody may read filters.
func (d *device) filter(number uint16, target uint32) netlink.Filter {
	return &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: int(d.index),
			Parent:    netlink.MakeHandle(0xffff, 0),
			Handle:    uint32(number),
			Priority:  1,
			Protocol:  unix.ETH_P_ALL,
		},
		Sel: &netlink.TcU32Sel{
			Flags: netlink.TC_U32_TERMINAL,
			Keys:  []netlink.TcU32Key{{Mask: maxTargets, Val: uint32(number), Off: -6}},
		},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN},
			MirredAction: netlink.TCA_INGRESS_REDIR,
			Ifindex:      int(target),
		}},
	}
}

// reset removes all filters.
func (d *device) reset() error {
	err := d.nl.FilterDel(&netlink.U32{FilterAttrs: netlink.FilterAttrs{
		LinkIndex: int(d.index),
		Parent:    netlink.MakeHandle(0xffff, 0),
		Priority:  1,
		Protocol:  unix.ETH_P_ALL,
	}})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	d.used = 0
	return nil
}

// frameHeader precedes a packet: struct virtio_net_hdr, all zeros if the kernel has nothing to do, and the Ethernet header.
type frameHeader [virtioHeaderLen + etherHeaderLen]byte

// newFrameHeader returns the header that leads an IP packet of a version to a target.
func newFrameHeader(seal Seal, number uint16, version int) (f frameHeader) {
	h := f[virtioHeaderLen:]
	copy(h, seal[:])
	h[10] |= byte(number >> 8)
	h[11] = byte(number)
	binary.BigEndian.PutUint16(h[12:], unix.ETH_P_IP)
	if version == 6 {
		binary.BigEndian.PutUint16(h[12:], unix.ETH_P_IPV6)
	}
	return f
}

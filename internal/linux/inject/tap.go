//go:build linux

package inject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The frames written to the device:
//
//	destination  d2:56 and the cursor, in the machine's byte order   the device's own address;
//	             d2:58 instead of d2:56 for packets that handles are to see when they are forwarded
//	source       d2:57 and the target's interface index, big endian
//	EtherType    IPv4 or IPv6
//
// The destination makes the frame one for this host (a frame for another never reaches PRE_ROUTING),
// so no neighbour can forge a cursor: it would have to address an interface that has such an
// address. d2 is a locally administered, individual address.
const (
	macOwn     = 0xd256
	macTarget  = 0xd257
	macForward = 0xd258

	etherHeaderLen = 14
)

// deviceMTU is below IPv6's smallest, 1280: so the kernel keeps IPv6 off the device altogether, and
// with it neighbour discovery and multicast reports, without a write to /proc/sys, which
// containers forbid (addrconf_notify, net/ipv6/addrconf.c). It does not limit what is written to
// the device.
const deviceMTU = 1279

// maxTargets is how many interfaces a device leads to at a time: the nodes of one u32 hash bucket.
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

// openDevice turns fd, an open /dev/net/tun, into a device in the namespace in which fd was opened,
// which must be that of nl.
func openDevice(fd int, nl *netlink.Handle, kind uint16, cursor uint32) (*device, error) {
	request, err := unix.NewIfreq("divert%d")
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		return nil, fmt.Errorf("TUNSETIFF: %w", err)
	}
	link, err := nl.LinkByName(request.Name())
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", request.Name(), err)
	}
	own := binary.NativeEndian.AppendUint32(binary.BigEndian.AppendUint16(nil, kind), cursor)
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"MTU", func() error { return nl.LinkSetMTU(link, deviceMTU) }},
		{"address", func() error { return nl.LinkSetHardwareAddr(link, net.HardwareAddr(own)) }},
		{"ARP off", func() error { return nl.LinkSetARPOff(link) }},
		{"multicast off", func() error { return nl.LinkSetMulticastOff(link) }},
		{"ingress", func() error { return nl.QdiscAdd(ingressOf(link)) }},
		{"up", func() error { return nl.LinkSetUp(link) }},
	} {
		if err := step.do(); err != nil {
			err = fmt.Errorf("device %s: %s: %w", request.Name(), step.what, err)
			return nil, errors.Join(err, nl.LinkDel(link))
		}
	}
	return &device{fd: fd, index: uint32(link.Attrs().Index), nl: nl}, nil
}

func ingressOf(link netlink.Link) netlink.Qdisc {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index,
		Handle:    netlink.MakeHandle(0xffff, 0),
		Parent:    netlink.HANDLE_INGRESS,
	}}
}

// alive tells whether the device still exists.
func (d *device) alive() bool {
	request, err := unix.NewIfreq("")
	return err == nil && unix.IoctlIfreq(d.fd, unix.TUNGETIFF, request) == nil
}

// lead makes frames with macTarget and index come in on the interface target. With ENOSPC all
// places are taken: reset.
func (d *device) lead(index, target uint32) error {
	if d.used == maxTargets {
		return unix.ENOSPC
	}
	if err := d.nl.FilterAdd(d.filter(uint32(d.used+1), index, target)); err != nil {
		return fmt.Errorf("u32 and mirred: %w", err)
	}
	d.used++
	return nil
}

// filter matches the source address, which is in front of the network header that u32 counts from.
func (d *device) filter(node, index, target uint32) netlink.Filter {
	return &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: int(d.index),
			Parent:    netlink.MakeHandle(0xffff, 0),
			Handle:    node,
			Priority:  1,
			Protocol:  unix.ETH_P_ALL,
		},
		Sel: &netlink.TcU32Sel{
			Flags: netlink.TC_U32_TERMINAL,
			Keys:  []netlink.TcU32Key{{Mask: 0xffffffff, Val: index, Off: -6}},
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

// frameHeader returns the Ethernet header that leads an IP packet of a version to target index.
func frameHeader(kind uint16, cursor, index uint32, version int) (h [etherHeaderLen]byte) {
	binary.BigEndian.PutUint16(h[0:], kind)
	binary.NativeEndian.PutUint32(h[2:], cursor)
	binary.BigEndian.PutUint16(h[6:], macTarget)
	binary.BigEndian.PutUint32(h[8:], index)
	binary.BigEndian.PutUint16(h[12:], unix.ETH_P_IP)
	if version == 6 {
		binary.BigEndian.PutUint16(h[12:], unix.ETH_P_IPV6)
	}
	return h
}

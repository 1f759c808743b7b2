//go:build linux

package inject

import (
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize is how many packets go to the kernel with one system call.
const batchSize = 64

// mmsghdr is struct mmsghdr of <sys/socket.h>.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// control holds the control messages of a packet: its mark, which is 0 even if the socket's is not (Password), and its source
// address, if the route depends on it.
type control struct {
	markHdr unix.Cmsghdr
	mark    [2]uint32 // the length is rounded up to 8 bytes
	hdr     unix.Cmsghdr
	data    [unix.SizeofInet6Pktinfo + 4]byte
}

// setMark makes the control message with the mark and returns its length.
func (c *control) setMark() int {
	c.markHdr.Level, c.markHdr.Type = unix.SOL_SOCKET, unix.SO_MARK
	c.markHdr.SetLen(unix.CmsgLen(4))
	c.mark = [2]uint32{}
	return unix.CmsgSpace(4)
}

// batch is the memory of one sendmmsg(2), reused so that sending allocates nothing.
type batch struct {
	msgs     [batchSize]mmsghdr
	iovs     [batchSize]unix.Iovec
	names4   [batchSize]unix.RawSockaddrInet4
	names6   [batchSize]unix.RawSockaddrInet6
	controls [batchSize]control

	one    [1][]byte
	oneIdx [1]uint32
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// fill prepares messages for the first packets of pkts, as many as are of one family and fit. With
// filled 0, err is the first packet's error.
func (b *batch) fill(pkts [][]byte, ifIdx []uint32) (family, filled int, err error) {
	for filled < min(batchSize, len(pkts)) {
		pkt := pkts[filled]
		v, err := version(pkt)
		if err == nil && v == 4 && [4]byte(pkt[12:16]) == [4]byte{} {
			err = ErrNoSource
		}
		if err != nil {
			return family, filled, err
		}
		f := sockIPv4
		if v == 6 {
			f = sockIPv6
		}
		if filled > 0 && f != family {
			return family, filled, nil
		}
		family = f
		b.set(filled, family, pkt, first(ifIdx, filled))
		filled++
	}
	return family, filled, nil
}

// set prepares message i.
func (b *batch) set(i, family int, pkt []byte, ifIdx uint32) {
	b.iovs[i].Base = &pkt[0]
	b.iovs[i].SetLen(len(pkt))
	h := &b.msgs[i].hdr
	*h = unix.Msghdr{Iov: &b.iovs[i]}
	h.SetIovlen(1)
	n := b.controls[i].setMark()
	if family == sockIPv4 {
		b.names4[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: [4]byte(pkt[16:20])}
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.names4[i])), unix.SizeofSockaddrInet4
		n += b.controls[i].setIPv4(pkt, ifIdx)
	} else {
		b.names6[i] = sockaddrIPv6(pkt, ifIdx)
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&b.names6[i])), unix.SizeofSockaddrInet6
		n += b.controls[i].setIPv6(pkt, ifIdx)
	}
	h.Control = (*byte)(unsafe.Pointer(&b.controls[i]))
	h.SetControllen(n)
}

func sockaddrIPv6(pkt []byte, ifIdx uint32) unix.RawSockaddrInet6 {
	sa := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: [16]byte(pkt[24:40])}
	if needsScope(netip.AddrFrom16(sa.Addr)) {
		sa.Scope_id = ifIdx
	}
	return sa
}

func needsScope(a netip.Addr) bool {
	return a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() || a.IsInterfaceLocalMulticast()
}

// setIPv4 makes the control message that routes a packet by its source address and, where the destination is not the address of
// one host, by the interface. It returns the length, 0 for none.
func (c *control) setIPv4(pkt []byte, ifIdx uint32) int {
	var info unix.Inet4Pktinfo
	src, dst := [4]byte(pkt[12:16]), [4]byte(pkt[16:20])
	if routableSource(src) {
		info.Spec_dst = src
	}
	if dst[0] >= 224 { // multicast and limited broadcast
		info.Ifindex = int32(ifIdx)
	}
	c.hdr.Level, c.hdr.Type = unix.SOL_IP, unix.IP_PKTINFO
	c.hdr.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
	*(*unix.Inet4Pktinfo)(unsafe.Pointer(&c.data)) = info
	return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
}

// routableSource tells whether the kernel takes a as a source in a routing decision; else it refuses
// the packet (ip_route_output_key_hash_rcu, net/ipv4/route.c).
func routableSource(a [4]byte) bool { return a[0] != 0 && a[0] < 224 }

func (c *control) setIPv6(pkt []byte, ifIdx uint32) int {
	info := unix.Inet6Pktinfo{Addr: [16]byte(pkt[8:24])}
	src := netip.AddrFrom16(info.Addr)
	switch {
	case src.IsUnspecified() || src.IsMulticast():
		return 0 // says nothing about the route
	case src.IsLinkLocalUnicast():
		if ifIdx == 0 {
			return 0 // EINVAL without an interface; the route of the destination decides
		}
		info.Ifindex = ifIdx
	}
	c.hdr.Level, c.hdr.Type = unix.SOL_IPV6, unix.IPV6_PKTINFO
	c.hdr.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	*(*unix.Inet6Pktinfo)(unsafe.Pointer(&c.data)) = info
	return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
}

// sendmmsg sends the messages [from, to) and returns how many were sent.
func (b *batch) sendmmsg(fd, from, to int) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[from])),
		uintptr(to-from), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// clear lets go of the packets of the first n messages.
func (b *batch) clear(n int) {
	for i := range n {
		b.iovs[i] = unix.Iovec{}
	}
}

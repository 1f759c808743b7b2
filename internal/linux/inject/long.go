//go:build linux

package inject

import (
	"fmt"
	"net"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/packet"
)

// cuts is where packets too long for their path are cut, several at a time for one sendmmsg.
type cuts struct {
	mem [2 * maxPacket]byte

	// The one in use stands here, so that it needs no memory of its own.
	segmenter  packet.Segmenter
	fragmenter Fragmenter
}

var cutsPool = sync.Pool{New: func() any { return new(cuts) }}

// cutter is a packet.Segmenter or a Fragmenter.
type cutter interface{ Next(dst []byte) int }

// sendCut sends all pieces that c gives, each at most limit bytes long.
func (o *Outbound) sendCut(family int, m *cuts, c cutter, limit int, ifIdx uint32) error {
	b := batches.Get().(*batch)
	defer batches.Put(b)
	for done := false; !done; {
		n, used := 0, 0
		for n < batchSize && used+limit <= len(m.mem) {
			size := c.Next(m.mem[used:])
			if done = size == 0; done {
				break
			}
			b.set(n, family, m.mem[used:used+size], ifIdx)
			used += size
			n++
		}
		_, err := o.flush(o.socks[family].fd, b, n)
		b.clear(n)
		if err != nil {
			return err
		}
	}
	return nil
}

// sendLong sends a packet that the kernel found too long for the outgoing interface, in fragments if
// it may have them.
func (o *Outbound) sendLong(family int, pkt []byte, ifIdx uint32) error {
	mtu, err := o.pathMTU(family, pkt, ifIdx)
	if err != nil {
		return err
	}
	tooBig := &TooBigError{Size: len(pkt), MTU: mtu}
	m := cutsPool.Get().(*cuts)
	defer cutsPool.Put(m)
	m.fragmenter, err = NewFragmenter(pkt, mtu, o.nextID())
	if err != nil {
		return tooBig
	}
	defer func() { m.fragmenter = Fragmenter{} }()
	switch err := o.sendCut(family, m, &m.fragmenter, min(mtu, maxPacket), ifIdx); err {
	case nil:
		return nil
	case unix.EMSGSIZE:
		return tooBig // the path has become smaller still
	default:
		return sendError(err, ifIdx)
	}
}

// nextID returns an identification for the fragments of one packet, whose low 16 bits are not 0.
func (o *Outbound) nextID() uint32 {
	for {
		if id := o.id.Add(1); uint16(id) != 0 {
			return id
		}
	}
}

// SendSegmented sends a TCP or UDP packet that the kernel handed over before segmentation (GSO): in
// segments with mss bytes of payload, in order (specification: api.md 8). With mss 0 a TCP packet's
// segments are as long as the path's MTU allows; UDP needs the right mss, as its datagrams are messages,
// and gives EINVAL without. A packet that needs no cutting is sent as one, its checksums computed.
//
// The errors are those of Send and NewSegmenter. After an error a part may have been sent.
func (o *Outbound) SendSegmented(pkt []byte, ifIdx uint32, mss int) error {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed.Load() {
		return net.ErrClosed
	}
	m := cutsPool.Get().(*cuts)
	defer cutsPool.Put(m)
	s := &m.segmenter
	defer func() { *s = packet.Segmenter{} }()
	var err error
	if *s, err = NewSegmenter(pkt, max(mss, 1)); err != nil {
		return err
	}
	family := sockIPv4
	if pkt[0]>>4 == 6 {
		family = sockIPv6
	} else if [4]byte(pkt[12:16]) == [4]byte{} {
		return ErrNoSource
	}
	if err := o.socks[family].err; err != nil {
		return err
	}
	if mss <= 0 {
		if mss, err = o.segmentSize(pkt, s.HeaderLen(), family, ifIdx); err != nil {
			return err
		}
		if *s, err = NewSegmenter(pkt, mss); err != nil {
			return err
		}
	}
	longest := min(s.HeaderLen()+mss, len(pkt))
	err = o.sendCut(family, m, s, longest, ifIdx)
	switch err {
	case nil:
		return nil
	case unix.EMSGSIZE:
		mtu, _ := o.pathMTU(family, pkt, ifIdx) // 0 if unknown, as the field says
		return &TooBigError{Size: longest, MTU: mtu}
	}
	return sendError(err, ifIdx)
}

// segmentSize returns TCP's segment size by the path's MTU.
func (o *Outbound) segmentSize(pkt []byte, headers, family int, ifIdx uint32) (int, error) {
	var p packet.Parsed
	if p.ParseExact(pkt) && p.UDPOff >= 0 {
		return 0, fmt.Errorf("inject: UDP segments of unknown size: %w", unix.EINVAL)
	}
	mtu, err := o.pathMTU(family, pkt, ifIdx)
	if err != nil {
		return 0, err
	}
	if mtu <= headers {
		return 0, &TooBigError{Size: headers + 1, MTU: mtu}
	}
	return mtu - headers, nil
}

// pathMTU asks the kernel for the MTU of a packet's route, in bytes: a raw socket that is connected as
// the packet goes knows it.
func (o *Outbound) pathMTU(family int, pkt []byte, ifIdx uint32) (int, error) {
	o.probeMu.Lock()
	defer o.probeMu.Unlock()
	fd := o.socks[family].probe
	if err := disconnect(fd); err != nil {
		return 0, fmt.Errorf("inject: path MTU: %w", err)
	}
	ask := mtuIPv4
	if family == sockIPv6 {
		ask = mtuIPv6
	}
	mtu, err := ask(fd, pkt, ifIdx)
	if err != nil {
		return 0, fmt.Errorf("inject: path MTU: %w", err)
	}
	return mtu, nil
}

// disconnect undoes the last connect, so that the socket can be bound anew.
func disconnect(fd int) error {
	sa := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
	if errno != 0 {
		return errno
	}
	return nil
}

func mtuIPv4(fd int, pkt []byte, ifIdx uint32) (int, error) {
	var local unix.SockaddrInet4
	if src := [4]byte(pkt[12:16]); routableSource(src) {
		local.Addr = src
	}
	err := unix.Bind(fd, &local)
	if err == unix.EADDRNOTAVAIL { // before Linux 5.17 raw sockets cannot be bound to a foreign address
		err = unix.Bind(fd, &unix.SockaddrInet4{})
	}
	if err != nil {
		return 0, err
	}
	// The interface counts for multicast only, here as in the sending socket.
	if err := unix.SetsockoptIPMreqn(fd, unix.SOL_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(ifIdx)}); err != nil {
		return 0, err
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte(pkt[16:20])}); err != nil {
		return 0, err
	}
	return unix.GetsockoptInt(fd, unix.SOL_IP, unix.IP_MTU)
}

func mtuIPv6(fd int, pkt []byte, ifIdx uint32) (int, error) {
	var local, remote unix.SockaddrInet6
	if src := netip.AddrFrom16([16]byte(pkt[8:24])); !src.IsMulticast() && !src.IsLinkLocalUnicast() {
		local.Addr = src.As16()
	}
	if err := unix.Bind(fd, &local); err != nil {
		return 0, err
	}
	remote.Addr = [16]byte(pkt[24:40])
	if needsScope(netip.AddrFrom16(remote.Addr)) {
		remote.ZoneId = ifIdx
	}
	if err := unix.Connect(fd, &remote); err != nil {
		return 0, err
	}
	return unix.GetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_MTU)
}

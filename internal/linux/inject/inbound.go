//go:build linux

package inject

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/tun"
)

// Inbound hands IP packets to the stack as if they had come in on an interface: they pass its
// ingress, PRE_ROUTING, the routing decision with its checks of the source, and reach a local
// socket or are forwarded.
//
// The first Send makes a TAP device named divert0, divert1 and so on, from which traffic control
// redirects each frame to the ingress of its target. It has no address, no route and no IPv6, the
// kernel sends nothing over it, and it is gone with the Inbound or its process. Nothing is changed on
// the targets. It works with interfaces of every kind, those without Ethernet addresses too.
//
// The packet's bytes stay as they are. The receiver verifies all checksums and drops packets
// with wrong ones. The target's rp_filter applies, as to any packet: 1 drops a source that is not
// routed over the target, 2 one that is not routed at all.
//
// At PRE_ROUTING the frame's addresses hold the seal, for which SealRule gives the packet its cursor.
//
// A packet for an address of this host that says it comes from this host (and one for the loopback
// interface) would be refused on any interface as a martian. It goes the way such packets go
// instead: over the loopback interface, with a cursor that lets it pass all handles, as inbound loopback
// packets do (specification: api.md 14.1).
//
// A packet for a port of a bridge comes in on the bridge.
//
// An Inbound may be used by several goroutines.
type Inbound struct {
	seal   Seal
	events events
	nl     *netlink.Handle
	loop   *Outbound

	mu      sync.RWMutex // held for reading while frames are written, for writing to change the fields below
	closed  bool
	tun     int   // /dev/net/tun, until it is the device's
	tunErr  error // why there is none
	device  *device
	targets map[uint32]*target
	local   map[netip.Addr]struct{} // this host's addresses; nil: to be read
}

// target is an interface that packets can be sent to.
type target struct {
	index            uint32 // the interface itself, or its bridge
	loopback         bool
	header4, header6 frameHeader // set once the device leads to it
}

// NewInbound prepares injection in the network namespace of the calling thread (a goroutine that has
// changed it must be locked to its thread); the device is made there later, from any thread. The frames
// carry the seal; served is the password of loopback packets, for a cursor that no handle looks at. It needs
// CAP_NET_ADMIN and CAP_NET_RAW there. A missing /dev/net/tun is an error of Send only.
func NewInbound(s Seal, served Password) (*Inbound, error) {
	in := &Inbound{seal: s, tun: -1, targets: make(map[uint32]*target)}
	var err error
	if in.events, err = openEvents(); err != nil {
		return nil, err
	}
	if in.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		unix.Close(in.events.fd)
		return nil, fmt.Errorf("inject: rtnetlink: %w", err)
	}
	if in.loop, err = NewOutbound(served); err != nil {
		in.nl.Close()
		unix.Close(in.events.fd)
		return nil, err
	}
	// A device belongs to the namespace in which its descriptor was opened (tun_chr_open), so this
	// cannot wait for the first Send.
	if in.tun, in.tunErr = tun.Open(); in.tunErr != nil {
		in.tunErr = fmt.Errorf("%w: %w", ErrNoRedirect, in.tunErr)
	}
	return in, nil
}

// Close removes the device. Later calls, of Close too, return net.ErrClosed.
func (in *Inbound) Close() error {
	// First, and without the lock: a Send that waits for the loopback interface holds it.
	err := in.loop.Close()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return net.ErrClosed
	}
	in.closed = true
	in.nl.Close()
	err = errors.Join(err, os.NewSyscallError("close", unix.Close(in.events.fd)))
	if in.tun >= 0 {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(in.tun)))
	}
	return err
}

// Send hands over one packet, IPv4 or IPv6 from its header on, as long as its length field says, as
// received on the interface ifIdx. The memory is the caller's again when Send returns.
//
// Errors: ErrMalformed; *InterfaceError with ErrNoInterface, ErrInterfaceDown, ErrNoRedirect or what the
// kernel says; net.ErrClosed; for loopback packets also those of Outbound.Send.
func (in *Inbound) Send(pkt []byte, ifIdx uint32) error {
	return in.sendWhole(pkt, ifIdx, whole{})
}

// sendWhole is Send of a packet that the kernel is to cut, unless o is zero. For loopback packets it fails with errNotWhole.
func (in *Inbound) sendWhole(pkt []byte, ifIdx uint32, o whole) error {
	w := writes.Get().(*write)
	defer writes.Put(w)
	w.whole = o
	if err := in.update(); err != nil {
		return err
	}
	return in.send(w, pkt, ifIdx)
}

// SendBatch hands over packets in order. ifIdx holds their interface indexes, as many as pkts. n
// is the number of packets that were handed over; err, if not nil, is Send's error for pkts[n]: to
// go on behind it call again with pkts[n+1:]. The device takes one packet with each system call.
func (in *Inbound) SendBatch(pkts [][]byte, ifIdx []uint32) (n int, err error) {
	if len(ifIdx) != len(pkts) {
		return 0, fmt.Errorf("inject: %d packets with %d interfaces: %w", len(pkts), len(ifIdx), unix.EINVAL)
	}
	w := writes.Get().(*write)
	defer writes.Put(w)
	w.whole = whole{}
	if err := in.update(); err != nil {
		return 0, err
	}
	for i, pkt := range pkts {
		if err := in.send(w, pkt, ifIdx[i]); err != nil {
			return i, err
		}
	}
	return len(pkts), nil
}

// write is the memory of one writev(2).
type write struct {
	iov  [2]unix.Iovec
	head [len(frameHeader{}) + maxWholeHeaders]byte

	whole whole // of the packet that is sent; the zero whole of one that stays as it is
}

var writes = sync.Pool{New: func() any { return new(write) }}

// send tries twice: the first time may find the device or target missing.
func (in *Inbound) send(w *write, pkt []byte, ifIdx uint32) error {
	v, err := version(pkt)
	if err != nil {
		return err
	}
	err = errNotReady
	for tries := 0; err == errNotReady; tries++ {
		if tries == maxRetries {
			return &InterfaceError{Index: ifIdx, Err: fmt.Errorf("%w: it keeps changing", ErrNoRedirect)}
		}
		if tries > 0 {
			if err := in.prepare(ifIdx); err != nil {
				return err
			}
		}
		err = in.try(w, pkt, v, ifIdx)
	}
	return err
}

// errNotReady says that the target must be prepared.
var errNotReady = errors.New("inject: not ready")

func (in *Inbound) try(w *write, pkt []byte, v int, ifIdx uint32) error {
	in.mu.RLock()
	defer in.mu.RUnlock()
	if in.closed {
		return net.ErrClosed
	}
	t := in.targets[ifIdx]
	if t == nil || in.local == nil {
		return errNotReady
	}
	if in.isLoopback(pkt, v, t) {
		if w.whole.size > 0 {
			return errNotWhole
		}
		return in.loop.Send(pkt, ifIdx)
	}
	if in.device == nil {
		return errNotReady
	}
	header := &t.header4
	if v == 6 {
		header = &t.header6
	}
	return in.write(w, header, pkt, ifIdx)
}

func (in *Inbound) write(w *write, header *frameHeader, pkt []byte, ifIdx uint32) error {
	copy(w.head[:], header[:])
	n := w.whole.begin(w.head[:], pkt)
	w.iov[0].Base, w.iov[1].Base = &w.head[0], &pkt[n]
	w.iov[0].SetLen(len(header) + n)
	w.iov[1].SetLen(len(pkt) - n)
	defer func() { w.iov = [2]unix.Iovec{} }()
	for {
		_, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(in.device.fd), uintptr(unsafe.Pointer(&w.iov)), 2)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(in.device.fd), Events: unix.POLLOUT}}, -1); err != nil && err != unix.EINTR {
				return &InterfaceError{Index: ifIdx, Err: err}
			}
		default:
			return &InterfaceError{Index: ifIdx, Err: fmt.Errorf("write to the device: %w", errno)}
		}
	}
}

// isLoopback tells whether a packet must go over the loopback interface: it is for this host, and it is
// from this host or received on that interface.
func (in *Inbound) isLoopback(pkt []byte, v int, t *target) bool {
	var src, dst netip.Addr
	if v == 4 {
		src, dst = netip.AddrFrom4([4]byte(pkt[12:16])), netip.AddrFrom4([4]byte(pkt[16:20]))
	} else {
		src, dst = netip.AddrFrom16([16]byte(pkt[8:24])), netip.AddrFrom16([16]byte(pkt[24:40]))
	}
	return in.isLocal(dst) && (t.loopback || in.isLocal(src) || dst.IsLoopback())
}

func (in *Inbound) isLocal(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	_, ok := in.local[a]
	return ok
}

// update takes in the changes in the namespace since the last packet.
func (in *Inbound) update() error {
	in.mu.RLock()
	pending, lost := false, false
	if !in.closed {
		pending, lost = in.events.pending()
	}
	in.mu.RUnlock()
	if !pending {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return net.ErrClosed
	}
	stale, gone := lost, lost
	if lost {
		in.local = nil
	}
	link := func(index uint32) {
		if _, ok := in.targets[index]; ok || index == 0 {
			stale = true
		}
		if in.device != nil && (index == in.device.index || index == 0) {
			gone = true
		}
	}
	if err := in.events.drain(link, func() { in.local = nil }); err != nil {
		return err
	}
	if gone && in.device != nil && !in.device.alive() {
		in.device = nil // someone removed it; its filters went with it
		stale = true
	}
	if stale {
		return in.forget()
	}
	return nil
}

// forget makes all targets be looked up again: they may have gone, gone down, or joined a bridge.
func (in *Inbound) forget() error {
	clear(in.targets)
	if in.device == nil {
		return nil
	}
	if err := in.device.reset(); err != nil {
		return fmt.Errorf("inject: device: %w", err)
	}
	return nil
}

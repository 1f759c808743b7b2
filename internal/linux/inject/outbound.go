//go:build linux

package inject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// sendBuffer is the size asked for the send buffers, in bytes. The kernel counts a small packet with
// its bookkeeping as 768 bytes or more, so this is room for some thousands.
const sendBuffer = 4 << 20

// Outbound sends IP packets as if a program of this host had sent them: routed, then through the
// LOCAL_OUT and POST_ROUTING hooks, to other hosts or to this one. It stands on raw sockets with the
// header included (raw(7), net/ipv4/raw.c, net/ipv6/raw.c).
//
// The kernel treats the packet's bytes as follows:
//   - IPv4: the header checksum is always computed; an identification of 0 without Don't Fragment is
//     replaced; the rest stays as given. A source of 0.0.0.0 would be replaced and is refused.
//   - IPv6: nothing is changed.
//   - Transport checksums, right or wrong, reach the wire as given.
//
// Routing goes by the packet's destination and source; the mark is 0. The interface index
// counts only where the destination needs one: multicast, broadcast and link-local addresses.
//
// A packet longer than its path's MTU is sent in fragments, made here, if it may be: IPv4
// without Don't Fragment, and IPv6. Otherwise the error is ErrTooBig. With Don't Fragment and a path MTU
// below that of the first interface the kernel also tells the packet's source by ICMP.
//
// Success means that the stack took the packet, not that it left: a full queue of the interface drops
// it silently, and a handle of lower priority may keep it.
//
// An Outbound may be used by several goroutines.
type Outbound struct {
	socks [2]rawSocket // IPv4, IPv6
	wake  int          // eventfd, readable once closed: ends the wait for buffer space

	mu     sync.RWMutex // held for reading while the descriptors are in use
	closed atomic.Bool
	id     atomic.Uint32 // identification of fragments

	probeMu sync.Mutex // one question for a path's MTU at a time
}

// rawSocket is the socket of one family.
type rawSocket struct {
	fd    int   // sends; -1 if err
	probe int   // asks for the path's MTU
	err   error // why there is no socket
}

// The indexes of Outbound.socks.
const (
	sockIPv4 = iota
	sockIPv6
)

// NewOutbound opens the sockets in the network namespace of the calling thread (a goroutine that has
// changed it must be locked to its thread). The packets carry the password to LOCAL_OUT. It needs CAP_NET_RAW and, for
// priority and mark, CAP_NET_ADMIN there; without, the error is an EPERM. Where the kernel has no IPv6, sending
// IPv6 gives EAFNOSUPPORT.
func NewOutbound(p Password) (*Outbound, error) {
	o := &Outbound{wake: -1}
	for i := range o.socks {
		o.socks[i] = rawSocket{fd: -1, probe: -1}
	}
	o.id.Store(rand.Uint32())
	var err error
	if o.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("inject: eventfd: %w", err)
	}
	for i, family := range [2]int{unix.AF_INET, unix.AF_INET6} {
		s := &o.socks[i]
		s.err = s.open(family, p)
		if s.err != nil && !(family == unix.AF_INET6 && errors.Is(s.err, unix.EAFNOSUPPORT)) {
			o.release()
			return nil, s.err
		}
	}
	return o, nil
}

func (s *rawSocket) open(family int, p Password) (err error) {
	if s.fd, err = openRaw(family); err != nil {
		return err
	}
	if s.probe, err = openRaw(family); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_PRIORITY, int(int32(p.Priority))); err != nil {
		return fmt.Errorf("inject: raw socket: SO_PRIORITY: %w", err)
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_MARK, int(int32(p.Mark))); err != nil {
		return fmt.Errorf("inject: raw socket: SO_MARK: %w", err)
	}
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		// Older kernels ask for CAP_NET_ADMIN in the initial user namespace; without it, the size that is allowed to all must do.
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer); err != nil {
			return fmt.Errorf("inject: raw socket: SO_SNDBUF: %w", err)
		}
	}
	return nil
}

type sockopt struct {
	name              string
	level, opt, value int
}

// rawOptions are the options of each family's sockets. TRANSPARENT lets the route depend on a source
// address that is not of this host (ip_route_connect, include/net/route.h).
var rawOptions = map[int][]sockopt{
	unix.AF_INET: {
		{"IP_HDRINCL", unix.SOL_IP, unix.IP_HDRINCL, 1},
		{"IP_NODEFRAG", unix.SOL_IP, unix.IP_NODEFRAG, 1},
		{"IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1},
		{"SO_BROADCAST", unix.SOL_SOCKET, unix.SO_BROADCAST, 1},
	},
	unix.AF_INET6: {
		{"IPV6_HDRINCL", unix.SOL_IPV6, unix.IPV6_HDRINCL, 1},
		{"IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1},
	},
}

// openRaw opens a raw socket that receives nothing.
func openRaw(family int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return -1, fmt.Errorf("inject: raw socket: %w", err)
	}
	// A raw socket is given a copy of each incoming packet of its protocol, and IPPROTO_RAW is a
	// protocol number that a packet may have: a filter that is "ret 0" takes none.
	none := unix.SockFprog{Len: 1, Filter: &unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &none); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("inject: raw socket: SO_ATTACH_FILTER: %w", err)
	}
	for _, o := range rawOptions[family] {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("inject: raw socket: %s: %w", o.name, err)
		}
	}
	return fd, nil
}

// Close closes the sockets. A Send that waits for buffer space returns net.ErrClosed, as do all later
// calls, Close too.
func (o *Outbound) Close() error {
	if o.closed.Swap(true) {
		return net.ErrClosed
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, err := unix.Write(o.wake, one[:]) // fails only if the eventfd is broken; then Close takes as long as the waiting Send
	if err != nil {
		err = fmt.Errorf("inject: eventfd: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return errors.Join(err, o.release())
}

func (o *Outbound) release() (err error) {
	for _, fd := range []int{o.socks[sockIPv4].fd, o.socks[sockIPv4].probe,
		o.socks[sockIPv6].fd, o.socks[sockIPv6].probe, o.wake} {
		if fd >= 0 {
			err = errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
		}
	}
	return err
}

// Send sends one packet: IPv4 or IPv6 from its header on, as long as its length field says. The
// memory is the caller's again when Send returns. It blocks while the socket's buffer is full.
//
// Errors: ErrMalformed, ErrTooBig, ErrNoSource, *InterfaceError, net.ErrClosed, and the kernel's error, as a unix.Errno in the
// chain (ENETUNREACH: no route; EPERM: a rule of the namespace dropped it).
func (o *Outbound) Send(pkt []byte, ifIdx uint32) error {
	b := batches.Get().(*batch)
	defer batches.Put(b)
	b.one[0], b.oneIdx[0] = pkt, ifIdx
	_, err := o.sendBatch(b, b.one[:], b.oneIdx[:])
	b.one[0] = nil
	return err
}

// SendBatch sends packets in order, many with one system call. ifIdx holds their interface indexes;
// it is nil (all 0) or as long as pkts. n is the number of packets that were sent; err, if not nil, is
// Send's error for pkts[n]: to go on behind it call again with pkts[n+1:].
func (o *Outbound) SendBatch(pkts [][]byte, ifIdx []uint32) (n int, err error) {
	if ifIdx != nil && len(ifIdx) != len(pkts) {
		return 0, fmt.Errorf("inject: %d packets with %d interfaces: %w", len(pkts), len(ifIdx), unix.EINVAL)
	}
	b := batches.Get().(*batch)
	defer batches.Put(b)
	return o.sendBatch(b, pkts, ifIdx)
}

func (o *Outbound) sendBatch(b *batch, pkts [][]byte, ifIdx []uint32) (n int, err error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed.Load() {
		return 0, net.ErrClosed
	}
	for n < len(pkts) {
		family, filled, err := b.fill(pkts[n:], index(ifIdx, n))
		if filled == 0 {
			return n, err
		}
		s := &o.socks[family]
		if s.err != nil {
			b.clear(filled)
			return n, s.err
		}
		sent, err := o.flush(s.fd, b, filled)
		b.clear(filled)
		n += sent
		if err != nil {
			if err == unix.EMSGSIZE {
				err = o.sendLong(family, pkts[n], first(ifIdx, n))
			} else {
				err = sendError(err, first(ifIdx, n))
			}
			if err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}

func index(ifIdx []uint32, n int) []uint32 {
	if ifIdx == nil {
		return nil
	}
	return ifIdx[n:]
}

func first(ifIdx []uint32, n int) uint32 {
	if ifIdx == nil {
		return 0
	}
	return ifIdx[n]
}

func sendError(err error, ifIdx uint32) error {
	switch err {
	case unix.ENODEV, unix.ENXIO:
		return &InterfaceError{Index: ifIdx, Err: ErrNoInterface}
	case net.ErrClosed:
		return err
	}
	return fmt.Errorf("inject: send: %w", err)
}

// flush sends the first n messages of b and returns how many were sent; err is that of the next.
func (o *Outbound) flush(fd int, b *batch, n int) (sent int, err error) {
	retries := 0
	for sent < n {
		m, errno := b.sendmmsg(fd, sent, n)
		switch errno {
		case 0:
			sent += m
			retries = 0
		case unix.EINTR:
		case unix.EAGAIN:
			if err := o.waitWritable(fd); err != nil {
				return sent, err
			}
		case unix.ENOBUFS:
			// No memory at this moment; a full queue of the interface is not reported so, as the sockets
			// do not ask for it (IP_RECVERR, net/ipv4/raw.c).
			if retries++; retries > maxRetries {
				return sent, errno
			}
			if err := o.pause(retries); err != nil {
				return sent, err
			}
		default:
			return sent, errno
		}
	}
	return sent, nil
}

const maxRetries = 5

// waitWritable waits until fd has buffer space or the Outbound is closed.
func (o *Outbound) waitWritable(fd int) error {
	return o.poll([]unix.PollFd{{Fd: int32(o.wake), Events: unix.POLLIN}, {Fd: int32(fd), Events: unix.POLLOUT}}, -1)
}

// pause waits some milliseconds, unless the Outbound is closed before.
func (o *Outbound) pause(milliseconds int) error {
	return o.poll([]unix.PollFd{{Fd: int32(o.wake), Events: unix.POLLIN}}, milliseconds)
}

func (o *Outbound) poll(fds []unix.PollFd, timeout int) error {
	for {
		_, err := unix.Poll(fds, timeout)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case fds[0].Revents != 0:
			return net.ErrClosed
		default:
			return nil
		}
	}
}

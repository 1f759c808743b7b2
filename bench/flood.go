//go:build linux

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
)

// Headers before the payload of a UDP packet, in bytes.
const udpHeaders = 20 + 8

// flooding returns the load that sends UDP packets of size bytes, headers included, from several sockets in turn, as
// fast as they accept them. The receiver is a rule that counts and drops, the cheapest possible.
func flooding(size, flows int) func(*course) error {
	return func(c *course) error {
		sink, err := newSink(c)
		if err != nil {
			return err
		}
		err = flood(c, sink, size-udpHeaders, flows)
		return errors.Join(err, sink.remove())
	}
}

// sink is the counting rule.
type sink struct{ *ruleset }

// newSink makes it at the first hook of B, or at the last hook before sockets on A, after the contender.
func newSink(c *course) (s sink, err error) {
	at := place{nftables.ChainHookPrerouting, -300}
	if c.cell.load.inbound {
		at = place{nftables.ChainHookInput, 0}
	}
	err = c.to.Do(func() (err error) {
		s.ruleset, err = installNamed(sinkTable, at, countAndDrop(toPort(unix.IPPROTO_UDP, loadPort)))
		return err
	})
	return s, err
}

// flood sends for the duration, waits until no more packets arrive, and measures.
func flood(c *course, s sink, payload, flows int) error {
	if err := c.begin(); err != nil {
		return err
	}
	began := time.Now()
	var sent uint64
	if err := c.from.Do(func() (err error) {
		sent, err = floodFor(c.duration, c.target(), payload, flows)
		return err
	}); err != nil {
		return err
	}
	sentIn := time.Since(began)
	arrived, last, err := s.settled(sent, c.drops)
	if err != nil {
		return err
	}
	c.cell.Sent = sent
	if c.drops {
		if arrived > 0 {
			return fmt.Errorf("%d of %d packets were not dropped", arrived, sent)
		}
		return c.end(sentIn, float64(sent))
	}
	if arrived > sent {
		return fmt.Errorf("%d packets arrived, %d were sent", arrived, sent)
	}
	c.cell.Lost = sent - arrived
	return c.end(max(sentIn, last.Sub(began)), float64(arrived))
}

// quiet is how long no packet may arrive before missing ones count as lost: longer than a contender holds packets while
// it waits for a processor on a busy machine.
const quiet = 300 * time.Millisecond

// settled waits until all packets have arrived or no more come, and returns their number and the time of the last one.
func (s sink) settled(sent uint64, drops bool) (arrived uint64, last time.Time, err error) {
	last = time.Now()
	for {
		n, err := s.packets()
		if err != nil {
			return 0, last, err
		}
		now := time.Now()
		if n != arrived {
			arrived, last = n, now
		}
		if arrived == sent {
			return arrived, last, nil
		}
		if wait := now.Sub(last); wait > patience || wait > quiet && (arrived > 0 || drops) {
			return arrived, last, nil
		}
		time.Sleep(500 * time.Microsecond)
	}
}

// floodBatch is the number of packets sent with one system call.
const floodBatch = 256

// sendBuffer of a flooding socket, in bytes: room for some 2,700 small packets in flight (the kernel doubles the
// number, and counts about 768 bytes for each), fewer than a handle's queue holds.
const sendBuffer = 1 << 20

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// udpSocket returns a blocking socket that is connected to a target.
func udpSocket(local, target netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := limitWaits(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if local.IsValid() {
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(local.Port()), Addr: local.Addr().As4()}); err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("bind", err)
		}
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// flooder sends equal packets through sockets in turn. It belongs to one thread, in the sender's namespace.
type flooder struct {
	fds  []int
	iov  unix.Iovec
	hdrs []mmsghdr
	sent uint64
}

func newFlooder(target netip.AddrPort, payload, flows int) (*flooder, error) {
	f := &flooder{hdrs: make([]mmsghdr, floodBatch)}
	for range flows {
		fd, err := udpSocket(netip.AddrPort{}, target)
		if err != nil {
			f.close()
			return nil, err
		}
		f.fds = append(f.fds, fd)
		nfnl.SetSendBuffer(fd, sendBuffer/flows)
	}
	f.iov.Base = unsafe.SliceData(make([]byte, payload))
	f.iov.SetLen(payload)
	for i := range f.hdrs {
		f.hdrs[i].hdr.Iov = &f.iov
		f.hdrs[i].hdr.SetIovlen(1)
	}
	return f, nil
}

func (f *flooder) close() {
	for _, fd := range f.fds {
		unix.Close(fd)
	}
}

// burst sends a batch through one socket.
func (f *flooder) burst(fd int) error { return sendMany(fd, f.hdrs, &f.sent) }

// sendMany sends messages with one system call, and adds to sent the number that the kernel accepted.
func sendMany(fd int, hdrs []mmsghdr, sent *uint64) error {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&hdrs[0])), uintptr(len(hdrs)), 0, 0, 0)
	switch errno {
	case 0:
		*sent += uint64(n)
	case unix.EINTR, unix.ENOBUFS:
	case unix.EAGAIN:
		return fmt.Errorf("the sender has stood still for %v", patience)
	default:
		return os.NewSyscallError("sendmmsg", errno)
	}
	return nil
}

// floodFor sends packets with payload bytes of payload for a time and returns how many the kernel accepted.
func floodFor(d time.Duration, target netip.AddrPort, payload, flows int) (uint64, error) {
	f, err := newFlooder(target, payload, flows)
	if err != nil {
		return 0, err
	}
	defer f.close()
	for began, i := time.Now(), 0; time.Since(began) < d; i++ {
		if err := f.burst(f.fds[i%flows]); err != nil {
			return f.sent, err
		}
	}
	return f.sent, nil
}

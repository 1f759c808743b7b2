//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/nfnl"
)

// The load resembles programs with QUIC: datagrams of one size at a time, many per call (UDP_SEGMENT), which the stack
// splits as late as possible; acknowledgements that come back; and a window of datagrams in flight, so that the sender
// is no faster than the receiver.
const (
	quicPort   = 4002 // the client's
	quicWindow = 512  // most datagrams in flight
	quicEvery  = 32   // least number of datagrams per acknowledgement
	quicBatch  = 64   // most messages in a receive call
	quicSlot   = 64 << 10
)

// quicPatience is how long the sender waits for an acknowledgement before it treats the datagrams in flight as lost.
const quicPatience = 100 * time.Millisecond

// quicCalls are the sender's calls in turn: number and size of the datagrams. A call sends at most 65,507 bytes.
var quicCalls = []struct{ datagrams, size int }{{16, 1200}, {48, 1350}, {32, 1250}, {54, 1200}, {24, 1350}, {40, 1300}}

// streamingQUIC returns that load. The receiver receives datagrams merged (UDP_GRO), or one by one.
func streamingQUIC(together bool) func(*course) error {
	return func(c *course) error {
		client := netip.AddrPortFrom(c.from.Addr4(), quicPort)
		var at int
		if err := c.to.Do(func() (err error) {
			at, err = udpSocket(c.target(), client)
			return err
		}); err != nil {
			return err
		}
		defer unix.Close(at)
		r := &quicReceiver{fd: at}
		if err := r.setUp(together); err != nil {
			return err
		}
		receiving := c.to.Go(r.run)
		err := c.from.Do(func() error { return c.sendQUIC(client, r) })
		r.stop.Store(true)
		return errors.Join(err, <-receiving)
	}
}

// quicReceiver receives datagrams and acknowledges their number.
type quicReceiver struct {
	fd       int
	received atomic.Uint64 // datagrams
	stop     atomic.Bool

	hdrs  [quicBatch]mmsghdr
	iovs  [quicBatch]unix.Iovec
	notes [quicBatch][64]byte // control messages
	told  uint64
}

func (r *quicReceiver) setUp(together bool) error {
	nfnl.SetReceiveBuffer(r.fd, 8<<20)
	// The receiver checks at this interval whether it must end.
	if err := unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20000}); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if together {
		if err := unix.SetsockoptInt(r.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	for i := range r.hdrs {
		r.iovs[i].Base = unsafe.SliceData(make([]byte, quicSlot))
		r.iovs[i].SetLen(quicSlot)
		h := &r.hdrs[i].hdr
		h.Iov, h.Control = &r.iovs[i], &r.notes[i][0]
		h.SetIovlen(1)
	}
	return nil
}

// run receives until stop.
func (r *quicReceiver) run() error {
	for !r.stop.Load() {
		for i := range r.hdrs {
			r.hdrs[i].hdr.SetControllen(len(r.notes[i]))
		}
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(r.fd), uintptr(unsafe.Pointer(&r.hdrs[0])), quicBatch, unix.MSG_WAITFORONE, 0, 0)
		switch errno {
		case 0:
		case unix.EAGAIN, unix.EINTR, unix.ECONNREFUSED: // refused: the client has ended
			continue
		default:
			return os.NewSyscallError("recvmmsg", errno)
		}
		datagrams := uint64(0)
		for i := range int(n) {
			datagrams += r.datagrams(i)
		}
		if now := r.received.Add(datagrams); now-r.told >= quicEvery {
			r.told = now
			var b [8]byte
			binary.NativeEndian.PutUint64(b[:], now)
			_, _ = unix.Write(r.fd, b[:]) // the next one includes this one
		}
	}
	return nil
}

// datagrams returns the number of datagrams in a message.
func (r *quicReceiver) datagrams(i int) uint64 {
	h := &r.hdrs[i]
	notes, err := unix.ParseSocketControlMessage(r.notes[i][:h.hdr.Controllen])
	if err != nil {
		return 1
	}
	for _, note := range notes {
		if note.Header.Level == unix.IPPROTO_UDP && note.Header.Type == unix.UDP_GRO && len(note.Data) >= 4 {
			size := max(binary.NativeEndian.Uint32(note.Data), 1)
			return uint64((h.len + size - 1) / size)
		}
	}
	return 1
}

// quicSender sends datagrams and keeps the window.
type quicSender struct {
	fd    int
	buf   []byte
	sent  uint64 // number of datagrams
	acked uint64 // number of acknowledged ones
	lost  uint64 // treated as lost
}

// sendQUIC sends for the duration and measures.
func (c *course) sendQUIC(client netip.AddrPort, r *quicReceiver) error {
	fd, err := udpSocket(client, c.target())
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	wait := unix.NsecToTimeval(int64(quicPatience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	nfnl.SetSendBuffer(fd, 4*sendBuffer)
	s := &quicSender{fd: fd, buf: make([]byte, quicSlot)}
	if err := c.begin(); err != nil {
		return err
	}
	began := time.Now()
	for i := 0; time.Since(began) < c.duration; i++ {
		call := quicCalls[i%len(quicCalls)]
		if err := s.send(call.datagrams, call.size); err != nil {
			return err
		}
	}
	arrived, last := r.settled(s.sent)
	if arrived > s.sent {
		return fmt.Errorf("%d datagrams arrived, %d were sent", arrived, s.sent)
	}
	c.cell.Sent, c.cell.Lost = s.sent, s.sent-arrived
	return c.end(max(c.duration, last.Sub(began)), float64(arrived))
}

// send waits for room in the window and sends datagrams of a size with one call.
func (s *quicSender) send(datagrams, size int) error {
	if err := s.room(datagrams); err != nil {
		return err
	}
	err := s.cut(datagrams, size)
	for errors.Is(err, unix.EINTR) {
		err = s.cut(datagrams, size)
	}
	switch {
	case err == nil:
		s.sent += uint64(datagrams)
	case errors.Is(err, unix.ENOBUFS):
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("the sender has stood still for %v", patience)
	default:
		return os.NewSyscallError("sendmsg", err)
	}
	return nil
}

// cut sends bytes that the stack splits into datagrams of a size.
func (s *quicSender) cut(datagrams, size int) error {
	var note [24]byte // the control message, with the kernel's alignment
	h := (*unix.Cmsghdr)(unsafe.Pointer(&note[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(note[unix.CmsgLen(0):], uint16(size))
	_, err := unix.SendmsgN(s.fd, s.buf[:datagrams*size], note[:unix.CmsgSpace(2)], nil, 0)
	return err
}

// room reads acknowledgements until that many more datagrams may be in flight.
func (s *quicSender) room(datagrams int) error {
	var b [8]byte
	for {
		flags := unix.MSG_DONTWAIT
		if s.sent-s.acked-s.lost+uint64(datagrams) > quicWindow {
			flags = 0
		}
		n, _, err := unix.Recvfrom(s.fd, b[:], flags)
		switch {
		case err == nil && n == len(b):
			s.acked = max(s.acked, binary.NativeEndian.Uint64(b[:])) // acknowledgements may overtake each other
			s.lost = min(s.lost, s.sent-s.acked)                     // some of them were not lost
		case err == nil, errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN) && flags != 0:
			return nil
		case errors.Is(err, unix.EAGAIN):
			s.lost = s.sent - s.acked
		default:
			return os.NewSyscallError("recvmsg", err)
		}
	}
}

// settled waits until all datagrams have arrived or no more come, and returns their number and the time of the last
// one.
func (r *quicReceiver) settled(sent uint64) (arrived uint64, last time.Time) {
	for last = time.Now(); ; time.Sleep(500 * time.Microsecond) {
		n, now := r.received.Load(), time.Now()
		if n != arrived {
			arrived, last = n, now
		}
		if wait := now.Sub(last); arrived >= sent || wait > patience || wait > quiet && arrived > 0 {
			return arrived, last
		}
	}
}

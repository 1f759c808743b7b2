//go:build linux

package nfnl

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is an nfnetlink socket in the network namespace of the thread that opened it. Receiving
// and sending may go on at the same time in several goroutines, each with a Reader or Writer of
// its own. Close unblocks receivers.
//
// After Close every method fails with os.ErrClosed, and so do the Readers and Writers.
type Conn struct {
	file   *os.File
	raw    syscall.RawConn
	closed atomic.Bool
}

// Dial opens a socket with the given receive buffer, in bytes. Without CAP_NET_ADMIN in the initial
// user namespace the kernel grants at most net.core.rmem_max.
func Dial(rcvbuf int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, rcvbuf)
	setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	// An error answers with the header of the failed message only, not with the packet in it; and a
	// full receive buffer is told by the kernel's own counters, not by a failing receive.
	for _, opt := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_NO_ENOBUFS} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1); err != nil {
			unix.Close(fd)
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	return NewConn(fd)
}

// NewConn returns a Conn of a non-blocking socket, which it closes also when it fails. A test hands it one of
// a pair to see what a package sends.
func NewConn(fd int) (*Conn, error) {
	file := os.NewFile(uintptr(fd), "nfnetlink")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &Conn{file: file, raw: raw}, nil
}

// sendBuffer is the send buffer asked for, in bytes: room for a batch of large packets.
const sendBuffer = 32 << 20

// setBuffer sets a socket buffer past the system's limit where that is allowed, else up to it.
func setBuffer(fd, force, plain, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
}

// SetReceiveBuffer changes the receive buffer, in bytes, within what Dial may do.
func (c *Conn) SetReceiveBuffer(size int) error {
	return c.reason(c.raw.Control(func(fd uintptr) { setBuffer(int(fd), unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, size) }))
}

// buffer returns a socket buffer's size as the kernel accounts it, in bytes.
func (c *Conn) buffer(opt int) (size int, err error) {
	ctl := c.raw.Control(func(fd uintptr) { size, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, opt) })
	return size, errors.Join(c.reason(ctl), os.NewSyscallError("getsockopt", err))
}

// ReceiveBuffer returns how many bytes of packets the kernel holds for this socket before it
// discards; the kernel's own overhead counts.
func (c *Conn) ReceiveBuffer() (int, error) { return c.buffer(unix.SO_RCVBUF) }

// SetReadDeadline makes receives fail with os.ErrDeadlineExceeded from t on; the zero time: never.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.reason(c.file.SetReadDeadline(t)) }

// Control runs f with the socket's descriptor, which stays open meanwhile.
func (c *Conn) Control(f func(fd uintptr)) error { return c.raw.Control(f) }

// Close closes the socket. What the kernel had bound to it, it releases.
func (c *Conn) Close() error {
	c.closed.Store(true)
	return c.file.Close()
}

// reason returns why an operation of the file failed. Package os does not tell by os.ErrClosed that the file
// was closed, except in Read and Write.
func (c *Conn) reason(err error) error {
	if err != nil && c.closed.Load() {
		return os.ErrClosed
	}
	return err
}

// ackTimeout bounds the wait for the kernel's answer, which comes at once if it comes.
const ackTimeout = 5 * time.Second

// Tell sends one message without waiting for an answer.
func (c *Conn) Tell(m *Message) error {
	_, err := c.file.Write(m.finish(unix.NLM_F_REQUEST))
	return err
}

// Request sends one message and waits for the kernel's answer to it. It belongs before the first
// packet can arrive: other datagrams that come in meanwhile are discarded.
func (c *Conn) Request(m *Message) error {
	if err := c.SetReadDeadline(time.Now().Add(ackTimeout)); err != nil {
		return err
	}
	defer c.SetReadDeadline(time.Time{})
	b := m.finish(unix.NLM_F_REQUEST | unix.NLM_F_ACK)
	if _, err := c.file.Write(b); err != nil {
		return fmt.Errorf("nfnetlink send: %w", err)
	}
	reply := make([]byte, 8192)
	for {
		n, err := c.file.Read(reply)
		if err != nil {
			return fmt.Errorf("nfnetlink receive: %w", err)
		}
		for msgs := Messages(reply[:n]); msgs.Next(); {
			if msgs.Type == unix.NLMSG_ERROR {
				return msgs.Errno()
			}
		}
	}
}

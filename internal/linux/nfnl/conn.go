//go:build linux

package nfnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
)

// Conn is an nfnetlink socket in the network namespace of the thread that opened it. Receiving
// and sending may go on at the same time in several goroutines, each with a Reader or Writer of
// its own. Close unblocks receivers.
//
// After Close every method fails with os.ErrClosed, and so do the Readers and Writers.
//
// The runtime's poller does not watch the socket: it would learn of every packet that comes, even while the receiver is busy
// with earlier ones, and wake a thread for it. A receiver that finds nothing waits in a system call of its own.
type Conn struct {
	fd     int
	bell   int          // an eventfd: rung, it ends a wait
	mu     sync.RWMutex // held for reading while the descriptors are in use
	closed atomic.Bool
	long   atomic.Bool // the last batch had many bytes, see call

	answers bool        // the other end is the kernel, which answers
	blocked atomic.Bool // somebody waits in the receive call itself, see block

	reading  *engine.Turn // of the receiver
	deadline atomic.Int64 // of receives, ns since 1970; 0: none
	drained  atomic.Bool  // receives do not wait any more
	spin     atomic.Int64 // how long receives look again before they wait, ns
}

// Dial opens a socket with the given receive buffer, in bytes. Without CAP_NET_ADMIN in the initial
// user namespace the kernel grants at most net.core.rmem_max.
func Dial(rcvbuf int) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	SetReceiveBuffer(fd, rcvbuf)
	SetSendBuffer(fd, sendBuffer)
	// The kernel's errors repeat only the header of the failed message, not the packet in it. Of a full receive buffer the
	// kernel's counters tell, not a failing receive call.
	for _, opt := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_NO_ENOBUFS} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1); err != nil {
			unix.Close(fd)
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	c, err := NewConn(fd)
	if err == nil {
		c.answers = true
	}
	return c, err
}

// NewConn returns a Conn of a socket, which it closes also when it fails. A test hands it one of
// a pair to see a package's messages.
func NewConn(fd int) (*Conn, error) {
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	return &Conn{fd: fd, bell: bell, reading: engine.NewTurn()}, nil
}

// sendBuffer is the send buffer asked for, in bytes: room for a batch of large packets.
const sendBuffer = 32 << 20

// SetReceiveBuffer sets the size of a socket's receive buffer in bytes, past the system's limit where that is allowed, else up
// to it. The kernel doubles the size, for its own needs (socket(7)). The socket may be of any family.
func SetReceiveBuffer(fd, size int) { setBuffer(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, size) }

// SetSendBuffer is SetReceiveBuffer for the send buffer.
func SetSendBuffer(fd, size int) { setBuffer(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, size) }

func setBuffer(fd, force, plain, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
}

// Control runs f with the socket's descriptor, which stays open meanwhile.
func (c *Conn) Control(f func(fd uintptr)) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed.Load() {
		return os.ErrClosed
	}
	f(uintptr(c.fd))
	return nil
}

// SetReceiveBuffer changes the receive buffer, in bytes, within the limits that Dial has.
func (c *Conn) SetReceiveBuffer(size int) error {
	return c.Control(func(fd uintptr) { SetReceiveBuffer(int(fd), size) })
}

// buffer returns a socket buffer's size as the kernel accounts it, in bytes.
func (c *Conn) buffer(opt int) (size int, err error) {
	closed := c.Control(func(fd uintptr) { size, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, opt) })
	return size, errors.Join(closed, os.NewSyscallError("getsockopt", err))
}

// ReceiveBuffer returns how many bytes of packets the kernel holds for this socket before it
// discards; the kernel's own overhead counts.
func (c *Conn) ReceiveBuffer() (int, error) { return c.buffer(unix.SO_RCVBUF) }

// SetReadDeadline makes receives, also those that wait, fail with os.ErrDeadlineExceeded from t on; the zero
// time: never.
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.Control(func(uintptr) {
		at := int64(0)
		if !t.IsZero() {
			at = max(t.UnixNano(), 1)
		}
		c.deadline.Store(at)
		c.ring()
	})
}

// SetBusyPoll makes receives that find nothing look again for a time before they wait.
func (c *Conn) SetBusyPoll(d time.Duration) { c.spin.Store(int64(d)) }

// Wake makes the waiting receiver look whether its engine.Wait has ended. Those that wait for their turn need no waking.
func (c *Conn) Wake() { _ = c.Control(func(uintptr) { c.ring() }) } // fails when closed, which has woken everybody

// Drain makes receives, also those that wait, return the waiting datagrams and then fail with io.EOF.
func (c *Conn) Drain() {
	c.drained.Store(true)
	c.Wake()
}

// ring ends the receiver's wait, or its next one. The caller has stored the state that the receiver must notice.
func (c *Conn) ring() {
	one := [8]byte{1}
	_, _ = unix.Write(c.bell, one[:]) // fails only when it has been rung 2^64-2 times
	if c.blocked.Load() {
		_, _ = unix.Write(c.fd, noop[:]) // with a full buffer no answer comes, but then no receiver is blocked
	}
}

// Discard empties a netlink socket without waiting. A socket that has overflowed drops further messages without an error until it
// is empty (NETLINK_S_CONGESTED in net/netlink/af_netlink.c).
func Discard(fd int) error {
	for {
		switch _, _, err := unix.Recvfrom(fd, nil, unix.MSG_DONTWAIT); err { // cuts each message to nothing
		case nil, unix.EINTR, unix.ENOBUFS:
		case unix.EAGAIN:
			return nil
		default:
			return os.NewSyscallError("recvfrom", err)
		}
	}
}

// Empty is Discard for a connection of another package.
func Empty(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = Discard(int(fd)) })
	return errors.Join(err, failed)
}

// noop is a message that does nothing and wants an answer (linux/netlink.h, NLMSG_NOOP).
var noop = func() (b [unix.SizeofNlMsghdr]byte) {
	binary.NativeEndian.PutUint32(b[0:], unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint16(b[4:], unix.NLMSG_NOOP)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	return b
}()

// Close closes the socket. The kernel releases everything that was bound to it.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return os.ErrClosed
	}
	c.mu.RLock()
	c.ring()
	c.mu.RUnlock()
	c.mu.Lock() // until the last user has left
	defer c.mu.Unlock()
	return errors.Join(os.NewSyscallError("close", unix.Close(c.fd)), os.NewSyscallError("close", unix.Close(c.bell)))
}

// ackTimeout bounds the wait for the kernel's answer, which comes at once if it comes.
const ackTimeout = 5 * time.Second

// Tell sends one message without waiting for an answer.
func (c *Conn) Tell(m *Message) (err error) {
	closed := c.Control(func(fd uintptr) { _, err = unix.Write(int(fd), m.finish(unix.NLM_F_REQUEST)) })
	return errors.Join(closed, os.NewSyscallError("write", err))
}

// Request sends one message and waits for the kernel's answer to it. Call it before the first packet can arrive: it discards
// other datagrams that come in meanwhile.
func (c *Conn) Request(m *Message) (err error) {
	closed := c.Control(func(fd uintptr) { _, err = unix.Write(int(fd), m.finish(unix.NLM_F_REQUEST|unix.NLM_F_ACK)) })
	if err := errors.Join(closed, err); err != nil {
		return fmt.Errorf("nfnetlink send: %w", err)
	}
	if err := c.SetReadDeadline(time.Now().Add(ackTimeout)); err != nil {
		return err
	}
	defer c.SetReadDeadline(time.Time{})
	reply := make([]byte, 8192)
	r := c.NewReader(1)
	r.Slot(0, reply)
	for {
		if _, err := r.Recv(engine.Wait{}, 1); err != nil {
			return fmt.Errorf("nfnetlink receive: %w", err)
		}
		n, _ := r.Len(0)
		for msgs := Messages(reply[:min(n, len(reply))]); msgs.Next(); {
			if msgs.Type == unix.NLMSG_ERROR {
				return msgs.Errno()
			}
		}
	}
}

//go:build linux

package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Frame is one packet as it passed an interface.
type Frame struct {
	Data     []byte // from the Ethernet header on, the caller's own; without a VLAN tag
	Outgoing bool   // sent by this host; otherwise received

	// ChecksumNotReady is set if a device has yet to finish the transport checksum in Data (CHECKSUM_PARTIAL). It is set
	// on both ends of a link that offloads.
	ChecksumNotReady bool
	ChecksumValid    bool // the kernel has verified the transport checksum, or need not
}

// maxFrame exceeds the largest packet that segmentation offload makes (64 KiB of IP packet and the Ethernet header), in
// bytes.
const maxFrame = 128 << 10

// Capture reads the packets of one interface, and sends on it. One goroutine reads at a time; several may call the
// other methods.
type Capture struct {
	file   *os.File
	closed atomic.Bool
	buf    []byte // the frame being received
	oob    []byte
}

// Capture starts to record frames that pass the interface, at its boundary to the link: sent packets as they leave,
// after all hooks of netfilter; received ones as they arrive, before any hook.
func (l *Link) Capture() (*Capture, error) {
	var fd int
	err := l.host.Do(func() (err error) {
		// Protocol 0 receives nothing until bind names the interface too.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, fmt.Errorf("lab: capture on %s:%s: %w", l.host, l.name, err)
	}
	c := &Capture{
		file: os.NewFile(uintptr(fd), "packet:"+l.name),
		buf:  make([]byte, maxFrame), oob: make([]byte, 256),
	}
	setReceiveBuffer(fd, 64<<20)
	err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1))
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.index}))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lab: capture on %s:%s: %w", l.host, l.name, err), c.Close())
	}
	return c, nil
}

// setReceiveBuffer requests a receive buffer of a number of bytes. Rootless labs may not exceed the machine's limit,
// and get that.
func setReceiveBuffer(fd, bytes int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
	}
}

// htons puts a 16-bit number into network byte order.
func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// Next waits for a packet, until ctx is done.
func (c *Capture) Next(ctx context.Context) (Frame, error) {
	var f Frame
	err := untilDone(ctx, c.file.SetReadDeadline, func() (err error) {
		f, err = c.receive()
		return err
	})
	return f, err
}

// NextMatch waits for a packet that match accepts and skips the others.
func (c *Capture) NextMatch(ctx context.Context, match func(Frame) bool) (Frame, error) {
	for {
		f, err := c.Next(ctx)
		if err != nil || match(f) {
			return f, err
		}
	}
}

// untilDone runs a blocking read that setDeadline can end. When ctx is done it ends the read and returns ctx's error.
func untilDone(ctx context.Context, setDeadline func(time.Time) error, read func() error) error {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = setDeadline(time.Unix(1, 0))
		close(ended)
	})
	err := read()
	if !stop() {
		<-ended
		_ = setDeadline(time.Time{})
	}
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (c *Capture) receive() (f Frame, err error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return f, err
	}
	var n, oobn, flags int
	var from unix.Sockaddr
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		n, oobn, flags, from, failed = unix.Recvmsg(int(fd), c.buf, c.oob, 0)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	if err = c.failure(err, "recvmsg", failed); err != nil {
		return f, err
	}
	if flags&unix.MSG_TRUNC != 0 {
		return f, fmt.Errorf("lab: a packet of more than %d bytes", maxFrame)
	}
	f.Data = append([]byte(nil), c.buf[:n]...)
	if ll, ok := from.(*unix.SockaddrLinklayer); ok {
		f.Outgoing = ll.Pkttype == unix.PACKET_OUTGOING
	}
	return f, f.auxiliary(c.oob[:oobn])
}

// auxiliary reads the kernel's data about the checksum: struct tpacket_auxdata begins with the status, 32 bits in the
// machine's byte order (include/uapi/linux/if_packet.h).
func (f *Frame) auxiliary(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 4 {
			status := binary.NativeEndian.Uint32(m.Data)
			f.ChecksumNotReady = status&unix.TP_STATUS_CSUMNOTREADY != 0
			f.ChecksumValid = status&unix.TP_STATUS_CSUM_VALID != 0
		}
	}
	return nil
}

// Send sends one Ethernet frame over the interface, unchanged.
func (c *Capture) Send(frame []byte) error {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(fd uintptr) bool {
		_, failed = unix.Write(int(fd), frame)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	return c.failure(err, "write", failed)
}

// Dropped returns how many packets the capture has lost since the last call because it was not read fast enough.
func (c *Capture) Dropped() (packets int, err error) {
	raw, err := c.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var stats *unix.TpacketStats
		if stats, failed = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); failed == nil {
			packets = int(stats.Drops)
		}
	})
	return packets, c.failure(err, "getsockopt", failed)
}

// Close ends the capture; a waiting Next returns an error that is os.ErrClosed.
func (c *Capture) Close() error {
	c.closed.Store(true)
	return c.file.Close()
}

// failure joins the errors of a raw operation. A file's raw operations do not return os.ErrClosed after it is closed,
// so the capture does.
func (c *Capture) failure(raw error, call string, err error) error {
	if raw != nil && c.closed.Load() {
		return os.ErrClosed
	}
	return errors.Join(raw, os.NewSyscallError(call, err))
}

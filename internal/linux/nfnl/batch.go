//go:build linux

package nfnl

import (
	"encoding/binary"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// shortCall is how many bytes a batch has at most for its calls to be short ones: a few hundred microseconds.
const shortCall = 128 << 10

// received notes how many bytes a receive call moved; call takes the next ones to be alike.
func (c *Conn) received(hdrs []mmsghdr) {
	size := uint32(0)
	for i := range hdrs {
		size += hdrs[i].len
	}
	if long := size > shortCall; long != c.long.Load() {
		c.long.Store(long)
	}
}

// call makes a system call that does not wait, with a pointer that the caller keeps alive. If a goroutine is in a system call
// for more than 20 µs, the runtime gives its processor to another thread. With batches of small packets that happens in every
// call: the goroutine moves from thread to thread, which costs a tenth of the throughput. So call hides short calls from the
// runtime, which they delay only when it stops all goroutines.
func (c *Conn) call(trap, fd uintptr, p unsafe.Pointer, n, flags uintptr) (uintptr, syscall.Errno) {
	if c.long.Load() {
		got, _, errno := unix.Syscall6(trap, fd, uintptr(p), n, flags, 0, 0)
		return got, errno
	}
	got, _, errno := unix.RawSyscall6(trap, fd, uintptr(p), n, flags, 0, 0)
	return got, errno
}

// Reader receives up to a fixed number of datagrams with one system call. It belongs to one
// goroutine at a time; a Conn may have several.
type Reader struct {
	conn *Conn
	hdrs []mmsghdr
	iovs []unix.Iovec

	wake    [2]unix.PollFd // for a wait: the socket and the bell
	timeout unix.Timespec
	bell    [8]byte
}

// NewReader returns a reader of at most n datagrams per call.
func (c *Conn) NewReader(n int) *Reader {
	r := &Reader{conn: c, hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n)}
	for i := range r.hdrs {
		r.hdrs[i].hdr.Iov = &r.iovs[i]
		r.hdrs[i].hdr.SetIovlen(1)
	}
	r.wake = [2]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}, {Fd: int32(c.bell), Events: unix.POLLIN}}
	return r
}

// Cap returns how many datagrams a call takes at most.
func (r *Reader) Cap() int { return len(r.hdrs) }

// Slot sets the memory for datagram i of the next call. It stays the caller's, who must not touch it while Recv runs.
func (r *Reader) Slot(i int, b []byte) {
	r.iovs[i].Base = unsafe.SliceData(b)
	r.iovs[i].SetLen(len(b))
}

// Recv receives between 1 and n datagrams, at most Cap, into the slots 0 to n-1, waiting for the first until w ends or the read
// deadline. It fails with engine.ErrInterrupted when w has ended and nothing is there, os.ErrClosed after Close,
// os.ErrDeadlineExceeded after the deadline, and io.EOF after Drain when nothing is there. A datagram may be the kernel's answer
// to a message that was sent to end the wait.
func (r *Reader) Recv(w engine.Wait, n int) (int, error) {
	c := r.conn
	if !c.reading.Take(w) {
		return 0, engine.ErrInterrupted
	}
	defer c.reading.Release()
	c.mu.RLock()
	defer c.mu.RUnlock()
	var until time.Time // of looking again; zero: it has not begun
	for {
		if c.closed.Load() {
			return 0, os.ErrClosed
		}
		left := time.Duration(-1)
		if at := c.deadline.Load(); at != 0 {
			if left = time.Until(time.Unix(0, at)); left <= 0 {
				return 0, os.ErrDeadlineExceeded
			}
		}
		drained := c.drained.Load() // before the look at the socket
		got, err := r.receive(min(n, r.Cap()))
		switch {
		case got > 0 || err != nil || n <= 0:
			return got, err
		case drained:
			return 0, io.EOF
		case w.Ended():
			return 0, engine.ErrInterrupted
		case c.looksAgain(&until):
		case left < 0 && c.answers:
			got, err = r.block(w, min(n, r.Cap()))
		default:
			err = r.wait(left)
		}
		if got > 0 || err != nil {
			return got, err
		}
	}
}

// looksAgain reports whether it is too early to wait, as SetBusyPoll says.
func (c *Conn) looksAgain(until *time.Time) bool {
	spin := time.Duration(c.spin.Load())
	switch {
	case spin == 0:
		return false
	case until.IsZero():
		*until = time.Now().Add(spin)
		return true
	}
	return time.Now().Before(*until)
}

// block waits in the receive call itself, which takes fewer calls for each packet than a wait before it. It returns 0 if the
// receiver has something else to notice.
func (r *Reader) block(w engine.Wait, n int) (int, error) {
	c := r.conn
	c.blocked.Store(true)
	defer c.blocked.Store(false)
	if c.closed.Load() || c.deadline.Load() != 0 || c.drained.Load() || w.Ended() {
		return 0, nil // stored before the ringer could know of the wait
	}
	got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(c.fd), uintptr(unsafe.Pointer(&r.hdrs[0])), uintptr(n), unix.MSG_WAITFORONE, 0, 0)
	switch errno {
	case 0:
		c.received(r.hdrs[:got])
		return int(got), nil
	case unix.EINTR, unix.ENOBUFS:
		return 0, nil
	}
	return 0, os.NewSyscallError("recvmmsg", errno)
}

// Poll is Recv without waiting: it returns 0 if no datagram is there, and looks at no deadline.
func (r *Reader) Poll(n int) (int, error) {
	r.conn.mu.RLock()
	defer r.conn.mu.RUnlock()
	if r.conn.closed.Load() {
		return 0, os.ErrClosed
	}
	return r.receive(min(n, r.Cap()))
}

// receive makes the system call; without an error it returns 0 if no datagram is there.
func (r *Reader) receive(n int) (int, error) {
	for {
		got, errno := r.conn.call(unix.SYS_RECVMMSG, uintptr(r.conn.fd), unsafe.Pointer(&r.hdrs[0]), uintptr(n), unix.MSG_DONTWAIT)
		switch errno {
		case 0:
			r.conn.received(r.hdrs[:got])
			return int(got), nil
		case unix.EINTR, unix.ENOBUFS: // the latter: the buffer overflowed since the last call; the kernel counts the lost ones
			continue
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, os.NewSyscallError("recvmmsg", errno)
		}
	}
}

// wait waits until a datagram may be there, the bell rings or the time, if it is not negative, is over. Only the receiver waits,
// so it may silence the bell.
func (r *Reader) wait(left time.Duration) error {
	var timeout *unix.Timespec
	if left >= 0 {
		r.timeout = unix.NsecToTimespec(int64(left))
		timeout = &r.timeout
	}
	r.wake[0].Revents, r.wake[1].Revents = 0, 0
	if _, err := unix.Ppoll(r.wake[:], timeout, nil); err != nil && err != unix.EINTR {
		return os.NewSyscallError("ppoll", err)
	}
	if r.wake[1].Revents != 0 {
		_, _ = unix.Read(r.conn.bell, r.bell[:])
	}
	return nil
}

// Len returns the length of datagram i of the last call, and whether it was longer than its slot.
func (r *Reader) Len(i int) (n int, truncated bool) {
	return int(r.hdrs[i].len), r.hdrs[i].hdr.Flags&unix.MSG_TRUNC != 0
}

// Writer gathers messages and sends them with one system call. Message headers are copied into the
// writer, payloads are referenced until Flush. It belongs to one goroutine at a time.
type Writer struct {
	conn  *Conn
	heads []byte // headers of all messages, one after the other
	parts []part
	size  int // bytes of all parts
	limit int // bytes that go into one call

	iovs   []unix.Iovec
	msg    unix.Msghdr
	err    syscall.Errno
	write  func(fd uintptr)  // send, made once
	unsent func(head []byte) // see OnUnsent; may be nil
}

// part is a run of bytes to send: of the heads, or a payload of the caller.
type part struct {
	payload    []byte
	start, end int // within heads, when payload is nil
}

// maxParts is how many parts go into one call: the kernel takes at most IOV_MAX, 1024.
const maxParts = 1000

// NewWriter returns a writer.
func (c *Conn) NewWriter() (*Writer, error) {
	size, err := c.buffer(unix.SO_SNDBUF)
	if err != nil {
		return nil, err
	}
	w := &Writer{conn: c, limit: size - 1024} // the kernel keeps a little to itself
	w.write = w.send
	return w, nil
}

// Room reports whether a message of n bytes still fits into this call. An empty writer always has
// room, so that a message too large for the socket gets the kernel's own answer.
func (w *Writer) Room(n int) bool {
	return w.size == 0 || w.size+n <= w.limit && len(w.parts)+3 <= maxParts
}

// Head makes room for n bytes of headers and returns them for the caller to append to (with length 0
// and capacity n). The caller appends exactly n bytes before the next call of a method.
func (w *Writer) Head(n int) []byte {
	start := len(w.heads)
	if cap(w.heads)-start < n {
		w.heads = append(make([]byte, 0, 2*cap(w.heads)+max(n, 4096)), w.heads...)
	}
	w.heads = w.heads[:start+n]
	if last := len(w.parts) - 1; last >= 0 && w.parts[last].payload == nil && w.parts[last].end == start {
		w.parts[last].end += n
	} else {
		w.parts = append(w.parts, part{start: start, end: start + n})
	}
	w.size += n
	return w.heads[start : start : start+n]
}

// Payload adds bytes of the caller's, which must stay as they are until Flush, and the padding
// after them.
func (w *Writer) Payload(b []byte) {
	if len(b) == 0 {
		return
	}
	w.parts = append(w.parts, part{payload: b})
	w.size += len(b)
	if pad := Align(len(b)) - len(b); pad > 0 {
		clear(w.Head(pad)[:pad])
	}
}

// OnUnsent makes Flush call f with the start of each message that it could not send, at least up to the first
// payload. The bytes are the writer's.
func (w *Writer) OnUnsent(f func(head []byte)) { w.unsent = f }

// Flush sends the gathered messages and empties the writer, even when it fails. If the kernel refuses the batch, for which
// it needs memory in one piece, Flush sends the messages one by one; it fails if any of them could not be sent.
func (w *Writer) Flush() error {
	if w.size == 0 {
		return nil
	}
	defer w.reset()
	w.iovs = w.iovs[:0]
	for i := range w.parts {
		w.add(w.bytes(i))
	}
	if w.call() == nil {
		return nil
	}
	return w.flushEach()
}

// flushEach sends the messages one by one and returns the last error.
func (w *Writer) flushEach() (last error) {
	for i, at := 0, 0; i < len(w.parts); {
		head := w.bytes(i)[at:]
		w.iovs = w.iovs[:0]
		left := Align(int(binary.NativeEndian.Uint32(head)))
		if left < unix.SizeofNlMsghdr {
			left = w.size // no message: nothing tells where it ends
		}
		for left > 0 && i < len(w.parts) {
			b := w.bytes(i)[at:]
			b = b[:min(left, len(b))]
			w.add(b)
			left -= len(b)
			if at += len(b); at == len(w.bytes(i)) {
				i, at = i+1, 0
			}
		}
		if err := w.call(); err != nil {
			last = err
			if w.unsent != nil {
				w.unsent(head)
			}
		}
	}
	return last
}

// bytes returns the bytes of a part.
func (w *Writer) bytes(i int) []byte {
	if p := &w.parts[i]; p.payload == nil {
		return w.heads[p.start:p.end]
	}
	return w.parts[i].payload
}

// add adds bytes to the next call.
func (w *Writer) add(b []byte) {
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	w.iovs = append(w.iovs, iov)
}

// call sends the bytes that were added, with one system call.
func (w *Writer) call() error {
	w.msg.Iov = &w.iovs[0]
	w.msg.SetIovlen(len(w.iovs))
	w.err = 0
	if err := w.conn.Control(w.write); err != nil {
		return err
	}
	if w.err != 0 {
		return os.NewSyscallError("sendmsg", w.err)
	}
	return nil
}

// reset forgets all parts, and the callers' memory with them.
func (w *Writer) reset() {
	clear(w.parts)
	clear(w.iovs[:cap(w.iovs)])
	w.parts, w.iovs, w.heads, w.size = w.parts[:0], w.iovs[:0], w.heads[:0], 0
}

// send makes the system call. The kernel works on the messages before it returns.
func (w *Writer) send(fd uintptr) {
	for {
		_, errno := w.conn.call(unix.SYS_SENDMSG, fd, unsafe.Pointer(&w.msg), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		w.err = errno
		return
	}
}

package divert

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/opendivert/divert/internal/engine"
)

// The errors of handles, for errors.Is. They come wrapped in an *OpError, which adds the operation; most texts name the
// cause.
//
// Handles also return errors of other packages:
//   - net.ErrClosed: the handle is closed. A receive call that waits ends with it when another goroutine calls Close.
//   - io.EOF: the receive half is shut down and the queue is empty. Not wrapped.
//   - os.ErrDeadlineExceeded: the read deadline has passed. SetReadDeadline sets another.
//   - context.Canceled, context.DeadlineExceeded: the context of RecvContext or Packets has ended.
//   - os.ErrPermission: the user lacks a right. On Linux grant CAP_NET_ADMIN (and CAP_BPF, CAP_PERFMON for eBPF), on
//     Windows run as administrator; `divert doctor` names the missing rights.
//   - *filter.Error: the filter does not compile. Its Snippet shows where and why.
//   - the system's own errors, such as syscall.ENOBUFS: memory, buffers or descriptors have run out.
var (
	// ErrInvalid: an argument, an option or a combination of them is invalid; the text says which, and what is possible.
	// Every call on a Handle that Open has not returned fails with it, too.
	ErrInvalid = engine.ErrInvalid

	// ErrNotSupported: the kernel, the driver or the platform lacks something; the text names it. `divert doctor` lists
	// the features present and how to get the others.
	ErrNotSupported = engine.ErrNotSupported

	// ErrNoProcess: the filter or WithProcessID needs the process of packets, which cannot be known here. Leave the field
	// out, or on Linux attach to the root of the cgroup hierarchy, as root of the host. It is also an ErrNotSupported
	// where the platform can never tell a packet's process.
	ErrNoProcess = engine.ErrNoProcess

	// ErrShortBuffer: on receiving, the packet was longer than the buffer and has been cut to it; Accept still lets the whole
	// packet go on. Use a buffer of MaxPacket bytes, or RecvBatch. On sending, the packet ends before its IP length:
	// send all of it, or Accept it.
	ErrShortBuffer = engine.ErrShortBuffer

	// ErrTooLarge: the packet is too large for the path and may not be fragmented. Send smaller ones: packet.NewSegmenter.
	ErrTooLarge = engine.ErrTooLarge

	// ErrHopLimit: another program's packet (Impostor) has used up its TTL or hop limit. Drop it: two programs are
	// sending it to each other.
	ErrHopLimit = engine.ErrHopLimit

	// ErrNoSuchDevice: the address names a network interface that does not exist, or no longer does.
	ErrNoSuchDevice = engine.ErrNoSuchDevice

	// ErrRecvOnly: nothing can be sent on a handle opened with RecvOnly. Open it without the flag.
	ErrRecvOnly = engine.ErrReceiveOnly

	// ErrSendOnly: nothing can be received from a handle opened with SendOnly. Open another without the flag.
	ErrSendOnly = engine.ErrSendOnly

	// ErrDropOnly: nothing can be received from a handle opened with Drop. Stats counts the dropped packets.
	ErrDropOnly = engine.ErrDropOnly

	// ErrShutdown: Shutdown has ended the sending half, for good.
	ErrShutdown = engine.ErrShutdown

	// ErrRulesGone: on Linux another program has removed the handle's rules, as `nft flush ruleset` does, so the handle
	// captures nothing any more. Close it and open another.
	ErrRulesGone = engine.ErrRulesGone
)

// OpError is the error of an operation on a handle. It is a net.Error.
type OpError struct {
	Op  string // open, recv, send, accept, drop, shutdown, close, set deadline, set queue length, set queue time, set queue size, set filter, set, stats, flow, accept flow, drop flow, forget flow, forget flows
	Err error
}

// Error returns the operation and its cause.
func (e *OpError) Error() string { return fmt.Sprintf("divert: %s: %v", e.Op, e.Err) }

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }

var _ net.Error = (*OpError)(nil)

// Timeout reports whether the read deadline has passed, or that of the context.
func (e *OpError) Timeout() bool {
	return errors.Is(e.Err, os.ErrDeadlineExceeded) || errors.Is(e.Err, context.DeadlineExceeded)
}

// Temporary is Timeout: no other error goes away by trying again.
func (e *OpError) Temporary() bool { return e.Timeout() }

// opError wraps the error of an operation. It leaves nil alone, and io.EOF, which callers compare.
func opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &OpError{op, err}
}

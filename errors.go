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

// The errors of handles, for errors.Is. Besides them, calls on a closed handle fail with net.ErrClosed,
// receiving after Shutdown with io.EOF once the queue is empty, receiving past the deadline with
// os.ErrDeadlineExceeded, and Open without the rights with os.ErrPermission.
var (
	ErrNotSupported = engine.ErrNotSupported // the system lacks what the call needs
	ErrInvalid      = engine.ErrInvalid      // an argument the call cannot work with
	ErrShortBuffer  = engine.ErrShortBuffer  // received: the packet was cut to the buffer; sent: the packet ends before its IP length
	ErrShutdown     = engine.ErrShutdown     // sending after Shutdown
	ErrHopLimit     = engine.ErrHopLimit     // an impostor packet whose TTL or hop limit is used up
	ErrTooLarge     = engine.ErrTooLarge     // the packet is too large for the path, and may not be fragmented
	ErrNoSuchDevice = engine.ErrNoSuchDevice // the address names an interface that does not exist
	ErrRecvOnly     = engine.ErrReceiveOnly  // sending on a handle opened with RecvOnly
	ErrSendOnly     = engine.ErrSendOnly     // receiving on a handle opened with SendOnly
	ErrDropOnly     = engine.ErrDropOnly     // receiving on a handle opened with Drop: no packet ever comes
	ErrNoProcess    = engine.ErrNoProcess    // the process of a packet is asked for, by the filter or by WithProcessID, where only ErrNotSupported can be the answer
	ErrRulesGone    = engine.ErrRulesGone    // Linux: another program has removed the handle's rules (`nft flush ruleset`): it captures nothing any more; close it and open another
)

// OpError is the error of an operation on a handle. It is a net.Error.
type OpError struct {
	Op  string // open, recv, send, accept, shutdown, close, set deadline, set param, param, set filter, set, stats, accept flow, drop flow, forget flow, forget flows, flow
	Err error
}

// Error returns the operation and its cause.
func (e *OpError) Error() string { return fmt.Sprintf("divert: %s: %v", e.Op, e.Err) }

// Unwrap returns the cause.
func (e *OpError) Unwrap() error { return e.Err }

var _ net.Error = (*OpError)(nil)

// Timeout reports whether the time of the operation was over: the read deadline has passed, or that of the context.
func (e *OpError) Timeout() bool {
	return errors.Is(e.Err, os.ErrDeadlineExceeded) || errors.Is(e.Err, context.DeadlineExceeded)
}

// Temporary is Timeout: nothing else is better when it is tried again.
func (e *OpError) Temporary() bool { return e.Timeout() }

// opError wraps the error of an operation; nil stays nil, and so do io.EOF, which callers compare.
func opError(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &OpError{op, err}
}

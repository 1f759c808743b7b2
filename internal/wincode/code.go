// Package wincode gives the Windows error numbers of errors, as the C interface reports them (specification: api.md 20).
package wincode

import (
	"context"
	"errors"
	"io"
	"net"
	"os"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/engine"
)

// Of returns the number of an error of package divert, 0 for nil.
func Of(err error) uint32 {
	if err == nil {
		return 0
	}
	var f *filter.Error
	if errors.As(err, &f) {
		return codeInvalid
	}
	var w interface{ WindowsError() uint32 } // the number from Windows itself
	if errors.As(err, &w) {
		return w.WindowsError()
	}
	for _, table := range [...][]errorCode{codes[:], systemCodes} {
		for _, c := range table {
			if errors.Is(err, c.err) {
				return c.code
			}
		}
	}
	return codeGenFailure
}

const (
	codeInvalid    = 87
	codeGenFailure = 31
)

// errorCode is an error with its Windows error number.
type errorCode struct {
	err  error
	code uint32
}

// codes is searched in order, and then systemCodes, of the platform.
var codes = [...]errorCode{
	{io.EOF, 232},
	{engine.ErrShutdown, 232},
	{engine.ErrShortBuffer, 122},
	{engine.ErrHopLimit, 1232},
	{engine.ErrReceiveOnly, codeInvalid},
	{engine.ErrSendOnly, codeInvalid},
	{engine.ErrDropOnly, codeInvalid}, // only in Go: in C such a call waits
	{engine.ErrInvalid, codeInvalid},
	{filter.ErrSetKind, codeInvalid},
	{engine.ErrTooLarge, codeInvalid},
	{engine.ErrNoSuchDevice, codeInvalid},
	{net.ErrClosed, 995},
	{os.ErrDeadlineExceeded, 995},
	{context.Canceled, 995}, // of Packets and RecvContext
	{context.DeadlineExceeded, 995},
	{os.ErrPermission, 5},
	{engine.ErrNotSupported, 50},
	{engine.ErrRulesGone, 1167}, // ERROR_DEVICE_NOT_CONNECTED
}

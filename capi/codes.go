package main

import (
	"errors"
	"net"

	"github.com/opendivert/divert/internal/wincode"
)

// code is a Windows error number, 0 for success (specification: api.md 20).
type code uint32

// The error numbers of the C interface itself. Package wincode has those for the errors of other packages.
const (
	success            code = 0
	invalidHandle      code = 6
	badCommand         code = 22
	invalidParameter   code = 87
	insufficientBuffer code = 122
	noData             code = 232
	timedOut           code = 258
	operationAborted   code = 995
	ioPending          code = 997
	noAccess           code = 998
	notFound           code = 1168
)

// codeOf returns the code of an error of a call on a handle that was open when the call began: a call that finds the
// handle closed has come too late, and only a receive call counts as cancelled.
func codeOf(err error) code {
	if errors.Is(err, net.ErrClosed) {
		return badCommand
	}
	return code(wincode.Of(err))
}

package divert

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
)

func TestOpErrorIsNetError(t *testing.T) {
	for _, row := range []struct {
		err  error
		want bool
	}{{os.ErrDeadlineExceeded, true}, {context.DeadlineExceeded, true}, {context.Canceled, false}, {net.ErrClosed, false}, {ErrInvalid, false}} {
		var e net.Error
		if !errors.As(opError("recv", row.err), &e) || e.Timeout() != row.want {
			t.Errorf("%v: timeout %v, want %v", row.err, e.Timeout(), row.want)
		}
	}
}

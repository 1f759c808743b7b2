package wincode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/windows"
)

// TestCodeOfWindows: the number from Windows is kept, whatever the sentinel.
func TestCodeOfWindows(t *testing.T) {
	for _, number := range []uint32{2, 5, 87, 577, 654, 1060, 1275, 1753, 4711} {
		err := error(&windows.Error{Op: "start the driver", Code: number})
		if got := Of(err); got != number {
			t.Errorf("Code is %d, want %d", got, number)
		}
	}
	if err := error(&windows.Error{Code: 1060}); !errors.Is(err, engine.ErrNotSupported) {
		t.Errorf("%v is no engine.ErrNotSupported", err)
	}
}

// TestCodes: each error has its number, however deeply wrapped, and unforeseen errors have one too.
func TestCodes(t *testing.T) {
	rows := append([]errorCode{
		{nil, 0}, {io.EOF, 232}, {engine.ErrShutdown, 232}, {engine.ErrShortBuffer, 122}, {engine.ErrHopLimit, 1232}, {engine.ErrReceiveOnly, 87},
		{engine.ErrSendOnly, 87}, {engine.ErrDropOnly, 87}, {engine.ErrInvalid, 87}, {engine.ErrTooLarge, 87}, {engine.ErrNoSuchDevice, 87}, {net.ErrClosed, 995},
		{os.ErrDeadlineExceeded, 995}, {context.Canceled, 995}, {context.DeadlineExceeded, 995}, {os.ErrPermission, 5},
		{engine.ErrNotSupported, 50}, {engine.ErrRulesGone, 1167}, {errors.New("something else"), 31},
	}, systemRows...)
	for _, r := range rows {
		err := r.err
		if err != nil {
			err = fmt.Errorf("deep: %w", fmt.Errorf("deeper: %w", err))
		}
		if got := Of(err); got != r.code {
			t.Errorf("the code of %v is %d, want %d", err, got, r.code)
		}
	}
}

// systemRows are the rows of TestCodes for one system.
var systemRows []errorCode

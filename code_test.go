package divert

import (
	"errors"
	"testing"

	"github.com/opendivert/divert/internal/windows"
)

// TestCodeOfWindows keeps the number that Windows gave, whatever sentinel it counts as.
func TestCodeOfWindows(t *testing.T) {
	for _, number := range []uint32{2, 5, 87, 577, 654, 1060, 1275, 1753, 4711} {
		err := opError("open", &windows.Error{Op: "start the driver", Code: number})
		if got := Code(err); got != number {
			t.Errorf("Code is %d, want %d", got, number)
		}
	}
	if err := opError("open", &windows.Error{Code: 1060}); !errors.Is(err, ErrNotSupported) {
		t.Errorf("%v is no ErrNotSupported", err)
	}
}

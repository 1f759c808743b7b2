//go:build linux

package processes

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cgroup"
)

// TestProcessProgramsLoad asks the verifier.
func TestProcessProgramsLoad(t *testing.T) {
	err := OfPackets.Err()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, cgroup.ErrNone) {
		t.Skipf("%v", err)
	}
	if err != nil {
		t.Errorf("%+v", err)
	}
}

//go:build !linux

package probe

import (
	"fmt"
	"runtime"

	"github.com/opendivert/divert/internal/engine"
)

// Run says that there is nothing to probe on this system.
func Run() (*Report, error) {
	return nil, fmt.Errorf("what can be probed are features of Linux, and this is %s: %w", runtime.GOOS, engine.ErrNotSupported)
}

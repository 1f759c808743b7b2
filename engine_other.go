//go:build !linux && !windows

package divert

import (
	"fmt"
	"runtime"

	"github.com/opendivert/divert/internal/engine"
)

// openEngine fails: this platform has no engine.
func openEngine(engine.Config) (engine.Handle, error) {
	return nil, fmt.Errorf("%s: %w", runtime.GOOS, ErrNotSupported)
}

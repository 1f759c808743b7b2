//go:build !linux

package shell

import (
	"context"
	"fmt"
	"runtime"

	"github.com/opendivert/divert"
)

// Run reports that there is no lab on this system.
func Run(context.Context, Options) (int, error) {
	return 0, fmt.Errorf("a lab needs network namespaces, which %s has not: %w", runtime.GOOS, divert.ErrNotSupported)
}

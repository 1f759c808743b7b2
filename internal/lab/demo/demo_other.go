//go:build !linux

package demo

import (
	"context"
	"fmt"
	"runtime"

	"github.com/opendivert/divert"
)

// Run reports that there is no lab on this system.
func Run(context.Context, Options) error {
	return fmt.Errorf("the demonstration needs network namespaces, which %s has not: %w", runtime.GOOS, divert.ErrNotSupported)
}

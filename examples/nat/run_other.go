//go:build !linux

package main

import (
	"context"
	"fmt"

	"github.com/opendivert/divert"
)

// run fails: on this system changed packets are not routed again.
func run(context.Context, options) error {
	return fmt.Errorf("%w: it runs on Linux alone", divert.ErrNotSupported)
}

//go:build !linux && !windows

package process

import "errors"

func lookup(uint32) (Process, error) { return Process{}, errors.ErrUnsupported }

func startOf(uint32) (uint64, error) { return 0, errors.ErrUnsupported }

//go:build !linux

package main

import (
	"errors"
	"os"
)

// killProcess ends a process. A process that has already ended is no error.
func killProcess(pid uint32) error {
	p, err := os.FindProcess(int(pid))
	if err != nil {
		return err
	}
	defer p.Release()
	if err := p.Kill(); !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

package main

import (
	"errors"

	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/rules"
)

// killProcess ends a process that has a handle of this network open, and refuses to end any other. A process that has
// already ended is no error.
func killProcess(pid uint32) error {
	ns, err := netns.Current()
	if err != nil {
		return err
	}
	return errors.Join(rules.Kill(ns, int(pid)), ns.Close())
}

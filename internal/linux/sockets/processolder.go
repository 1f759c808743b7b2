//go:build linux

package sockets

func (ps *Processes) adoptOlder() error { return nil }

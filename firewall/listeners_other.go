//go:build !linux

package firewall

import "time"

// listeners takes the lower of two ports for that of the side that was called.
type listeners struct{}

func openListeners() (*listeners, error) { return &listeners{}, nil }

// on reports whether a port is likely to be that of a listener, other being the port of the other side.
func (*listeners) on(port, other uint16, _ time.Time) bool { return port < other }

func (*listeners) close() error { return nil }

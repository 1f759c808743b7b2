package main

import (
	"fmt"
	"net"
	"os"
)

// tellReady reports to the service manager that the handles are open, if the manager asked for it (sd_notify(3)): it
// starts dependent units only then. On other systems tellReady does nothing.
func tellReady() error {
	path := os.Getenv("NOTIFY_SOCKET") // a name that begins with @ is in the abstract namespace, for package net too
	if path == "" {
		return nil
	}
	c, err := net.Dial("unixgram", path)
	if err == nil {
		_, err = c.Write([]byte("READY=1"))
		_ = c.Close() // the message is sent
	}
	if err != nil {
		return fmt.Errorf("the service manager cannot be notified that the handles are open (NOTIFY_SOCKET=%s): %w", printable(path), err)
	}
	return nil
}

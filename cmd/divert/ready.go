package main

import (
	"fmt"
	"net"
	"os"
)

// tellReady tells the service manager that started the command that the handles are open, if it asks for that: what the unit
// stands before begins then, and not sooner. (sd_notify(3).) Elsewhere it does nothing.
func tellReady() error {
	path := os.Getenv("NOTIFY_SOCKET") // one that begins with @ is in the abstract namespace, for package net too
	if path == "" {
		return nil
	}
	c, err := net.Dial("unixgram", path)
	if err == nil {
		_, err = c.Write([]byte("READY=1"))
		_ = c.Close() // the message is sent
	}
	if err != nil {
		return fmt.Errorf("the service manager cannot be told that the handles are open (NOTIFY_SOCKET=%s): %w", printable(path), err)
	}
	return nil
}

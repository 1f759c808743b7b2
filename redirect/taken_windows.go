package redirect

import (
	"errors"

	"golang.org/x/sys/windows"
)

// portTaken reports whether an error means that a local port is in use, or reserved.
func portTaken(err error) bool {
	return errors.Is(err, windows.WSAEADDRINUSE) || errors.Is(err, windows.WSAEACCES)
}

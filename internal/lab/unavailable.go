package lab

import "errors"

// ErrUnavailable is returned (wrapped, with the reason) where this process may not make network
// namespaces.
var ErrUnavailable = errors.New("lab: network namespaces are not available")

package diverttest

import (
	"fmt"

	"github.com/opendivert/divert/internal/engine"
)

// interfaceError says that a packet was to be injected on an interface that the network does not have.
type interfaceError struct{ index uint32 }

func (e *interfaceError) Error() string {
	return fmt.Sprintf("%v: the fake network has no interface %d; AddInterface adds one", engine.ErrNoSuchDevice, e.index)
}

func (e *interfaceError) Unwrap() error { return engine.ErrNoSuchDevice }

package diverttest

import (
	"fmt"

	"github.com/opendivert/divert/internal/engine"
)

// interfaceError is the error of injecting a packet on an interface that the network lacks.
type interfaceError struct{ index uint32 }

func (e *interfaceError) Error() string {
	return fmt.Sprintf("%v: the fake network has no interface %d; AddInterface adds one", engine.ErrNoSuchDevice, e.index)
}

func (e *interfaceError) Unwrap() error { return engine.ErrNoSuchDevice }

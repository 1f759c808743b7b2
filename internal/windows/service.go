package windows

import (
	"errors"
	"fmt"
)

// stopPending is the state of a service that was told to stop and still runs: SERVICE_STOP_PENDING (winsvc.h).
const stopPending = 3

// notStopped returns why a driver does not stop, and the remedy, by the state of its service.
func notStopped(state uint32) string {
	if state != stopPending {
		return fmt.Sprintf("its service is not about to stop, but in the state %d: another program may have started it again; "+
			"run \"divert clean\" again", state)
	}
	return "it is about to stop (STOP_PENDING) as long as a program has a handle open, and until then none can be opened. " +
		"No list shows it: it is a handle of another program that watches handles (layer REFLECT). " +
		"End that program and run \"divert clean\" again, or restart Windows"
}

// startOrStopFirst starts the driver's service. A driver stopped while handles were open leaves its service disabled and
// marked for deletion, even after the last handle has closed: Windows notices the end only with the next stop. So if this
// keeps the service from starting, it is stopped once more and started again.
func startOrStopFirst(start, stop func() error) error {
	err := start()
	var e *Error
	if !errors.As(err, &e) || e.Code != errnoServiceDisabled && e.Code != errnoMarkedForDelete {
		return err
	}
	_ = stop() // an error means that it no longer runs, which is fine
	return start()
}

package windows

import "errors"

// startOrStopFirst starts the driver's service. A driver that was stopped while handles were open leaves it marked for
// deletion, and disabled, also when the last of them is closed: Windows notices that with the next stop. So where that
// is why it does not start, it is stopped once more and started again.
func startOrStopFirst(start, stop func() error) error {
	err := start()
	var e *Error
	if !errors.As(err, &e) || e.Code != errnoServiceDisabled && e.Code != errnoMarkedForDelete {
		return err
	}
	_ = stop() // that it does not run any more is just as well
	return start()
}

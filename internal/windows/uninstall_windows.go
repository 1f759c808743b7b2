package windows

import (
	"time"

	sys "golang.org/x/sys/windows"
)

// The time that a driver may take to stop, and how often it is asked whether it has.
const (
	stopTime     = 5 * time.Second
	stopInterval = 20 * time.Millisecond
)

// Uninstall stops the driver, whose service is gone with that: it was marked for deletion when it was
// installed (specification: samples.md 8, "uninstall"). It reports whether there was a driver to stop.
//
// A driver ends with the last handle on it: while one is open, no other can be opened any more, and
// Uninstall fails after 5 seconds. Without the rights of an Administrator the error is os.ErrPermission.
func Uninstall() (stopped bool, err error) {
	err = withInstallMutex(func() error {
		stopped, err = stopService()
		return err
	})
	return stopped, err
}

// stopService stops the service and waits until it has stopped.
func stopService() (bool, error) {
	service, err := openService(serviceName, sys.SERVICE_STOP|sys.SERVICE_QUERY_STATUS)
	if err == sys.ERROR_SERVICE_DOES_NOT_EXIST {
		return false, nil
	}
	if err != nil {
		return false, wrap("open the service", err)
	}
	defer sys.CloseServiceHandle(service)
	var status sys.SERVICE_STATUS
	switch err := sys.ControlService(service, sys.SERVICE_CONTROL_STOP, &status); {
	case err == sys.ERROR_SERVICE_NOT_ACTIVE:
		return false, nil
	case err != nil && status.CurrentState != sys.SERVICE_STOP_PENDING:
		return false, wrap("stop the driver", err)
	}
	for end := time.Now().Add(stopTime); status.CurrentState != sys.SERVICE_STOPPED; {
		if time.Now().After(end) {
			return false, newError("stop the driver", sys.ERROR_SERVICE_REQUEST_TIMEOUT,
				"it ends with the last handle that a program has open, and opens no other until then")
		}
		time.Sleep(stopInterval)
		if err := sys.QueryServiceStatus(service, &status); err != nil {
			return false, wrap("ask for the state of the driver", err)
		}
	}
	return true, nil
}

// openService opens a service, which fails with the Windows error number as it is.
func openService(name string, access uint32) (sys.Handle, error) {
	manager, err := sys.OpenSCManager(nil, nil, sys.SC_MANAGER_CONNECT)
	if err != nil {
		return 0, err
	}
	defer sys.CloseServiceHandle(manager)
	wide, err := sys.UTF16PtrFromString(name)
	if err != nil {
		return 0, err
	}
	return sys.OpenService(manager, wide, access)
}

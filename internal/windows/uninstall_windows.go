package windows

import (
	"time"

	sys "golang.org/x/sys/windows"
)

// The time that a driver has to stop, and the interval of the checks.
const (
	stopTime     = 5 * time.Second
	stopInterval = 20 * time.Millisecond
)

// Uninstall stops the driver, if it runs, and removes its service; removed reports whether there was one. It also removes
// a service that does not run: a failed start has left it behind, perhaps with the path of a missing file.
//
// A stopped driver ends with the last handle on it: until then no other handle can be opened, and Uninstall fails after 5
// seconds. Without the rights of an Administrator the error is os.ErrPermission.
func Uninstall() (removed bool, err error) {
	err = withInstallMutex(func() error {
		removed, err = removeService()
		return err
	})
	return removed, err
}

// removeService stops the service, waits until it has stopped, and removes it.
func removeService() (bool, error) {
	service, err := openService(serviceName, sys.SERVICE_STOP|sys.SERVICE_QUERY_STATUS|deleteAccess)
	if err == sys.ERROR_SERVICE_DOES_NOT_EXIST {
		return false, nil
	}
	if err != nil {
		return false, wrap("open the service", err)
	}
	defer sys.CloseServiceHandle(service)
	stop := func(status *sys.SERVICE_STATUS) error {
		return sys.ControlService(service, sys.SERVICE_CONTROL_STOP, status)
	}
	query := func(status *sys.SERVICE_STATUS) error { return sys.QueryServiceStatus(service, status) }
	if err := stopService(stop, query, stopTime); err != nil {
		return false, err
	}
	if err := sys.DeleteService(service); err != nil && err != sys.ERROR_SERVICE_MARKED_FOR_DELETE {
		return false, wrap("remove the service", err)
	}
	return true, nil
}

// deleteAccess is the right DELETE (winnt.h).
const deleteAccess = 0x00010000

// stopService tells a service to stop and waits until it has, within a time. If handles have kept the driver running,
// Windows notices its end only when it is told to stop again.
func stopService(stop, query func(*sys.SERVICE_STATUS) error, within time.Duration) error {
	for end := time.Now().Add(within); ; time.Sleep(stopInterval) {
		var status sys.SERVICE_STATUS
		err := stop(&status)
		switch {
		case err == sys.ERROR_SERVICE_NOT_ACTIVE, err == nil && status.CurrentState == sys.SERVICE_STOPPED:
			return nil
		case err != nil && err != sys.ERROR_SERVICE_CANNOT_ACCEPT_CTRL && err != sys.ERROR_INVALID_SERVICE_CONTROL:
			return wrap("stop the driver", err)
		case time.Now().After(end):
			if err := query(&status); err != nil {
				return wrap("ask for the state of the driver", err)
			}
			if status.CurrentState == sys.SERVICE_STOPPED {
				return nil
			}
			return newError("stop the driver", sys.ERROR_SERVICE_REQUEST_TIMEOUT, notStopped(status.CurrentState))
		}
	}
}

// openService opens a service. Its error is the plain Windows error number.
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

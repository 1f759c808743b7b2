package windows

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	sys "golang.org/x/sys/windows"
)

// register removes the driver and registers its service for a file, without starting it.
func register(t *testing.T, file string) {
	t.Helper()
	if _, err := Uninstall(); err != nil {
		t.Fatal(err)
	}
	manager, err := sys.OpenSCManager(nil, nil, sys.SC_MANAGER_ALL_ACCESS)
	if err != nil {
		t.Fatal(err)
	}
	defer sys.CloseServiceHandle(manager)
	name, path := sys.StringToUTF16Ptr(serviceName), sys.StringToUTF16Ptr(file)
	service, err := sys.CreateService(manager, name, name, sys.SERVICE_ALL_ACCESS, sys.SERVICE_KERNEL_DRIVER,
		sys.SERVICE_DEMAND_START, sys.SERVICE_ERROR_NORMAL, path, nil, nil, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	sys.CloseServiceHandle(service)
	t.Cleanup(func() {
		if _, err := Uninstall(); err != nil {
			t.Error(err)
		}
	})
}

// wantInstallable checks that divert doctor finds no obstacle to opening handles, except for a service that Wine lacks.
func wantInstallable(t *testing.T, args ...string) {
	t.Helper()
	c := runCommand(t, 0, append([]string{"doctor", "--json"}, args...)...)
	var r Report
	if err := json.Unmarshal(c.out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s", err, &c.out)
	}
	for _, check := range r.Checks {
		if !check.OK && check.Name != "Base Filtering Engine" {
			t.Errorf("%+v", check)
		}
	}
}

// noLocalFile makes the search for the driver's file fail.
func noLocalFile(t *testing.T) {
	t.Helper()
	t.Setenv(EnvDriver, os.Getenv("SystemRoot"))
}

// TestStaleService has a service registered for a missing file, as left by a program that has moved.
func TestStaleService(t *testing.T) {
	path := testDriver(t)
	gone := filepath.Join(os.Getenv("SystemRoot"), "moved", "WinDivert64.sys")

	t.Run("a file is here: it is registered", func(t *testing.T) {
		register(t, gone)
		c := runCommand(t, 0, "doctor", "--driver", path)
		c.says(&c.out, "stopped, with the file "+gone+", which is not there: the first handle registers")
		wantInstallable(t, "--driver", path)
		d, err := connect(false, path)
		if err != nil {
			t.Fatal(err)
		}
		d.close()
		if s := registered(serviceName); s.err == nil && s.config.path != path {
			t.Errorf("registered for %s", s.config.path)
		}
	})
	t.Run("none is here: it is said", func(t *testing.T) {
		register(t, gone)
		noLocalFile(t)
		d, err := connect(false, "")
		if err == nil {
			d.close()
			t.Fatal("it works")
		}
		if !strings.Contains(err.Error(), gone+", which is not there") || !strings.Contains(err.Error(), "divert clean") {
			t.Error(err)
		}
		c := runCommand(t, 0, "doctor")
		c.says(&c.out, "no   stopped, with the file "+gone+", which is not there", `remove the service with "divert clean"`)
	})
	t.Run("clean removes it", func(t *testing.T) {
		register(t, gone)
		c := runCommand(t, 0, "clean")
		c.says(&c.out, "removed the driver WinDivert")
		if s := registered(serviceName); s.err != sys.ERROR_SERVICE_DOES_NOT_EXIST {
			t.Errorf("afterwards it is %+v", s)
		}
	})
}

// TestServiceWithFile has a service with its file, and none next to the program: handles can be opened.
func TestServiceWithFile(t *testing.T) {
	path := testDriver(t)
	register(t, path)
	noLocalFile(t)
	c := runCommand(t, 0, "doctor")
	c.says(&c.out, "driver file            yes  "+path+", which the service is registered for")
	wantInstallable(t)
	d, err := connect(false, "")
	if err != nil {
		t.Fatal(err)
	}
	d.close()
}

// TestDisabledService has a disabled service, whose remedy differs from that of one to be deleted.
func TestDisabledService(t *testing.T) {
	path := testDriver(t)
	register(t, path)
	service, err := openService(serviceName, sys.SERVICE_CHANGE_CONFIG)
	if err == nil {
		err = sys.ChangeServiceConfig(service, sys.SERVICE_NO_CHANGE, sys.SERVICE_DISABLED, sys.SERVICE_NO_CHANGE, nil, nil, nil, nil, nil, nil, nil)
		sys.CloseServiceHandle(service)
	}
	if err != nil {
		t.Fatal(err)
	}
	d, err := connect(false, path)
	if err == nil {
		d.close()
		t.Skip("this system starts disabled services")
	}
	var e *Error
	if !errors.As(err, &e) || e.Code != errnoServiceDisabled || !strings.Contains(err.Error(), "sc.exe config WinDivert start= demand") {
		t.Error(err)
	}
}

// TestModulePath looks for the driver next to the program.
func TestModulePath(t *testing.T) {
	path, err := modulePath()
	executable, _ := os.Executable()
	if err != nil || !strings.EqualFold(path, executable) {
		t.Errorf("%s, %v; the program is %s", path, err, executable)
	}
}

// TestStopPending has a driver that does not stop when told to, and one that stops at last.
func TestStopPending(t *testing.T) {
	state := uint32(sys.SERVICE_STOP_PENDING)
	query := func(s *sys.SERVICE_STATUS) error { s.CurrentState = state; return nil }
	refuse := func(*sys.SERVICE_STATUS) error { return sys.ERROR_SERVICE_CANNOT_ACCEPT_CTRL }
	err := stopService(refuse, query, 0)
	if numberOf(err) != uint32(sys.ERROR_SERVICE_REQUEST_TIMEOUT) || !strings.Contains(err.Error(), "STOP_PENDING") {
		t.Error(err)
	}
	state = sys.SERVICE_STOPPED
	if err := stopService(refuse, query, 0); err != nil {
		t.Error(err)
	}
}

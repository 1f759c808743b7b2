package windows

import (
	"debug/pe"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"unsafe"

	sys "golang.org/x/sys/windows"

	"github.com/opendivert/divert/internal/engine"
)

// Names of the driver (specification: windows-driver.md 1).
const (
	devicePath   = `\\.\WinDivert`
	serviceName  = "WinDivert"
	installMutex = "WinDivertDriverInstallMutex"
	eventLogKey  = `SYSTEM\CurrentControlSet\Services\EventLog\System\WinDivert`
)

// EnvDriver is the environment variable with the path of the driver file, or of its folder.
const EnvDriver = "DIVERT_DRIVER"

// pathMax is the limit, in characters, below which the driver's path must stay (MAX_PATH).
const pathMax = 260

// connect opens the device. If there is none it first installs and starts the driver, unless noInstall is set
// (specification: windows-driver.md 2).
func connect(noInstall bool, driver string) (*device, error) {
	d, err := openDevice()
	if !errors.Is(err, sys.ERROR_FILE_NOT_FOUND) && !errors.Is(err, sys.ERROR_PATH_NOT_FOUND) {
		return d, wrap("open the device", err)
	}
	if noInstall {
		return nil, newError("open the device", sys.ERROR_SERVICE_DOES_NOT_EXIST, "")
	}
	if err := install(driver); err != nil {
		return nil, err
	}
	d, err = openDevice()
	return d, wrap("open the device", err)
}

// install starts the driver's service, and creates it if there is none (windows-driver.md 3).
func install(driver string) error {
	return withInstallMutex(func() error { return startService(driver) })
}

// withInstallMutex calls f while no other process installs or removes the driver.
func withInstallMutex(f func() error) error {
	runtime.LockOSThread() // a mutex belongs to a thread
	defer runtime.UnlockOSThread()
	name, err := sys.UTF16PtrFromString(installMutex)
	if err != nil {
		return err
	}
	mutex, err := sys.CreateMutex(nil, false, name)
	if mutex == 0 {
		return wrap("create the mutex of the installation", err)
	}
	defer sys.CloseHandle(mutex)
	if _, err := sys.WaitForSingleObject(mutex, sys.INFINITE); err != nil { // an abandoned mutex is acquired too
		return wrap("wait for the mutex of the installation", err)
	}
	defer sys.ReleaseMutex(mutex)
	return f()
}

// startService starts the service, creating it first if need be.
func startService(driver string) error {
	manager, err := sys.OpenSCManager(nil, nil, sys.SC_MANAGER_ALL_ACCESS)
	if err != nil {
		return wrap("open the service manager", err)
	}
	defer sys.CloseServiceHandle(manager)
	name, err := sys.UTF16PtrFromString(serviceName)
	if err != nil {
		return err
	}
	return startOrStopFirst(
		func() error { return tryService(manager, name, driver) },
		func() error { return stopOnce(manager, name) })
}

// tryService is startService once.
func tryService(manager sys.Handle, name *uint16, driver string) error {
	service, err := sys.OpenService(manager, name, sys.SERVICE_ALL_ACCESS)
	created := false
	if err != nil {
		if service, created, err = createService(manager, name, driver); err != nil {
			return err
		}
	}
	defer sys.CloseServiceHandle(service)

	err = sys.StartService(service, 0, nil)
	if err != nil && err != sys.ERROR_SERVICE_ALREADY_RUNNING && !created {
		err = startStale(service, driver, err)
	}
	switch {
	case err == sys.ERROR_SERVICE_ALREADY_RUNNING:
		return nil
	case err != nil:
		if created {
			_ = sys.DeleteService(service) // else the next attempt would find it, with its useless path
		}
		return wrap("start the driver", err)
	}
	// From here on it vanishes when it stops, or with the next start of Windows.
	_ = sys.DeleteService(service)
	return nil
}

// startStale starts a service that failed to start because its file is gone, as after its program has moved: with the
// file that is here. If the file is not gone, the error is failed.
func startStale(service sys.Handle, driver string, failed error) error {
	config, err := queryConfig(service)
	if err != nil || !config.stale() {
		return failed
	}
	gone := "the service is registered for " + config.path + ", which is not there; \"divert clean\" or \"sc.exe delete WinDivert\" removes it"
	file, err := findDriver(driver)
	if err != nil {
		number := sys.Errno(errnoFileNotFound)
		errors.As(failed, &number)
		return newError("start the driver", number, gone)
	}
	path, err := sys.UTF16PtrFromString(file)
	if err != nil {
		return failed
	}
	err = sys.ChangeServiceConfig(service, sys.SERVICE_NO_CHANGE, sys.SERVICE_NO_CHANGE, sys.SERVICE_NO_CHANGE, path, nil, nil, nil, nil, nil, nil)
	if err != nil {
		return newError("register the driver file", err.(sys.Errno), gone)
	}
	registerEventSource(file)
	return sys.StartService(service, 0, nil)
}

// stopOnce tells a service to stop, without waiting.
func stopOnce(manager sys.Handle, name *uint16) error {
	service, err := sys.OpenService(manager, name, sys.SERVICE_STOP)
	if err != nil {
		return err
	}
	defer sys.CloseServiceHandle(service)
	var status sys.SERVICE_STATUS
	return sys.ControlService(service, sys.SERVICE_CONTROL_STOP, &status)
}

// createService registers the driver's file, or opens the service if another process was faster.
func createService(manager sys.Handle, name *uint16, driver string) (service sys.Handle, created bool, err error) {
	file, err := findDriver(driver)
	if err != nil {
		return 0, false, err
	}
	path, err := sys.UTF16PtrFromString(file)
	if err != nil {
		return 0, false, fmt.Errorf("%w: the path of the driver file: %w", engine.ErrInvalid, err)
	}
	service, err = sys.CreateService(manager, name, name, sys.SERVICE_ALL_ACCESS, sys.SERVICE_KERNEL_DRIVER,
		sys.SERVICE_DEMAND_START, sys.SERVICE_ERROR_NORMAL, path, nil, nil, nil, nil, nil)
	if err == sys.ERROR_SERVICE_EXISTS {
		service, err = sys.OpenService(manager, name, sys.SERVICE_ALL_ACCESS)
		return service, false, wrap("open the service", err)
	}
	if err != nil {
		return 0, false, wrap("create the service", err)
	}
	registerEventSource(file)
	return service, true, nil
}

// findDriver returns the absolute path of the driver's file: the one asked for, else that of the environment, else the
// one next to this program or library. A folder stands for the file of the usual name in it.
func findDriver(asked string) (string, error) {
	name, err := driverFile(runtime.GOARCH, wow64())
	if err != nil {
		return "", err
	}
	path := asked
	if path == "" {
		path = os.Getenv(EnvDriver)
	}
	if path == "" {
		module, err := modulePath()
		if err != nil {
			return "", wrap("find the driver file", err)
		}
		path = filepath.Dir(module)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", fmt.Errorf("%w: %w", engine.ErrInvalid, err)
	}
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		path = filepath.Join(path, name)
		_, err = os.Stat(path)
	}
	if err != nil {
		return "", &Error{Op: "find the driver file", Code: errnoFileNotFound, detail: "looked for " + path, errno: sys.ERROR_FILE_NOT_FOUND}
	}
	if wide, err := sys.UTF16FromString(path); err == nil && len(wide) > pathMax {
		return "", newError("find the driver file", sys.ERROR_BAD_PATHNAME, "it is "+path)
	}
	return path, nil
}

// modulePath returns the path of the file that contains this code: the executable, or the library built from it, which
// may lie elsewhere than the program that loaded it.
func modulePath() (string, error) {
	const fromAddress = sys.GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | sys.GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT
	var module sys.Handle
	ok, _, err := getModuleHandle.Call(fromAddress, reflect.ValueOf(modulePath).Pointer(), uintptr(unsafe.Pointer(&module)))
	if ok == 0 {
		return "", err
	}
	path := make([]uint16, 1<<15) // the longest possible path
	n, err := sys.GetModuleFileName(module, &path[0], uint32(len(path)))
	return sys.UTF16ToString(path[:n]), err
}

// wow64 reports whether this is a 32-bit program on 64-bit Windows. If unknown, it is.
func wow64() bool {
	var is bool
	if err := sys.IsWow64Process(sys.CurrentProcess(), &is); err != nil {
		return true
	}
	return is
}

var (
	advapi32      = sys.NewLazySystemDLL("advapi32.dll")
	regCreateKey  = advapi32.NewProc("RegCreateKeyExW")
	regSetValue   = advapi32.NewProc("RegSetValueExW")
	kernel32      = sys.NewLazySystemDLL("kernel32.dll")
	isWow64Native = kernel32.NewProc("IsWow64Process2")

	getModuleHandle = kernel32.NewProc("GetModuleHandleExW")
)

const (
	regOptionVolatile  = 1
	eventTypesReported = 7 // errors, warnings, information
)

// registerEventSource tells the event viewer the source of the driver's events. The entry lasts until the next start of
// Windows; a failure does no harm.
func registerEventSource(file string) {
	path, err := sys.UTF16FromString(file)
	if err != nil {
		return
	}
	key, err := sys.UTF16PtrFromString(eventLogKey)
	if err != nil {
		return
	}
	var opened sys.Handle
	status, _, _ := regCreateKey.Call(uintptr(sys.HKEY_LOCAL_MACHINE), uintptr(unsafe.Pointer(key)), 0, 0,
		regOptionVolatile, sys.KEY_SET_VALUE, 0, uintptr(unsafe.Pointer(&opened)), 0)
	if status != 0 {
		return
	}
	defer sys.RegCloseKey(opened)
	types := uint32(eventTypesReported)
	setRegistryValue(opened, "EventMessageFile", sys.REG_SZ, unsafe.Pointer(&path[0]), len(path)*2)
	setRegistryValue(opened, "TypesSupported", sys.REG_DWORD, unsafe.Pointer(&types), 4)
}

func setRegistryValue(key sys.Handle, name string, kind uint32, data unsafe.Pointer, size int) {
	if wide, err := sys.UTF16PtrFromString(name); err == nil {
		regSetValue.Call(uintptr(key), uintptr(unsafe.Pointer(wide)), 0, uintptr(kind), uintptr(data), uintptr(size))
	}
}

// checkProcessor refuses Windows on ARM, even for programs that run there in an emulation: the driver runs in the kernel,
// which is not emulated.
func checkProcessor() error {
	if _, err := driverFile(runtime.GOARCH, true); err != nil {
		return err
	}
	if nativeMachine() == pe.IMAGE_FILE_MACHINE_ARM64 {
		_, err := driverFile("arm64", false)
		return err
	}
	return nil
}

package windows

import (
	"debug/pe"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	sys "golang.org/x/sys/windows"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/packet"
)

// Diagnose checks the requirements of handles, without installing, starting or capturing anything. driver is a path, as
// for Open.
func Diagnose(driver string) *Report {
	v := sys.RtlGetVersion()
	r := &Report{
		System:  fmt.Sprintf("Windows %d.%d.%d", v.MajorVersion, v.MinorVersion, v.BuildNumber),
		Machine: machineName(nativeMachine()),
		Program: runtime.GOARCH,
	}
	running, engine := checkDriver()
	r.Engine = engine
	service := registered(serviceName)
	r.Checks = []Check{checkMachine(r), checkRights(), checkFile(driver, service), checkFilteringEngine(), checkService(driver, service), running}
	r.conclude()
	return r
}

func checkMachine(r *Report) Check {
	c := Check{Name: "processor", OK: true, Found: r.Machine}
	if err := checkProcessor(); err != nil {
		c.fail(err, "handles cannot be opened on this computer", "nothing: WinDivert is not signed for this processor")
	}
	return c
}

// checkRights tries to open the service manager as installing the driver does.
func checkRights() Check {
	c := Check{Name: "rights", OK: true, Found: "Administrator"}
	manager, err := sys.OpenSCManager(nil, nil, sys.SC_MANAGER_ALL_ACCESS)
	if err != nil {
		c.fail(wrap("open the service manager", err), "the driver can be neither installed nor opened", remedyRights)
		return c
	}
	_ = sys.CloseServiceHandle(manager) // it was not used
	return c
}

// checkFile looks for the driver's file, and checks that it is for this processor. A missing file does not matter if the
// service is registered for another.
func checkFile(driver string, s service) Check {
	path, err := findDriver(driver)
	if err != nil && driver == "" && s.exists() && !s.config.stale() {
		path, err = s.config.path, nil
		if file := s.config.file(); file != "" {
			path, err = file+", which the service is registered for", checkImage(file)
		}
	} else if err == nil {
		err = checkImage(path)
	}
	c := Check{Name: "driver file", OK: true, Found: path}
	if err != nil {
		c.fail(err, "the driver cannot be installed; one that runs already is used all the same", remedyFile)
	}
	return c
}

// checkImage reports why a file cannot be the driver for this processor.
func checkImage(path string) error {
	f, err := pe.Open(path)
	if err != nil {
		return fmt.Errorf("%s is not a driver: %w", path, err)
	}
	defer f.Close()
	if subsystem(f) != pe.IMAGE_SUBSYSTEM_NATIVE {
		return fmt.Errorf("%s is a program or a library, no driver", path)
	}
	if native := nativeMachine(); f.Machine != native {
		return fmt.Errorf("%s is for the processor %s, this one is %s", path, machineName(f.Machine), machineName(native))
	}
	return nil
}

// subsystem returns the subsystem of an image, as a value of IMAGE_SUBSYSTEM.
func subsystem(f *pe.File) uint16 {
	switch h := f.OptionalHeader.(type) {
	case *pe.OptionalHeader64:
		return h.Subsystem
	case *pe.OptionalHeader32:
		return h.Subsystem
	}
	return pe.IMAGE_SUBSYSTEM_UNKNOWN
}

// checkFilteringEngine looks for the service without which the driver does not start (windows-driver.md 3).
func checkFilteringEngine() Check {
	s := registered("BFE")
	err := s.err
	if err == nil && s.state != sys.SERVICE_RUNNING {
		err = errors.New(serviceStates[s.state])
	}
	c := Check{Name: "Base Filtering Engine", OK: true, Found: serviceStates[s.state]}
	if err != nil {
		c.fail(err, "the driver cannot start", causes[errnoNoEndpoint].remedy)
	}
	return c
}

// checkService looks at the driver's service, which need not exist.
func checkService(driver string, s service) Check {
	c := Check{Name: "service " + serviceName, OK: true, Found: "not installed: the first handle does that"}
	switch {
	case s.err == sys.ERROR_SERVICE_DOES_NOT_EXIST:
		return c
	case s.err != nil:
		c.fail(wrap("open the service", s.err), "it is not known whether the driver can be started", remedyRights)
		return c
	}
	c.Found = fmt.Sprintf("%s, with the file %s", serviceStates[s.state], s.config.path)
	_, noFile := findDriver(driver)
	switch {
	case s.state == sys.SERVICE_RUNNING:
	case s.config.startType == sys.SERVICE_DISABLED:
		c.fail(errors.New("disabled"), "the driver cannot be started", causes[errnoServiceDisabled].remedy)
	case s.state != sys.SERVICE_STOPPED:
		c.fail(errors.New(c.Found), "no handle can be opened until it has stopped", causes[errnoServiceDisabled].remedy)
	case s.config.stale() && noFile != nil:
		c.fail(fmt.Errorf("%s, which is not there", c.Found), "the driver cannot be started",
			`remove the service with "divert clean"; then `+remedyFile)
	case s.config.stale():
		c.Found += ", which is not there: the first handle registers the driver file above; other programs fail until then, or until \"divert clean\""
	}
	return c
}

// checkDriver does the handshake with the running driver, and returns its name, empty if none runs.
func checkDriver() (c Check, name string) {
	c = Check{Name: "driver", OK: true, Found: "not running: the first handle starts it"}
	d, err := connect(true, "")
	if err == nil {
		defer d.close()
		err = d.begin(packet.LayerReflect, 0, engine.FlagSniff|engine.FlagRecvOnly)
	}
	var number sys.Errno
	switch {
	case err == nil:
		c.Found = d.describe()
		return c, c.Found
	case errors.As(err, &number) && number == sys.ERROR_SERVICE_DOES_NOT_EXIST:
		return c, ""
	}
	c.fail(err, "handles cannot be opened", `stop the driver with "sc.exe stop WinDivert", or restart Windows`)
	return c, ""
}

// serviceStates are the states of a service (winsvc.h, SERVICE_STATUS).
var serviceStates = map[uint32]string{
	sys.SERVICE_STOPPED: "stopped", sys.SERVICE_START_PENDING: "starting", sys.SERVICE_STOP_PENDING: "stopping",
	sys.SERVICE_RUNNING: "running", sys.SERVICE_CONTINUE_PENDING: "continuing",
	sys.SERVICE_PAUSE_PENDING: "pausing", sys.SERVICE_PAUSED: "paused",
}

// service is the state of a service.
type service struct {
	state  uint32
	config serviceConfig
	err    error // reason why the rest is unknown: a Windows error number
}

func (s *service) exists() bool { return s.err == nil }

// serviceConfig is the relevant part of a service's configuration.
type serviceConfig struct {
	path      string
	startType uint32
}

// file returns the file that the service is registered for; empty if unknown.
func (c *serviceConfig) file() string { return imagePath(c.path, os.Getenv("SystemRoot")) }

// stale reports whether that file is certainly missing.
func (c *serviceConfig) stale() bool {
	file := c.file()
	if file == "" {
		return false
	}
	_, err := os.Stat(file)
	return errors.Is(err, os.ErrNotExist)
}

// registered returns the state of a service.
func registered(name string) (s service) {
	handle, err := openService(name, sys.SERVICE_QUERY_STATUS|sys.SERVICE_QUERY_CONFIG)
	if err != nil {
		return service{err: err}
	}
	defer sys.CloseServiceHandle(handle)
	var status sys.SERVICE_STATUS
	if err := sys.QueryServiceStatus(handle, &status); err != nil {
		return service{err: err}
	}
	s.state = status.CurrentState
	s.config, s.err = queryConfig(handle)
	return s
}

// queryConfig returns the configuration of a service; it fails with the Windows error number as it is.
func queryConfig(handle sys.Handle) (serviceConfig, error) {
	const most = 8192 // bytes, says QueryServiceConfigW
	var buffer [most / 8]uint64
	c := (*sys.QUERY_SERVICE_CONFIG)(unsafe.Pointer(&buffer))
	var need uint32
	if err := sys.QueryServiceConfig(handle, c, most, &need); err != nil {
		return serviceConfig{}, err
	}
	return serviceConfig{sys.UTF16PtrToString(c.BinaryPathName), c.StartType}, nil
}

// machineNames are processors as GOARCH names them.
var machineNames = map[uint16]string{
	pe.IMAGE_FILE_MACHINE_AMD64: "amd64", pe.IMAGE_FILE_MACHINE_I386: "386", pe.IMAGE_FILE_MACHINE_ARM64: "arm64",
}

func machineName(machine uint16) string {
	if name, ok := machineNames[machine]; ok {
		return name
	}
	return fmt.Sprintf("%#x", machine)
}

// nativeMachine returns the processor of Windows, as a value of IMAGE_FILE_MACHINE.
func nativeMachine() uint16 {
	var process, native uint16
	if isWow64Native.Find() == nil { // exists since Windows 10 1709
		ok, _, _ := isWow64Native.Call(uintptr(sys.CurrentProcess()), uintptr(unsafe.Pointer(&process)), uintptr(unsafe.Pointer(&native)))
		if ok != 0 {
			return native
		}
	}
	if runtime.GOARCH == "386" && !wow64() {
		return pe.IMAGE_FILE_MACHINE_I386
	}
	return pe.IMAGE_FILE_MACHINE_AMD64 // Windows on ARM is newer
}

package windows

import (
	"fmt"
	"net"
	"os"

	"github.com/opendivert/divert/internal/engine"
)

// Windows error numbers with a meaning in this package (specification: api.md 20).
const (
	errnoFileNotFound     = 2
	errnoPathNotFound     = 3
	errnoAccessDenied     = 5
	errnoBadCommand       = 22
	errnoInvalidParameter = 87
	errnoShortBuffer      = 122
	errnoBadPathname      = 161
	errnoBadExe           = 193
	errnoVirus            = 225
	errnoNoData           = 232
	errnoInvalidHash      = 577
	errnoOldDriver        = 654
	errnoServiceDisabled  = 1058
	errnoNoService        = 1060
	errnoMarkedForDelete  = 1072
	errnoAborted          = 995
	errnoHopLimit         = 1232
	errnoDriverBlocked    = 1275
	errnoNoResources      = 1450
	errnoNoEndpoint       = 1753
	errnoOldAccount       = 1808       // officially about a computer's account; users found out its meaning here
	errnoIntegrity        = 4551       // ERROR_SYSTEM_INTEGRITY_POLICY_VIOLATION
	errnoRevoked          = 0x800B010C // CERT_E_REVOKED
)

// Error is the error of Windows or the driver for a request. errors.Is finds the engine's sentinels in it, errors.As on
// Windows also the syscall.Errno.
type Error struct {
	Op   string // the operation
	Code uint32 // Windows error number

	detail string // details of this case; may be empty
	errno  error  // the number as the system's error type; nil on other systems
}

// Error returns the operation, Windows' message, and the remedy.
func (e *Error) Error() string {
	text := e.fact()
	if remedy := causes[e.Code].remedy; remedy != "" {
		text += "; " + remedy
	}
	return text
}

// fact returns the operation and Windows' message.
func (e *Error) fact() string {
	text := fmt.Sprintf("%s: Windows error %d", e.Op, e.Code)
	if e.errno != nil {
		text += ": " + e.errno.Error()
	}
	if e.detail != "" {
		text += "; " + e.detail
	}
	return text
}

// Unwrap returns the sentinel of the number and the number itself.
func (e *Error) Unwrap() []error {
	var all []error
	if is := causes[e.Code].is; is != nil {
		all = append(all, is)
	}
	if e.errno != nil {
		all = append(all, e.errno)
	}
	return all
}

// WindowsError returns the number.
func (e *Error) WindowsError() uint32 { return e.Code }

// cause is the meaning of an error number here.
type cause struct {
	is     error  // its sentinel; nil for none
	remedy string // for the user; may be empty
}

const (
	remedyFile = "put the driver file of the WinDivert 2.2.2 release next to the program, or name it with " +
		"the option WithDriver (divert: --driver) or the environment variable DIVERT_DRIVER"
	remedyRights = "run the program as Administrator; if it does, the virus scanner or a policy of Windows refuses the driver, " +
		`or its service is damaged: "divert clean" removes that`
	remedyStale  = `; a service that is registered for a file that is not there goes with "divert clean" or "sc.exe delete WinDivert"`
	remedyUnload = `end the programs that use it, and unload it with "divert clean" or "sc.exe stop WinDivert"`
)

var causes = map[uint32]cause{
	errnoFileNotFound:     {os.ErrNotExist, remedyFile + remedyStale},
	errnoPathNotFound:     {os.ErrNotExist, remedyFile + remedyStale},
	errnoAccessDenied:     {os.ErrPermission, remedyRights},
	errnoBadCommand:       {net.ErrClosed, ""},
	errnoInvalidParameter: {engine.ErrInvalid, ""},
	errnoShortBuffer:      {engine.ErrShortBuffer, ""},
	errnoBadPathname:      {engine.ErrInvalid, "the path of the driver file must be shorter than 260 characters"},
	errnoBadExe: {engine.ErrNotSupported,
		"the driver file is for another processor: 64-bit Windows needs WinDivert64.sys, 32-bit Windows WinDivert32.sys"},
	errnoVirus: {engine.ErrNotSupported,
		"the virus scanner takes the driver file for malware: if it is that of the WinDivert 2.2.2 release, exempt it"},
	errnoNoData: {engine.ErrShutdown, ""},
	errnoInvalidHash: {engine.ErrNotSupported,
		"the signature of the driver file is not accepted: use the file of the WinDivert 2.2.2 release unchanged, " +
			"and update Windows if it does not know the certificate"},
	errnoRevoked: {engine.ErrNotSupported,
		"the certificate of the driver file has been revoked: use the file of the WinDivert 2.2.2 release"},
	errnoOldDriver: {engine.ErrNotSupported, "a driver of another version is loaded: " + remedyUnload},
	errnoServiceDisabled: {engine.ErrNotSupported,
		"the driver was told to stop while handles were open: end the programs that have them, and try again, or restart Windows; " +
			`or its service is disabled: "sc.exe config WinDivert start= demand"`},
	errnoNoService: {engine.ErrNotSupported,
		"the driver is not running, and NoInstall keeps it from being started: start it, or leave the flag out"},
	errnoMarkedForDelete: {engine.ErrNotSupported,
		"the service is about to be deleted: end the programs that use it and try again, or restart Windows"},
	errnoHopLimit: {engine.ErrHopLimit, ""},
	errnoDriverBlocked: {engine.ErrNotSupported,
		"Windows blocks this driver: look at its core isolation and driver block list, and at the virus scanner"},
	errnoNoResources: {nil, "Windows is short of memory for the driver; smaller batches need less"},
	errnoNoEndpoint: {engine.ErrNotSupported,
		`the Base Filtering Engine is not running: "sc.exe start BFE"`},
	errnoOldAccount: {engine.ErrNotSupported,
		"a driver of WinDivert 1 is in the way, which has the same name: " + remedyUnload + `, then "sc.exe delete WinDivert"`},
	errnoIntegrity: {engine.ErrNotSupported,
		"a policy of Windows blocks the driver: look at Smart App Control and the application control of your organisation"},
}

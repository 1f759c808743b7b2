package windows

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	sys "golang.org/x/sys/windows"
)

// The driver reports all handles to those at the layer REFLECT, except handles at that layer. So each of ours there has a
// mark: an event object that lasts as long as the handle, with the process id in its name. Everybody may create objects
// with such names. So a name ends in a random number, which nobody can take first, and only marks owned by the
// Administrators count, to whom nobody else can give an object.
const (
	markFolder = `\BaseNamedObjects` // the meaning of Global\
	markPrefix = "DivertReflect-"
	markOwner  = "O:BAG:BAD:P(A;;GA;;;SY)(A;;GA;;;BA)" // the Administrators; they and the system may open it
)

// newMark creates the mark of a handle. The caller closes it, after the handle.
func newMark() (sys.Handle, error) {
	owner, err := sys.SecurityDescriptorFromString(markOwner)
	if err != nil {
		return 0, err
	}
	name, err := sys.UTF16PtrFromString(fmt.Sprintf(`Global\%s%d-%016x`, markPrefix, os.Getpid(), rand.Uint64()))
	if err != nil {
		return 0, err
	}
	attributes := sys.SecurityAttributes{SecurityDescriptor: owner}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	return sys.CreateEvent(&attributes, 1, 0, name)
}

// Watchers returns the processes with open handles at the layer REFLECT, in order, if they used this package's Open. It
// cannot see those of other programs. It needs the rights of an Administrator.
func Watchers() ([]uint32, error) {
	watchers := map[uint32]bool{}
	for range 2 { // an object that disappears during the reading can hide another
		if err := eachEvent(func(name string) {
			if pid, ok := markProcess(name); ok && genuine(name) {
				watchers[pid] = true
			}
		}); err != nil {
			return nil, wrap("look for handles that watch", err)
		}
	}
	return slices.Sorted(maps.Keys(watchers)), nil
}

// markProcess returns the process of a mark, and whether a name is a mark's.
func markProcess(name string) (uint32, bool) {
	rest, ok := strings.CutPrefix(name, markPrefix)
	if !ok {
		return 0, false
	}
	digits, _, ok := strings.Cut(rest, "-")
	pid, err := strconv.ParseUint(digits, 10, 32)
	return uint32(pid), ok && err == nil
}

// genuine reports whether a mark exists and belongs to the Administrators. One that they may not open does not count.
func genuine(name string) bool {
	wide, err := sys.UTF16PtrFromString(`Global\` + name)
	if err != nil {
		return false
	}
	mark, err := sys.OpenEvent(sys.READ_CONTROL, false, wide)
	if err != nil {
		return false
	}
	defer sys.CloseHandle(mark)
	security, err := sys.GetSecurityInfo(mark, sys.SE_KERNEL_OBJECT, sys.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return false
	}
	owner, _, err := security.Owner()
	return err == nil && owner != nil && owner.IsWellKnown(sys.WinBuiltinAdministratorsSid)
}

var (
	ntdll         = sys.NewLazySystemDLL("ntdll.dll")
	openDirectory = ntdll.NewProc("NtOpenDirectoryObject")
	readDirectory = ntdll.NewProc("NtQueryDirectoryObject")
)

const directoryQuery = 1 // DIRECTORY_QUERY (wdm.h)

// directoryEntry is OBJECT_DIRECTORY_INFORMATION. The text lies behind it.
type directoryEntry struct{ name, kind sys.NTUnicodeString }

// eachEvent calls f with the names of the global event objects.
func eachEvent(f func(name string)) error {
	path, err := sys.NewNTUnicodeString(markFolder)
	if err != nil {
		return err
	}
	attributes := sys.OBJECT_ATTRIBUTES{ObjectName: path}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	var folder sys.Handle
	status, _, _ := openDirectory.Call(uintptr(unsafe.Pointer(&folder)), directoryQuery, uintptr(unsafe.Pointer(&attributes)))
	if status != 0 {
		return sys.NTStatus(status).Errno()
	}
	defer sys.CloseHandle(folder)
	buffer := make([]uint64, 1<<14) // 128 KiB: the longest name has 64
	var context uint32
	for restart := uintptr(1); ; restart = 0 {
		const single = 1
		status, _, _ := readDirectory.Call(uintptr(folder), uintptr(unsafe.Pointer(&buffer[0])), uintptr(len(buffer)*8),
			single, restart, uintptr(unsafe.Pointer(&context)), 0)
		switch sys.NTStatus(status) {
		case 0:
		case sys.STATUS_NO_MORE_ENTRIES:
			return nil
		default:
			return sys.NTStatus(status).Errno()
		}
		if e := (*directoryEntry)(unsafe.Pointer(&buffer[0])); e.kind.String() == "Event" {
			f(e.name.String())
		}
	}
}

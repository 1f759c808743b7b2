package process

import (
	"errors"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// The processes without an executable.
const (
	idle   = 0
	kernel = 4
)

func lookup(id uint32) (Process, error) {
	if id == idle || id == kernel {
		return Process{ID: id, Name: map[uint32]string{idle: "Idle", kernel: "System"}[id]}, nil
	}
	h, err := open(id)
	if err != nil {
		return Process{}, err
	}
	defer windows.CloseHandle(h) // while it is open no other process gets the id
	p := Process{ID: id, Parent: parent(h)}
	if p.started, err = started(h); err != nil {
		return Process{}, err
	}
	p.Start = time.Unix(0, (&windows.Filetime{LowDateTime: uint32(p.started), HighDateTime: uint32(p.started >> 32)}).Nanoseconds())
	var path [windows.MAX_LONG_PATH]uint16
	n := uint32(len(path))
	if windows.QueryFullProcessImageName(h, 0, &path[0], &n) == nil {
		p.Executable = windows.UTF16ToString(path[:n])
		p.Name = filepath.Base(p.Executable)
	}
	p.User = userOf(h)
	return p, nil
}

func open(id uint32) (windows.Handle, error) {
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, id)
	if errors.Is(err, windows.ERROR_INVALID_PARAMETER) {
		return 0, ErrEnded
	}
	return h, err
}

// startOf returns the start of the process that has the id now, in units of 100 ns since 1601.
func startOf(id uint32) (uint64, error) {
	if id == idle || id == kernel {
		return 0, nil
	}
	h, err := open(id)
	if err != nil {
		return 0, err
	}
	defer windows.CloseHandle(h)
	return started(h)
}

func started(h windows.Handle) (uint64, error) {
	var begin, end, inKernel, inUser windows.Filetime
	if err := windows.GetProcessTimes(h, &begin, &end, &inKernel, &inUser); err != nil {
		return 0, err
	}
	var code uint32
	if windows.GetExitCodeProcess(h, &code) == nil && code != stillActive {
		return 0, ErrEnded // a handle still keeps the ended process
	}
	return uint64(begin.HighDateTime)<<32 | uint64(begin.LowDateTime), nil
}

// stillActive is STILL_ACTIVE of winbase.h.
const stillActive = 259

func parent(h windows.Handle) uint32 {
	var info windows.PROCESS_BASIC_INFORMATION
	var n uint32
	if windows.NtQueryInformationProcess(h, windows.ProcessBasicInformation, unsafe.Pointer(&info), uint32(unsafe.Sizeof(info)), &n) != nil {
		return 0
	}
	return uint32(info.InheritedFromUniqueProcessId)
}

func userOf(h windows.Handle) string {
	var token windows.Token
	if windows.OpenProcessToken(h, windows.TOKEN_QUERY, &token) != nil {
		return ""
	}
	defer token.Close()
	u, err := token.GetTokenUser()
	if err != nil {
		return ""
	}
	name, domain, _, err := u.User.Sid.LookupAccount("")
	switch {
	case err != nil:
		return u.User.Sid.String()
	case domain == "":
		return name
	}
	return domain + `\` + name
}

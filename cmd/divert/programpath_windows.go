package main

import "golang.org/x/sys/windows"

// programPath returns the path of the program that a process runs, "" if it is not to be had. Process 4 is
// the kernel (specification: samples.md 6).
func programPath(pid uint32) string {
	if pid == 4 {
		return "Windows"
	}
	process, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, pid)
	if err != nil {
		return ""
	}
	defer windows.CloseHandle(process)
	var path [windows.MAX_LONG_PATH]uint16
	n := uint32(len(path))
	if windows.QueryFullProcessImageName(process, 0, &path[0], &n) != nil {
		return ""
	}
	return windows.UTF16ToString(path[:n])
}

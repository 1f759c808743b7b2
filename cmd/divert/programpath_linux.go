package main

import (
	"fmt"
	"os"
	"strings"
)

// programPath returns the path of the program that a process runs, "" if it is not to be had. A program that
// was deleted, as upgrades do, has the path that it had.
func programPath(pid uint32) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(path, " (deleted)")
}

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opendivert/divert/filter"
)

// processesNamed returns the processes with one of the names: the file name of the executable, or the name that the
// process has given itself (comm in proc(5), cut to 15 bytes).
func processesNamed(names []string) (ids []uint32, err error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	list, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	for _, name := range list {
		id, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			continue
		}
		comm, err := os.ReadFile("/proc/" + name + "/comm")
		if err != nil {
			continue // it has ended
		}
		found := slices.Contains(names, string(bytes.TrimSuffix(comm, []byte("\n"))))
		if !found {
			path, err := os.Readlink("/proc/" + name + "/exe")
			found = err == nil && slices.Contains(names, filepath.Base(path))
		}
		if found {
			ids = append(ids, uint32(id))
		}
	}
	return ids, nil
}

// processNames returns the names of the running processes, as filters write them.
func processNames() (list []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is right
	for _, file := range files {
		if comm, err := os.ReadFile(file); err == nil {
			list = append(list, filter.QuoteName(string(bytes.TrimSuffix(comm, []byte("\n")))))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

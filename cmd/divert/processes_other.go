//go:build !linux

package main

// processesNamed says that this needs Linux.
func processesNamed([]string) ([]uint32, error) {
	return nil, usagef("--process takes names on Linux only: give the process id")
}

// processNames says that there is nothing to complete: names of processes are for Linux.
func processNames() []string { return nil }

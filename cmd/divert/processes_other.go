//go:build !linux

package main

// processesNamed says that this needs Linux.
func processesNamed([]string) ([]uint32, error) {
	return nil, usagef("--process takes names on Linux only: give the process id")
}

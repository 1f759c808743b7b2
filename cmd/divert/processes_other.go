//go:build !linux

package main

// processesNamed reports that it needs Linux.
func processesNamed([]string) ([]uint32, error) {
	return nil, usagef("--process takes names on Linux only: give the process id")
}

// processNames returns nothing to complete: names of processes need Linux.
func processNames() []string { return nil }

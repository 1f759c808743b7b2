//go:build !linux && !windows

package main

// programPath returns the path of the program that a process runs, "" if it is not to be had.
func programPath(uint32) string { return "" }

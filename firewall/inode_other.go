//go:build !unix

package firewall

import "github.com/opendivert/divert/process"

// fileOf returns the zero File: executables are known by their paths.
func fileOf(string) process.File { return process.File{} }

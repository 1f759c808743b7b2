//go:build !unix

package firewall

import "github.com/opendivert/divert/process"

// fileOf returns the zero File: paths identify executables here.
func fileOf(string) process.File { return process.File{} }

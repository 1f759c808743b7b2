//go:build unix

package firewall

import (
	"os"
	"syscall"

	"github.com/opendivert/divert/process"
)

// fileOf returns the file at a path by device and inode, the zero File if there is none.
func fileOf(path string) process.File {
	info, err := os.Stat(path)
	if err != nil {
		return process.File{}
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return process.File{}
	}
	return process.File{Device: uint64(s.Dev), Inode: uint64(s.Ino)}
}

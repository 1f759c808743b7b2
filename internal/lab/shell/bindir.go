//go:build linux

package shell

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// prefix starts the names of binDirs.
const prefix = "divert-lab-"

// link is the name of the program in a binDir.
const link = "divert"

// binDir is a directory that holds only a link named divert to a program. It is locked while the process that made it
// lives; the next process removes those left by killed processes.
type binDir struct {
	path string
	lock *os.File
}

// newBinDir makes a directory for a program.
func newBinDir(program string) (*binDir, error) {
	clearBinDirs()
	for {
		path, err := os.MkdirTemp("", prefix)
		if err != nil {
			return nil, err
		}
		d := &binDir{path: path}
		if d.lock, err = lockDir(path, unix.LOCK_EX); err == nil {
			err = os.Symlink(program, filepath.Join(path, link))
		}
		if err == nil {
			return d, nil
		}
		if removed := d.remove(); !errors.Is(err, os.ErrNotExist) {
			return nil, errors.Join(err, removed)
		}
		// Another process removed it as a leftover before it was locked.
	}
}

// remove removes the directory.
func (d *binDir) remove() error {
	err := removeDir(d.path)
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
	}
	return err
}

// clearBinDirs removes this user's unlocked directories. Those that cannot be removed stay for the next time.
func clearBinDirs() {
	paths, _ := filepath.Glob(filepath.Join(os.TempDir(), prefix+"*")) // fails only for a bad pattern
	for _, path := range paths {
		if lock, err := lockDir(path, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			_ = removeDir(path)
			lock.Close()
		}
	}
}

// lockDir locks a directory that belongs to this user and is not a link.
func lockDir(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && int(info.Sys().(*syscall.Stat_t).Uid) != os.Getuid() {
		err = os.ErrPermission
	}
	if err == nil {
		err = flock(f, how)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// flock is flock(2), repeated when a signal interrupts it.
func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return os.NewSyscallError("flock", err)
		}
	}
}

// removeDir removes a binDir. A directory with any other content is not a binDir, and stays.
func removeDir(path string) error {
	err := os.Remove(filepath.Join(path, link))
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = os.Remove(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lookup reads /proc/ID (proc_pid_stat(5) and its neighbours). Between two reads the process may end and another take the
// id, so the start is read again at the end.
func lookup(id uint32) (Process, error) {
	for {
		p, err := read(id)
		if err != nil {
			return p, err
		}
		if started, err := startOf(id); err != nil || started == p.started {
			return p, err
		}
	}
}

func read(id uint32) (Process, error) {
	s, err := stat(id)
	if err != nil {
		return Process{}, err
	}
	dir := fmt.Sprintf("/proc/%d", id)
	p := Process{ID: id, Parent: s.parent, Name: s.name, Start: startTime(s.started), started: s.started}
	var folder unix.Stat_t
	if unix.Stat(dir, &folder) == nil {
		p.UID = folder.Uid // the effective user (proc_pid(5)); root for processes that cannot be inspected
		p.User = userName(folder.Uid)
	}
	if path, err := os.Readlink(dir + "/exe"); err == nil {
		p.Executable = strings.TrimSuffix(path, " (deleted)")
		var file unix.Stat_t
		if unix.Stat(dir+"/exe", &file) == nil {
			p.File = File{Device: file.Dev, Inode: file.Ino}
		}
	}
	if line, err := os.ReadFile(dir + "/cmdline"); err == nil && len(line) > 0 {
		p.Args = strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	}
	return p, nil
}

// startOf returns the start of the process that has the id now, in ticks since the boot.
func startOf(id uint32) (uint64, error) {
	s, err := stat(id)
	return s.started, err
}

// statLine has the fields of /proc/ID/stat.
type statLine struct {
	name    string
	parent  uint32
	started uint64 // ticks since the boot
}

func stat(id uint32) (statLine, error) {
	var line [1 << 10]byte // a name of 15 bytes and fifty numbers
	b, err := readInto(line[:], "/proc/"+strconv.FormatUint(uint64(id), 10)+"/stat")
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		if _, err := os.Stat("/proc/self"); err != nil {
			return statLine{}, fmt.Errorf("/proc is not mounted: %w", err)
		}
		return statLine{}, ErrEnded
	case err != nil:
		return statLine{}, err
	}
	return parseStat(b)
}

// readInto reads the beginning of a file of /proc in as few calls as possible: a Cache does so for every event.
func readInto(b []byte, path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Read(fd, b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		return b[:n], nil
	}
}

// parseStat reads a line of /proc/ID/stat. The name, in parentheses, may hold any bytes, parentheses too.
func parseStat(b []byte) (s statLine, err error) {
	begin, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if begin < 0 || end < begin {
		return s, fmt.Errorf("/proc/ID/stat is %q", b)
	}
	const parent, start = 4 - 3, 22 - 3 // fields are counted from 1, and those from 3 on follow the name
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) <= start {
		return s, fmt.Errorf("/proc/ID/stat is %q", b)
	}
	ppid, err := strconv.ParseUint(fields[parent], 10, 32)
	if err != nil {
		return s, fmt.Errorf("/proc/ID/stat is %q", b)
	}
	if s.started, err = strconv.ParseUint(fields[start], 10, 64); err != nil {
		return s, fmt.Errorf("/proc/ID/stat is %q", b)
	}
	s.name, s.parent = string(b[begin+1:end]), uint32(ppid)
	return s, nil
}

// userHZ is the ticks of /proc in a second: USER_HZ, which is 100 on every architecture that Go has.
const userHZ = 100

// bootTime is the time at which the system was booted.
var bootTime = sync.OnceValue(func() time.Time {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(now.Nano()))
})

func startTime(ticks uint64) time.Time {
	return bootTime().Add(time.Duration(ticks) * (time.Second / userHZ)).Round(time.Second / userHZ)
}

// names are those of users, by number. A look-up may take long.
var names sync.Map

func userName(uid uint32) string {
	if name, ok := names.Load(uid); ok {
		return name.(string)
	}
	name := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	names.Store(uid, name)
	return name
}

//go:build linux

package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNone means that there is no way to the cgroup hierarchy of version 2.
var ErrNone = errors.New("no cgroup2 file system is mounted where the program sees it, and to do without takes" +
	" CAP_SYS_ADMIN and Linux 5.2 (mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2)")

// Remedy says what to do where programs cannot be attached to cgroups.
const Remedy = "run as root outside user namespaces; without CAP_SYS_ADMIN a cgroup2 file system must be mounted (mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2)"

// Cgroup is the cgroup that programs are attached to.
type Cgroup struct {
	Dir   *os.File // its directory; belongs to the opener
	Path  string   // where it is mounted, "" if nowhere
	Whole bool     // it is the root of the hierarchy, so that the programs see every process
}

// Open opens the root of the cgroup hierarchy of version 2, or, in a container, of the part of it that the
// container has. It need not be mounted: `ip netns exec`, which mounts a /sys of its own, leaves it out.
func Open() (*Cgroup, error) {
	part, err := mounted()
	if err != nil || part != nil && part.Whole {
		return part, err
	}
	detached, err := detachedMount()
	if part == nil {
		return detached, err
	}
	if err == nil && detached.Whole {
		part.Dir.Close()
		return detached, nil
	}
	if err == nil {
		detached.Dir.Close()
	}
	return part, nil
}

// mounted opens the mounted part of the hierarchy, the root if that is mounted. It returns nil if nothing is.
func mounted() (part *Cgroup, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// proc_pid_mountinfo(5): id, parent, device, root, mount point, options, fields, "-", type, ...
		mount, kind, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(mount)
		if !ok || len(fields) < 5 || !strings.HasPrefix(kind, "cgroup2 ") {
			continue
		}
		c, err := at(unescape(fields[4]))
		if err != nil {
			continue // something else is mounted above it, or it is not ours to open
		}
		if c.Whole || part == nil {
			c, part = part, c
		}
		if c != nil {
			c.Dir.Close()
		}
		if part.Whole {
			return part, nil
		}
	}
	return part, nil
}

// errOther means that a directory is not that of a cgroup.
var errOther = errors.New("not a cgroup")

// at opens a directory of a mounted hierarchy.
func at(path string) (*Cgroup, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	c, err := of(dir)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	c.Path = path
	return c, nil
}

// of identifies a directory.
func of(dir *os.File) (*Cgroup, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil {
		return nil, os.NewSyscallError("fstatfs", err)
	}
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, errOther
	}
	return &Cgroup{Dir: dir, Whole: st.Ino == rootInode}, nil
}

// detachedMount makes a mount of the hierarchy that is nowhere in the file system and ends with its descriptor (fsopen(2), since
// Linux 5.2; CAP_SYS_ADMIN). Its root is that of the cgroup namespace. The error is ErrNone, not that of a missing right, which
// a caller would take for CAP_BPF.
func detachedMount() (*Cgroup, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("%w: fsopen: %v", ErrNone, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("%w: fsconfig: %v", ErrNone, err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("%w: fsmount: %v", ErrNone, err)
	}
	dir := os.NewFile(uintptr(mount), "cgroup2")
	c, err := of(dir)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	return c, nil
}

// rootInode is the inode of the root of a cgroup hierarchy (fs/kernfs: the first one it gives).
const rootInode = 1

// unescape turns the octal sequences in a path of mountinfo back.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

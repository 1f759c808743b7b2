//go:build linux

package sockets

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
)

// ErrNoCgroup means that there is no way to the cgroup hierarchy of version 2.
var ErrNoCgroup = errors.New("no cgroup2 file system is mounted where the program sees it, and to do without takes" +
	" CAP_SYS_ADMIN and Linux 5.2 (mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2)")

// Cgroup is the cgroup that programs are attached to.
type Cgroup struct {
	Dir   *os.File // its directory; belongs to who has opened it
	Path  string   // where it is mounted, "" if nowhere
	Whole bool     // it is the root of the hierarchy, so that the programs see every process
}

// OpenCgroup opens the root of the cgroup hierarchy of version 2, or, in a container, of the part of it that the
// container has. It need not be mounted: `ip netns exec`, which mounts a /sys of its own, leaves it out.
func OpenCgroup() (*Cgroup, error) {
	part, err := mountedCgroup()
	if err != nil || part != nil && part.Whole {
		return part, err
	}
	detached, err := detachedCgroup()
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

// mountedCgroup opens what is mounted of the hierarchy, the root if that is. It returns nil if nothing is.
func mountedCgroup() (part *Cgroup, err error) {
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
		c, err := cgroupAt(unescape(fields[4]))
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

// errNoCgroup means that a directory is none of a cgroup.
var errNoCgroup = errors.New("not a cgroup")

// cgroupAt opens a directory of a mounted hierarchy.
func cgroupAt(path string) (*Cgroup, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	c, err := cgroupOf(dir)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	c.Path = path
	return c, nil
}

// cgroupOf says what a directory is.
func cgroupOf(dir *os.File) (*Cgroup, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil {
		return nil, os.NewSyscallError("fstatfs", err)
	}
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, errNoCgroup
	}
	return &Cgroup{Dir: dir, Whole: st.Ino == rootInode}, nil
}

// detachedCgroup makes a mount of the hierarchy that is nowhere in the file system and ends with its descriptor (fsopen(2),
// since Linux 5.2; CAP_SYS_ADMIN). Its root is that of the cgroup namespace. The error is ErrNoCgroup and not that of a missing right,
// which would be taken for CAP_BPF.
func detachedCgroup() (*Cgroup, error) {
	fs, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("%w: fsopen: %v", ErrNoCgroup, err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("%w: fsconfig: %v", ErrNoCgroup, err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("%w: fsmount: %v", ErrNoCgroup, err)
	}
	dir := os.NewFile(uintptr(mount), "cgroup2")
	c, err := cgroupOf(dir)
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

// attach links a program to the cgroup, before the programs of handles with a lower key. It reports false if
// that was not to be had: before Linux 6.17 programs run in the order in which they were attached.
func attach(cgroup *os.File, kind ebpf.AttachType, p *ebpf.Program, key cursor.Key) (l link.Link, ordered bool, err error) {
	var lower link.ID
	placed := true
	for range attachTries {
		if lower, placed = firstBelow(cgroup, kind, key); !placed {
			break
		}
		l, err := linkBefore(cgroup, kind, p, lower)
		if err == nil {
			return l, true, nil
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAGAIN) {
			break // else the lower handle has closed meanwhile, of whichever namespace it was
		}
	}
	l, err = link.AttachRawLink(link.RawLinkOptions{Target: int(cgroup.Fd()), Program: p, Attach: kind})
	return l, !placed, err
}

// attachTries is how often a place among the attached programs is looked for while others come and go.
const attachTries = 20

// firstBelow returns the link of the first attached program of a handle with a lower key.
func firstBelow(cgroup *os.File, kind ebpf.AttachType, key cursor.Key) (link.ID, bool) {
	attached, err := link.QueryPrograms(link.QueryOptions{Target: int(cgroup.Fd()), Attach: kind})
	if err != nil {
		return 0, false
	}
	for _, a := range attached.Programs {
		p, err := ebpf.NewProgramFromID(a.ID)
		if err != nil {
			continue // gone, or not ours to look at
		}
		info, err := p.Info()
		p.Close()
		if err != nil {
			continue
		}
		if k, ok := parseProgramName(info.Name); ok && k < key {
			if l, ok := linkOf(a.ID); ok { // else it is gone by now
				return l, true
			}
		}
	}
	return 0, false
}

// linkOf returns the link that holds a program on a cgroup.
func linkOf(p ebpf.ProgramID) (link.ID, bool) {
	var links link.Iterator
	defer links.Close()
	for links.Next() {
		if info, err := links.Link.Info(); err == nil && info.Program == p && info.Type == link.CgroupType {
			return links.ID, true
		}
	}
	return 0, false
}

// linkBefore is BPF_LINK_CREATE with a place among the attached programs (linux/bpf.h, since Linux 6.17).
func linkBefore(cgroup *os.File, kind ebpf.AttachType, p *ebpf.Program, before link.ID) (link.Link, error) {
	const linkCreate, flagBefore, flagID, flagLink = 28, 1 << 3, 1 << 5, 1 << 13
	attr := struct {
		program, target, kind, flags uint32
		relative                     uint32
		_                            uint32
		revision                     uint64
	}{
		program: uint32(p.FD()), target: uint32(cgroup.Fd()), kind: uint32(kind),
		flags: flagBefore | flagID | flagLink, relative: uint32(before),
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, linkCreate, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(p)
	runtime.KeepAlive(cgroup)
	if errno != 0 {
		return nil, os.NewSyscallError("bpf", errno)
	}
	return link.NewFromFD(int(fd))
}

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

// ErrNoCgroup means that no cgroup hierarchy of version 2 is mounted.
var ErrNoCgroup = errors.New("no cgroup2 file system is mounted")

// Root returns where the cgroup hierarchy of version 2 is mounted, and whether what is mounted there is
// its root: in a container it may be the container's part of it only.
func Root() (path string, whole bool, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		// proc_pid_mountinfo(5): id, parent, device, root, mount point, options, fields, "-", type, ...
		mount, kind, ok := strings.Cut(s.Text(), " - ")
		fields := strings.Fields(mount)
		if !ok || len(fields) < 5 || !strings.HasPrefix(kind, "cgroup2 ") {
			continue
		}
		path = unescape(fields[4])
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return "", false, fmt.Errorf("%s: %w", path, err)
		}
		return path, st.Ino == rootInode, nil
	}
	return "", false, ErrNoCgroup
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

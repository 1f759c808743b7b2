//go:build linux

package cgroup

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/kernel"
)

// Order: a program can be attached before others.
var Order = &kernel.Feature{
	Name: "the order of programs on cgroups", Since: kernel.Version{Major: 6, Minor: 17}, For: "priorities of handles of the layer socket",
	Without: "they meet an operation in the order in which they were opened", Remedy: "a newer kernel",
}

// Attach links a program to the cgroup, before the programs of handles with a lower key. It reports false if
// that was not to be had: before Linux 6.17 programs run in the order in which they were attached.
func Attach(cgroup *os.File, kind ebpf.AttachType, p *ebpf.Program, key cursor.Key) (l link.Link, ordered bool, err error) {
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
			break // else the lower handle, of whichever namespace, has closed meanwhile
		}
	}
	l, err = link.AttachRawLink(link.RawLinkOptions{Target: int(cgroup.Fd()), Program: p, Attach: kind})
	return l, !placed, err
}

// attachTries is how often Attach looks for a place among the attached programs while others come and go.
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

// ProgramName names a handle's programs, so that others can place theirs before or behind them.
func ProgramName(k cursor.Key) string { return fmt.Sprintf("divert_%06x", uint32(k)) }

// parseProgramName returns the key in the name of a program.
func parseProgramName(name string) (k cursor.Key, ok bool) {
	var v uint32
	_, err := fmt.Sscanf(name, "divert_%06x", &v)
	return cursor.Key(v), err == nil && name == ProgramName(cursor.Key(v))
}

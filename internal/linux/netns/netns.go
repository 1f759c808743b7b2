//go:build linux

// Package netns keeps hold of a network namespace and brings work into it.
//
// A handle belongs to the namespace of the thread that opened it, but the goroutine that later closes
// it or needs one more socket may run on a thread of any other.
package netns

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// path names the network namespace of the calling thread.
const path = "/proc/thread-self/ns/net"

// LoopbackIndex is the index of the interface lo in every network namespace (include/net/net_namespace.h, LOOPBACK_IFINDEX).
const LoopbackIndex = 1

// Namespace is a network namespace held open. Its methods may be called from several goroutines.
type Namespace struct {
	file     *os.File
	dev, ino uint64
}

// Current returns the namespace of the calling thread.
func Current() (*Namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("network namespace of this thread: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, fmt.Errorf("network namespace of this thread: %w", err)
	}
	return &Namespace{file: f, dev: st.Dev, ino: st.Ino}, nil
}

// Close lets go of the namespace.
func (n *Namespace) Close() error { return n.file.Close() }

// Inode returns the number by which tools name the namespace, as in net:[4026531840].
func (n *Namespace) Inode() uint64 { return n.ino }

// CurrentInode returns the Inode of the calling thread's namespace.
func CurrentInode() (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return uint32(st.Ino), nil
}

// Cookie returns the number by which programs in the kernel know the calling thread's network namespace (SO_NETNS_COOKIE, since Linux 5.14).
func Cookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return cookie, os.NewSyscallError("getsockopt SO_NETNS_COOKIE", err)
}

// here reports whether the calling thread is in the namespace.
func (n *Namespace) here() bool {
	var st unix.Stat_t
	return unix.Stat(path, &st) == nil && st.Dev == n.dev && st.Ino == n.ino
}

// Do runs f on a thread that is in the namespace. A thread that is there already is used as it is, so
// a program that never changes namespaces needs no right to do so (setns asks for CAP_SYS_ADMIN).
func (n *Namespace) Do(f func() error) error {
	runtime.LockOSThread()
	if n.here() {
		defer runtime.UnlockOSThread()
		return f()
	}
	runtime.UnlockOSThread()
	done := make(chan error, 1)
	go func() { done <- n.visit(f) }()
	return <-done
}

// visit moves the calling goroutine's thread into the namespace for f. A thread that cannot return stays
// locked and so ends with its goroutine.
func (n *Namespace) visit(f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open(path)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter the handle's network namespace: %w", err)
	}
	defer func() {
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return f()
}

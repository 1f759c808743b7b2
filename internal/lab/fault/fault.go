//go:build linux

// Package fault makes system calls of another process fail, one after the other, to test how it handles errors. The
// process traps the calls with seccomp; the test decides each of them (seccomp_unotify(2), Linux 5.19).
package fault

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Call is a system call that waits for a decision.
type Call struct {
	Number int // unix.SYS_…
	Args   [6]uint64
}

// Decide returns the fate of a call: 0 lets it go on, any other value is the error that it returns.
type Decide func(c Call) unix.Errno

// Trap makes all threads of the calling process, and its children, ask before each of the calls. It returns the
// descriptor for Attach. mmap asks only for files, because Go's runtime does not survive a failed mmap of memory. From
// then on each of the calls waits for the test: a process that traps the call with which it would pass on the
// descriptor waits for ever.
func Trap(calls ...uint32) (fd int, err error) {
	const nr, fileOfMmap = 0, 16 + 4*8 // struct seccomp_data
	code := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nr}}
	for _, c := range calls {
		if c == unix.SYS_MMAP {
			continue
		}
		code = append(code,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: c, Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	code = append(code,
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_MMAP, Jf: 3},
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: fileOfMmap},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 1<<32 - 1, Jt: 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	p := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH |
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	r, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&p)))
	if e != 0 {
		return -1, os.NewSyscallError("seccomp", e)
	}
	return int(r), nil
}

// Supervisor decides the calls of one process. Several goroutines may call its methods.
type Supervisor struct {
	fd     int
	end    [2]int // a pipe
	done   chan struct{}
	mu     sync.Mutex
	decide Decide
	count  int
	failed error
}

// Attach takes over the descriptor that Trap returned in another process, and lets every call go on until Arm.
func Attach(pid, fd int) (*Supervisor, error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(process)
	s := &Supervisor{done: make(chan struct{})}
	if s.fd, err = unix.PidfdGetfd(process, fd, 0); err != nil {
		return nil, os.NewSyscallError("pidfd_getfd", err)
	}
	if err := unix.Pipe2(s.end[:], unix.O_CLOEXEC); err != nil {
		return nil, errors.Join(err, unix.Close(s.fd))
	}
	go s.serve()
	return s, nil
}

// Arm makes d decide from now on, and counts from 0 again; nil lets every call go on.
func (s *Supervisor) Arm(d Decide) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.decide, s.count = d, 0
}

// Count returns the number of calls since Arm, and the error of the supervision, if any.
func (s *Supervisor) Count() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count, s.failed
}

// Close ends the supervision. Waiting and later calls fail with ENOSYS.
func (s *Supervisor) Close() error {
	err := unix.Close(s.end[1])
	<-s.done
	return errors.Join(err, unix.Close(s.end[0]), unix.Close(s.fd))
}

// notification and response are struct seccomp_notif and struct seccomp_notif_resp.
type notification struct {
	id      uint64
	pid     uint32
	flags   uint32
	number  int32
	arch    uint32
	pointer uint64
	args    [6]uint64
}

type response struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

// Requests of ioctl (include/uapi/linux/seccomp.h).
const (
	notifyReceive = 0xC0502100
	notifySend    = 0xC0182101
)

func (s *Supervisor) serve() {
	defer close(s.done)
	for {
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.end[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			s.fail(fmt.Errorf("poll: %w", err))
			return
		}
		if fds[1].Revents != 0 || fds[0].Revents&unix.POLLIN == 0 {
			return // closed, or the process has ended
		}
		var n notification
		if err := ioctl(s.fd, notifyReceive, unsafe.Pointer(&n)); err == unix.ENOENT || err == unix.EINTR {
			continue // the thread has ended
		} else if err != nil {
			s.fail(fmt.Errorf("receive: %w", err))
			return
		}
		r := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		s.mu.Lock()
		s.count++
		if s.decide != nil {
			if e := s.decide(Call{int(n.number), n.args}); e != 0 {
				r.err, r.flags = -int32(e), 0
			}
		}
		s.mu.Unlock()
		if err := ioctl(s.fd, notifySend, unsafe.Pointer(&r)); err != nil && err != unix.ENOENT {
			s.fail(fmt.Errorf("send: %w", err))
			return
		}
	}
}

func (s *Supervisor) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); e != 0 {
		return e
	}
	return nil
}

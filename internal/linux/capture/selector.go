//go:build linux

package capture

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/verdict"
)

// selector waits for any of several lanes: an epoll descriptor that looks at their sockets. Like the sockets, it is not watched
// by the runtime's poller, which would learn of every packet that comes. A nil selector has nothing to wake and nothing to
// close.
type selector struct {
	lanes    []*verdict.Lane
	fd, bell int // the epoll descriptor, and an eventfd: rung, it ends a wait
	turn     atomic.Uint32

	mu      sync.RWMutex // held for reading while the descriptors are in use
	closed  bool
	drained atomic.Bool  // no receiver waits any more
	waiting *engine.Turn // of the waiting goroutine: the others would be woken for the same packet
}

func newSelector(lanes []*verdict.Lane) (*selector, error) {
	s := &selector{lanes: lanes, bell: -1, waiting: engine.NewTurn()}
	var err error
	if s.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if s.bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, errors.Join(os.NewSyscallError("eventfd", err), s.close())
	}
	for _, l := range lanes {
		var added error
		err := l.Control(func(queue uintptr) {
			added = unix.EpollCtl(s.fd, unix.EPOLL_CTL_ADD, int(queue), &unix.EpollEvent{Events: unix.EPOLLIN})
		})
		if err := errors.Join(err, os.NewSyscallError("epoll_ctl", added)); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

// next returns the lanes in turn.
func (s *selector) next() *verdict.Lane { return s.lanes[s.turn.Add(1)%uint32(len(s.lanes))] }

// wait waits until a lane may hold a packet, or drain is called. It fails with engine.ErrInterrupted when w has ended
// and with os.ErrClosed after close.
func (s *selector) wait(w engine.Wait) error {
	if !s.waiting.Take(w) {
		return engine.ErrInterrupted
	}
	defer s.waiting.Release()
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case s.closed:
		return os.ErrClosed
	case w.Ended():
		return engine.ErrInterrupted
	case s.drained.Load():
		return nil
	}
	fds := [...]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.bell), Events: unix.POLLIN}}
	if _, err := unix.Ppoll(fds[:], nil, nil); err != nil && err != unix.EINTR {
		return os.NewSyscallError("ppoll", err)
	}
	if fds[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(s.bell, count[:])
	}
	return nil
}

// ring ends the present wait, or the next one.
func (s *selector) ring() {
	one := [8]byte{1}
	_, _ = unix.Write(s.bell, one[:]) // fails only when it has been rung 2^64-2 times
}

// wake makes the waiting goroutine look again. Those that wait for their turn need no waking.
func (s *selector) wake() {
	if s == nil {
		return
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.closed {
		s.ring()
	}
}

// drain ends waiting for good.
func (s *selector) drain() {
	if s != nil {
		s.drained.Store(true)
		s.wake()
	}
}

func (s *selector) close() error {
	if s == nil {
		return nil
	}
	s.wake()
	s.mu.Lock() // until the waiting goroutine has left
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	s.closed = true
	err := os.NewSyscallError("close", unix.Close(s.fd))
	if s.bell >= 0 {
		err = errors.Join(err, os.NewSyscallError("close", unix.Close(s.bell)))
	}
	return err
}

//go:build linux

package main

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert/internal/lab"
)

// streaming returns the load of several TCP connections that send as much as they can. It counts the bytes that the
// receivers have read.
func streaming(streams int) func(*course) error {
	return func(c *course) error {
		s := &bulk{course: c}
		err := s.start(streams)
		if err == nil {
			err = s.measure()
		}
		return errors.Join(err, s.close())
	}
}

// bulk holds the connections of a streaming load.
type bulk struct {
	*course
	listener net.Listener
	conns    []net.Conn
	received atomic.Int64
	work     sync.WaitGroup
}

// bulkBuffer is the size of each write and read, in bytes.
const bulkBuffer = 256 << 10

func (s *bulk) start(streams int) (err error) {
	if s.listener, err = s.to.Listen("tcp", s.target().String()); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for range streams {
		client, err := s.from.Dial(ctx, "tcp", s.aim().String())
		if err != nil {
			return err
		}
		s.conns = append(s.conns, client)
		server, err := s.listener.Accept()
		if err != nil {
			return err
		}
		s.conns = append(s.conns, server)
		s.work.Go(func() { s.send(client) })
		s.work.Go(func() { s.receive(server) })
	}
	return nil
}

// send writes until the connection is closed.
func (s *bulk) send(c net.Conn) {
	b := make([]byte, bulkBuffer)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// receive reads until the connection is closed.
func (s *bulk) receive(c net.Conn) {
	b := make([]byte, bulkBuffer)
	for {
		n, err := c.Read(b)
		s.received.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// measure lets the connections reach full speed and then counts.
func (s *bulk) measure() error {
	time.Sleep(s.duration / 4)
	if err := s.begin(); err != nil {
		return err
	}
	began, before := time.Now(), s.received.Load()
	time.Sleep(s.duration)
	count, took := s.received.Load()-before, time.Since(began)
	return s.end(took, float64(count)/s.cell.load.per)
}

// close ends the connections at once, so that none of their packets are in flight during the next load.
func (s *bulk) close() error {
	var err error
	if s.listener != nil {
		err = s.listener.Close()
	}
	for _, c := range s.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	s.work.Wait()
	return err
}

// connecting returns the load of short connections, parallel at a time: connect, a request, a response, the server's
// end, and the client's reset, which leaves no port in TIME-WAIT.
func connecting(parallel int) func(*course) error {
	return func(c *course) error {
		server, err := serveShort(c.to, c.target(), parallel)
		if err != nil {
			return err
		}
		err = connectFor(c, parallel)
		return errors.Join(err, server.close())
	}
}

// connectFor makes connections for the duration and measures.
func connectFor(c *course, parallel int) error {
	if err := c.begin(); err != nil {
		return err
	}
	began := time.Now()
	var count, resets atomic.Int64
	var clients []<-chan error
	for range parallel {
		clients = append(clients, c.from.Go(func() error {
			for time.Since(began) < c.duration {
				switch err := connectOnce(c.target()); {
				case errors.Is(err, unix.ECONNRESET) && resets.Add(1) <= mostResets:
				case err != nil:
					return err
				default:
					count.Add(1)
				}
			}
			return nil
		}))
	}
	var errs []error
	for _, done := range clients {
		errs = append(errs, <-done)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.cell.Resets = uint64(resets.Load())
	return c.end(time.Since(began), float64(count.Load()))
}

// mostResets is how many connections of a cell the server's kernel may reset by itself. It does so to one in 100,000 when their
// handshake ends on another processor than their first data are sent on (docs/linux.md).
const mostResets = 10

// shortMessage is the length of request and response, in bytes.
const shortMessage = 64

// tcpSocket returns a blocking socket that waits no longer than patience.
func tcpSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := limitWaits(fd); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// limitWaits makes a socket's calls fail after patience.
func limitWaits(fd int) error {
	for _, opt := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		tv := unix.NsecToTimeval(int64(patience))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, opt, &tv); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

func connectOnce(target netip.AddrPort) error {
	fd, err := tcpSocket()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := connectThrough(fd, target); err != nil {
		return err
	}
	var b [shortMessage]byte
	if _, err := unix.Write(fd, b[:]); err != nil {
		return os.NewSyscallError("send", err)
	}
	for {
		switch n, err := read(fd, b[:]); {
		case err != nil:
			return os.NewSyscallError("recv", err)
		case n == 0:
			return nil
		}
	}
}

// read reads from a socket with limited waits, and continues when a signal interrupts it (signal(7)).
func read(fd int, b []byte) (n int, err error) {
	for {
		if n, err = unix.Read(fd, b); err != unix.EINTR {
			return n, err
		}
	}
}

// connectThrough connects a socket. A call interrupted by a signal continues to wait when it is repeated
// (net/ipv4/af_inet.c, __inet_stream_connect).
func connectThrough(fd int, target netip.AddrPort) error {
	for {
		switch err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(target.Port()), Addr: target.Addr().As4()}); err {
		case unix.EINTR:
		case unix.EISCONN:
			return nil
		default:
			return os.NewSyscallError("connect", err)
		}
	}
}

// shortServer answers short connections.
type shortServer struct {
	fd      int
	workers []<-chan error
}

func serveShort(h *lab.Host, at netip.AddrPort, parallel int) (*shortServer, error) {
	s := &shortServer{fd: -1}
	err := h.Do(func() (err error) {
		if s.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if err := unix.Bind(s.fd, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}); err != nil {
			return os.NewSyscallError("bind", err)
		}
		return os.NewSyscallError("listen", unix.Listen(s.fd, 1024))
	})
	if err != nil {
		if s.fd >= 0 {
			unix.Close(s.fd)
		}
		return nil, err
	}
	for range parallel {
		s.workers = append(s.workers, h.Go(s.serve))
	}
	return s, nil
}

// serve answers connections until the listener is shut down.
func (s *shortServer) serve() error {
	var b [shortMessage]byte
	for {
		fd, _, err := unix.Accept4(s.fd, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
		case unix.EINTR, unix.ECONNABORTED:
			continue
		case unix.EINVAL:
			return nil // shut down
		default:
			return os.NewSyscallError("accept", err)
		}
		if limitWaits(fd) == nil {
			// The client sees the errors.
			if _, err := read(fd, b[:]); err == nil {
				_, _ = unix.Write(fd, b[:])
			}
		}
		unix.Close(fd)
	}
}

func (s *shortServer) close() error {
	errs := []error{os.NewSyscallError("shutdown", unix.Shutdown(s.fd, unix.SHUT_RDWR))}
	for _, w := range s.workers {
		errs = append(errs, <-w)
	}
	return errors.Join(append(errs, unix.Close(s.fd))...)
}

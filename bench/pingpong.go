//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// pingPongPort is the client's port, fixed so that both ends can be connected.
const pingPongPort = 4001

// pingPongSize is the length of the messages, in bytes.
const pingPongSize = 32

// pingPong is the load with one packet in flight: its result is the time of each round trip.
func pingPong(c *course) error {
	client := netip.AddrPortFrom(c.from.Addr4(), pingPongPort)
	// The server starts before the first request: a refusal may be late or missing, since the kernel limits their rate.
	var fd int
	if err := c.to.Do(func() (err error) {
		fd, err = udpSocket(c.target(), client)
		return err
	}); err != nil {
		return err
	}
	defer unix.Close(fd)
	var stop atomic.Bool
	server := c.to.Go(func() error { return echo(&stop, fd) })
	err := c.from.Do(func() error { return c.ping(client) })
	stop.Store(true)
	return errors.Join(err, <-server)
}

// echo sends back the datagrams of a connected socket until stop.
func echo(stop *atomic.Bool, fd int) error {
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20000}); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	b := make([]byte, pingPongSize)
	for !stop.Load() {
		n, err := unix.Read(fd, b)
		if err == nil {
			_, err = unix.Write(fd, b[:n])
		}
		switch err {
		case nil, unix.EAGAIN, unix.EINTR, unix.ECONNREFUSED: // refused: the client has ended
		default:
			return os.NewSyscallError("echo", err)
		}
	}
	return nil
}

// pingWarmUp is the number of round trips before the measurement.
const pingWarmUp = 100

// ping makes round trips for the duration and measures.
func (c *course) ping(client netip.AddrPort) error {
	fd, err := udpSocket(client, c.target())
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := make([]byte, pingPongSize)
	for i := range uint64(pingWarmUp) {
		// Packets lost here count like all others.
		if _, err := roundTrip(fd, b, i+1); errors.Is(err, unix.EAGAIN) {
			c.cell.Lost++
		} else if err != nil {
			return err
		}
	}
	if err := c.begin(); err != nil {
		return err
	}
	times := make([]time.Duration, 0, 1<<16)
	began := time.Now()
	for n := uint64(pingWarmUp); time.Since(began) < c.duration; n++ {
		t, err := roundTrip(fd, b, n+1)
		if errors.Is(err, unix.EAGAIN) {
			c.cell.Lost++
			continue
		}
		if err != nil {
			return err
		}
		times = append(times, t)
	}
	took := time.Since(began)
	c.cell.Sent = uint64(len(times)) + c.cell.Lost
	if len(times) > 0 {
		slices.Sort(times)
		c.cell.P50, c.cell.P99, c.cell.P999 = percentile(times, 0.5), percentile(times, 0.99), percentile(times, 0.999)
	}
	return c.end(took, float64(len(times)))
}

// roundTrip sends a message with a number and waits for it to come back.
func roundTrip(fd int, b []byte, number uint64) (time.Duration, error) {
	binary.NativeEndian.PutUint64(b, number)
	began := time.Now()
	if _, err := unix.Write(fd, b); err != nil {
		return 0, err
	}
	for {
		_, err := unix.Read(fd, b)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, err
		case binary.NativeEndian.Uint64(b) == number:
			return time.Since(began), nil
		}
	}
}

// percentile returns the q-quantile of sorted times, by the nearest rank.
func percentile(sorted []time.Duration, q float64) time.Duration {
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

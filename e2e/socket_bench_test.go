//go:build linux

package e2e_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/packet"
)

// The operations measured with and without a handle.
var socketCosts = []struct {
	name string
	// setup returns one operation; done releases its resources.
	setup func() (op func() error, done func(), err error)
}{
	{"TCP connect and close", connectLoop},
	{"UDP connect", func() (func() error, func(), error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}
		return func() error { return unix.Connect(fd, to) }, func() { unix.Close(fd) }, err
	}},
	{"UDP sendto and receive", datagramLoop},
}

// connectLoop connects to its own listener, accepts and closes.
func connectLoop() (func() error, func(), error) {
	l, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	err = errors.Join(unix.Bind(l, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(l, 128))
	if err != nil {
		return nil, nil, err
	}
	to, err := unix.Getsockname(l)
	return func() error {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		// Reset, so that no port waits for two minutes.
		err = unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		err = errors.Join(err, unix.Connect(c, to))
		s, _, accepted := unix.Accept4(l, unix.SOCK_CLOEXEC)
		return errors.Join(err, accepted, unix.Close(c), unix.Close(s))
	}, func() { unix.Close(l) }, err
}

// datagramLoop sends a datagram to its own socket and receives it.
func datagramLoop() (func() error, func(), error) {
	var fds [2]int
	for i := range fds {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
		}
		if err != nil {
			return nil, nil, err
		}
		fds[i] = fd
	}
	to, err := unix.Getsockname(fds[1])
	b := make([]byte, 64)
	return func() error {
		if err := unix.Sendto(fds[0], b, 0, to); err != nil {
			return err
		}
		_, _, err := unix.Recvfrom(fds[1], b, 0)
		return err
	}, func() { unix.Close(fds[0]); unix.Close(fds[1]) }, err
}

// BenchmarkSocketCost reports the cost of a handle whose filter matches nothing: the ratio of processor time per
// operation with and without it, from medians of alternating rounds.
func BenchmarkSocketCost(b *testing.B) {
	handles := []struct {
		name   string
		layer  divert.Layer
		filter string
		flags  divert.Flag
	}{
		{"SOCKET CONNECT", packet.LayerSocket, "event == CONNECT and remotePort == 1 and processId == 1", divert.Sniff},
		{"SOCKET CONNECT refusing", packet.LayerSocket, "event == CONNECT and remotePort == 1 and processId == 1", 0},
		{"SOCKET all events", packet.LayerSocket, "remotePort == 1 and processId == 1", divert.Sniff},
		{"FLOW", packet.LayerFlow, "remotePort == 1 and processId == 1", divert.Sniff},
		{"NETWORK", packet.LayerNetwork, "remotePort == 1", divert.Sniff},
		{"NETWORK processes", packet.LayerNetwork, "remotePort == 1 and processId == 1", divert.Sniff},
	}
	for _, cost := range socketCosts {
		for _, h := range handles {
			b.Run(cost.name+"/"+h.name, func(b *testing.B) {
				pair := lab.TwoHostsT(b, lab.LinkOptions{})
				const rounds = 15
				var without, with []time.Duration
				n := max(b.N/rounds, 1)
				err := pair.A.Do(func() error {
					for range rounds {
						for _, open := range []bool{false, true} {
							took, err := socketRound(b, cost.setup, n, open, h.layer, h.filter, h.flags)
							if err != nil {
								return err
							}
							if open {
								with = append(with, took)
							} else {
								without = append(without, took)
							}
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
				slices.Sort(without)
				slices.Sort(with)
				mid := rounds / 2
				b.ReportMetric(float64(with[mid])/float64(without[mid]), "times")
				b.ReportMetric(float64(with[mid]-without[mid])/float64(n), "ns-added/op")
				b.ReportMetric(float64(without[mid])/float64(n), "ns/op")
			})
		}
	}
}

// socketRound times n operations, with a handle or without.
func socketRound(b *testing.B, setup func() (func() error, func(), error), n int, open bool, layer divert.Layer, text string, flags divert.Flag) (time.Duration, error) {
	if open {
		d, err := divert.Open(text, divert.WithLayer(layer), divert.WithFlags(flags|divert.RecvOnly))
		if errors.Is(err, divert.ErrNotSupported) {
			b.Skip(err)
		}
		if err != nil {
			return 0, err
		}
		defer d.Close()
	}
	op, done, err := setup()
	if err != nil {
		return 0, err
	}
	defer done()
	start, err := threadTime()
	if err != nil {
		return 0, err
	}
	for range n {
		if err := op(); err != nil {
			return 0, err
		}
	}
	end, err := threadTime()
	return end - start, err
}

// threadTime returns the processor time of the calling thread. It includes the kernel's work for the loopback
// interface, and excludes other work of the machine.
func threadTime() (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano()), err
}

//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/opendivert/divert"
)

// workerEnv holds the specification of a process with handles, as JSON.
const workerEnv = "DIVERT_SOAK_WORKER"

// workerSpec is that specification.
type workerSpec struct {
	Ports   []int // of the flows
	Handles int
	Seed    uint64
	Engine  divert.Engine
}

// workerSum is a worker's report when it ends normally.
type workerSum struct {
	Opened, Changed     int
	Carried, Copies     uint64
	Lost, Sent, Foreign uint64
}

// work opens, changes and closes handles until standard input ends.
func work(spec string) error {
	var w workerSpec
	if err := json.Unmarshal([]byte(spec), &w); err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	sum, err := w.live(stop)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(sum)
}

// handle is an open handle with its reader.
type handle struct {
	d     *divert.Handle
	flags divert.Flag
	done  chan error
}

// filter returns a filter for a handle; each may follow any other.
func (w *workerSpec) filter(r *rand.Rand) string {
	port := w.Ports[r.IntN(len(w.Ports))]
	texts := []string{
		fmt.Sprintf("outbound and udp.DstPort == %d", port),
		fmt.Sprintf("inbound and udp.DstPort == %d", port),
		fmt.Sprintf("udp and (remotePort == %d or localPort == %d)", port, port),
		"udp", "true", "tcp", "false", "ipv6 and udp.PayloadLength > 10"}
	if w.Engine == divert.EngineKernel {
		texts = append(texts, "processId != 0 and udp")
	}
	return texts[r.IntN(len(texts))]
}

func (w *workerSpec) open(r *rand.Rand) (*handle, error) {
	flags := []divert.Flag{0, 0, 0, divert.Sniff, divert.Fragments}[r.IntN(5)]
	d, err := divert.Open(w.filter(r), divert.WithFlags(flags), divert.WithEngine(w.Engine), divert.WithPriority(int16(r.IntN(2000)-1000)),
		divert.WithQueueLength(16384), divert.WithQueueTime(16*time.Second), divert.WithQueueSize(32<<20))
	if err != nil {
		return nil, err
	}
	h := &handle{d: d, flags: flags, done: make(chan error, 1)}
	go func() { h.done <- h.read() }()
	return h, nil
}

// read sends packets on until the handle ends.
func (h *handle) read() error {
	ps := make([]divert.Packet, 64)
	for {
		n, err := h.d.RecvBatch(ps)
		switch {
		case err == io.EOF, errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("receive: %w", err)
		case h.flags&divert.Sniff != 0:
			continue
		}
		if ps[0].Data[len(ps[0].Data)-1]&1 == 0 {
			_, err = h.d.AcceptBatch(ps[:n])
		} else {
			_, err = h.d.SendBatch(ps[:n])
		}
		if err != nil {
			return fmt.Errorf("send on: %w", err)
		}
	}
}

// close ends a handle in one of two ways and adds its counters.
func (h *handle) close(drain bool, sum *workerSum) error {
	var err error
	if drain {
		err = h.d.Shutdown(divert.ShutdownRecv)
	} else {
		err = h.d.SetReadDeadline(time.Unix(1, 0))
	}
	if err := errors.Join(err, <-h.done, h.d.Close()); err != nil {
		return err
	}
	s, err := h.d.Stats()
	sum.Foreign += s.Foreign
	if h.flags&divert.Sniff != 0 {
		sum.Copies += s.Received
		return err
	}
	sum.Carried += s.Received
	sum.Sent += s.Reinjected + s.Injected + s.Passed
	sum.Lost += s.DroppedFull + s.DroppedOld + s.DroppedLong + s.Lost + s.Abandoned
	return err
}

func (w *workerSpec) live(stop <-chan struct{}) (sum workerSum, err error) {
	r := rand.New(rand.NewPCG(w.Seed, 1))
	open := make([]*handle, w.Handles)
	for {
		select {
		case <-stop:
			for _, h := range open {
				if h != nil {
					err = errors.Join(err, h.close(true, &sum))
				}
			}
			return sum, err
		case <-time.After(time.Duration(20+r.IntN(400)) * time.Millisecond):
		}
		at := &open[r.IntN(len(open))]
		switch {
		case *at == nil:
			if *at, err = w.open(r); err != nil {
				return sum, fmt.Errorf("open: %w", err)
			}
			sum.Opened++
		case r.IntN(3) > 0:
			if err := (*at).d.SetFilter(w.filter(r)); err != nil {
				return sum, fmt.Errorf("filter: %w", err)
			}
			sum.Changed++
		default:
			h := *at
			*at = nil
			if err := h.close(r.IntN(2) == 0, &sum); err != nil {
				return sum, err
			}
		}
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/opendivert/divert"
	"github.com/spf13/cobra"
)

func newPassthru(a *app) *cobra.Command {
	var (
		flags   handleFlags
		batch   int
		queues  int
		rewrite bool
		asJSON  bool
		first   firstFlag
	)
	cmd := &cobra.Command{
		Use:   "passthru [flags] [FILTER]",
		Short: "Divert the packets that match and send each on, unchanged",
		Long: `Divert the packets that match a filter (all, if there is none) to this program and send each
on as it was: the cheapest program there is, good for measuring and for trying whether a network
bears being diverted.

With --rewrite the bytes of each packet go back to the kernel too, as if the program had changed them.`,
		Example: `  divert passthru tcp.DstPort == 443 or tcp.SrcPort == 443
  divert passthru --batch 1 --rewrite     every packet singly, with its bytes
  divert passthru --queues 4              four threads, each with its share of the flows
  divert passthru --first 6 tcp           of each connection six packets; the kernel passes the rest on
  divert passthru --layer forward         what is routed through this host`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if batch < 1 || batch > divert.MaxBatch {
				return usagef("--batch %d is out of range (1 to %d)", batch, divert.MaxBatch)
			}
			p, err := flags.compile(args)
			if err != nil {
				return err
			}
			text, err := first.narrow(filterText(args), p, &flags.dialectFlags)
			if err != nil {
				return err
			}
			if p, err = flags.compileText(text); err != nil {
				return err
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			r := report{app: a, json: asJSON}
			if err := flags.sets.follow(ctx, p, &r); err != nil {
				return err
			}
			h, err := flags.open(p, 0, divert.WithQueues(queues))
			if err != nil {
				return err
			}
			defer h.Close()
			r.begin("passthru", "passing packets on", text, h)
			err = passOn(ctx, h, batch, rewrite, r.warn)
			r.end(h)
			return err
		},
	}
	flags.add(cmd, packetLayers)
	flags.addQueue(cmd, usualQueueLength, usualQueueTime, usualQueueSize)
	first.add(cmd)
	fl := cmd.Flags()
	fl.IntVar(&queues, "queues", 1, fmt.Sprintf("share the flows out to so many queues with a thread each, 1 to %d", divert.MaxQueues))
	fl.IntVar(&batch, "batch", 64, "packets received and sent with one call at most, 1 to 255")
	fl.BoolVar(&rewrite, "rewrite", false, "send the bytes back as if they had been changed")
	fl.BoolVar(&asJSON, "json", false, "messages and summary on standard error as JSON")
	return cmd
}

// passOn sends each packet on until ctx ends, with a goroutine for each queue. Then no more are captured, and
// those that wait already are still sent on, so that none is lost.
func passOn(ctx context.Context, h *divert.Handle, batch int, rewrite bool, warn func(error)) error {
	shutdown := func() { _ = h.Shutdown(divert.ShutdownRecv) } // fails if closed, which ends it too
	stop := context.AfterFunc(ctx, shutdown)
	defer stop()
	send := h.AcceptBatch
	if rewrite {
		send = h.SendBatch
	}
	w := &warnings{warn: warn}
	ended := make(chan error)
	for queue := range h.Queues() {
		go func() { ended <- passQueue(h, queue, make([]divert.Packet, batch), send, w) }()
	}
	var first error
	for range h.Queues() {
		if err := <-ended; err != nil && first == nil {
			first = err
			shutdown() // the others would go on
		}
	}
	return first
}

// passQueue sends the packets of a queue on until its end.
func passQueue(h *divert.Handle, queue int, ps []divert.Packet, send func([]divert.Packet) (int, error), w *warnings) error {
	for {
		n, err := h.Queue(queue).RecvBatch(ps)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := send(ps[:n]); err != nil {
			w.add(err)
		}
	}
}

// warnings reports the failures of single packets, the first ones; the summary counts them all.
type warnings struct {
	warn func(error)

	mu    sync.Mutex
	count int
}

// maxWarnings is how many failures are reported.
const maxWarnings = 10

func (w *warnings) add(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count++; w.count <= maxWarnings {
		w.warn(err)
	}
}

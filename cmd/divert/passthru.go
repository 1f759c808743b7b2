package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/capfile"
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
		file    traceFlag
	)
	cmd := &cobra.Command{
		Use:   "passthru [flags] [FILTER]",
		Short: "Divert the packets that match and send each on, unchanged",
		Long: `Divert the packets that match a filter (all, if there is none) to this program and send each
on as it was: the cheapest program there is, good for measuring and for trying whether a network
bears being diverted.

Only the headers of packets come to the program, unless they are also written to a file. With --rewrite all bytes come, and go
back to the kernel, as if the program had changed them.

With -w the packets are also written to a capture file, with --rewrite each twice: as it was received, and on an
interface whose name ends in ":sent" as it was sent, its checksums filled in. The run ends if that fails.`,
		Example: `  divert passthru tcp.DstPort == 443 or tcp.SrcPort == 443
  divert passthru --batch 1 --rewrite     every packet singly, with its bytes
  divert passthru --queues 4              four threads, each with its share of the flows
  divert passthru --first 6 tcp           of each connection six packets; the kernel passes the rest on
  divert passthru --rewrite -w both.pcapng tcp    as two interfaces of a file: received and sent
  divert passthru --layer forward         what is routed through this host`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if batch < 1 || batch > divert.MaxBatch {
				return usagef("--batch %d is out of range (1 to %d)", batch, divert.MaxBatch)
			}
			text, p, err := flags.program(args)
			if err != nil {
				return err
			}
			text, err = first.narrow(text, p, &flags.dialectFlags)
			if err != nil {
				return err
			}
			if p, err = flags.compileText(text); err != nil {
				return err
			}
			ctx, stop := flags.scope.until(cmd.Context())
			defer stop()
			r := report{app: a, json: asJSON, scope: &flags.scope}
			if err := flags.follow(ctx, p, &r); err != nil {
				return err
			}
			t, err := file.open(a, text, r.warn)
			if err != nil {
				return err
			}
			opts := []divert.Option{divert.WithQueues(queues)}
			if t == nil && !rewrite {
				opts = append(opts, divert.WithSnapLength(divert.MinSnapLength)) // nobody reads the rest
			}
			h, err := flags.openTraced(p, 0, t, opts...)
			if err != nil {
				return err
			}
			defer h.Close()
			r.begin("passthru", "passing packets on", text, h)
			flags.scope.metrics.tell(t.about())
			pass := &passer{h: h, metrics: flags.scope.metrics, trace: t, rewrite: rewrite, batch: batch, limit: int64(flags.scope.count), warnings: warnings{warn: r.warn}}
			err = errors.Join(pass.run(ctx), r.endTrace(t, h))
			r.end(h)
			return err
		},
	}
	flags.add(cmd, packetLayers)
	flags.addQueue(cmd, usualQueueLength, usualQueueTime, usualQueueSize)
	flags.addHang(cmd)
	first.add(cmd)
	file.add(cmd, "the packets, and with --rewrite their replacements,")
	fl := cmd.Flags()
	fl.IntVar(&queues, "queues", 1, fmt.Sprintf("distribute the flows over so many queues with a thread each, 1 to %d", divert.MaxQueues))
	fl.IntVar(&batch, "batch", 64, "most packets received and sent with one call, 1 to 255")
	fl.BoolVar(&rewrite, "rewrite", false, "send the bytes back as if they had been changed")
	fl.BoolVar(&asJSON, "json", false, "messages and summary on standard error as JSON")
	return cmd
}

// passer sends the packets of a handle on.
type passer struct {
	h        *divert.Handle
	trace    *trace
	metrics  *metricsServer
	rewrite  bool  // send the bytes
	batch    int   // packets at a time
	limit    int64 // packets to pass on, 0: all; with several queues, each may exceed it by a batch
	taken    atomic.Int64
	warnings warnings
}

// run sends each packet on until ctx ends, with a goroutine for each queue. Then it stops capturing and sends the
// queued packets on, so that none is lost. It also ends at the limit; packets still queued then go on when the handle
// closes.
func (p *passer) run(ctx context.Context) error {
	shutdown := func() { _ = p.h.Shutdown(divert.ShutdownRecv) } // fails only on a closed handle, which ends the run too
	stop := context.AfterFunc(ctx, shutdown)
	defer stop()
	ended := make(chan error)
	for queue := range p.h.Queues() {
		go func() { ended <- p.queue(queue) }()
	}
	var first error
	for range p.h.Queues() {
		if err := <-ended; (err != nil || p.limit > 0) && first == nil {
			first = err
			shutdown() // the other queues would go on
		}
	}
	return first
}

// queue sends the packets of a queue on until its end.
func (p *passer) queue(queue int) error {
	send, outcome := p.h.AcceptBatch, capfile.Accepted
	if p.rewrite {
		send, outcome = p.h.SendBatch, capfile.Rewritten
	}
	number := 0 // in the capture file
	if p.h.Queues() > 1 {
		number = queue + 1
	}
	for ps := make([]divert.Packet, p.batch); ; {
		room := int64(len(ps))
		if p.limit > 0 {
			if room = min(room, p.limit-p.taken.Load()); room <= 0 {
				return nil
			}
		}
		n, err := p.h.Queue(queue).RecvBatch(ps[:room])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		p.taken.Add(int64(n))
		p.metrics.observe(ps[:n])
		written := p.trace.received(ps[:n], number, func(int) capfile.Verdict { return outcome }) // before checksums are filled in
		if _, err := send(ps[:n]); err != nil {
			p.warnings.add(err)
		}
		if p.rewrite {
			written = errors.Join(written, p.trace.sent(ps[:n]))
		}
		if err := errors.Join(written, p.trace.flush()); err != nil {
			return err
		}
	}
}

// warnings reports the first failures of single packets; the summary counts them all.
type warnings struct {
	warn func(error)

	mu    sync.Mutex
	count int
}

// maxWarnings is the number of failures that are reported.
const maxWarnings = 10

func (w *warnings) add(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count++; w.count <= maxWarnings {
		w.warn(err)
	}
}

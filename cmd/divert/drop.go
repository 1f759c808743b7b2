package main

import (
	"context"
	"errors"
	"io"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/capfile"
	"github.com/spf13/cobra"
)

func newDrop(a *app) *cobra.Command {
	var (
		flags  handleFlags
		asJSON bool
		file   traceFlag
	)
	cmd := &cobra.Command{
		Use:   "drop [flags] FILTER",
		Short: "Drop the packets that match, or refuse sockets, in the kernel and silently",
		Long: `Drop the packets that match a filter. They never reach this program: the kernel drops
them, and neither side is told. The traffic is back as soon as the command ends, however it ends.
Mind the connection you work over: spare it with "and not tcp.SrcPort == 22", for example.

With --layer socket it refuses what processes do with sockets, as divert sockets --block does, and only
counts it. Close is never refused.

With -w the packets come to this program, which writes them to a capture file and drops them: that takes more of
the machine. The run ends if the file cannot be written, and the traffic is back.

With --limit and without -w it looks fifty times a second whether that many have matched, so a few more may be dropped.`,
		Example: `  divert drop udp.DstPort == 53                     no DNS in or out
  divert drop 'outbound and tcp.DstPort in {80, 443}'
  divert drop 'ip.SrcAddr == 192.0.2.0/24'          ignore a network
  divert drop remoteAddr in @blocked=blocked.txt    a list, read again when it changes
  divert drop 'random8 < 25'                        lose one packet in ten
  divert drop --process curl --for 30s true         cut curl off for half a minute
  divert drop --layer socket 'event == CONNECT and remotePort == 25'`,
		Args: filterArguments,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, p, err := flags.program(args)
			if err != nil {
				return err
			}
			ctx, stop := flags.scope.until(cmd.Context())
			defer stop()
			mode, doing := divert.Drop, "dropping"
			if p.Layer() == divert.LayerSocket {
				mode, doing = divert.Drop|divert.RecvOnly, "refusing socket operations"
			}
			r := report{app: a, json: asJSON, scope: &flags.scope}
			if err := flags.follow(ctx, p, &r); err != nil {
				return err
			}
			if file.path != "" && p.Layer() == divert.LayerSocket {
				return usagef("--write applies to packets, but the layer socket has events")
			}
			t, err := file.open(a, text, r.warn)
			if err != nil {
				return err
			}
			if t != nil {
				mode = divert.RecvOnly // received packets are not sent on
			}
			h, err := flags.openTraced(p, mode, t)
			if err != nil {
				return err
			}
			defer h.Close()
			flags.scope.metrics.tell(t.about())
			r.begin("drop", doing, text, h)
			if t != nil {
				err = errors.Join(dropAndWrite(ctx, h, t, &flags.scope), r.endTrace(t, h))
				r.end(h)
				return err
			}
			ctx, cancel := flags.scope.enough(ctx, h)
			defer cancel()
			<-ctx.Done()
			r.end(h)
			return nil
		},
	}
	flags.add(cmd, []divert.Layer{divert.LayerNetwork, divert.LayerForward, divert.LayerSocket})
	flags.addQueue(cmd, usualQueueLength, usualQueueTime, usualQueueSize)
	file.add(cmd, "the packets")
	cmd.Flags().BoolVar(&asJSON, "json", false, "messages and summary on standard error as JSON")
	return cmd
}

// dropAndWrite drops the packets of a handle, as many as the scope allows, and writes them, until ctx ends and the
// queue is empty.
func dropAndWrite(ctx context.Context, h *divert.Handle, t *trace, s *scope) error {
	stop := context.AfterFunc(ctx, func() { _ = h.Shutdown(divert.ShutdownRecv) }) // fails only on a closed handle, which ends the run too
	defer stop()
	all := make([]divert.Packet, dumpBatch)
	for seen := 0; s.count == 0 || seen < s.count; {
		ps := all
		if s.count > 0 {
			ps = ps[:min(len(ps), s.count-seen)]
		}
		n, err := h.RecvBatch(ps)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		seen += n
		s.metrics.observe(ps[:n])
		if err := h.DropBatch(ps[:n]); err != nil {
			return err
		}
		err = t.received(ps[:n], 0, func(int) capfile.Verdict { return capfile.Dropped })
		if err := errors.Join(err, t.flush()); err != nil {
			return err
		}
	}
	return nil
}

// filterArguments requires a filter, for commands that would do harm without one.
func filterArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("%s needs a filter; use `true` for all packets", cmd.Name())
	}
	return nil
}

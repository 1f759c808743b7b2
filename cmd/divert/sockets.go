package main

import (
	"github.com/opendivert/divert"
	"github.com/spf13/cobra"
)

func newSockets(a *app) *cobra.Command {
	var (
		flags         handleFlags
		block, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "sockets [flags] [FILTER]",
		Short: "Print the socket operations of processes, or refuse them",
		Long: `Print bind, connect, listen, accept and close of the processes in this network, as they happen,
with the process, the endpoint and its parent, and both sides.

With --block what matches is refused: bind and connect fail with "permission denied" (EACCES), and incoming
connections are not answered. Listen fails too where the kernel lets a program do that (divert doctor);
elsewhere the socket is aborted. Close is never refused.`,
		Example: `  divert sockets                                        everything
  divert sockets event == CONNECT and remotePort == 443
  divert sockets 'event == LISTEN and not loopback'     who opens a port
  divert sockets --block 'event == CONNECT and remoteAddr == 192.0.2.0/24'
  divert sockets --json processId == 4711 | jq .event`,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, p, err := flags.program(args)
			if err != nil {
				return err
			}
			ctx, stop := flags.scope.until(cmd.Context())
			defer stop()
			mode, doing := divert.RecvOnly|divert.Sniff, "watching sockets"
			if block {
				mode, doing = divert.RecvOnly, "refusing socket operations"
			}
			r := report{app: a, json: asJSON, scope: &flags.scope}
			if err := flags.follow(ctx, p, &r); err != nil {
				return err
			}
			h, err := flags.open(p, mode)
			if err != nil {
				return err
			}
			defer h.Close()
			r.begin("sockets", doing, text, h)
			printer := newEventPrinter(a, asJSON)
			err = eachEvent(ctx, h, &flags.scope, printer.print, printer.flush)
			r.end(h)
			return err
		},
	}
	flags.addEvents(cmd, divert.LayerSocket)
	flags.scope.addEnd(cmd, "events")
	fl := cmd.Flags()
	fl.BoolVar(&block, "block", false, "refuse matching operations")
	fl.BoolVar(&asJSON, "json", false, "one JSON object per event; messages as JSON too")
	return cmd
}

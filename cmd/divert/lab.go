package main

import (
	"github.com/spf13/cobra"

	"github.com/opendivert/divert/internal/lab/shell"
)

func newLab(a *app) *cobra.Command {
	at := choice{names: shell.Places}
	cmd := &cobra.Command{
		Use:   "lab [--at PLACE] [-- COMMAND...]",
		Short: "Run a shell or a command inside a network of its own",
		Long: `Build a host, a router and a peer with a web server (port 80) and echo servers (UDP and TCP,
port 7), and run a command, or a shell, on one of them. It needs no privileges, and what is done in
it cannot reach any other network: a place to try filters and programs. The network is gone when the
command ends; the exit status is the command's.`,
		Example: `  divert lab
  divert lab -- curl http://10.77.2.2/
  divert lab --at router -- divert dump --layer forward`,
		RunE: func(cmd *cobra.Command, args []string) error {
			status, err := shell.Run(cmd.Context(), shell.Options{
				Command: args, At: shell.Places[at.value], In: a.in, Out: a.out, Err: a.errout,
			})
			if err == nil && status != 0 {
				err = exitStatus(status)
			}
			return withoutLab(err)
		},
	}
	addChoice(cmd, &at, "at", "which of the hosts the command runs on")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

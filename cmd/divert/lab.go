package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/opendivert/divert/internal/lab/shell"
)

func newLab(a *app) *cobra.Command {
	at := choice{names: shell.Places}
	cmd := &cobra.Command{
		Use:   "lab [--at PLACE] [-- COMMAND...]",
		Short: "Run a shell or a command inside a network of its own",
		Long: `Build a host, a router and a peer with a web server (port 80) and echo servers (UDP and TCP,
port 7), and run a command, or a shell, on one of them. The command finds this program as "divert". It
needs no privileges. The network is gone when the command ends; the exit status is the command's.

No link leads out of it, so packets and filters that go wrong harm no other network: a place to try
them. It is no jail. The command has the files and sees the processes of this machine, and reaches what
listens on Unix sockets of the file system. Run by root it is root, and nothing keeps it from entering
the other networks of this machine if it means to.`,
		Example: `  divert lab
  divert lab -- curl http://10.77.2.2/
  divert lab --at router -- divert dump --layer forward`,
		RunE: func(cmd *cobra.Command, args []string) error {
			self, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			status, err := shell.Run(cmd.Context(), shell.Options{
				Divert: self, Command: args, At: shell.Places[at.value], In: a.in, Out: a.rawOut, Err: a.rawErr,
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

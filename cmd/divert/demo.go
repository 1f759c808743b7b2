package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/opendivert/divert/internal/lab"
	"github.com/opendivert/divert/internal/lab/demo"
)

func newDemo(a *app) *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "demo [-v]",
		Short: "Demonstrate divert in a network of its own, in seconds",
		Long: `Build two hosts with a link between them, capture, drop, rewrite and re-inject real traffic
between them, kill a program that diverts, and check at each step that what should happen did.

It needs no privileges: as an ordinary user it works in a user namespace of its own (and there with
the interpreter, as eBPF is not for user namespaces). The network of this machine is not touched.`,
		Example: "  divert demo\n  divert demo -v      every packet and every counter",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			err := demo.Run(ctx, demo.Options{Out: a.out, Verbose: verbose, Bold: a.colour})
			return withoutLab(err)
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "show every packet and every counter")
	return cmd
}

// withoutLab adds a remedy to an error about missing network namespaces.
func withoutLab(err error) error {
	if !errors.Is(err, lab.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w\n%s", err, labRemedy)
}

const labRemedy = `It works in network namespaces of its own, which this system does not let this user make. One of these helps:
  - run it as root
  - in a container: docker run --privileged, or --cap-add NET_ADMIN --cap-add SYS_ADMIN with
    --security-opt seccomp=unconfined --security-opt apparmor=unconfined
  - allow user namespaces: sysctl user.max_user_namespaces=10000; on older Debian
    kernel.unprivileged_userns_clone=1; on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0`

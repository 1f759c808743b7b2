package main

import (
	"fmt"

	"github.com/opendivert/divert/internal/linux/netns"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/spf13/cobra"
)

func newClean(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "Remove what dead processes left behind",
		Long: `Remove the nftables rules of handles whose process has died in this network, and the table "divert" if
no other handle is open. Traffic does not depend on it: such rules let everything pass. The next handle that
is opened or closed does the same.`,
		Example: "  divert clean",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			ns, err := netns.Current()
			if err != nil {
				return err
			}
			defer ns.Close()
			dead, err := rules.Dead(ns)
			if err != nil {
				return err
			}
			if err := rules.Sweep(ns); err != nil {
				return err
			}
			for _, o := range dead {
				if asJSON {
					if err := a.writeJSON(jsonRemoved{"removed", uint32(o.PID)}); err != nil {
						return err
					}
					continue
				}
				fmt.Fprintf(a.out, "removed a handle of process %d\n", o.PID)
			}
			return nil
		},
	}
	addJSON(cmd, &asJSON, "one JSON object per handle")
	return cmd
}

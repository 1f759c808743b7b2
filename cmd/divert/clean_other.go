//go:build !linux && !windows

package main

import "github.com/spf13/cobra"

func newClean(*app) *cobra.Command {
	var asJSON bool // there is nothing to print either way
	cmd := &cobra.Command{
		Use:     "clean",
		Short:   "Remove what dead processes left behind",
		Long:    "Remove what dead processes left behind. This system never needs it: handles end with their process.",
		Example: "  divert clean",
		Args:    noArguments,
		RunE:    func(*cobra.Command, []string) error { return nil },
	}
	addJSON(cmd, &asJSON, "one JSON object per handle")
	return cmd
}

//go:build !linux && !windows

package main

import "github.com/spf13/cobra"

func newClean(*app) *cobra.Command {
	return &cobra.Command{
		Use:     "clean",
		Short:   "Remove what processes that died have left",
		Long:    "Remove what processes that died have left. On this system there is never anything: handles end with their process.",
		Example: "  divert clean",
		Args:    noArguments,
		RunE:    func(*cobra.Command, []string) error { return nil },
	}
}

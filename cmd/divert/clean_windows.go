package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/internal/wincode"
	"github.com/opendivert/divert/internal/windows"
	"github.com/spf13/cobra"
)

func newClean(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "clean",
		Short: "Stop the driver and remove its service",
		Long: `Stop the driver and remove its service, which handles install when they need it. What dead processes
had open is gone with them, so there is nothing else to remove. A service that does not run is removed too: one
that is left over from a program that has moved keeps others from starting the driver. While handles are open
the driver stays; divert kill all ends the processes that have them, but not those that watch handles (divert watch),
which divert clean names. Programs that watch without Divert, or with its WinDivert.dll, are not seen: end those
first. The next handle that is opened installs the driver again.`,
		Example: "  divert clean\n  divert kill all && divert clean",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := waitUnused(cmd.Context()); err != nil {
				return err
			}
			removed, err := windows.Uninstall()
			switch {
			case removed && asJSON:
				return errors.Join(err, a.writeJSON(jsonRemoved{"removed", 0}))
			case removed:
				fmt.Fprintln(a.out, "removed the driver WinDivert")
			}
			return err
		},
	}
	addJSON(cmd, &asJSON, "one JSON object")
	return cmd
}

// Killed processes, and their handles, take a moment to disappear.
const (
	unusedTries    = 10
	unusedInterval = 100 * time.Millisecond
)

// waitUnused waits a moment for the last handle to close, and fails if some are still open then.
func waitUnused(ctx context.Context) error {
	for try := 1; ; try++ {
		pids, err := driverUsers(ctx)
		if err != nil {
			return err
		}
		watchers, err := windows.Watchers() // the handle of driverUsers is closed by now
		if err != nil || len(pids)+len(watchers) == 0 {
			return err
		}
		if try == unusedTries {
			return inUse(pids, watchers)
		}
		time.Sleep(unusedInterval)
	}
}

// driverUsers returns the processes that have handles open, in order, except those that only watch others.
func driverUsers(ctx context.Context) ([]uint32, error) {
	h, err := divert.Open("true", divert.WithLayer(divert.LayerReflect), divert.WithPriority(handlePriority),
		divert.WithFlags(divert.Sniff|divert.RecvOnly|divert.NoInstall))
	if wincode.Of(err) == codeNoService {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer h.Close()
	users := map[uint32]bool{}
	err = eachOpen(ctx, h, func(e *divert.Packet) error {
		users[e.Addr.Reflect().ProcessID] = true
		return nil
	}, func() error { return nil })
	return slices.Sorted(maps.Keys(users)), err
}

// inUse is the error for processes that have handles open or watch those of others.
func inUse(pids, watchers []uint32) error {
	var why []string
	if len(pids) > 0 {
		why = append(why, fmt.Sprintf("handles are open, of the processes %s; divert list shows them, divert kill all ends them", programs(pids)))
	}
	if len(watchers) > 0 {
		why = append(why, fmt.Sprintf("the processes %s watch handles; end them, for divert kill does not: press Ctrl-C there, or run \"taskkill /f /pid %d\"",
			programs(watchers), watchers[0]))
	}
	return fmt.Errorf("the driver stays: %s", strings.Join(why, "; and "))
}

// programs names processes.
func programs(pids []uint32) string {
	names := make([]string, len(pids))
	for i, pid := range pids {
		names[i] = fmt.Sprintf("%d (%s)", pid, newProcesses().program(pid, ""))
	}
	return strings.Join(names, ", ")
}

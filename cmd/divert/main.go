package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/fatih/color"
	"github.com/spf13/cobra"
)

// app is what the subcommands share: where they read and write, and whether in colour.
type app struct {
	in     io.Reader
	out    io.Writer // data
	errout io.Writer // diagnostics

	colour    bool // out is a terminal that shows colours
	errColour bool // the same for errout
}

// commands are the subcommands, in the order in which the help lists them.
var commands = []func(*app) *cobra.Command{
	newDump,
	newDrop,
	newPassthru,
	newDemo,
	newLab,
	newDoctor,
	newFilter,
	newVersion,
}

func main() {
	// Without this a write to a closed pipe would kill the process, before it has ended what it began. Signals
	// that are caught, unlike ignored ones, are not passed on to child processes.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	a := &app{
		in: os.Stdin, out: os.Stdout, errout: os.Stderr,
		colour:    !color.NoColor,
		errColour: colourAllowed() && isTerminal(os.Stderr),
	}
	if a.colour {
		a.out = color.Output // translates for old Windows consoles
	}
	if a.errColour {
		a.errout = color.Error
	}
	os.Exit(a.run(context.Background(), os.Args[1:]))
}

// colourAllowed reports whether the environment has nothing against colours (no-color.org).
func colourAllowed() bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// isTerminal reports whether f is a character device, which is near enough: nobody sees the colours that
// go to the others.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// run runs the command with its arguments and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.newRoot()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	return a.exit(cmd, err)
}

// newRoot returns the command with all subcommands.
func (a *app) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "divert",
		Short: "Intercept, drop, change and re-inject the packets of this host",
		Long: `Divert takes packets that match a filter out of the network stack and gives them to a
program, which drops, changes or re-injects them. Packets that do not match never leave the kernel.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errout)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	for _, c := range commands {
		root.AddCommand(c(a))
	}
	return root
}

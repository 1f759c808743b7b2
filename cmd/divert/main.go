package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/fatih/color"
	"github.com/gdamore/tcell/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// app is shared by the subcommands: their input and output, and whether to use colours.
type app struct {
	in     io.Reader
	out    io.Writer // data
	errout io.Writer // diagnostics

	// The outputs without the safeWriter that run puts before them, for output that is not text of this command.
	rawOut, rawErr io.Writer

	colour    bool // out is a terminal that shows colours
	errColour bool // the same for errout

	errWidth  int                          // columns of errout, if it is a terminal, else 0
	terminal  bool                         // out is a terminal
	newScreen func() (tcell.Screen, error) // opens that terminal as a screen
}

// commands are the subcommands, in the order in which the help lists them.
var commands = []func(*app) *cobra.Command{
	newDump,
	newDrop,
	newReject,
	newImpair,
	newDelay,
	newPassthru,
	newProxy,
	newWeb,
	newFirewall,
	newSockets,
	newFlows,
	newTop,
	newList,
	newWatch,
	newKill,
	newClean,
	newDemo,
	newLab,
	newDoctor,
	newFilter,
	newExtcap,
	newVersion,
	newMan,
}

func init() { cobra.EnableCommandSorting = false }

func main() {
	// Without this a write to a closed pipe would kill the process before it has cleaned up. Child processes inherit
	// ignored signals, but not caught ones.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	a := &app{
		in: os.Stdin, out: os.Stdout, errout: os.Stderr,
		colour:    !color.NoColor,
		errColour: colourAllowed() && isTerminal(os.Stderr),
		terminal:  term.IsTerminal(int(os.Stdout.Fd())), newScreen: tcell.NewScreen,
	}
	if width, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil {
		a.errWidth = width
	}
	if a.colour {
		a.out = color.Output // translates for old Windows consoles
	}
	if a.errColour {
		a.errout = color.Error
	}
	os.Exit(a.run(context.Background(), os.Args[1:]))
}

// colourAllowed reports whether the environment allows colours (no-color.org).
func colourAllowed() bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// isTerminal reports whether f is a character device. That is near enough: on the other devices nobody sees the
// colours.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// run runs the command with its arguments and returns the exit status.
func (a *app) run(ctx context.Context, args []string) int {
	out, errout := &safeWriter{w: a.out, styles: a.colour}, &safeWriter{w: a.errout, styles: a.errColour}
	defer errout.finish()
	defer out.finish()
	a.rawOut, a.rawErr, a.out, a.errout = a.out, a.errout, out, errout
	root := a.newRoot()
	if isExtcap(args) { // from a link in one of Wireshark's folders
		args = append([]string{"extcap"}, args...)
	}
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	return a.exit(cmd, err, asksForJSON(cmd, args))
}

// asksForJSON reports whether the arguments have --json. It looks for itself: parsing may have stopped at a wrong
// argument.
func asksForJSON(cmd *cobra.Command, args []string) bool {
	if f := cmd.Flags().Lookup("json"); f != nil && f.Changed {
		return f.Value.String() == "true"
	}
	if end := slices.Index(args, "--"); end >= 0 {
		args = args[:end]
	}
	return slices.Contains(args, "--json")
}

// newRoot returns the command with all subcommands.
func (a *app) newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "divert",
		Short: "Intercept, drop, change and re-inject the packets of this host",
		Long: `Divert takes packets that match a filter out of the network stack and gives them to a
program, which drops, changes or re-injects them. Packets that do not match never leave the kernel.`,
		Example: `  divert demo                             see it at work, without privileges
  divert dump tcp.DstPort == 443          watch packets
  divert drop udp.DstPort == 53           drop packets
  divert filter explain 'tcp or udp'      learn what a filter does
  divert help filter                      the filter language in short`,
		Version:       buildVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate(versionText())
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errout)
	root.SetHelpCommand(newHelp(root))
	root.SetFlagErrorFunc(flagError)
	for _, c := range commands {
		root.AddCommand(c(a))
	}
	return root
}

// newHelp returns the help command. Unlike cobra's own, it refuses commands that do not exist.
func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "help [command]",
		Short:   "Explain a command",
		Example: "  divert help dump\n  divert help filter eval",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil {
				return usageError{err}
			}
			if len(rest) > 0 && cmd.HasSubCommands() {
				return knownCommand(cmd, rest)
			}
			return cmd.Help()
		},
	}
}

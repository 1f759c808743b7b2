package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/tcpdump"
	"github.com/spf13/cobra"
)

// The exit statuses.
const (
	exitOK     = 0 // ended as requested
	exitFailed = 1
	exitUsage  = 2 // wrong usage, or a filter that does not compile
)

// usageError is an error in the command line itself.
type usageError struct{ error }

// Unwrap returns the error inside.
func (e usageError) Unwrap() error { return e.error }

// usagef returns a usageError.
func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// exitStatus is an error that is already reported, or needs no report: it only sets the exit status.
type exitStatus int

// Error returns the status in words.
func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// jsonError is the error that ended a run, as --json prints it on standard error.
type jsonError struct {
	Event  string       `json:"event"`  // "error"
	Status int          `json:"status"` // exit status
	Text   string       `json:"text"`
	Hint   string       `json:"hint,omitempty"`   // the remedy
	Filter *jsonRefusal `json:"filter,omitempty"` // the filter that does not compile
}

// jsonRefusal is an error in a filter.
type jsonRefusal struct {
	Text     string  `json:"text"`               // the whole filter
	Position *uint32 `json:"position,omitempty"` // of the wrong part, in bytes; absent if the error has no place
	Token    string  `json:"token,omitempty"`    // the wrong part; absent at the end of the text
	Tcpdump  string  `json:"tcpdump,omitempty"`  // the same filter in divert's language, if this one was tcpdump's
}

// newJSONError converts the error of a run.
func newJSONError(cmd *cobra.Command, err error) jsonError {
	j := jsonError{Event: "error", Status: exitFailed, Text: plain(err), Hint: remedy(err)}
	var (
		f     *filter.Error
		usage usageError
		rules rulesFailure
	)
	switch {
	case errors.As(err, &rules):
		j.Status, j.Text = exitUsage, rules.FileError.Error()
	case errors.As(err, &f):
		j.Status, j.Text, j.Hint = exitUsage, f.Msg, f.Hint
		j.Filter = &jsonRefusal{Text: f.Filter, Token: f.Token}
		if int64(f.Pos) <= int64(len(f.Filter)) {
			j.Filter.Position = &f.Pos
		}
		if r, err := tcpdump.Convert(f.Filter); err == nil {
			j.Filter.Tcpdump = r.Filter
		}
	case errors.As(err, &usage):
		j.Status, j.Hint = exitUsage, fmt.Sprintf("See `%s --help`.", cmd.CommandPath())
	}
	return j
}

// exit reports the error of a command, as JSON if asJSON is set, and returns the exit status.
func (a *app) exit(cmd *cobra.Command, err error, asJSON bool) int {
	var (
		status exitStatus
		f      *filter.Error
		usage  usageError
		rules  rulesFailure
	)
	switch {
	case err == nil, brokenPipe(err):
		return exitOK
	case errors.As(err, &status):
		return int(status)
	case asJSON:
		j := newJSONError(cmd, err)
		(&report{app: a}).line(j)
		return j.Status
	case errors.As(err, &rules):
		fmt.Fprintf(a.errout, "%s %s\n", a.label(), rules.Error())
		return exitUsage
	case errors.As(err, &f):
		fmt.Fprintf(a.errout, "%s the filter does not compile:\n%s\n", a.label(), refusal(f))
		return exitUsage
	case errors.As(err, &usage):
		fmt.Fprintf(a.errout, "%s %s\nSee `%s --help`.\n", a.label(), oneLine(err.Error()), cmd.CommandPath())
		return exitUsage
	}
	fmt.Fprintf(a.errout, "%s %s\n", a.label(), plain(err))
	if hint := remedy(err); hint != "" {
		fmt.Fprintln(a.errout, hint)
	}
	return exitFailed
}

// refusal explains an error in a filter: its place, its reason and a remedy.
func refusal(f *filter.Error) string {
	other := inTcpdumpsLanguage(f.Filter)
	if other != "" {
		f, other = f.WithoutHint(), "\n"+other
	}
	return strings.TrimPrefix(f.Snippet(), "filter: ") + other
}

// plain returns an error without the package name in front, if the package is ours.
func plain(err error) string {
	return strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(quotePaths(err), "divert: "), "filter: "), "firewall: ")
}

// label returns the first word of error messages.
func (a *app) label() string {
	if a.errColour {
		return styleError.begin + "divert:" + styleEnd
	}
	return "divert:"
}

// remedy returns advice about an error, "" if there is none.
func remedy(err error) string {
	var op *divert.OpError
	if !errors.As(err, &op) || op.Op != "open" {
		return ""
	}
	switch {
	case runtime.GOOS == "windows" && errors.Is(err, os.ErrPermission):
		return "" // the error itself has the advice
	case errors.Is(err, os.ErrPermission):
		return "Run it as root, or try `divert demo`, which needs no privileges."
	case errors.Is(err, divert.ErrNotSupported):
		return "`divert doctor` shows what this system has and what it lacks."
	}
	return ""
}

// brokenPipe reports whether err says that the reader of the output has gone. `divert dump | head` ends that way; it is
// no failure.
func brokenPipe(err error) bool {
	if errors.Is(err, syscall.EPIPE) {
		return true
	}
	var n syscall.Errno
	if runtime.GOOS != "windows" || !errors.As(err, &n) {
		return false
	}
	return n == 109 || n == 232 // ERROR_BROKEN_PIPE, ERROR_NO_DATA
}

// knownCommand refuses arguments of a command that has only subcommands, with a suggestion.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	text := fmt.Sprintf("%s has no command %q", cmd.CommandPath(), args[0])
	if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
		text += "; did you mean " + strings.Join(s, " or ") + "?"
	}
	return usageError{errors.New(text)}
}

package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/opendivert/divert/internal/linux/probe"
)

func newDoctor(a *app) *cobra.Command {
	var (
		asJSON bool
		driver string
	)
	cmd := &cobra.Command{
		Use:     "doctor [--json]",
		Short:   "Show which engine will be used here and why, and which features this system lacks",
		Long:    doctorHelp,
		Example: doctorExample,
		Args:    noArguments,
		RunE:    func(*cobra.Command, []string) error { return a.diagnose(asJSON, driver) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "one JSON object")
	addDriver(cmd, &driver)
	return cmd
}

// writeJSON writes a value as a line of JSON.
func (a *app) writeJSON(v any) error {
	b, err := appendJSONLine(nil, v)
	if err != nil {
		return err
	}
	_, err = a.out.Write(b)
	return err
}

// diagnosis writes a report for people.
func (a *app) diagnosis(r *probe.Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Linux %s %s, user %d\n\n", r.Kernel, r.Machine, r.User)
	servedBy(&b, r)
	b.WriteByte('\n')
	if err := featureTable(&b, r.Features); err != nil {
		return err
	}
	missing(&b, r.Features)
	for _, w := range r.Warnings {
		fmt.Fprintf(&b, "\nIn this network: %s\n  effect: %s\n  remedy: %s\n", w.What, w.Effect, w.Remedy)
	}
	_, err := io.WriteString(a.out, a.coloured(b.String()))
	return err
}

// servedBy reports in a few lines whether and how handles are served.
func servedBy(w io.Writer, r *probe.Report) {
	switch {
	case r.Here:
		fmt.Fprintf(w, "Handles can be opened here, and are served by: %s\n", r.Engine)
	case r.Probed == "rootless" && r.Engine != "":
		fmt.Fprintf(w, "This user cannot open handles in this network: %s\n", r.HereError)
		fmt.Fprintf(w, "In a network of its own (divert demo, divert lab) it can; they are served by: %s\n", r.Engine)
	case !r.HereTried:
		fmt.Fprintf(w, "Whether handles can be opened here could not be tried: %s\n", strings.TrimPrefix(r.HereError, probe.ErrNotTried.Error()+": "))
	default:
		fmt.Fprintf(w, "Handles cannot be opened here: %s\n", r.HereError)
	}
	switch r.Probed {
	case "rootless":
		fmt.Fprintln(w, "What follows was tried in a user namespace, where less is allowed than root is.")
	case "nowhere":
		fmt.Fprintf(w, "Most of what follows could not be tried: %s\n", r.ProbedError)
	}
}

// featureTable writes the features as aligned columns.
func featureTable(w io.Writer, features []probe.Result) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "FEATURE\tLINUX\tHERE\tUSED FOR")
	for _, f := range features {
		since := f.Since.String()
		if since == "" {
			since = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", f.Name, since, answerOf(f), f.For)
	}
	return t.Flush()
}

// answerOf returns the text of the column HERE.
func answerOf(f probe.Result) string {
	switch {
	case f.OK:
		return "yes"
	case f.Tried:
		return "no"
	}
	return "?"
}

// missing writes the reason, the effect and the remedy for each missing feature.
func missing(w io.Writer, features []probe.Result) {
	for _, f := range features {
		if f.OK || !f.Tried {
			continue
		}
		fmt.Fprintf(w, "\n%s\n  without it: %s\n  remedy: %s\n", f.Error, f.Without, f.Remedy)
	}
}

// coloured makes the answers stand out on a terminal with colours. It colours whole words between spaces, so the
// columns stay aligned.
func (a *app) coloured(text string) string {
	if !a.colour {
		return text
	}
	for word, s := range map[string]style{"  yes  ": styleInfo, "  no  ": styleBad, "  ?  ": styleTime} {
		trimmed := strings.TrimSpace(word)
		text = strings.ReplaceAll(text, word, "  "+s.begin+trimmed+styleEnd+"  ")
	}
	return text
}

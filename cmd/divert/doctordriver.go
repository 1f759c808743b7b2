package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/opendivert/divert/internal/windows"
)

// driverDiagnosis writes a report about Windows for people.
func (a *app) driverDiagnosis(r *windows.Report) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s, program for %s\n\n", r.System, r.Machine, r.Program)
	switch {
	case r.Engine != "":
		fmt.Fprintf(&b, "Handles can be opened here, and are served by: %s\n", r.Engine)
	case r.Handles:
		b.WriteString("Handles can be opened here: the first one installs and starts the driver.\n")
	default:
		b.WriteString("Handles cannot be opened here.\n")
	}
	b.WriteByte('\n')
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NEEDED\tOK\tFOUND")
	for _, c := range r.Checks {
		answer := "yes"
		if !c.OK {
			answer = "no"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", c.Name, answer, c.Found)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, c := range r.Checks {
		if !c.OK {
			fmt.Fprintf(&b, "\n%s: %s\n  without it: %s\n  remedy: %s\n", c.Name, c.Found, c.Without, c.Remedy)
		}
	}
	_, err := io.WriteString(a.out, a.coloured(b.String()))
	return err
}

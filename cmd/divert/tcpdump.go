package main

import (
	"bufio"
	"errors"
	"fmt"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/tcpdump"
	"github.com/spf13/cobra"
)

func newFilterFromTcpdump(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "from-tcpdump [FILTER]",
		Short: "Convert a filter of tcpdump",
		Long: `Convert a filter in the language of tcpdump (pcap-filter(7)) to the same filter here, and print that. The
differences that remain go to standard error. What has no counterpart is an error that names it, with exit status 2:
handles see IP packets of this host, without link-layer headers.`,
		Example: `  divert filter from-tcpdump 'tcp port 80 and host 192.0.2.1'
  divert filter from-tcpdump 'tcp[tcpflags] & (tcp-syn|tcp-fin) != 0'
  divert filter from-tcpdump icmp or net 10/8 | divert filter explain`,
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := a.filterOrInput(args)
			if err != nil {
				return err
			}
			r, err := tcpdump.Convert(text)
			var e *tcpdump.Error
			switch {
			case errors.As(err, &e) && e.Syntax:
				return a.refused("this is no filter of tcpdump", e, asJSON)
			case errors.As(err, &e):
				return a.refused("the filter has no counterpart", e, asJSON)
			case err != nil:
				return err
			}
			if asJSON {
				return a.writeJSON(jsonText{r.Filter, r.Notes})
			}
			for _, n := range r.Notes {
				fmt.Fprintf(a.errout, "note: %s\n", n)
			}
			w := bufio.NewWriter(a.out)
			fmt.Fprintln(w, r.Filter)
			return w.Flush()
		},
	}
	addJSON(cmd, &asJSON, "one JSON object")
	return cmd
}

// refused reports the part of a tcpdump filter that has no equivalent.
func (a *app) refused(title string, e *tcpdump.Error, asJSON bool) error {
	if asJSON {
		at, token := uint32(e.At), e.Text[e.At:e.At+e.Len]
		(&report{app: a}).line(jsonError{"error", exitUsage, title + ": " + e.Message, "", &jsonRefusal{e.Text, &at, token, ""}})
		return exitStatus(exitUsage)
	}
	fmt.Fprintf(a.errout, "%s %s:\n%s\n", a.label(), title, filter.Mark(e.Text, e.At, e.At+e.Len)+e.Message)
	return exitStatus(exitUsage)
}

// inTcpdumpsLanguage returns a hint for a filter that does not compile but is valid for tcpdump, "" for others.
func inTcpdumpsLanguage(text string) string {
	r, err := tcpdump.Convert(text)
	var e *tcpdump.Error
	switch {
	case err == nil:
		s := "hint: that is tcpdump's language; the same filter here:\n  " + r.Filter
		for _, n := range r.Notes {
			s += "\nnote: " + n
		}
		return s
	case errors.As(err, &e) && !e.Syntax && e.At+e.Len <= len(text):
		return fmt.Sprintf("hint: that is tcpdump's language; %q has no counterpart here: %s", text[e.At:e.At+e.Len], e.Message)
	}
	return ""
}

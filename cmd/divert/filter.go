package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/spf13/cobra"
)

func newFilter(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "filter",
		Short: "Check and explain filters, convert them, and try them on packets",
		Long: `Check and explain filters, convert them, and try them on packets. None of this needs privileges
or touches the network. Without a FILTER the commands read one from standard input.

The language, in short: tests of fields, such as tcp.DstPort == 80, joined by and, or, not and
parentheses; (c? a: b) is a if c holds, else b. Operators: == != < <= > >= and in. A test fails if the
packet has no such field. Beyond WinDivert: ip.DstAddr == 10.0.0.0/8 and
tcp.DstPort in {80, 443, 8000-8099}. A set with a name, remoteAddr in @blocked, has its members
from a file: --set blocked=FILE, or @blocked=FILE. ` + "`divert filter fields`" + ` lists the fields.`,
		Example: `  divert filter check tcp.DstPort == 80 and outbound
  divert filter explain 'tcp.DstPort in {80, 443}'
  divert filter eval -v tcp.Syn -r trace.pcapng`,
		Args: knownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, c := range []func(*app) *cobra.Command{
		newFilterCheck, newFilterExplain, newFilterObject, newFilterFormat, newFilterEval, newFilterFields, newFilterFromTcpdump,
	} {
		cmd.AddCommand(c(a))
	}
	return cmd
}

// given is a filter as the user gave it to a command.
type given struct {
	text  string
	p     *filter.Program
	flags *dialectFlags
}

// filterCommand makes a command that compiles a filter and prints something about it, as text or, from value, as JSON.
func filterCommand(a *app, cmd *cobra.Command, print func(w io.Writer, g *given) error, value func(g *given) (any, error)) *cobra.Command {
	var (
		flags  dialectFlags
		asJSON bool
	)
	flags.add(cmd, allLayers)
	addJSON(cmd, &asJSON, "one JSON object")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		text, err := a.filterOrInput(args)
		if err != nil {
			return err
		}
		p, err := flags.compileText(text)
		if err == nil {
			err = flags.sets.check(p, false)
		}
		if err != nil {
			return err
		}
		g := &given{text, p, &flags}
		if asJSON {
			v, err := value(g)
			if err != nil {
				return err
			}
			return a.writeJSON(v)
		}
		w := bufio.NewWriter(a.out)
		if err := print(w, g); err != nil {
			return err
		}
		return w.Flush()
	}
	return cmd
}

// maxFilterText limits how much of a filter is read; every dialect takes less.
const maxFilterText = 16 << 20

// filterOrInput returns the filter of the arguments or, without arguments, standard input.
func (a *app) filterOrInput(args []string) (string, error) {
	if len(args) > 0 {
		return strings.Join(args, " "), nil
	}
	b, err := io.ReadAll(io.LimitReader(a.in, maxFilterText))
	return strings.TrimSuffix(string(b), "\n"), err
}

func newFilterCheck(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [flags] [FILTER]",
		Short: "Check whether a filter compiles, and explain its errors",
		Long: `Check whether a filter compiles, and explain its errors and their place. The exit status is 0 or 2. It says
also what WinDivert's driver, which takes less than the compiler, would have against it.`,
		Example: `  divert filter check tcp.DstPort == 80 and outbound
  divert filter check --strict --layer flow 'processId == 4'`,
	}
	return filterCommand(a, cmd, func(w io.Writer, g *given) error {
		if err := constant(g.p); err != "" {
			fmt.Fprintf(w, "ok, but the filter %s\n", err)
			return nil
		}
		fmt.Fprintf(w, "ok: %s\n", countOf(g.p.Len(), "test"))
		if err := (*prog.Program)(g.p).DriverCheck(); err != nil {
			fmt.Fprintf(w, "not for WinDivert's driver: %v\n", plain(err))
		}
		return nil
	}, func(g *given) (any, error) { return newJSONCheck(g.text, g.p), nil })
}

// constant reports the result of a program that has the same result for every packet, "" for others.
func constant(p *filter.Program) string {
	accepts, rejects := (*prog.Program)(p).Outcomes()
	switch {
	case !accepts:
		return "matches nothing"
	case !rejects:
		return "matches everything at its layer"
	}
	return ""
}

func newFilterExplain(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [flags] [FILTER]",
		Short: "Show the program that a filter compiles to",
		Long: `Show the program that a filter compiles to: a numbered line for each test, with where the
evaluation goes on if the test holds and if it does not. Before it stands the normal form, in which
constant parts are folded away; after it what the filter can match at all, the layers that it is a filter
for, and what WinDivert's driver would say to it.`,
		Example: `  divert filter explain 'outbound and (tcp? tcp.DstPort == 80: udp.DstPort == 53)'`,
	}
	return filterCommand(a, cmd, func(w io.Writer, g *given) error { return explain(w, g.text, g.p, g.flags) },
		func(g *given) (any, error) { return newJSONExplanation(g.text, g.p, g.flags) })
}

func explain(w io.Writer, text string, p *filter.Program, flags *dialectFlags) error {
	text, err := flags.sets.take(text)
	if err != nil {
		return err
	}
	normal, err := p.Format()
	if err != nil {
		return err
	}
	if normal != text {
		fmt.Fprintf(w, "given:   %s\n", printable(text))
	}
	fmt.Fprintf(w, "filter:  %s\nprogram: %s at layer %s\n", normal, countOf(p.Len(), "test"), word(p.Layer()))
	for line := range strings.Lines(strings.TrimSuffix(p.Listing(), "\n")) {
		fmt.Fprintf(w, "  %s", line)
	}
	fmt.Fprintln(w)
	if c := constant(p); c != "" {
		fmt.Fprintf(w, "result:  %s\n", c)
	}
	fmt.Fprintf(w, "matches: %s\nlayers:  %s\n", hintText(p), strings.Join(layersFor(text, flags.dialect()), ", "))
	if err := (*prog.Program)(p).DriverCheck(); err != nil {
		fmt.Fprintf(w, "driver:  WinDivert would refuse it: %v\n", plain(err))
	} else {
		fmt.Fprintf(w, "driver:  WinDivert would take it\n")
	}
	return nil
}

// layersFor returns the names of the layers at which a text is a valid filter.
func layersFor(text string, d filter.Dialect) (names []string) {
	for _, l := range allLayers {
		if _, err := filter.Compile(text, l, d); err == nil {
			names = append(names, word(l))
		}
	}
	return names
}

// hintNames are the hints in words, in groups. A filter matches only the kinds named in each group.
var hintNames = [...][]struct {
	hint prog.Hints
	name string
}{
	{{prog.HintInbound, "inbound"}, {prog.HintOutbound, "outbound"}},
	{{prog.HintIP, "IPv4"}, {prog.HintIPv6, "IPv6"}},
	{{prog.HintFlowDeleted, "ends of flows too"}},
	{{prog.HintSocketBind, "bind"}, {prog.HintSocketConnect, "connect"}, {prog.HintSocketListen, "listen"},
		{prog.HintSocketAccept, "accept"}, {prog.HintSocketClose, "close"}},
}

// hintText describes the packets or events that a program can match at most.
func hintText(p *filter.Program) string {
	hints := (*prog.Program)(p).Hints()
	if accepts, _ := (*prog.Program)(p).Outcomes(); !accepts || hints == 0 && p.Layer() != divert.LayerReflect {
		return "nothing"
	}
	var groups []string
	for _, group := range hintNames {
		var names []string
		for _, h := range group {
			if hints&h.hint != 0 {
				names = append(names, h.name)
			}
		}
		if names != nil {
			groups = append(groups, strings.Join(names, " or "))
		}
	}
	if groups == nil {
		return "handles"
	}
	return "at most " + strings.Join(groups, ", ")
}

func newFilterObject(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "object [flags] [FILTER]",
		Short: "Compile a filter to an object string",
		Long: `Compile a filter to the object string that WinDivert 2.2 takes wherever it takes a filter. What the
original cannot express is an error.`,
		Example: `  divert filter object tcp.DstPort == 80
  divert filter object tcp.DstPort == 80 | divert filter format`,
	}
	return filterCommand(a, cmd, func(w io.Writer, g *given) error {
		object, err := objectOf(g.p)
		if err == nil {
			_, err = fmt.Fprintln(w, object)
		}
		return err
	}, func(g *given) (any, error) {
		object, err := objectOf(g.p)
		return jsonObject{object}, err
	})
}

func objectOf(p *filter.Program) (string, error) {
	object, err := p.Object()
	var f *filter.Error
	if errors.As(err, &f) {
		err = errors.New(f.Error()) // about the program as a whole, without a place in the text
	}
	return object, err
}

func newFilterFormat(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "format [flags] [FILTER]",
		Short: "Print the normal form of a filter or of an object string",
		Example: `  divert filter format '!(tcp.DstPort=80)and outbound'
  divert filter format '@WinDiv_…'`,
	}
	return filterCommand(a, cmd, func(w io.Writer, g *given) error {
		text, err := g.p.Format()
		if err == nil {
			_, err = fmt.Fprintln(w, text)
		}
		return err
	}, func(g *given) (any, error) {
		text, err := g.p.Format()
		return jsonText{Filter: text}, err
	})
}

// countOf returns a number with a noun.
func countOf[T integer](n T, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opendivert/divert/filter"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newMan(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "man DIR",
		Short:  "Write the manual pages to a folder",
		Hidden: true, // for packaging; users have --help
		Long: `Write the manual pages to a folder as man(1) finds them: DIR/man1/divert.1, one in man1 for each command,
and DIR/man7/divert-filter.7. They are made from the help texts and the table of fields, and are the same for the same version.`,
		Example: "  divert man /usr/local/share/man",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("man needs a folder, such as /usr/local/share/man")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return writeManual(args[0], cmd.Root()) },
	}
}

// writeManual writes a page for each command in the help, and one for the filter language.
func writeManual(dir string, root *cobra.Command) error {
	pages := map[string]string{filepath.Join("man7", "divert-filter.7"): filterPage()}
	for list := []*cobra.Command{root}; len(list) > 0; list = list[1:] {
		pages[filepath.Join("man1", pageName(list[0])+".1")] = commandPage(list[0])
		list = append(list, shownCommands(list[0])...)
	}
	for name, text := range pages {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// shownCommands returns the subcommands that the help lists.
func shownCommands(c *cobra.Command) []*cobra.Command {
	return slices.DeleteFunc(slices.Clone(c.Commands()), func(c *cobra.Command) bool { return !c.IsAvailableCommand() })
}

// pageName returns the name of a command's page.
func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

// roff writes a page for man(7).
type roff struct{ b strings.Builder }

// newRoff begins a page.
func newRoff(name, section string) *roff {
	r := &roff{}
	fmt.Fprintf(&r.b, ".TH %s %s \"\" %s \"Divert Manual\"\n", roffArgument(strings.ToUpper(name)), section, roffArgument("divert "+buildVersion()))
	r.line(".nh") // do not hyphenate names
	r.line(".ad l")
	return r
}

func (r *roff) line(s string) { r.b.WriteString(s + "\n") }

func (r *roff) section(name string) { r.line(".SH " + name) }

// text writes paragraphs. Indented lines stay unchanged.
func (r *roff) text(s string) {
	paragraph, literal := false, false
	for line := range strings.Lines(strings.Trim(s, "\n") + "\n") {
		line = strings.TrimRight(line, "\n")
		if indented := strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "\t"); indented != literal {
			if literal = indented; literal {
				r.line(".PP\n.RS 4\n.EX")
			} else {
				r.line(".EE\n.RE")
				paragraph = false
			}
		}
		switch {
		case literal:
			r.line(roffText(strings.TrimPrefix(strings.TrimPrefix(line, "  "), "\t")))
		case line == "":
			paragraph = false
		default:
			if !paragraph {
				r.line(".PP")
				paragraph = true
			}
			r.line(roffText(line))
		}
	}
	if literal {
		r.line(".EE\n.RE")
	}
}

// item writes a term, which is already roff, and its meaning.
func (r *roff) item(term, meaning string) {
	r.line(".TP")
	r.line(term)
	r.line(roffText(meaning))
}

// see writes the list of related pages.
func (r *roff) see(pages ...string) {
	r.section("SEE ALSO")
	for i, p := range pages {
		name, section, _ := strings.Cut(p, "(")
		end := ","
		if i == len(pages)-1 {
			end = ""
		}
		r.line(".BR " + roffText(name) + " (" + section + end)
	}
}

// roffText escapes text: anything that roff would take for a command or print as another character (groff_char(7)).
func roffText(s string) string {
	var b strings.Builder
	for i, c := range s {
		switch {
		case i == 0 && (c == '.' || c == '\''):
			b.WriteString(`\&` + map[rune]string{'.': ".", '\'': `\(aq`}[c])
		case c > '~':
			fmt.Fprintf(&b, `\[u%04X]`, c)
		default:
			if e, ok := roffEscapes[c]; ok {
				b.WriteString(e)
			} else {
				b.WriteRune(c)
			}
		}
	}
	return b.String()
}

var roffEscapes = map[rune]string{
	'\\': `\(rs`, '-': `\-`, '^': `\(ha`, '~': `\(ti`, '`': `\(ga`, '\'': `\(aq`,
}

// roffArgument returns text as the argument of a macro.
func roffArgument(s string) string { return `"` + strings.ReplaceAll(roffText(s), `"`, `\(dq`) + `"` }

// commandPage returns the page of a command.
func commandPage(c *cobra.Command) string {
	r := newRoff(pageName(c), "1")
	r.section("NAME")
	r.line(roffText(pageName(c)) + ` \- ` + roffText(c.Short))
	r.section("SYNOPSIS")
	if subs := shownCommands(c); len(subs) > 0 {
		r.line(".B " + roffText(c.CommandPath()))
		r.line(`.I command`)
		r.line(`[\fIflags\fR] ...`)
	} else {
		name, rest, _ := strings.Cut(strings.TrimPrefix(c.UseLine(), parentPath(c)), " ")
		r.line(".B " + roffText(parentPath(c)+name))
		r.line(roffText(rest))
	}
	r.section("DESCRIPTION")
	if c.Long != "" {
		r.text(c.Long)
	} else {
		r.text(c.Short + ".")
	}
	if subs := shownCommands(c); len(subs) > 0 {
		r.section("COMMANDS")
		for _, s := range subs {
			r.item(`\fB`+roffText(s.Name())+`\fR`, s.Short+".")
		}
	}
	r.flags(c)
	if c.Example != "" {
		r.section("EXAMPLES")
		r.text(c.Example)
	}
	r.section(`"EXIT STATUS"`)
	r.item("0", "It ended as asked, also by SIGINT or SIGTERM.")
	r.item("1", "It failed.")
	r.item("2", "Wrong usage, or a filter that does not compile.")
	related := []string{"divert-filter(7)"}
	if c.HasParent() {
		related = append(related, pageName(c.Parent())+"(1)")
	}
	for _, s := range shownCommands(c) {
		related = append(related, pageName(s)+"(1)")
	}
	slices.Sort(related)
	r.see(related...)
	return r.b.String()
}

// parentPath returns the words in front of a command's own name on a command line.
func parentPath(c *cobra.Command) string {
	if !c.HasParent() {
		return ""
	}
	return c.Parent().CommandPath() + " "
}

// flags writes a command's flags.
func (r *roff) flags(c *cobra.Command) {
	c.InitDefaultHelpFlag()
	r.section("OPTIONS")
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		term := `\fB` + roffText("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			term = `\fB` + roffText("-"+f.Shorthand) + `\fR, ` + term
		}
		if n, ok := valueNames[value]; ok {
			value = n
		}
		if value != "" {
			term += ` \fI` + roffText(value) + `\fR`
		}
		if d := f.DefValue; d != "" && d != "false" && d != "0" && d != "0s" && d != "[]" {
			usage += " (default " + d + ")"
		}
		r.item(term, upperFirst(usage)+".")
	})
}

// valueNames maps Go types to the names that the pages use for values of flags.
var valueNames = map[string]string{"int": "N", "int16": "N", "uint32": "N", "uint": "N", "duration": "time"}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// filterPage returns the page of the filter language.
func filterPage() string {
	r := newRoff("divert-filter", "7")
	r.section("NAME")
	r.line(`divert\-filter \- the language that chooses packets and events for Divert`)
	r.section("DESCRIPTION")
	r.text(filterManual)
	for _, g := range groupFields(filter.Fields()) {
		r.section(roffArgument("FIELDS: " + g.heading()))
		for _, f := range g.fields {
			r.item(`\fB`+roffText(fieldName(f))+`\fR`, upperFirst(f.Doc)+" ("+fieldRange(f)+").")
		}
	}
	r.section("EXAMPLES")
	r.text(`  outbound and tcp.DstPort == 443
  udp and (localPort == 53 or remotePort == 53)
  tcp.Syn and not tcp.Ack and inbound
  tcp.PayloadLength > 0 and tcp.Payload32[0] == 0x47455420
  remoteAddr == 10.0.0.0/8 or remoteAddr in {192.0.2.1, 2001:db8::/32}
  (tcp? tcp.DstPort == 443: udp.DstPort == 53)`)
	r.see("divert(1)", "divert-filter(1)", "divert-filter-explain(1)", "pcap-filter(7)")
	return r.b.String()
}

const filterManual = `A filter is an expression that holds for a packet or an event, or does not. It tests fields, as in
outbound and tcp.DstPort == 80. The language is that of WinDivert 2.2, with extensions unless --strict is given.

A test is a field, an operator and a value. The operators are == (or =), !=, <, <=, >, >= and, as extensions, in and not in.
A field alone is a test that it is not 0: tcp.Syn is tcp.Syn != 0, and udp holds for UDP packets.

A test of a field that the packet does not have fails, whatever the operator: tcp.DstPort != 80 holds for TCP packets to
other ports, and for no UDP packet. So does a test with not in front, which only turns the operator round. As an
extension, not before a parenthesis is exactly the opposite: not (tcp.DstPort == 80) holds for UDP packets too.

Tests are joined by and (&&), or (||), not (!) and parentheses; and binds tighter than or. The expression (C? A: B) is A
where C holds, and B where it does not. The filters true and false match everything and nothing.

Numbers are decimal or, with 0x in front, hexadecimal. Addresses are written 192.0.2.1 and 2001:db8::1. These names stand for
values: TRUE, FALSE; the protocols TCP, UDP, ICMP, ICMPV6; the events PACKET, ESTABLISHED, DELETED, BIND, CONNECT, LISTEN,
ACCEPT, CLOSE, OPEN; the layers NETWORK, NETWORK_FORWARD, FLOW, SOCKET, REFLECT. Upper and lower case differ everywhere.

More extensions: a network in place of an address, ip.DstAddr == 10.0.0.0/8; a set of values, ranges and networks,
tcp.DstPort in {80, 443, 8000-8099}; and a set with a name, remoteAddr in @blocked, whose members come from a file: --set
blocked=FILE, or @blocked=FILE in the filter.

A field with [i] is a part of the packet, i times its size from the beginning, or from the end if i is negative: packet16[6] is
the bytes 12 and 13. With a b behind the number the offset is in bytes: packet16[12b] is the same.

The filter of a command is all of its arguments together. Where a shell takes a character for its own, as < or (, put the
filter in single quotes. The command divert filter explain shows what a filter does, and divert filter from-tcpdump converts
one of tcpdump.`

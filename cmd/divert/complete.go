package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
	"github.com/spf13/cobra"
)

// The shell completes filters, interfaces and processes, besides flags. The scripts come from divert completion.

// completeInterfaces completes the names of network interfaces.
func completeInterfaces(_ *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	names := []string{"any\tall interfaces"}
	if all, err := localInterfaces(); err == nil {
		for _, i := range all {
			for _, name := range i.names {
				names = append(names, printable(name))
			}
		}
	}
	return startingWith(names, "", begun), cobra.ShellCompDirectiveNoFileComp
}

// startingWith returns the words that begin with the text typed so far, each prefixed with before.
func startingWith(words []string, before, begun string) (list []string) {
	for _, w := range words {
		if strings.HasPrefix(w, begun) {
			list = append(list, before+w)
		}
	}
	return list
}

// noCompletion completes nothing, not even file names.
func noCompletion(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeFilter completes a filter given as arguments of a command.
func (f *dialectFlags) completeFilter(_ *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	// The unfinished word may be only a part of the argument: "(tcp.D", or in quotes "udp and tcp.D".
	at := strings.LastIndexAny(begun, " \t\n()!?:=<>&|,{") + 1
	if strings.HasSuffix(begun[:at], ":") && strings.Contains(begun, "::") {
		return nil, cobra.ShellCompDirectiveNoFileComp // an address
	}
	before, word := begun[:at], begun[at:]
	words := f.next(filterTokens(strings.Join(append(slices.Clone(args), before), " ")))
	directive := cobra.ShellCompDirectiveNoFileComp
	list := startingWith(words, before, word)
	if len(list) == 1 && strings.HasSuffix(strings.Split(list[0], "\t")[0], "[") {
		directive |= cobra.ShellCompDirectiveNoSpace
	}
	return list, directive
}

// filterTokens splits a filter into the tokens that completion distinguishes: words, operators, parentheses.
func filterTokens(text string) (tokens []string) {
	const operators = "=<>!&|"
	for text = strings.TrimSpace(text); text != ""; text = strings.TrimSpace(text) {
		n := strings.IndexAny(text, operators+"()?:{}, \t\n")
		switch {
		case n < 0:
			n = len(text)
		case n == 0 && strings.Contains(operators, text[:1]):
			for n < len(text) && strings.Contains(operators, text[n:n+1]) {
				n++
			}
		case n == 0:
			n = 1
		}
		tokens, text = append(tokens, text[:n]), text[n:]
	}
	return tokens
}

// next returns the words that may follow tokens, each with a tab and its meaning.
func (f *dialectFlags) next(tokens []string) []string {
	last, field := "", ""
	if n := len(tokens); n > 0 {
		last = tokens[n-1]
		if n > 1 {
			field = tokens[n-2]
		}
	}
	join := []string{"and\tboth hold", "or\tat least one holds"}
	switch last {
	case "", "and", "or", "not", "(", "&&", "||", "!", "?", ":":
		return f.tests()
	case "==", "=", "!=", "<", "<=", ">", ">=":
		return f.values(field)
	case "in":
		return []string{"{\ta set of values, as in {80, 443}", "@\ta set with a name, whose members a file has: @NAME=FILE"}
	case "{", ",":
		return f.values(nameField(tokens))
	case "@":
		return nil
	}
	if slices.ContainsFunc(f.fields(), func(i filter.FieldInfo) bool { return i.Name == last && i.Kind == filter.KindName }) {
		return []string{"==\tequal", "!=\tnot equal", "in\tone of"}
	}
	if slices.ContainsFunc(f.fields(), func(i filter.FieldInfo) bool { return i.Name == last || i.Name == strings.Split(last, "[")[0] }) {
		operators := []string{"==\tequal", "!=\tnot equal", "<\tless", "<=\tat most", ">\tgreater", ">=\tat least"}
		if !f.strict {
			operators = append(operators, "in\tone of")
		}
		return append(operators, join...)
	}
	return join
}

// nameField returns the field whose named values stand in the braces at the end of tokens, "" if they are not names.
func nameField(tokens []string) string {
	i := len(tokens) - 1
	for i >= 0 && tokens[i] != "in" {
		i--
	}
	if i--; i > 0 && tokens[i] == "not" {
		i--
	}
	if i < 0 || tokens[i] != "iface" && tokens[i] != "process" {
		return ""
	}
	return tokens[i]
}

// fields returns the fields of the layer and the dialect.
func (f *dialectFlags) fields() []filter.FieldInfo {
	return slices.DeleteFunc(filter.Fields(), func(i filter.FieldInfo) bool {
		text := i.Name
		switch i.Kind {
		case filter.KindBytes:
			text += "[0]"
		case filter.KindName:
			text += ` == "a"`
		}
		_, err := filter.Compile(text, f.layer(), f.dialect())
		return err != nil
	})
}

// tests returns the words that can begin a test.
func (f *dialectFlags) tests() (list []string) {
	for _, i := range f.fields() {
		name := i.Name
		if i.Kind == filter.KindBytes {
			name += "["
		}
		list = append(list, name+"\t"+i.Doc)
	}
	return append(list, "not\tthe opposite of a test")
}

// values returns the named values of a field.
func (f *dialectFlags) values(field string) (list []string) {
	var names []string
	switch field {
	case "ifIdx":
		if all, err := localInterfaces(); err == nil {
			for _, i := range all {
				list = append(list, fmt.Sprintf("%d\t%s", i.index, printable(i.names[0])))
			}
		}
		return list
	case "iface":
		if all, err := localInterfaces(); err == nil {
			for _, i := range all {
				for _, name := range i.names {
					list = append(list, filter.QuoteName(name))
				}
			}
		}
		return list
	case "process":
		return processNames()
	case "protocol", "ip.Protocol", "ipv6.NextHdr":
		names = []string{"TCP", "UDP", "ICMP", "ICMPV6"}
	case "event":
		names = []string{"PACKET", "ESTABLISHED", "DELETED", "BIND", "CONNECT", "LISTEN", "ACCEPT", "CLOSE", "OPEN"}
	case "layer":
		names = []string{"NETWORK", "NETWORK_FORWARD", "FLOW", "SOCKET", "REFLECT"}
	}
	for _, n := range names {
		if _, err := filter.Compile(field+" == "+n, f.layer(), f.dialect()); err == nil {
			list = append(list, n)
		}
	}
	return list
}

// completeHandles completes the processes that have handles open, as far as this user may see them.
func (r *reflector) completeHandles(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return noCompletion(cmd, args, begun)
	}
	words := []string{"all\tall that have handles open"}
	seen := map[uint32]bool{0: true} // 0: unknown
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	_ = r.each(ctx, nil, func(e *divert.Packet) error { // handles that this user cannot see are not offered
		if pid := e.Addr.Reflect().ProcessID; !seen[pid] {
			seen[pid] = true
			words = append(words, fmt.Sprintf("%d\t%s", pid, printable(r.printer.processes.program(pid, ""))))
		}
		return nil
	})
	return startingWith(words, "", begun), cobra.ShellCompDirectiveNoFileComp
}

package firewall

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opendivert/divert"
	"github.com/opendivert/divert/filter"
)

// Connections that rules reject by direction, protocol, remote address and remote port alone are refused when a process
// calls connect: the call fails at once, and no packet is made. The kernel decides with a filter at the layer SOCKET,
// which matches only where the rules are sure to reject, whatever else becomes known of the connection.

// maxConnectSets is the most named sets of that filter; a program in the kernel has room for some 40.
const maxConnectSets = 32

// maxConnectRules is the number of rules, from the first on, that the filter covers at most: each adds a level of
// nesting.
const maxConnectRules = 48

// connectFilter returns the filter of connections that the rules refuse by the values known at connect, and its sets. The
// text is empty if there are none.
func (r *Rules) connectFilter() (text string, sets map[string]*filter.Set) {
	b := connectBuilder{sets: map[string]*filter.Set{}}
	// From the last rule to the first: each decides its sure cases, and leaves the rest to the rules behind it.
	n, usable := b.usable(r)
	rest := "false"
	if n == len(r.rules) && usable && r.action == Reject {
		rest = "true"
	}
	for i := n - 1; i >= 0; i-- {
		rule := &r.rules[i]
		cond, sure := b.condition(i, rule)
		switch {
		case cond == "false", rule.action == Log:
		case rule.action == Reject && sure:
			rest = or(cond, rest)
		case rule.action == Reject: // this rule refuses, or those behind it decide
		default:
			rest = andNot(rest, cond)
		}
	}
	if rest == "false" {
		return "", nil
	}
	text = "event == CONNECT and (" + rest + ")"
	if !r.loopback {
		text = "not loopback and " + text
	}
	for name := range b.sets {
		if !strings.Contains(text, "@"+name+" ") && !strings.Contains(text, "@"+name+")") {
			delete(b.sets, name)
		}
	}
	return text, b.sets
}

type connectBuilder struct{ sets map[string]*filter.Set }

// usable returns the number of rules, from the first on, that fit into the filter, and whether those are all.
func (b *connectBuilder) usable(r *Rules) (n int, all bool) {
	sets := 0
	for i := range r.rules {
		if sets += len(r.rules[i].addresses); sets > maxConnectSets || i >= maxConnectRules {
			return i, false
		}
	}
	return len(r.rules), true
}

func or(a, b string) string {
	switch {
	case a == "true" || b == "true":
		return "true"
	case b == "false":
		return a
	}
	return "(" + a + " ) or (" + b + " )"
}

// andNot returns a filter that holds where a does and b does not.
func andNot(a, b string) string {
	switch {
	case a == "false" || b == "true":
		return "false"
	case a == "true":
		return "not (" + b + " )"
	}
	return "(" + a + " ) and not (" + b + " )"
}

// condition returns the part of a rule's conditions that is known at connect: a filter that holds wherever the rule does;
// sure means that it holds nowhere else.
func (b *connectBuilder) condition(i int, r *rule) (text string, sure bool) {
	sure = r.locals == nil && r.local == nil && r.hosts == nil && r.servers == nil && r.programs == nil && r.parents == nil &&
		r.names == nil && r.users == nil && r.times == nil && r.days == 0
	if r.direction == inward {
		return "false", true
	}
	var terms []string
	if r.protocols != nil {
		terms = append(terms, anyOf(r.protocols, func(p uint8) string { return fmt.Sprintf("protocol == %d", p) }))
	}
	if r.addresses != nil {
		var in []string
		for k, s := range r.addresses {
			name := fmt.Sprintf("rule%d.%d", i+1, k+1)
			b.sets[name] = s
			in = append(in, "remoteAddr in @"+name+" ")
		}
		terms = append(terms, "("+strings.Join(in, " or ")+")")
	}
	for _, ports := range [][]portRange{r.ports, r.remote} {
		if ports != nil {
			terms = append(terms, "(tcp or udp)", anyOf(ports, func(p portRange) string {
				return fmt.Sprintf("(remotePort >= %d and remotePort <= %d)", p.first, p.last)
			}))
		}
	}
	if terms == nil {
		return "true", sure
	}
	return strings.Join(terms, " and "), sure
}

func anyOf[T any](values []T, f func(T) string) string {
	var terms []string
	for _, v := range values {
		if term := f(v); !slices.Contains(terms, term) {
			terms = append(terms, term)
		}
	}
	return "(" + strings.Join(terms, " or ") + ")"
}

// compileConnect returns the program of connectFilter, nil if there is nothing to refuse at connect.
func (r *Rules) compileConnect() (*filter.Program, error) {
	text, sets := r.connectFilter()
	if text == "" {
		return nil, nil
	}
	p, err := filter.Compile(text, divert.LayerSocket, filter.Extended)
	if err != nil {
		return nil, err
	}
	return p.WithSets(sets)
}

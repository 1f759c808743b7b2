package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// rule is a rule in the supported subset of Suricata's language.
type rule struct {
	action   string // alert, drop, reject
	protocol string // tcp, udp, icmp, ip, http, tls, dns
	src, dst end
	both     bool // <>

	message, class     string
	sid, gid, revision int
	priority           int

	tests [buffers][]test

	toServer, toClient         bool
	established, unestablished bool
	onlyPackets, onlyStream    bool
	size                       *span // dsize
	bits                       []bit
	noAlert                    bool
	limit                      *threshold
}

// buffer identifies the data that a test inspects.
type buffer int

const (
	payload buffer = iota // of the packet or the stream
	httpMethod
	httpURI
	httpURIRaw
	httpHost
	httpUserAgent
	httpRequestLine
	httpStatCode
	httpStatMsg
	tlsSNI
	dnsQuery
	buffers // number of buffers
)

var bufferNames = map[string]buffer{
	"pkt_data": payload, "http.method": httpMethod, "http.uri": httpURI, "http.uri.raw": httpURIRaw, "http.host": httpHost,
	"http.user_agent": httpUserAgent, "http.request_line": httpRequestLine, "http.stat_code": httpStatCode, "http.stat_msg": httpStatMsg,
	"tls.sni": tlsSNI, "dns.query": dnsQuery,
}

// span is a range of numbers, both ends included.
type span struct{ from, to int }

func (s span) has(n int) bool { return s.from <= n && n <= s.to }

// bit is an operation on a flowbit: set, unset, toggle, isset, isnotset.
type bit struct{ do, name string }

// threshold limits how often a rule alerts.
type threshold struct {
	kind    string // limit, threshold, both
	track   string // by_src, by_dst, by_rule
	count   int
	seconds time.Duration
}

// end are the addresses and ports of one side of a rule's head.
type end struct {
	addresses choice[netip.Prefix]
	ports     choice[span]
}

// choice is a list of alternatives and a list of exceptions; without alternatives it means any.
type choice[T any] struct{ in, out []T }

func (c *choice[T]) has(is func(T) bool) bool {
	return (len(c.in) == 0 || slices.ContainsFunc(c.in, is)) && !slices.ContainsFunc(c.out, is)
}

func (e *end) has(a netip.AddrPort) bool {
	return e.addresses.has(func(p netip.Prefix) bool { return p.Contains(a.Addr()) }) &&
		e.ports.has(func(s span) bool { return s.has(int(a.Port())) })
}

// heads reports whether the rule's head matches a packet from src to dst.
func (r *rule) heads(src, dst netip.AddrPort) bool {
	return r.src.has(src) && r.dst.has(dst) || r.both && r.src.has(dst) && r.dst.has(src)
}

// variables map names in the heads of rules, such as HOME_NET, to their values.
type variables map[string]string

// fault is a line with an error or an unsupported rule.
type fault struct {
	file string
	line int
	err  error
}

// Error returns the place and the error.
func (f *fault) Error() string { return fmt.Sprintf("%s:%d: %v", f.file, f.line, f.err) }

// parseRules parses a file of rules. A rule that is not fully supported is left out, and returned as a fault.
func parseRules(file, text string, vars variables) (rules []*rule, faults []error) {
	pending, first := "", 0
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if pending == "" {
			if line == "" || line[0] == '#' {
				continue
			}
			first = n + 1
		}
		if before, ok := strings.CutSuffix(line, "\\"); ok { // the rule continues
			pending += before + " "
			continue
		}
		r, err := parseRule(pending+line, vars)
		pending = ""
		if err != nil {
			faults = append(faults, &fault{file, first, err})
			continue
		}
		rules = append(rules, r)
	}
	if pending != "" {
		faults = append(faults, &fault{file, first, errors.New("the rule has no end")})
	}
	return rules, faults
}

// parseRule parses a rule: a head and, in parentheses, options.
func parseRule(text string, vars variables) (*rule, error) {
	head, options, ok := strings.Cut(text, "(")
	options, closed := strings.CutSuffix(strings.TrimSpace(options), ")")
	if !ok || !closed {
		return nil, errors.New("a rule is a head, and options in parentheses")
	}
	r := &rule{gid: 1, priority: 3}
	if err := r.head(splitHead(head), vars); err != nil {
		return nil, err
	}
	b := payload
	parts, err := splitOptions(options)
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		name, value, _ := strings.Cut(part, ":")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if to, ok := bufferNames[name]; ok && value == "" {
			b = to
			continue
		}
		if err := r.option(name, value, b); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return r, r.check()
}

// splitHead splits the head at white space outside brackets.
func splitHead(s string) (fields []string) {
	depth, field := 0, ""
	for _, c := range s + " " {
		switch {
		case (c == ' ' || c == '\t') && depth == 0:
			if field != "" {
				fields = append(fields, field)
			}
			field = ""
			continue
		case c == '[':
			depth++
		case c == ']':
			depth--
		}
		field += string(c)
	}
	return fields
}

// splitOptions splits options at semicolons outside quotes.
func splitOptions(s string) (parts []string, err error) {
	quoted, part := false, ""
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			part += s[i : i+2]
			i++
			continue
		case c == '"':
			quoted = !quoted
		case c == ';' && !quoted:
			parts = append(parts, strings.TrimSpace(part))
			part = ""
			continue
		}
		part += s[i : i+1]
	}
	if quoted || strings.TrimSpace(part) != "" {
		return nil, errors.New("an option has no semicolon at its end, or a text no quote")
	}
	return parts, nil
}

func (r *rule) head(f []string, vars variables) error {
	if len(f) != 7 {
		return errors.New("a head is action, protocol, address, port, -> or <>, address, port")
	}
	r.action, r.protocol = f[0], f[1]
	if !slices.Contains([]string{"alert", "drop", "reject"}, r.action) {
		return fmt.Errorf("the action %s is not understood; alert, drop and reject are", r.action)
	}
	if !slices.Contains([]string{"tcp", "udp", "icmp", "ip", "http", "tls", "dns"}, r.protocol) {
		return fmt.Errorf("the protocol %s is not understood; tcp, udp, icmp, ip, http, tls and dns are", r.protocol)
	}
	if r.both = f[4] == "<>"; !r.both && f[4] != "->" {
		return fmt.Errorf("the direction %s is not understood; -> and <> are", f[4])
	}
	for i, e := range []*end{&r.src, &r.dst} {
		if err := parseChoice(&e.addresses, f[2+3*i], false, vars, 0, parsePrefix); err != nil {
			return err
		}
		if err := parseChoice(&e.ports, f[3+3*i], false, vars, 0, parsePorts); err != nil {
			return err
		}
	}
	return nil
}

// parseChoice parses an element, a list in brackets, a variable, or one of these after !.
func parseChoice[T any](c *choice[T], s string, not bool, vars variables, depth int, parse func(string) (T, error)) error {
	if depth > 8 {
		return errors.New("lists or variables lie in each other too deeply")
	}
	if rest, ok := strings.CutPrefix(s, "!"); ok {
		if not {
			return fmt.Errorf("%s: twice negated", s)
		}
		return parseChoice(c, rest, true, vars, depth+1, parse)
	}
	if name, ok := strings.CutPrefix(s, "$"); ok {
		v, known := vars[name]
		if !known {
			return fmt.Errorf("there is no variable $%s: give -var %s=…", name, name)
		}
		return parseChoice(c, v, not, vars, depth+1, parse)
	}
	if strings.HasPrefix(s, "[") {
		if !strings.HasSuffix(s, "]") {
			return fmt.Errorf("%s: a bracket is missing", s)
		}
		for _, e := range splitList(s[1 : len(s)-1]) {
			if err := parseChoice(c, strings.TrimSpace(e), not, vars, depth+1, parse); err != nil {
				return err
			}
		}
		return nil
	}
	if s == "any" {
		if not {
			return errors.New("!any is nothing")
		}
		return nil
	}
	v, err := parse(s)
	if err != nil {
		return err
	}
	if not {
		c.out = append(c.out, v)
	} else {
		c.in = append(c.in, v)
	}
	return nil
}

// splitList splits a list at commas outside brackets.
func splitList(s string) (parts []string) {
	depth, from := 0, 0
	for i, c := range s {
		switch {
		case c == '[':
			depth++
		case c == ']':
			depth--
		case c == ',' && depth == 0:
			parts = append(parts, s[from:i])
			from = i + 1
		}
	}
	return append(parts, s[from:])
}

func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Prefix(a.BitLen())
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%q is no address", s)
	}
	return p.Masked(), nil
}

// parsePorts parses 80, 1:1024, 1024: or :1024.
func parsePorts(s string) (span, error) {
	from, to, isRange := strings.Cut(s, ":")
	if !isRange {
		to = from
	}
	if from == "" {
		from = "0"
	}
	if to == "" {
		to = "65535"
	}
	a, err1 := strconv.ParseUint(from, 10, 16)
	b, err2 := strconv.ParseUint(to, 10, 16)
	if err1 != nil || err2 != nil || a > b {
		return span{}, fmt.Errorf("%q is no port", s)
	}
	return span{int(a), int(b)}, nil
}

// unquote removes the quotes of a value, and reports whether a ! precedes them.
func unquote(s string) (text string, negated bool, err error) {
	s, negated = strings.CutPrefix(s, "!")
	s = strings.TrimSpace(s)
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return "", negated, errors.New("there must be a text in quotes")
	}
	return s[1 : len(s)-1], negated, nil
}

// parseContent parses the text of a content: bytes, with hexadecimal ones between bars, and \ before " ; : and \.
func parseContent(s string) ([]byte, error) {
	var b []byte
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '|':
			end := strings.IndexByte(s[i+1:], '|')
			if end < 0 {
				return nil, errors.New("a bar is missing")
			}
			x, err := hex.DecodeString(strings.ReplaceAll(s[i+1:i+1+end], " ", ""))
			if err != nil {
				return nil, fmt.Errorf("|%s| is not hexadecimal", s[i+1:i+1+end])
			}
			b = append(b, x...)
			i += end + 1
		case '\\':
			if i+1 == len(s) || !strings.ContainsRune(`";:\|`, rune(s[i+1])) {
				return nil, errors.New(`behind \ there may be " ; : \ or |`)
			}
			i++
			b = append(b, s[i])
		default:
			b = append(b, s[i])
		}
	}
	if len(b) == 0 || len(b) > 255 {
		return nil, errors.New("there must be 1 to 255 bytes")
	}
	return b, nil
}

// parsePCRE parses "/expression/flags" in the syntax of RE2.
func parsePCRE(s string) (*regexp.Regexp, bool, error) {
	end := strings.LastIndexByte(s, '/')
	if len(s) < 2 || s[0] != '/' || end == 0 {
		return nil, false, errors.New("it must be /expression/flags")
	}
	flags, relative := "", false
	for _, c := range s[end+1:] {
		switch c {
		case 'i', 's', 'm':
			flags += string(c)
		case 'R':
			relative = true
		default:
			return nil, false, fmt.Errorf("the flag %c is not understood; i, s, m and R are", c)
		}
	}
	expression := strings.ReplaceAll(s[1:end], `\/`, "/")
	if flags != "" {
		expression = "(?" + flags + ")" + expression
	}
	for i := range len(expression) {
		if expression[i] >= 0x80 {
			return nil, false, errors.New(`write bytes from 0x80 on as \x80`)
		}
	}
	re, err := regexp.Compile(expression)
	if err != nil {
		return nil, false, fmt.Errorf("RE2 does not have it: %w", err)
	}
	return re, relative, nil
}

package firewall

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/yamltext"
	"github.com/opendivert/divert/process"
)

// MaxFile is the length of the longest file of rules, in bytes. Large sets have files of their own.
const MaxFile = 4 << 20

// A FileError is an error in a file of rules, with its place.
type FileError struct {
	Path         string // empty for rules that are not from a file
	Line, Column int    // numbered from 1, in characters; 0 if the error has no place
	Err          error

	snippet string
}

// Error returns the place and the error there.
func (e *FileError) Error() string {
	switch {
	case e.Line == 0 && e.Path == "":
		return e.Err.Error()
	case e.Line == 0:
		return fmt.Sprintf("%s: %v", e.Path, e.Err)
	case e.Path == "":
		return fmt.Sprintf("line %d, column %d: %v", e.Line, e.Column, e.Err)
	}
	return fmt.Sprintf("%s:%d:%d: %v", e.Path, e.Line, e.Column, e.Err)
}

// Unwrap returns the error without its place.
func (e *FileError) Unwrap() error { return e.Err }

// Snippet returns the line of the file, and below it a caret under the place; "" if the error has no place.
func (e *FileError) Snippet() string { return e.snippet }

// Load reads rules from a file. Files that it names are relative to its folder. Errors in it are of type *FileError, those
// of opening and reading it *fs.PathError.
func Load(path string) (*Rules, error) {
	at := dependencyOf(path)
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	r, err := Parse(b, filepath.Dir(path))
	var wrong *FileError
	if errors.As(err, &wrong) {
		wrong.Path = path
	}
	if err != nil {
		return nil, err
	}
	r.files = append(r.files, at)
	return r, nil
}

// readFile reads a file, but no more than one byte beyond MaxFile.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFile+1))
}

// Parse reads rules from YAML; docs/firewall.md describes them. Files that it names are relative to folder. All errors
// are of type *FileError.
func Parse(b []byte, folder string) (*Rules, error) {
	r, err := parse(b, folder)
	if err == nil {
		return r, nil
	}
	wrong := &FileError{Err: err}
	var at *yamltext.Error
	if errors.As(err, &at) {
		wrong.Line, wrong.Column, wrong.Err, wrong.snippet = at.Line, at.Column, at.Err, at.Snippet(b)
	}
	return nil, wrong
}

func parse(b []byte, folder string) (*Rules, error) {
	if len(b) > MaxFile {
		return nil, fmt.Errorf("the file is longer than %d bytes", MaxFile)
	}
	doc, err := yamltext.Parse(b)
	if err != nil {
		return nil, err
	}
	f := &file{folder: folder, sets: map[string]*filter.Set{}, rules: &Rules{
		serverNames: true, ask: askSettings{timeout: 15 * time.Second, action: Deny},
	}}
	if err := f.read(doc); err != nil {
		return nil, err
	}
	return f.rules, nil
}

// file is the state of reading a file.
type file struct {
	folder string
	sets   map[string]*filter.Set
	used   map[string]bool // sets named by rules
	rules  *Rules
}

var fileNames = []string{"default", "on-death", "loopback", "server-names", "log", "ask", "resolvers", "sets", "rules"}

func (f *file) read(doc ast.Node) error {
	all, err := yamltext.Entries(doc, "a file of rules", "default: deny")
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, func(a, b yamltext.Entry) int { // sets before the rules that name them
		return slices.Index(fileNames, a.Name) - slices.Index(fileNames, b.Name)
	})
	r := f.rules
	given, setEntries := false, []yamltext.Entry(nil)
	for i := range all {
		e := &all[i]
		switch e.Name {
		case "default":
			given = true
			r.action, err = readAction(e, Allow, Deny, Reject, Ask)
		case "on-death":
			r.closed, err = readWord(e, "open", "closed")
		case "loopback":
			r.loopback, err = readWord(e, "no", "yes")
		case "server-names":
			r.serverNames, err = readWord(e, "no", "yes")
		case "log":
			err = f.readLog(e)
		case "ask":
			err = f.readAsk(e)
		case "resolvers":
			err = e.Texts(f.addResolver)
		case "sets":
			setEntries, err = f.readSets(e)
		case "rules":
			err = f.readRules(e)
		default:
			err = e.Unknown("a file of rules", fileNames...)
		}
		if err != nil {
			return err
		}
	}
	for i := range setEntries {
		if e := &setEntries[i]; !f.used[e.Name] {
			return yamltext.At(e.Key, "no rule names the set @%s", e.Name)
		}
	}
	if !given {
		return yamltext.At(doc, "the file needs an action for connections that no rule decides: default: allow, deny, reject or ask")
	}
	return nil
}

// readWord reads one of two words, and reports whether it is the second.
func readWord(e *yamltext.Entry, first, second string) (bool, error) {
	text, err := e.Text()
	switch {
	case err != nil:
		return false, err
	case text == second, second == "yes" && text == "true":
		return true, nil
	case text == first, first == "no" && text == "false":
		return false, nil
	}
	return false, yamltext.At(e.Value, "%s is %s or %s", e.Name, first, second)
}

func readAction(e *yamltext.Entry, allowed ...Action) (Action, error) {
	text, err := e.Text()
	if err != nil {
		return 0, err
	}
	a, err := parseAction(text, allowed...)
	if err != nil {
		return 0, yamltext.At(e.Value, "%s: %w", e.Name, err)
	}
	return a, nil
}

func (f *file) readLog(e *yamltext.Entry) error {
	text, err := e.Text()
	if err != nil {
		return err
	}
	level := slices.Index([]string{logDenied: "denied", logAll: "all", logRules: "rules"}, text)
	if level < 0 {
		return yamltext.At(e.Value, "log is denied, all or rules")
	}
	f.rules.log = logLevel(level)
	return nil
}

// The bounds of the time that a question waits. The sender gives up waiting for a packet held longer.
const (
	minTimeout = time.Second
	maxTimeout = time.Minute
)

func (f *file) readAsk(e *yamltext.Entry) error {
	all, err := yamltext.Entries(e.Value, "ask", "timeout: 15s")
	if err != nil {
		return err
	}
	for i := range all {
		e := &all[i]
		switch e.Name {
		case "timeout":
			var text string
			if text, err = e.Text(); err != nil {
				return err
			}
			d, wrong := time.ParseDuration(text)
			if wrong != nil || d < minTimeout || d > maxTimeout {
				return yamltext.At(e.Value, "timeout is a time with its unit, as in 15s, %v to %v", minTimeout, maxTimeout)
			}
			f.rules.ask.timeout = d
		case "default":
			f.rules.ask.action, err = readAction(e, Allow, Deny, Reject)
		default:
			err = e.Unknown("ask", "timeout", "default")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *file) addResolver(text string) error {
	a, err := netip.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("%q is not an address", text)
	}
	f.rules.resolvers = append(f.rules.resolvers, a.Unmap().WithZone(""))
	return nil
}

func (f *file) readSets(e *yamltext.Entry) ([]yamltext.Entry, error) {
	all, err := yamltext.Entries(e.Value, "sets", "lan: [10.0.0.0/8]")
	if err != nil {
		return nil, err
	}
	for i := range all {
		e := &all[i]
		if !filter.ValidName(e.Name) {
			return nil, yamltext.At(e.Key, "%q is not the name of a set: names have letters, digits, _, - and points, 63 at most", e.Name)
		}
		elements, err := f.readSet(e)
		if err != nil {
			return nil, err
		}
		s := filter.NewAddressSet()
		if err := s.Replace(elements); err != nil {
			return nil, yamltext.At(e.Value, "the set %s: %w", e.Name, err)
		}
		f.sets[e.Name] = s
	}
	return all, nil
}

// readSet reads the elements of a set: a list, or a mapping that names a file.
func (f *file) readSet(e *yamltext.Entry) (elements []filter.Element, err error) {
	switch e.Value.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
	default:
		err = e.Texts(func(text string) error {
			element, err := parseAddresses(text)
			elements = append(elements, element)
			return err
		})
		return elements, err
	}
	all, err := yamltext.Entries(e.Value, "a set with a file", "file: blocked.txt")
	if err != nil {
		return nil, err
	}
	if len(all) != 1 || all[0].Name != "file" {
		return nil, yamltext.At(e.Value, "a set is a list of addresses and networks, or has one entry, the file that has them: {file: blocked.txt}")
	}
	path, err := all[0].Text()
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(f.folder, path)
	}
	at := dependencyOf(path)
	in, err := os.Open(path)
	if err != nil {
		return nil, yamltext.At(all[0].Value, "%w", err)
	}
	defer in.Close()
	if elements, err = filter.ReadElements(in); err != nil {
		return nil, yamltext.At(all[0].Value, "%s: %w", path, err)
	}
	f.rules.files = append(f.rules.files, at)
	return elements, nil
}

// parseAddresses reads an address, a network or a range of addresses.
func parseAddresses(text string) (filter.Element, error) {
	e, err := filter.ParseElement(text)
	if err != nil {
		return e, err
	}
	if !strings.ContainsAny(text, ".:") {
		return e, fmt.Errorf("%q is not an address; one is written as 192.0.2.1, 192.0.2.0/24, 192.0.2.1-192.0.2.9 or 2001:db8::/32", text)
	}
	return e, nil
}

func (f *file) readRules(e *yamltext.Entry) error {
	list, ok := e.Value.(*ast.SequenceNode)
	if !ok {
		return yamltext.At(e.Value, "rules must be a list: each begins with a dash")
	}
	names := map[string]bool{}
	for _, n := range list.Values {
		r, err := f.readRule(n)
		if err != nil {
			return err
		}
		if r.name != "" && names[r.name] {
			return yamltext.At(n, "there are two rules with the name %q", r.name)
		}
		names[r.name] = true
		f.rules.rules = append(f.rules.rules, r)
	}
	return nil
}

// ruleNames are the keys of a rule, in the order of the manual.
var ruleNames = []string{
	"name", "action", "log", "direction", "protocol", "address", "local-address", "port", "remote-port", "local-port",
	"host", "server-name", "program", "parent", "process", "user", "time", "days",
}

func (f *file) readRule(n ast.Node) (r rule, err error) {
	all, err := yamltext.Entries(n, "a rule", "action: allow")
	if err != nil {
		return r, err
	}
	given := false
	for i := range all {
		e := &all[i]
		switch e.Name {
		case "name":
			r.name, err = e.Text()
		case "action":
			given = true
			r.action, err = readAction(e, Allow, Deny, Reject, Log, Ask)
		case "log":
			r.log, err = readWord(e, "no", "yes")
		case "direction":
			var in bool
			in, err = readWord(e, "out", "in")
			if r.direction = outward; in {
				r.direction = inward
			}
		default:
			err = f.readCondition(&r, e)
		}
		if err != nil {
			return r, err
		}
	}
	if !given {
		return r, yamltext.At(n, "the rule has no action: allow, deny, reject, log or ask")
	}
	return r, checkRule(n, &r)
}

// checkRule refuses rules that can never match.
func checkRule(n ast.Node, r *rule) error {
	ported := slices.ContainsFunc(r.protocols, func(p uint8) bool { return p == protocolTCP || p == protocolUDP })
	if r.protocols != nil && !ported && (r.ports != nil || r.remote != nil || r.local != nil) {
		return yamltext.At(n, "the rule is about ports, which its protocols do not have: it never matches")
	}
	if r.servers != nil && r.protocols != nil && !ported {
		return yamltext.At(n, "the rule is about names in TLS and QUIC, which its protocols do not carry: it never matches")
	}
	if (r.servers != nil || r.hosts != nil) && r.action == Log && r.log {
		return yamltext.At(n, "action: log and log: yes say the same; leave log out")
	}
	return nil
}

func (f *file) readCondition(r *rule, e *yamltext.Entry) error {
	switch e.Name {
	case "protocol":
		return e.Texts(func(text string) error {
			p, err := parseProtocol(text)
			r.protocols = append(r.protocols, p)
			return err
		})
	case "address":
		return f.readAddresses(e, &r.addresses)
	case "local-address":
		return f.readAddresses(e, &r.locals)
	case "port":
		return e.Texts(addPorts(&r.ports))
	case "remote-port":
		return e.Texts(addPorts(&r.remote))
	case "local-port":
		return e.Texts(addPorts(&r.local))
	case "host":
		return e.Texts(addPattern(&r.hosts))
	case "server-name":
		return e.Texts(addPattern(&r.servers))
	case "program":
		return e.Texts(f.addProgram(&r.programs))
	case "parent":
		return e.Texts(f.addProgram(&r.parents))
	case "process":
		return e.Texts(func(text string) error {
			if text == "" {
				return errors.New("a process has a name of one character or more")
			}
			if len(text) > maxProcessName {
				text = text[:maxProcessName]
			}
			r.names = append(r.names, text)
			return nil
		})
	case "user":
		return e.Texts(func(text string) error {
			a, err := parseUser(text)
			r.users = append(r.users, a)
			return err
		})
	case "time":
		return e.Texts(func(text string) error {
			w, err := parseWindow(text)
			r.times = append(r.times, w)
			return err
		})
	case "days":
		return e.Texts(func(text string) error {
			days, err := parseDays(text)
			r.days |= days
			return err
		})
	}
	return e.Unknown("a rule", ruleNames...)
}

// readAddresses reads addresses, networks, and sets by their names.
func (f *file) readAddresses(e *yamltext.Entry, to *[]*filter.Set) error {
	var elements []filter.Element
	err := e.Texts(func(text string) error {
		name, named := strings.CutPrefix(text, "@")
		if !named {
			element, err := parseAddresses(text)
			elements = append(elements, element)
			return err
		}
		s := f.sets[name]
		if s == nil {
			return fmt.Errorf("there is no set %s; sets: gives its addresses", name)
		}
		if f.used == nil {
			f.used = map[string]bool{}
		}
		f.used[name] = true
		*to = append(*to, s)
		return nil
	})
	if err != nil || elements == nil {
		return err
	}
	s := filter.NewAddressSet()
	if err := s.Replace(elements); err != nil {
		return yamltext.At(e.Value, "%s: %w", e.Name, err)
	}
	*to = append(*to, s)
	return nil
}

var protocolNames = map[string]uint8{
	"icmp": protocolICMP, "igmp": 2, "tcp": protocolTCP, "udp": protocolUDP, "gre": 47, "esp": 50, "ah": 51,
	"icmpv6": protocolICMPv6, "sctp": 132,
}

func parseProtocol(text string) (uint8, error) {
	if p, ok := protocolNames[text]; ok {
		return p, nil
	}
	n, err := strconv.ParseUint(text, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("%q is not a protocol; one is tcp, udp, icmp, icmpv6, igmp, gre, esp, ah, sctp, or a number from 0 to 255", text)
	}
	return uint8(n), nil
}

func addPorts(to *[]portRange) func(string) error {
	return func(text string) error {
		from, until, isRange := strings.Cut(text, "-")
		if !isRange {
			until = from
		}
		first, err := strconv.ParseUint(from, 10, 16)
		last, err2 := strconv.ParseUint(until, 10, 16)
		if err != nil || err2 != nil || first > last {
			return fmt.Errorf("%q is not a port; one is written as 443, and a range as 8000-8080, up to 65535", text)
		}
		*to = append(*to, portRange{uint16(first), uint16(last)})
		return nil
	}
}

func addPattern(to *[]pattern) func(string) error {
	return func(text string) error {
		p, err := parsePattern(text)
		*to = append(*to, p)
		return err
	}
}

// parsePattern reads a host name: example.com is itself, *.example.com every name below it, .example.com both.
func parsePattern(text string) (pattern, error) {
	p := pattern{self: true}
	name, below := strings.CutPrefix(text, "*.")
	if below {
		p.self, p.below = false, true
	} else if name, below = strings.CutPrefix(text, "."); below {
		p.below = true
	}
	p.name = strings.ToLower(strings.TrimSuffix(name, "."))
	valid := len(p.name) > 0 && len(p.name) <= 253
	for label := range strings.SplitSeq(p.name, ".") {
		valid = valid && len(label) > 0 && len(label) <= 63 && !strings.ContainsFunc(label, func(c rune) bool {
			return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_'
		})
	}
	if !valid {
		return p, fmt.Errorf("%q is not a host name; one is example.com, \"*.example.com\" for all below it, or .example.com for both; names with other letters are written as their xn-- form", text)
	}
	return p, nil
}

// maxProcessName is the longest name of a process on Linux, in bytes (TASK_COMM_LEN less the final zero).
const maxProcessName = 15

func (f *file) addProgram(to *[]executable) func(string) error {
	return func(path string) error {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%q is not the full path of an executable, as in /usr/bin/curl; process: takes names of processes", path)
		}
		path = filepath.Clean(path)
		if resolved, err := filepath.EvalSymlinks(path); err == nil {
			path = resolved
		}
		*to = append(*to, executable{path, fileOf(path)})
		f.rules.files = append(f.rules.files, dependencyOf(path))
		return nil
	}
}

func parseUser(text string) (account, error) {
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return account{uid: uint32(n), byID: true}, nil
	}
	u, err := user.Lookup(text)
	if err != nil {
		return account{}, fmt.Errorf("there is no user %q; one is a name or a number", text)
	}
	if n, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
		return account{uid: uint32(n), byID: true}, nil
	}
	return account{name: u.Username}, nil
}

func parseWindow(text string) (w window, err error) {
	from, until, ok := strings.Cut(text, "-")
	if ok {
		if w.from, err = parseClock(from); err == nil {
			w.to, err = parseClock(until)
		}
	}
	if !ok || err != nil || w.from == w.to || w.from == 24*60 {
		return w, fmt.Errorf("%q is not a part of a day; one is written as 08:00-17:30, or 22:00-06:00 over midnight", text)
	}
	return w, nil
}

// parseClock reads a time of day, in minutes since midnight; 24:00 is one.
func parseClock(text string) (int, error) {
	hour, minute, ok := strings.Cut(strings.TrimSpace(text), ":")
	h, err := strconv.ParseUint(hour, 10, 8)
	m, err2 := strconv.ParseUint(minute, 10, 8)
	if !ok || err != nil || err2 != nil || len(minute) != 2 || m > 59 || h > 24 || h == 24 && m != 0 {
		return 0, errors.New("no time of day")
	}
	return int(h*60 + m), nil
}

var dayNames = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// parseDays reads a day or a range of days, as a bit for each.
func parseDays(text string) (days uint8, err error) {
	from, until, isRange := strings.Cut(text, "-")
	if !isRange {
		until = from
	}
	first, last := slices.Index(dayNames, from), slices.Index(dayNames, until)
	if first < 0 || last < 0 {
		return 0, fmt.Errorf("%q is not a day; one is mon, tue, wed, thu, fri, sat or sun, and a range mon-fri", text)
	}
	for d := first; ; d = (d + 1) % 7 {
		days |= 1 << d
		if d == last {
			return days, nil
		}
	}
}

// dependency is a file that rules depend on, in its state when they were read.
type dependency struct {
	path string
	file process.File
	size int64
	when time.Time
}

// dependencyOf returns the present state of a file, which may be missing.
func dependencyOf(path string) dependency {
	d := dependency{path: path}
	if info, err := os.Stat(path); err == nil {
		d.size, d.when, d.file = info.Size(), info.ModTime(), fileOf(path)
	}
	return d
}

// same reports whether the file has the same state.
func (d dependency) same(e dependency) bool {
	return d.file == e.file && d.size == e.size && d.when.Equal(e.when)
}

// State returns the present state of the files of the rules, and of the executables that they name, as a text that
// differs after every change.
func (r *Rules) State() string {
	var b strings.Builder
	for _, d := range r.files {
		is := dependencyOf(d.path)
		fmt.Fprintf(&b, "%s %v %d %d\n", d.path, is.file, is.size, is.when.UnixNano())
	}
	return b.String()
}

// Changed reports whether one of those files has changed since the rules were read.
func (r *Rules) Changed() bool {
	return slices.ContainsFunc(r.files, func(d dependency) bool { return !d.same(dependencyOf(d.path)) })
}

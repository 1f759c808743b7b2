package impair

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Schedule is the content of a file: the phases of a run.
type Schedule struct {
	Phases []Phase
	Repeat bool
}

// MaxFile is the length of the longest file that ParseSchedule takes, in bytes.
const MaxFile = 1 << 20

// maxNesting is the deepest nesting of brackets and dashes in a file, more than any schedule needs.
const maxNesting = 32

// place is a place in a file, numbered from 1.
type place struct{ line, column int }

// String returns the place in words.
func (p place) String() string { return fmt.Sprintf("line %d, column %d", p.line, p.column) }

// A FileError is an error in a file, with its place.
type FileError struct {
	Line, Column int // numbered from 1; 0 if the error has no place
	Err          error
}

// Error returns the place and the error there.
func (e *FileError) Error() string {
	if e.Line == 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("%v: %v", place{e.Line, e.Column}, e.Err)
}

// Unwrap returns the error without its place.
func (e *FileError) Unwrap() error { return e.Err }

// ParseSchedule reads a schedule from YAML:
//
//	repeat: true          # begin again when the last phase has passed
//	phases:
//	  - name: good        # for people
//	    for: 30s
//	    rules:
//	      - lag: 20ms     # the names are those of Settings
//	  - name: bad
//	    for: 5s
//	    rules:
//	      - filter: udp
//	        loss: 30%
//	        loss-run: 5
//
// Instead of phases it may have rules alone, for the whole run. All errors are of type *FileError. Filters are not
// compiled.
func ParseSchedule(b []byte) (*Schedule, error) {
	if len(b) > MaxFile {
		return nil, &FileError{Err: fmt.Errorf("the file is longer than %d bytes", MaxFile)}
	}
	if err := checkNesting(b); err != nil {
		return nil, err
	}
	file, err := parser.ParseBytes(b, 0)
	if err != nil {
		return nil, syntaxError(err)
	}
	var docs []ast.Node
	for _, d := range file.Docs {
		if d.Body != nil && d.Body.Type() != ast.NullType && d.Body.Type() != ast.CommentType {
			docs = append(docs, d.Body)
		}
	}
	switch len(docs) {
	case 0:
		return nil, &FileError{Err: errors.New("the file is empty; it needs rules or phases")}
	case 1:
	default:
		return nil, errorAt(docs[1], "a second document begins here; a file has one")
	}
	return readSchedule(docs[0])
}

// checkNesting refuses nesting that could only be an attack on the parser's stack.
func checkNesting(b []byte) error {
	deepest, depth, indents := 0, 0, 0
	for line := range strings.Lines(string(b)) {
		rest := strings.TrimLeft(line, " -?:\t")
		indents = strings.Count(line[:len(line)-len(rest)], "-") + strings.Count(line[:len(line)-len(rest)], "?") + strings.Count(line[:len(line)-len(rest)], ":")
		for _, c := range rest {
			switch c {
			case '[', '{':
				depth++
			case ']', '}':
				depth--
			}
			deepest = max(deepest, depth)
		}
		deepest = max(deepest, indents)
	}
	if deepest > maxNesting {
		return &FileError{Err: fmt.Errorf("the file nests brackets or dashes deeper than %d", maxNesting)}
	}
	return nil
}

// syntaxError makes an error of the parser a FileError.
func syntaxError(err error) error {
	var e yaml.Error
	if !errors.As(err, &e) || e.GetToken() == nil {
		return &FileError{Err: fmt.Errorf("this is not YAML: %w", err)}
	}
	at := placeOf(e.GetToken())
	return &FileError{at.line, at.column, fmt.Errorf("this is not YAML: %s", e.GetMessage())}
}

func placeOf(t *token.Token) place {
	if t == nil || t.Position == nil {
		return place{}
	}
	return place{t.Position.Line, t.Position.Column}
}

func errorAt(n ast.Node, format string, args ...any) error {
	at := placeOf(n.GetToken())
	return &FileError{at.line, at.column, fmt.Errorf(format, args...)}
}

// entry is a key of a mapping with its value.
type entry struct {
	name       string
	key, value ast.Node
}

// entries returns the entries of a mapping, each key at most once.
func entries(n ast.Node, what string) ([]entry, error) {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		return nil, errorAt(n, "%s consists of names with values, as in \"lag: 100ms\"", what)
	}
	seen := map[string]bool{}
	var all []entry
	for _, v := range values {
		name, ok := scalar(v.Key)
		if !ok {
			return nil, errorAt(v.Key, "a name must stand here")
		}
		if seen[name] {
			return nil, errorAt(v.Key, "%s is given a second time", name)
		}
		seen[name] = true
		all = append(all, entry{name, v.Key, v.Value})
	}
	return all, nil
}

// scalar returns the text of a value that is neither a list nor a mapping.
func scalar(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// list calls f for each element of a list.
func list(e entry, f func(ast.Node) error) error {
	s, ok := e.value.(*ast.SequenceNode)
	if !ok {
		return errorAt(e.key, "%s must be a list: each element begins with a dash", e.name)
	}
	for _, v := range s.Values {
		if err := f(v); err != nil {
			return err
		}
	}
	return nil
}

// text returns the text of an entry.
func (e *entry) text() (string, error) {
	s, ok := scalar(e.value)
	if !ok {
		return "", errorAt(e.key, "%s needs a value of one word", e.name)
	}
	return s, nil
}

// unknown is the error for a name that does not exist, with a list of those that do.
func (e *entry) unknown(what string, names ...string) error {
	return errorAt(e.key, "%s has no %s; it may have %s", what, e.name, strings.Join(names, ", "))
}

func readSchedule(n ast.Node) (*Schedule, error) {
	all, err := entries(n, "a schedule")
	if err != nil {
		return nil, err
	}
	s := &Schedule{}
	var rules, phases, repeat *entry
	for i := range all {
		e := &all[i]
		switch e.name {
		case "rules":
			rules = e
			p := Phase{}
			if p.Rules, err = readRules(*e); err == nil {
				s.Phases = append(s.Phases, p)
			}
		case "phases":
			phases = e
			err = list(*e, func(v ast.Node) error {
				p, err := readPhase(v)
				s.Phases = append(s.Phases, p)
				return err
			})
		case "repeat":
			repeat = e
			s.Repeat, err = readBool(e)
		default:
			err = e.unknown("a schedule", "rules", "phases", "repeat")
		}
		if err != nil {
			return nil, err
		}
	}
	switch {
	case rules != nil && phases != nil:
		return nil, errorAt(phases.key, "there are rules for the whole run and phases; only one of the two can be")
	case rules == nil && (phases == nil || len(s.Phases) == 0):
		return nil, errorAt(n, "there are neither rules nor phases")
	case repeat != nil && phases == nil:
		return nil, errorAt(repeat.key, "only phases can be repeated")
	}
	return s, checkTimes(s, phases)
}

// checkTimes refuses a phase without end, unless it is the last.
func checkTimes(s *Schedule, phases *entry) error {
	if phases == nil {
		return nil
	}
	for i, v := range phases.value.(*ast.SequenceNode).Values {
		if s.Phases[i].For != 0 {
			continue
		}
		if s.Repeat {
			return errorAt(v, "this phase has no time (for), which it needs if the phases are repeated")
		}
		if i < len(s.Phases)-1 {
			return errorAt(v, "this phase has no time (for); only the last one may do without")
		}
	}
	return nil
}

func readBool(e *entry) (bool, error) {
	text, err := e.text()
	if err != nil {
		return false, err
	}
	v, err := parseBool(text)
	if err != nil {
		return false, errorAt(e.value, "%s: %w", e.name, err)
	}
	return v, nil
}

func readPhase(n ast.Node) (p Phase, err error) {
	all, err := entries(n, "a phase")
	if err != nil {
		return p, err
	}
	for i := range all {
		e := &all[i]
		switch e.name {
		case "name":
			p.Name, err = e.text()
		case "for":
			p.For, err = readPhaseTime(e)
		case "rules":
			p.Rules, err = readRules(*e)
		default:
			err = e.unknown("a phase", "name", "for", "rules")
		}
		if err != nil {
			return p, err
		}
	}
	return p, nil
}

func readPhaseTime(e *entry) (time.Duration, error) {
	text, err := e.text()
	if err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, errorAt(e.value, "for takes a time with its unit, as in 30s or 1m30s")
	}
	if d < minPhase || d > maxPhase {
		return 0, errorAt(e.value, "for: %s is out of range (%v to %v)", text, minPhase, maxPhase)
	}
	return d, nil
}

func readRules(e entry) (rules []Rule, err error) {
	err = list(e, func(v ast.Node) error {
		r, err := readRule(v)
		rules = append(rules, r)
		return err
	})
	return rules, err
}

func readRule(n ast.Node) (r Rule, err error) {
	all, err := entries(n, "a rule")
	if err != nil {
		return r, err
	}
	nodes := map[string]ast.Node{}
	r.place = placeOf(n.GetToken())
	for i := range all {
		e := &all[i]
		text, err := e.text()
		if err != nil {
			return r, err
		}
		nodes[e.name] = e.value
		if e.name == "filter" {
			r.Filter, r.place = text, placeOf(e.value.GetToken())
			continue
		}
		s := findSetting(e.name)
		if s == nil {
			return r, e.unknown("a rule", settingNames()...)
		}
		if err := s.Set(&r, text); err != nil {
			return r, errorAt(e.value, "%s: %w", e.name, err)
		}
	}
	var wrong *SettingError
	if err := r.check(); errors.As(err, &wrong) {
		if at := nodes[wrong.Setting]; at != nil {
			return r, errorAt(at, "%w", err)
		}
		return r, errorAt(n, "%w", err)
	}
	return r, nil
}

func settingNames() []string {
	names := map[string]bool{"filter": true}
	for _, s := range settings {
		names[s.Name] = true
	}
	return slices.Sorted(maps.Keys(names))
}

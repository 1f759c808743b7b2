package firewall

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/goccy/go-yaml"

	"github.com/opendivert/divert/process"
)

// Answers are permanent answers to questions: rules in a file of their own, so that the user's files of rules are never
// written to. They answer questions about connections before any Asker. The methods may be called from several
// goroutines.
type Answers struct {
	path string

	mu    sync.Mutex
	rules *Rules // nil if there is no file
	read  dependency
}

// answersHeader begins a new file.
const answersHeader = `# Answers that hold always, as divert firewall ask was given them. They decide connections that the rules ask about.
# What you change or remove here counts within two seconds.
default: ask
rules:
`

// AnswersPath returns where the command keeps the answers for a file of rules: rules.answers.yaml for rules.yaml.
func AnswersPath(rules string) string {
	extension := filepath.Ext(rules)
	return strings.TrimSuffix(rules, extension) + ".answers" + extension
}

// LoadAnswers reads the answers in a file. The first answer creates a missing file. Errors are those of Load.
func LoadAnswers(path string) (*Answers, error) {
	a := &Answers{path: path}
	_, err := a.Refresh()
	return a, err
}

// Path returns the path of the file with the answers.
func (a *Answers) Path() string { return a.path }

// Len returns the number of answers.
func (a *Answers) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.rules == nil {
		return 0
	}
	return a.rules.Len()
}

// Refresh reads the file again if it, or a program that it names, has changed, and reports whether it has. With an error
// the answers stay as they were until the file changes again.
func (a *Answers) Refresh() (changed bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	is := dependencyOf(a.path)
	if a.read.path != "" && is.same(a.read) && (a.rules == nil || !a.rules.Changed()) {
		return false, nil
	}
	before := a.read
	a.read = is
	r, err := Load(a.path)
	if errors.Is(err, os.ErrNotExist) {
		r, err = nil, nil
		changed = before.path != "" && a.rules != nil
	}
	if err != nil {
		return false, err
	}
	changed = changed || r != nil
	a.rules = r
	return changed, nil
}

// of returns the answer about a connection, if there is one.
func (a *Answers) of(c *Conn) (Action, bool) {
	a.mu.Lock()
	r := a.rules
	a.mu.Unlock()
	if r == nil {
		return 0, false
	}
	known := *c
	known.Hello = true // a name not yet known does not count; the user did not see it either
	d := r.Decide(&known)
	return d.Action, d.Rule != 0 && d.Action <= Reject
}

// answerRule is a rule in the file.
type answerRule struct {
	learnedRule `yaml:",inline"`
	User        string `yaml:"user,omitempty"`
}

// errNoRule is the error for an answer that cannot become a rule.
var errNoRule = errors.New("the answer cannot be kept; it holds until the firewall ends")

// ruleOf returns the rule that repeats an answer for all connections with the same subject. anonymous means that
// processes cannot be known here.
func ruleOf(c *Conn, action Action, anonymous bool) (r answerRule, err error) {
	s := subjectOf(c)
	r.Action, r.Direction, r.Protocol = action.String(), "in", ProtocolName(s.protocol)
	if s.protocol == protocolTCP || s.protocol == protocolUDP {
		r.Port = s.port
	}
	if s.outbound {
		r.Direction = "out"
	}
	if _, err := parsePattern(s.host); err == nil && s.host != c.Remote.Addr().String() {
		r.Host = s.host
	} else {
		r.Address = c.Remote.Addr().String()
	}
	if anonymous {
		return r, nil
	}
	if !s.known {
		return r, fmt.Errorf("the process is not known, so no rule can name it: %w", errNoRule)
	}
	if !filepath.IsAbs(s.path) || !utf8.ValidString(s.path) || s.file != (process.File{}) && fileOf(s.path) != s.file {
		return r, fmt.Errorf("%q is not the program's file any more, or not in this file system: %w", s.path, errNoRule)
	}
	r.Program, r.User = s.path, strconv.FormatUint(uint64(s.uid), 10)
	return r, nil
}

// saveTries is the number of attempts to write an answer while others write the file too.
const saveTries = 5

// add adds an answer to the file, unless the file has it already, and puts it in force. The rest of the file
// stays as it is.
func (a *Answers) add(c *Conn, action Action, anonymous bool) error {
	r, err := ruleOf(c, action, anonymous)
	if err != nil {
		return err
	}
	entry, err := yaml.MarshalWithOptions([]answerRule{r}, yaml.IndentSequence(true))
	if err != nil {
		return err
	}
	if _, err := a.Refresh(); err != nil {
		return err
	}
	if is, ok := a.of(c); ok && is == action {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for range saveTries {
		is := dependencyOf(a.path)
		text, err := extend(a.path, entry)
		if err != nil {
			return err
		}
		if !dependencyOf(a.path).same(is) {
			continue
		}
		if err := replaceFile(a.path, text); err != nil {
			return err
		}
		a.read = dependencyOf(a.path)
		a.rules, err = Load(a.path)
		return err
	}
	return fmt.Errorf("%s changes all the time: %w", a.path, errNoRule)
}

// extend returns the text of a file of rules, or of a new one, with a rule put before the others: the last answer counts.
func extend(path string, entry []byte) ([]byte, error) {
	old, err := readFile(path)
	if errors.Is(err, os.ErrNotExist) {
		old, err = []byte(answersHeader), nil
	}
	if err != nil {
		return nil, err
	}
	before := 0
	if r, err := Parse(old, filepath.Dir(path)); err == nil {
		before = r.Len()
	}
	lines := strings.SplitAfter(string(old), "\n")
	at := slices.IndexFunc(lines, func(l string) bool { return strings.TrimSpace(l) == "rules:" && strings.HasPrefix(l, "rules:") })
	if at < 0 {
		return nil, fmt.Errorf("%s has no line with rules: and nothing else, behind which answers go: %w", path, errNoRule)
	}
	if !strings.HasSuffix(lines[at], "\n") {
		lines[at] += "\n"
	}
	text := []byte(strings.Join(slices.Insert(lines, at+1, string(entry)), ""))
	r, err := Parse(text, filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("%s with a further answer: %w", path, err)
	}
	if r.Len() != before+1 {
		return nil, fmt.Errorf("%s takes no further rule at its line %d: %w", path, at+2, errNoRule)
	}
	return text, nil
}

// replaceFile replaces the content of a file at once: readers find the old text or the new one, even after a crash. The
// file keeps its mode; a new one is for its user alone. Where path is a link, its target is replaced, not the link.
func replaceFile(path string, text []byte) (err error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if info, e := os.Stat(path); e == nil && err == nil {
		err = os.Chmod(f.Name(), info.Mode().Perm())
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	return err
}

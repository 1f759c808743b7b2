// Package yamltext reads settings files in YAML; every error has its line and column.
package yamltext

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxNesting is the deepest nesting of brackets and dashes, more than any settings need.
const maxNesting = 32

// Error is an error in a file, with its place.
type Error struct {
	Line, Column int // numbered from 1; 0 if the error has no place
	Err          error
}

// Error returns the place and the error there.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("line %d, column %d: %v", e.Line, e.Column, e.Err)
}

// Unwrap returns the error.
func (e *Error) Unwrap() error { return e.Err }

// Snippet returns the line of the file with the error, and below it a caret under the place; "" if the error has no
// place.
func (e *Error) Snippet(file []byte) string {
	lines := bytes.Split(file, []byte("\n"))
	if e.Line < 1 || e.Line > len(lines) {
		return ""
	}
	line := []rune(strings.ReplaceAll(strings.TrimRight(string(lines[e.Line-1]), "\r"), "\t", " "))
	column := min(max(e.Column, 1), len(line)+1)
	return fmt.Sprintf("%s\n%s^", string(line), strings.Repeat(" ", column-1))
}

// Parse returns the one document in a file.
func Parse(b []byte) (ast.Node, error) {
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
		return nil, &Error{Err: errors.New("the file is empty")}
	case 1:
		return docs[0], nil
	}
	return nil, At(docs[1], "a second document begins here; a file has one")
}

// checkNesting refuses nesting that could only be an attack on the parser's stack.
func checkNesting(b []byte) error {
	deepest, depth := 0, 0
	for line := range strings.Lines(string(b)) {
		rest := strings.TrimLeft(line, " -?:\t")
		begin := line[:len(line)-len(rest)]
		indents := strings.Count(begin, "-") + strings.Count(begin, "?") + strings.Count(begin, ":")
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
		return &Error{Err: fmt.Errorf("the file nests brackets or dashes deeper than %d", maxNesting)}
	}
	return nil
}

// syntaxError makes an error of the parser an Error.
func syntaxError(err error) error {
	var e yaml.Error
	if !errors.As(err, &e) || e.GetToken() == nil || e.GetToken().Position == nil {
		return &Error{Err: fmt.Errorf("this is not YAML: %w", err)}
	}
	p := e.GetToken().Position
	return &Error{p.Line, p.Column, fmt.Errorf("this is not YAML: %s", e.GetMessage())}
}

// begin returns the first token of a node: that of a mapping in block style is its first colon.
func begin(n ast.Node) *token.Token {
	switch m := n.(type) {
	case *ast.MappingNode:
		if len(m.Values) > 0 && !m.IsFlowStyle {
			return begin(m.Values[0])
		}
	case *ast.MappingValueNode:
		return m.Key.GetToken()
	}
	return n.GetToken()
}

// At returns an error about a node.
func At(n ast.Node, format string, args ...any) error {
	e := &Error{Err: fmt.Errorf(format, args...)}
	if t := begin(n); t != nil && t.Position != nil {
		e.Line, e.Column = t.Position.Line, t.Position.Column
	}
	return e
}

// Entry is a name in a mapping with its value.
type Entry struct {
	Name       string
	Key, Value ast.Node
}

// Entries returns the entries of a mapping, each name at most once. what and example describe the mapping in errors.
func Entries(n ast.Node, what, example string) ([]Entry, error) {
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		return nil, At(n, "%s consists of names with values, as in %q", what, example)
	}
	seen := map[string]bool{}
	var all []Entry
	for _, v := range values {
		name, ok := Scalar(v.Key)
		if !ok {
			return nil, At(v.Key, "a name must stand here")
		}
		if seen[name] {
			return nil, At(v.Key, "%s is given a second time", name)
		}
		seen[name] = true
		all = append(all, Entry{name, v.Key, v.Value})
	}
	return all, nil
}

// Scalar returns the text of a value that is neither a list nor a mapping.
func Scalar(n ast.Node) (string, bool) {
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

// Text returns the text of an entry's value, which must be neither a list nor a mapping.
func (e *Entry) Text() (string, error) {
	s, ok := Scalar(e.Value)
	if !ok {
		return "", At(e.Value, "%s needs one value; in quotes if it begins with a character that YAML has a meaning for, such as * or &", e.Name)
	}
	return s, nil
}

// List returns the elements of an entry's value, which is a list or a single element.
func (e *Entry) List() ([]ast.Node, error) {
	switch v := e.Value.(type) {
	case *ast.SequenceNode:
		return v.Values, nil
	case *ast.NullNode:
		return nil, At(e.Key, "%s has no value", e.Name)
	}
	return []ast.Node{e.Value}, nil
}

// Texts calls f for the text of each element of an entry's value, which is a list or a single element. An error of f
// without a place gets that of the element.
func (e *Entry) Texts(f func(text string) error) error {
	list, err := e.List()
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return At(e.Key, "%s is an empty list, which nothing is in", e.Name)
	}
	for _, n := range list {
		text, err := (&Entry{e.Name, e.Key, n}).Text()
		if err != nil {
			return err
		}
		if err := f(text); err != nil {
			return At(n, "%s: %w", e.Name, err)
		}
	}
	return nil
}

// Unknown returns the error for a name without a meaning; names are the valid ones.
func (e *Entry) Unknown(what string, names ...string) error {
	return At(e.Key, "%s has no %s; it may have %s", what, e.Name, strings.Join(names, ", "))
}

package filter

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opendivert/divert/internal/prog"
)

// This file handles the fields whose values are names: iface and process.

// maxInterfaceName is the greatest length of an alternative name of an interface, in bytes: ALTIFNAMSIZ (linux/if.h)
// without the zero. The interface's own name has at most 15.
const maxInterfaceName = 127

// badName returns why a name is impossible for an interface or process, and a hint; "" if it is possible.
func badName(f prog.Field, name string) (msg, hint string) {
	quoted := shortened(prog.QuoteName(name))
	switch {
	case name == "" && f == prog.FieldProcess:
		return "no process is without a name", "processId == 0 matches packets without a known process"
	case name == "":
		return "no interface is without a name", ""
	case f == prog.FieldInterface && len(name) > maxInterfaceName:
		return fmt.Sprintf("%s is too long for an interface", quoted), fmt.Sprintf("names of interfaces have at most 15 bytes, alternative ones %d", maxInterfaceName)
	case f == prog.FieldInterface && (name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n\v\f\r\x00")):
		return fmt.Sprintf("no interface can be called %s", quoted), "names of interfaces have no white space, slash or colon"
	case f == prog.FieldProcess && name[0] == '/':
		return "the name of a process has no path", "as in process == " + prog.QuoteName(cutName(name[strings.LastIndexByte(name, '/')+1:]))
	case f == prog.FieldProcess && strings.IndexByte(name, 0) >= 0:
		return fmt.Sprintf("no process can be called %s", quoted), "names of processes have no zero bytes"
	case f == prog.FieldProcess && len(name) > prog.MaxProcessName:
		return fmt.Sprintf("%s is too long for a process", quoted),
			fmt.Sprintf("Linux knows %d bytes of a name: process == %s", prog.MaxProcessName, prog.QuoteName(cutName(name)))
	}
	return "", ""
}

// cutName returns the part of a process's name that Linux keeps.
func cutName(name string) string { return name[:min(len(name), prog.MaxProcessName)] }

// nameTest parses the operator and the names behind a field with names.
func (p *parser) nameTest(f prog.Field, subject token) *node {
	equal := !p.negated
	var names []string
	ok := false
	switch p.tok.kind {
	case tokEq, tokNe:
		equal = equal == (p.tok.kind == tokEq)
		p.advance()
		p.last.op = p.end
		var name string
		name, ok = p.name(f)
		names = []string{name}
	case tokNot, tokIn:
		if not := p.tok; not.kind == tokNot {
			equal = !equal
			if p.advance(); p.tok.kind != tokIn {
				p.tok = not
				return p.fail(p.unexpected(wantEnd))
			}
		}
		p.advance()
		names, ok = p.names(f, subject)
	case tokLt, tokLe, tokGt, tokGe:
		return p.fail(p.at(ErrUnexpectedToken, p.tok.pos, p.tok.end, "names have no order", "compare them with == or !="))
	default:
		return p.fail(p.noOperator())
	}
	if !ok {
		return nil
	}
	if p.tests += len(names) - 1; p.tests > maxTests {
		return p.fail(p.at(ErrTooLong, subject.pos, p.end, "the filter has more than 65535 tests", hintUseSets))
	}
	return nameNode(f, equal, names, p.namedInterface)
}

// name parses a name.
func (p *parser) name(f prog.Field) (string, bool) {
	if p.tok.kind != tokText {
		return "", p.refuse(p.noName())
	}
	if msg, hint := badName(f, p.tok.text); msg != "" {
		return "", p.refuse(p.at(ErrOutOfRange, p.tok.pos, p.tok.end, msg, hint))
	}
	name := p.tok.text
	p.advance()
	return name, true
}

// names parses names in braces, each once.
func (p *parser) names(f prog.Field, subject token) (names []string, ok bool) {
	if p.tok.kind == tokNamed {
		field := shortened(p.text[subject.pos:subject.end])
		return nil, p.refuse(p.at(ErrBadSet, subject.pos, p.tok.end, notForSets(field), hintNotForSets(f)))
	}
	if p.tok.kind != tokOpenSet {
		err := p.unexpected(wantNames)
		if word := p.bareName(p.tok.pos); word != "" || p.tok.kind == tokText {
			err.Hint = p.hint(wantNames)
		}
		return nil, p.refuse(err)
	}
	p.advance()
	seen := map[string]bool{}
	for p.tok.kind != tokCloseSet || len(names) == 0 {
		name, ok := p.name(f)
		if !ok {
			return nil, false
		}
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
		if p.tok.kind == tokComma {
			p.advance()
		} else if p.tok.kind != tokCloseSet {
			return nil, p.refuse(p.unexpected(wantCloseSet))
		}
	}
	p.advance()
	return names, true
}

// namedInterface returns the interface of a name, the same for all tests.
func (p *parser) namedInterface(name string) *prog.Named {
	n := p.interfaces[name]
	if n == nil {
		n = newInterface(name)
		if p.interfaces == nil {
			p.interfaces = map[string]*prog.Named{}
		}
		p.interfaces[name] = n
	}
	return n
}

func newInterface(name string) *prog.Named {
	return &prog.Named{Name: name, Members: prog.NewMembers(false), Interface: true}
}

// nameNode returns the node that tests a field for one of some names, or against all of them. Processes are compared by
// the value of the name; each interface is a set of its own, which Open fills.
func nameNode(f prog.Field, equal bool, names []string, named func(string) *prog.Named) *node {
	op, kind := prog.OpEq, nodeOr
	if !equal {
		op, kind = prog.OpNe, nodeAnd
	}
	if f == prog.FieldProcess {
		ranges := make([]prog.Range, len(names))
		for i, name := range names {
			v := prog.NameValue(name)
			ranges[i] = prog.Range{First: v, Last: v}
		}
		n := &node{test: prog.Test{Field: f, Op: op}}
		putSet(&n.test, ranges)
		return n
	}
	parts := make([]*node, len(names))
	for i, name := range names {
		parts[i] = &node{test: prog.Test{Field: f, Op: op}}
		putNamed(&parts[i].test, named(name))
	}
	return joined(kind, parts)
}

// nameHint advises on the right side of a comparison with names.
func (p *parser) nameHint() string {
	name := exampleName(p.last.start, p)
	if word := p.bareName(p.tok.pos); word != "" && p.tok.kind != tokAnd && p.tok.kind != tokOr {
		name = word
	}
	return fmt.Sprintf("as in %s == %s", shortened(p.text[p.last.start:p.last.field]), prog.QuoteName(name))
}

// noName makes an error about the current token, which should be a name in quotes.
func (p *parser) noName() *Error {
	word := p.bareName(p.tok.pos)
	if p.tok.kind == tokBad && word == "" {
		return p.lexer.err // a name without its closing quote, or a character that starts no token
	}
	e := p.at(ErrUnexpectedToken, p.tok.pos, p.tok.end, "unexpected "+quote(p.text[p.tok.pos:p.tok.end])+", "+expectationTexts[wantName], p.nameHint())
	switch {
	case p.tok.kind == tokEnd:
		e.Msg = "the filter ends where " + expectationTexts[wantName]
	case strings.Trim(word, "0123456789") == "" && word != "":
		e.Msg = word + " is a number, and " + expectationTexts[wantName]
		e.Hint = p.quoted(word, p.tok.pos)
	case word != "":
		e.Msg = quote(word) + " is a name, and names stand in quotes"
		e.Hint = p.quoted(word, p.tok.pos)
	}
	if p.tok.kind == tokBad {
		e.Kind = ErrBadToken
	}
	return e
}

// noOperator makes an error about the current token, which should be the operator behind a field with names.
func (p *parser) noOperator() *Error {
	word := p.bareName(p.tok.pos)
	if p.tok.kind == tokText {
		word = p.tok.text
	}
	if word == "" || p.tok.kind == tokAnd || p.tok.kind == tokOr {
		return p.unexpected(wantNameTest)
	}
	e := p.at(ErrUnexpectedToken, p.tok.pos, p.tok.end, "an operator is missing before the name "+quote(word), p.quoted(word, p.last.field))
	if p.tok.kind == tokBad {
		e.Kind = ErrBadToken
	}
	return e
}

// quoted advises to write a name in quotes; the text of the test is right up to upTo.
func (p *parser) quoted(word string, upTo int) string {
	test := shortened(p.text[p.last.start:upTo])
	if upTo == p.last.field {
		test += " == "
	}
	hint := "write " + test + prog.QuoteName(word)
	if strings.Contains(test, "{") {
		hint += ", …}"
	}
	if strings.Trim(word, "0123456789") == "" {
		id := prog.FieldIfIdx
		if strings.HasPrefix(test, prog.FieldProcess.String()) {
			id = prog.FieldProcessID
		}
		return fmt.Sprintf("%s is compared with numbers, as in %s == %s; or %s", id, id, word, hint)
	}
	return hint + "; in a shell, put the whole filter in single quotes"
}

// bareName returns the name in the text without quotes or in single quotes, "" if there is none.
func (p *parser) bareName(at int) string {
	rest := strings.TrimPrefix(p.text[at:], "'")
	if strings.HasPrefix(rest, `\`) {
		return ""
	}
	if n := strings.IndexAny(rest, " \t\r\n(){},=!<>&|\"'@"); n >= 0 {
		rest = rest[:n]
	}
	return rest[:min(len(rest), prog.MaxProcessName)]
}

// exampleName is a name for hints about the field whose name is in the text.
func exampleName(at int, p *parser) string {
	if strings.HasPrefix(p.text[at:], prog.FieldProcess.String()) {
		return "curl"
	}
	return "eth0"
}

// QuoteName returns a name in the notation of filters, for programs that compose filters: in quotes, with a backslash
// before quotes and backslashes, and \xHH for bytes that are not text.
func QuoteName(name string) string { return prog.QuoteName(name) }

// Interfaces returns the names of the interfaces in the filter, as in iface == "eth0", in the order of their first test.
// A handle finds these interfaces itself; a program that is matched in another way gets them from WithInterfaces.
func (p *Program) Interfaces() []string {
	var names []string
	for _, n := range p.program().Interfaces() {
		names = append(names, n.Name)
	}
	return names
}

// WithInterfaces returns the program with the indexes of its interfaces, as the function index returns them, 0 for an
// interface that does not exist. Programs from Compile know no interface: iface == "eth0" matches nothing there, and
// iface != "eth0" everything.
func (p *Program) WithInterfaces(index func(name string) uint32) (*Program, error) {
	own := p.program().OwnInterfaces()
	for _, n := range own.Interfaces() {
		if i := index(n.Name); i != 0 {
			if err := n.SetInterface(i); err != nil {
				return nil, fmt.Errorf("filter: %w", err)
			}
		}
	}
	return (*Program)(own), nil
}

// Name is a field with names: Interface and Process.
type Name uint64

// Eq holds if the name is this one. Names that no interface or process can have are errors of the expression.
func (n Name) Eq(name string) Expr { return n.In(name) }

// Ne holds if the name is not this one.
func (n Name) Ne(name string) Expr { return n.test(false, name) }

// In holds if the name is one of these.
func (n Name) In(names ...string) Expr {
	if len(names) == 0 {
		return False.condition()
	}
	return n.test(true, names...)
}

func (n Name) test(equal bool, names ...string) Expr {
	s := subjectOf(uint64(n), prog.KindName)
	if s.err != nil {
		return Expr{err: s.err}
	}
	for _, name := range names {
		if msg, hint := badName(s.field, name); msg != "" {
			return Expr{err: fmt.Errorf("filter: %s; %s", msg, hint)}
		}
	}
	names = slices.Compact(slices.Sorted(slices.Values(names)))
	node := nameNode(s.field, equal, names, newInterface)
	if node.kind == nodeTest {
		return testOf(node.test)
	}
	e := testOf(node.parts[0].test)
	for _, part := range node.parts[1:] {
		if equal {
			e = e.Or(testOf(part.test))
		} else {
			e = e.And(testOf(part.test))
		}
	}
	return e
}

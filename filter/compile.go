package filter

import "strings"

// Dialect is a form of the filter language.
type Dialect uint8

// The dialects.
const (
	Extended Dialect = iota // the default: our additions, and errors for what cannot be meant
	Strict                  // WinDivert 2.2 to the letter, its limits and accidents included
)

// String returns the dialect's name.
func (d Dialect) String() string {
	if d == Strict {
		return "strict"
	}
	return "extended"
}

// maxText is how long a filter of the extended dialect may be, in bytes.
const maxText = 4 << 20

// Compile compiles a filter for a layer. A text that starts with '@' is an object string (see
// ParseObject) in both dialects. All errors are of type *Error.
//
// The limits of the extended dialect are 4 MiB of text, 65,535 tests and 1024 nested parentheses; a set
// counts as one test and may have as many elements as the text holds, or any number if it is built in Go (Expr). Those of the strict dialect are
// 1277 tokens, 256 tests and 340 nested parentheses. Any text is safe to compile: time and memory
// are proportional to its length, up to sorting.
//
// Compile may be called by several goroutines at once.
func Compile(text string, layer Layer, d Dialect) (*Program, error) {
	if strings.HasPrefix(text, "@") {
		p, err := parseObject(text, layer)
		if err != nil {
			return nil, err
		}
		p.strict = d == Strict
		return p, nil
	}
	return compile(source{text: text, layer: layer, dialect: d}, nil)
}

// compile is Compile for text that is no object string. large has the sets of which the text has only the ends, by
// the number of their tests: what the parser checks of a set's values, it checks of the least and the greatest.
func compile(s source, large map[int]*Set) (*Program, error) {
	limit := maxStrictTests
	if s.dialect == Extended {
		limit = maxTests
		if len(s.text) > maxText {
			return nil, s.at(ErrTooLong, 0, 0, "the filter is longer than 4 MiB", hintUseSets)
		}
	}
	root, err := parse(s)
	if err != nil {
		return nil, err
	}
	if len(large) > 0 {
		root.enlarge(large, new(int))
	}
	p := placer{limit: limit}
	entry := p.place(root, Accept, Reject)
	if p.full {
		return nil, s.at(ErrTooLong, 0, 0, "the compiled filter has more than 256 tests", "")
	}
	program := newProgram(s.layer, p.emit(entry))
	program.strict = s.dialect == Strict
	return program, nil
}

// enlarge puts large sets in the place of their ends. n counts the tests, in the order of the text.
func (n *node) enlarge(large map[int]*Set, count *int) {
	if n.kind == nodeTest {
		if set := large[*count]; set != nil {
			n.test.Set = set
		}
		*count++
		return
	}
	for _, part := range n.parts {
		part.enlarge(large, count)
	}
}

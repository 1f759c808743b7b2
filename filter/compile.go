package filter

import (
	"strings"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Dialect is a form of the filter language.
type Dialect uint8

// The dialects.
const (
	Extended Dialect = iota // the default: our additions, and errors for filters that cannot be intended
	Strict                  // WinDivert 2.2 to the letter, its limits and accidents included
)

// String returns the dialect's name.
func (d Dialect) String() string {
	if d == Strict {
		return "strict"
	}
	return "extended"
}

// maxText is the longest filter of the extended dialect, in bytes.
const maxText = 4 << 20

// Compile compiles a filter for a layer. A text that starts with '@' is an object string (see
// Program.Object) in both dialects. All errors are of type *Error.
//
// The extended dialect allows 4 MiB of text, 65,535 tests and 1024 nested parentheses; a set counts as one test and may
// have as many elements as fit in the text, or any number if it is built in Go (Expr). The strict dialect allows 1277
// tokens, 256 tests and 340 nested parentheses. Any text is safe to compile: time and memory are proportional to its
// length, up to sorting.
//
// Compile may be called by several goroutines at once.
func Compile(text string, layer packet.Layer, d Dialect) (*Program, error) {
	if strings.HasPrefix(text, "@") {
		p, err := prog.ParseObject(text, layer, d == Strict)
		if err != nil {
			return nil, &Error{Kind: ErrBadObject, Filter: text, Hint: objectHint(text)}
		}
		return (*Program)(p), nil
	}
	s := source{text: text, layer: layer, dialect: d}
	limit := maxStrictTests
	if d == Extended {
		limit = maxTests
		if len(text) > maxText {
			return nil, s.at(ErrTooLong, 0, 0, "the filter is longer than 4 MiB", hintUseSets)
		}
	}
	root, err := parse(s)
	if err != nil {
		return nil, err
	}
	tests, ok := place(root, limit)
	if !ok {
		return nil, s.at(ErrTooLong, 0, 0, "the compiled filter has more than 256 tests", "")
	}
	return (*Program)(prog.New(layer, tests, d == Strict)), nil
}

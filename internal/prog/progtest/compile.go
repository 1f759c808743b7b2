// Package progtest compiles filters for tests of packages that take programs. Package prog cannot, because the language
// is above it.
package progtest

import (
	"github.com/opendivert/divert/filter"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Compile is filter.Compile.
func Compile(text string, layer packet.Layer, d filter.Dialect) (*prog.Program, error) {
	p, err := filter.Compile(text, layer, d)
	return (*prog.Program)(p), err
}

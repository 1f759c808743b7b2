package filter

import (
	"errors"
	"slices"

	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Program is a compiled filter; Compile and Expr.Compile make one. It is immutable, and any number of goroutines and
// handles may use it at once.
type Program prog.Program

func (p *Program) program() *prog.Program { return (*prog.Program)(p) }

// Layer returns the layer the program was compiled for.
func (p *Program) Layer() packet.Layer { return p.program().Layer() }

// Len returns the number of tests of the program, at least 1.
func (p *Program) Len() int { return p.program().Len() }

// Match reports whether the program accepts an item of its layer: at the layers NETWORK and NETWORK_FORWARD the packet in
// b, an IP header first, with its address; at the other layers the event in a, whatever b holds. Match takes the packet's
// family and headers from b, and the layer, timestamp, event, flags and layer data from a. Nothing matches if b is not a
// packet, if a belongs to another layer, or if an executed test has a field that the layer lacks; Eval tells these cases
// apart.
//
// The packet may be shorter or longer than its IP header says. a must not be nil. Match neither changes nor keeps b and
// a, and allocates nothing.
func (p *Program) Match(b []byte, a *packet.Address) bool { return p.program().Match(b, a) }

// The errors of Eval and Explain for items that they cannot decide.
var (
	ErrNoAddress   = prog.ErrNoAddress   // the address is nil
	ErrOtherLayer  = prog.ErrOtherLayer  // the address is not of the filter's layer
	ErrNotPacket   = prog.ErrNotPacket   // there is no packet, or it has no valid IP header
	ErrOtherFamily = prog.ErrOtherFamily // the address and the packet are of different IP versions
	ErrHasPacket   = prog.ErrHasPacket   // the layers FLOW and SOCKET have no packets
	ErrNoValue     = prog.ErrNoValue     // an executed test has a field without a value at the layer, or in this item
)

// Eval is Match with an error where it cannot decide. At the layers NETWORK and NETWORK_FORWARD b must start with an IP
// header, may be shorter or longer than the packet, and must agree with a.IPv6; at FLOW and SOCKET b must be nil; at
// REFLECT Eval ignores b. With an error, the result is false.
func (p *Program) Eval(b []byte, a *packet.Address) (bool, error) { return p.program().Eval(b, a) }

// ErrFormatTooLong means that the text of a program would be longer than 16 MiB.
var ErrFormatTooLong = prog.ErrFormatTooLong

// Format returns the program as text, in the normal form of WinDivertHelperFormatFilter: constant parts are folded away.
// Compiled again for the same layer it means the same, with two exceptions: literals of index fields and of flags lose
// their sign, and literals that no compiler leaves, which objects may have, are folded. Sets are printed in the extended
// dialect: as one prefix where possible, else as "field in {…}" with prefixes, ranges and values.
//
// The only error is ErrFormatTooLong.
func (p *Program) Format() (string, error) { return p.program().Format() }

// String returns the text of Format, or a remark in angle brackets if there is none.
func (p *Program) String() string { return p.program().String() }

// Object returns the object string of the program: printable ASCII without line breaks, which Compile and every WinDivert
// 2.2 accept as a filter. It fails with an error that names the field if the original cannot express a test, and with an
// *Error of the kind ErrTooLong if the program has more than 256 tests. Sets become chains of comparisons.
//
// As in the original, which counts in 8 bits, a program of exactly 256 tests that was compiled in the strict dialect
// becomes "@WinDiv_WW", which no reader accepts.
func (p *Program) Object() (string, error) {
	text, err := p.program().Object()
	if errors.Is(err, prog.ErrTooLong) {
		return "", &Error{Kind: ErrTooLong}
	}
	return text, err
}

// Listing returns the program for people: a line for each test with its number and its targets.
func (p *Program) Listing() string { return p.program().Listing() }

// Fields returns the names of the fields that the program tests, without indexes, each once, in the order of their first
// test.
func (p *Program) Fields() []string {
	var names []string
	for _, t := range p.program().Tests() {
		if name := t.Field.String(); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

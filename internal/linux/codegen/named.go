//go:build linux

package codegen

import (
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/setmap"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/internal/radix"
)

// A look-up in a named set is a call of a function of the program, one for each set, which follows package radix. It takes
// a value in R1:R2 and returns whether it is a member: outside, inside or unsure.
const (
	outside = 0
	inside  = 1
	unsure  = 2 // too many changes came in between, at each of setAttempts looks; so the packet counts as a match
)

// setAttempts is how often a function looks. Two changes begin within the 100 ns of a look only if the processor is taken away in
// the middle of it.
const setAttempts = 2

// Names of the functions: that of a set, with its number, and the one that looks for a node.
const (
	setPrefix = "divert_set_"
	nodeName  = "divert_node"
)

// namedTable has the named sets that the tests of a program ask.
type namedTable struct{ sets []*prog.Named }

// name returns the name of a set's function, and of the reference to its map.
func (n *namedTable) name(s *prog.Named) string {
	for i := range n.sets {
		if n.sets[i].Members == s.Members {
			return setPrefix + fmt.Sprint(i)
		}
	}
	n.sets = append(n.sets, s)
	return setPrefix + fmt.Sprint(len(n.sets)-1)
}

// functions returns the code of the functions that the instructions call, to stand behind them.
func (n *namedTable) functions(calls asm.Instructions) (asm.Instructions, error) {
	called := calls.ReferenceOffsets()
	var all asm.Instructions
	for _, s := range n.sets {
		name := n.name(s)
		if len(called[name]) == 0 {
			continue
		}
		f, err := setFunction(name)
		if err != nil {
			return nil, err
		}
		all = append(all, f...)
	}
	if all == nil {
		return nil, nil
	}
	f, err := nodeFunction()
	return append(all, f...), err
}

// open adds the maps of the sets to maps, by the names of their references.
func (n *namedTable) open(maps map[string]*ebpf.Map) error {
	for _, s := range n.sets {
		m, err := setmap.Of(s.Members.Values())
		if err != nil {
			return &LoadError{Err: fmt.Errorf("the %v: %w", s, err)}
		}
		maps[n.name(s)+mapSuffix] = m
	}
	return nil
}

// mapSuffix follows the name of the function in the reference to a set's map.
const mapSuffix = "_map"

// memberOf brings the value of a condition into the form that it has in a named set, in R1:R2.
func (t *tests) memberOf(c *condition, kind valueKind) {
	switch {
	case c.named.Members.Addresses() && kind == value128:
		return
	case kind == value128 || kind == value64: // a number of 64 bits; see prog.NumberMember
		if kind == value64 { // a biased timestamp
			t.Emit(asm.Mov.Reg(asm.R2, asm.R1), asm.LoadImm(asm.R3, -1<<63, asm.DWord), asm.Xor.Reg(asm.R2, asm.R3))
		}
		t.Emit(
			asm.Mov.Reg(asm.R1, asm.R2),
			asm.RSh.Imm(asm.R1, 32),
			asm.Mov.Reg(asm.R4, asm.R1),
			asm.Neg.Imm(asm.R1, 0),
			asm.RSh.Imm(asm.R1, 63), // 1 if there are upper bits
			asm.Mov.Reg(asm.R3, asm.R1),
			asm.Sub.Imm(asm.R3, 1), // else all bits
		)
		t.set(asm.R5, mappedPrefix)
		t.Emit(asm.And.Reg(asm.R3, asm.R5))
		if kind == value64 {
			t.Emit(asm.RSh.Imm(asm.R4, 31), asm.Add.Reg(asm.R1, asm.R4)) // no set has negative numbers
		}
		t.Emit(asm.Or.Reg(asm.R2, asm.R3))
	default:
		t.set(asm.R2, mappedPrefix)
		t.Emit(asm.Or.Reg(asm.R2, asm.R1), asm.Mov.Imm(asm.R1, 0))
	}
}

// look leaves the answer of a named set in R0.
func (t *tests) look(c *condition, kind valueKind) {
	t.memberOf(c, kind)
	t.Emit(asm.Call.Label(t.named.name(c.named)))
}

// inNamed goes to in or out.
func (t *tests) inNamed(c *condition, kind valueKind, in, out, next label) {
	t.look(c, kind)
	t.branch(imm32(asm.JEq, asm.R0, unsure), t.accept)
	t.decide(imm32(asm.JNE, asm.R0, outside), in, out, next)
}

// outsideNamed is outside for a named set. It goes to accept if the answer is unsure, and the value available.
func (t *tests) outsideNamed(c *condition, kind valueKind) {
	t.look(c, kind)
	t.Emit(
		asm.Mov.Reg(asm.R5, asm.R0),
		asm.Sub.Imm(asm.R5, unsure),
		asm.Or.Reg(asm.R5, regAbsent),
	)
	t.JumpImm64(asm.JSGE, asm.R5, 0, t.accept)
	t.Emit(asm.Sub.Imm(asm.R0, 1))
}

// The frame and the registers of a set's function.
const (
	setAttempt int16 = -8  // attempts that are left
	setBest    int16 = -16 // the answer of the deepest node so far
	setChanges int16 = -24 // the number of changes at the start
	setKey     int16 = -32 // key of a map

	regTable  = asm.R6 // the table in force
	regUpper  = asm.R7 // of the value
	regLower  = asm.R8
	regHeader = asm.R9 // of the table
)

// setFunction generates the function of a set.
func setFunction(name string) (asm.Instructions, error) {
	s := setSearch{}
	again, end, lost, ready := s.NewLabel(), s.NewLabel(), s.NewLabel(), s.NewLabel()
	s.Emit(
		asm.Mov.Reg(regUpper, asm.R1).WithSymbol(name),
		asm.Mov.Reg(regLower, asm.R2),
		asm.Mov.Imm(asm.R1, setAttempts),
		asm.StoreMem(regFrame, setAttempt, asm.R1, asm.DWord),
	)
	s.Mark(again)
	s.element(asm.LoadMapPtr(asm.R1, 0).WithReference(name+mapSuffix), lost)
	s.Emit(asm.Mov.Reg(regTable, asm.R0))
	s.element(asm.Mov.Reg(asm.R1, regTable), lost)
	s.Emit(
		asm.Mov.Reg(regHeader, asm.R0),
		asm.LoadMem(asm.R1, regHeader, 8*radix.WordChanges, asm.DWord),
		asm.StoreMem(regFrame, setChanges, asm.R1, asm.DWord),
		asm.LoadMem(asm.R2, regHeader, 8*radix.WordZero, asm.DWord), // a zero of which the verifier does not know that it is one
		asm.StoreMem(regFrame, setBest, asm.R2, asm.DWord),
		// Later reads must not happen before this one: an address that depends on it keeps any processor from that.
		asm.And.Imm(asm.R1, 0),
		asm.Or.Reg(regUpper, asm.R1),
	)
	four := s.NewLabel()
	s.Emit(asm.Mov.Reg(asm.R1, regLower), asm.RSh.Imm(asm.R1, 32), asm.Xor.Imm(asm.R1, 0xFFFF), asm.Or.Reg(asm.R1, regUpper))
	s.JumpImm64(asm.JEq, asm.R1, 0, four)
	s.levels(0, 16, end)
	s.Mark(four)
	s.levels(radix.IPv4Levels, 4, end)
	s.Mark(end)
	s.Emit(
		asm.LoadMem(asm.R0, regFrame, setBest, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.And.Imm(asm.R1, 0),
		asm.Add.Reg(regHeader, asm.R1), // as above
		asm.LoadMem(asm.R1, regHeader, 8*radix.WordChanges, asm.DWord),
		asm.LoadMem(asm.R2, regFrame, setChanges, asm.DWord),
		asm.Sub.Reg(asm.R1, asm.R2),
		asm.RSh.Imm(asm.R1, 1), // one change does no harm
	)
	s.JumpImm64(asm.JEq, asm.R1, 0, ready)
	s.Emit(
		asm.LoadMem(asm.R1, regFrame, setAttempt, asm.DWord),
		asm.Sub.Imm(asm.R1, 1),
		asm.StoreMem(regFrame, setAttempt, asm.R1, asm.DWord),
	)
	s.JumpImm32(asm.JNE, asm.R1, 0, again)
	s.Mark(lost) // a table always has a header, and a set a table
	s.Emit(asm.Mov.Imm(asm.R0, unsure))
	s.Mark(ready)
	s.Emit(asm.Return())
	return s.link()
}

// setSearch generates the search of a set.
type setSearch struct{ assembler }

// element leaves the first element of a map in R0. The instruction leaves the map in R1.
func (s *setSearch) element(theMap asm.Instruction, lost label) {
	s.Emit(
		asm.StoreImm(regFrame, setKey, 0, asm.Word),
		theMap,
		asm.Mov.Reg(asm.R2, regFrame),
		asm.Add.Imm(asm.R2, int32(setKey)),
		asm.FnMapLookupElem.Call(),
	)
	s.JumpImm64(asm.JEq, asm.R0, 0, lost)
}

// levels looks for the deepest node behind a level, of those that are less than two steps deeper, and goes to end. There is
// a place in the code for each level.
func (s *setSearch) levels(level, step int, end label) {
	for step > 0 && level+step > radix.Levels {
		step /= 2
	}
	if step == 0 {
		s.Jump(end)
		return
	}
	try := level + step
	s.part(radix.Shift(try))
	s.Emit(
		asm.LSh.Imm(asm.R2, partShift),
		asm.Or.Imm(asm.R2, int32(try)),
		asm.Mov.Reg(asm.R1, regTable),
		asm.Mov.Reg(asm.R3, regUpper),
		asm.Mov.Reg(asm.R4, regLower),
		asm.Mov.Reg(asm.R5, regHeader),
	)
	if n := radix.PrefixLen(try); n <= 64 {
		s.clear(asm.R3, 64-n)
		s.Emit(asm.Mov.Imm(asm.R4, 0))
	} else {
		s.clear(asm.R4, 128-n)
	}
	s.Emit(asm.Call.Label(nodeName))
	absent := s.NewLabel()
	s.JumpImm64(asm.JEq, asm.R0, 0, absent)
	s.Emit(
		asm.And.Imm(asm.R0, 1),
		asm.StoreMem(regFrame, setBest, asm.R0, asm.DWord),
	)
	s.levels(try, step/2, end)
	s.Mark(absent)
	s.levels(level, step/2, end)
}

// clear clears the lowest bits of a register.
func (s *setSearch) clear(r asm.Register, n int) {
	switch {
	case n == 64:
		s.Emit(asm.Mov.Imm(r, 0))
	case n > 0:
		s.Emit(asm.RSh.Imm(r, int32(n)), asm.LSh.Imm(r, int32(n)))
	}
}

// part leaves the number of the value's bit in R2. It uses R1.
func (s *setSearch) part(shift int) {
	switch {
	case shift >= 64:
		s.Emit(asm.Mov.Reg(asm.R2, regUpper), asm.RSh.Imm(asm.R2, int32(shift-64)))
	case shift > 64-6:
		s.Emit(
			asm.Mov.Reg(asm.R2, regLower), asm.RSh.Imm(asm.R2, int32(shift)),
			asm.Mov.Reg(asm.R1, regUpper), asm.LSh.Imm(asm.R1, int32(64-shift)),
			asm.Or.Reg(asm.R2, asm.R1),
		)
	default:
		s.Emit(asm.Mov.Reg(asm.R2, regLower), asm.RSh.Imm(asm.R2, int32(shift)))
	}
	s.Emit(asm.And.Imm(asm.R2, 63))
}

// partShift is the shift of a bit's number, which stands above the level in one argument of the function of a node.
const partShift = 8

// nodeFunction generates the function that returns a bit of the node of a level and a prefix, 2 or 3, or 0 if there is
// no such node. Its arguments are the table, the level with the number of the bit, the halves of the prefix, and the header.
func nodeFunction() (asm.Instructions, error) {
	const (
		regLevel = asm.R7
		hi, lo   = asm.R8, asm.R9
		key      = int16(-4)
		number   = int16(-8)
	)
	a := assembler{}
	none, found := a.NewLabel(), a.NewLabel()
	factor := func(f uint64) { a.Emit(asm.LoadImm(asm.R2, int64(f), asm.DWord), asm.Mul.Reg(asm.R1, asm.R2)) }
	fold := func(n int32) {
		a.Emit(asm.Mov.Reg(asm.R2, asm.R1), asm.RSh.Imm(asm.R2, n), asm.Xor.Reg(asm.R1, asm.R2))
	}
	a.Emit(
		asm.Mov.Reg(asm.R6, asm.R1).WithSymbol(nodeName),
		asm.Mov.Reg(regLevel, asm.R2),
		asm.RSh.Imm(asm.R2, partShift),
		asm.StoreMem(regFrame, number, asm.R2, asm.Word),
		asm.And.Imm(regLevel, 1<<partShift-1),
		asm.Mov.Reg(hi, asm.R3),
		asm.Mov.Reg(lo, asm.R4),
		// radix.Hash
		asm.LoadMem(asm.R1, asm.R5, 8*radix.WordSeed, asm.DWord),
		asm.Xor.Reg(asm.R1, hi),
	)
	factor(radix.HashFirst)
	fold(32)
	a.Emit(asm.Xor.Reg(asm.R1, lo), asm.Add.Reg(asm.R1, regLevel))
	factor(radix.HashSecond)
	fold(29)
	factor(radix.HashFirst)
	a.Emit(
		asm.RSh.Imm(asm.R1, 32),
		asm.LoadMem(asm.R2, asm.R5, 8*radix.WordBuckets, asm.DWord),
		asm.Mul.Reg(asm.R1, asm.R2),
		asm.RSh.Imm(asm.R1, 32),
		asm.StoreMem(regFrame, key, asm.R1, asm.Word),
	)
	for range radix.Chain {
		a.Emit(
			asm.LoadMem(asm.R1, regFrame, key, asm.Word),
			asm.Add.Imm(asm.R1, 1),
			asm.StoreMem(regFrame, key, asm.R1, asm.Word),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Reg(asm.R2, regFrame),
			asm.Add.Imm(asm.R2, int32(key)),
			asm.FnMapLookupElem.Call(),
		)
		a.JumpImm64(asm.JEq, asm.R0, 0, none)
		for n := range int16(radix.BucketWords / radix.NodeWords) {
			at, other := 8*radix.NodeWords*n, a.NewLabel()
			a.Emit(asm.LoadMem(asm.R1, asm.R0, at+8*radix.WordLevel, asm.DWord))
			if n == 0 {
				a.Emit(asm.Mov.Reg(asm.R5, asm.R1), asm.RSh.Imm(asm.R5, 8), asm.And.Imm(asm.R1, radix.Overflow-1))
			}
			a.Emit(
				asm.LoadMem(asm.R2, asm.R0, at+8*radix.WordPrefix, asm.DWord),
				asm.LoadMem(asm.R3, asm.R0, at+8*radix.WordPrefix+8, asm.DWord),
				asm.Mov.Reg(asm.R4, asm.R1),
				asm.Xor.Reg(asm.R4, regLevel),
				asm.Xor.Reg(asm.R2, hi),
				asm.Xor.Reg(asm.R3, lo),
				asm.Or.Reg(asm.R4, asm.R2),
				asm.Or.Reg(asm.R4, asm.R3),
			)
			a.JumpImm64(asm.JNE, asm.R4, 0, other)
			// The bits must not be read before the level; see setFunction.
			a.Emit(asm.And.Imm(asm.R1, 0), asm.Add.Reg(asm.R0, asm.R1), asm.LoadMem(asm.R0, asm.R0, at+8*radix.WordBits, asm.DWord))
			a.Jump(found)
			a.Mark(other)
		}
		a.JumpImm64(asm.JEq, asm.R5, 0, none)
	}
	a.Mark(none)
	a.Emit(asm.Mov.Imm(asm.R0, 0), asm.Return())
	a.Mark(found)
	a.Emit(
		asm.LoadMem(asm.R1, regFrame, number, asm.Word),
		asm.RSh.Reg(asm.R0, asm.R1),
		asm.And.Imm(asm.R0, 1),
		asm.Or.Imm(asm.R0, 2),
		asm.Return(),
	)
	return a.link()
}

// isSetFunction reports whether a symbol is that of a set's function.
func isSetFunction(symbol string) bool { return strings.HasPrefix(symbol, setPrefix) }

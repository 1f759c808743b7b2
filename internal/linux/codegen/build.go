//go:build linux

package codegen

import (
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/opendivert/divert/internal/linux/flowmap"
	"github.com/opendivert/divert/internal/linux/processmap"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// Options say what a program does with a packet that matches.
type Options struct {
	// Sniff copies the packet out and returns no match.
	Sniff bool
	Snap  uint32 // with Sniff: bytes to copy at most; 0 and all above MaxSnap mean MaxSnap
	Tag   uint32 // with Sniff: Record.Tag

	// Correlate sends a Time of each match through a ring buffer of
	// CorrelateSize bytes, a power of two and a multiple of the page size; 0 means 64 KiB.
	Correlate     bool
	CorrelateSize uint32
	Flow          bool // with Correlate: Time.Hash takes the checksums of TCP and UDP as 0, and Time.Flow is set

	// Process makes records and times tell the process. It needs a hook with Processes and a direction.
	Process bool

	// Count counts matches and failures. With Segments each superpacket counts as its segments less one: the rule that asks
	// the program counts the match itself.
	Count    bool
	Segments bool

	// Flows is for programs that follow the verdicts of flows.
	Flows       FlowUse
	FlowSizes   FlowSizes // also where the filter counts
	CoarseClock bool      // flows are timed by the clock's last tick, which costs less to read (Linux 5.11)

	// Clones is for programs whose matches go to a packet queue. Nil: packets that the queue would drop are not left alone.
	Clones *CloneCheck

	// Bounded is for kernels where Loops fails. The program skips MaxExtensionHeaders at most; a packet of IPv6 with more of them
	// matches, and has to be decided on again: PastWalk reports such packets.
	Bounded bool

	// Doubt is for handles that decide on fragments one by one. A first fragment that ends before the transport header does
	// matches whatever that header would decide, and has to be decided on again: Truncated reports such packets (RFC 1858, RFC
	// 8200 4.5).
	Doubt bool
}

// Names of the maps.
const (
	counterMap   = "divert_counter"
	packetsMap   = "divert_packets"
	correlateMap = "divert_times"
)

const defaultCorrelateSize = 64 << 10

// Unloaded is a program that the kernel has not seen yet. It is immutable.
type Unloaded struct {
	Outcome      Outcome          // with Never there is no code: install nothing
	Tests        int              // tests that are left after specialising
	Instructions asm.Instructions // references to maps are by name
	Maps         []*ebpf.MapSpec

	named     namedTable
	outlet    *Outlet          // see LoadInto
	processes *processmap.Maps // see LoadInto
	flows     *flowmap.Maps
}

// Build generates the program for a filter at a hook. It needs no privileges and asks the
// kernel nothing. The errors are *LayerError, *FieldError and *LimitError.
func Build(p *prog.Program, h Hook, o Options) (*Unloaded, error) {
	return build(p, h, o, false)
}

// build is Build; long makes the tests those of a long filter, whatever its size.
func build(p *prog.Program, h Hook, o Options, long bool) (*Unloaded, error) {
	if l := p.Layer(); l != packet.LayerNetwork && l != packet.LayerForward {
		return nil, &LayerError{Layer: l}
	}
	list, outcome := Specialise(p, h)
	if outcome == Never {
		return &Unloaded{Outcome: Never}, nil
	}
	for i := range list {
		if _, constant := h.constant(list[i].Field); constant {
			continue // as a named set is asked for it
		}
		if err := h.knows(list[i].Field); err != nil {
			return nil, err
		}
	}
	if o.Process {
		if err := h.knows(prog.FieldProcessID); err != nil {
			return nil, err
		}
	}
	if branchesOf(list) > MaxTests {
		return nil, tooManyTests(branchesOf(list), MaxTests)
	}
	g := newGenerator(h, o, list)
	g.long = long
	g.generate(outcome)
	if g.Branches() > maxWaiting && !long {
		g = newGenerator(h, o, list)
		g.long = true
		g.generate(outcome)
	}
	code, err := g.link()
	if err != nil {
		return nil, err
	}
	functions, err := g.named.functions(code)
	if err != nil {
		return nil, err
	}
	return &Unloaded{
		Outcome: outcome, Tests: len(list), Instructions: append(code, functions...), Maps: g.maps(), named: g.named,
	}, nil
}

// branchesOf returns how many branches the tests of a long filter have.
func branchesOf(list []prog.Test) int {
	n := len(list)
	for i := range list {
		if list[i].Named != nil {
			n++
		}
	}
	return n
}

// knows returns an error unless the hook knows the value of a field that is left after specialising.
func (h *Hook) knows(f prog.Field) error {
	l, ok := locations[f]
	fromSides := l.needs.implied()&(needAddresses|needPorts) != 0
	byInterface := f == prog.FieldLoopback
	noProcess := l.needs.implied()&needProcess != 0 && !h.Processes
	if !ok || l.place == inHook && !byInterface || fromSides && h.Direction == AnyDirection || noProcess {
		return &FieldError{Field: f}
	}
	return nil
}

// generator generates one program.
type generator struct {
	assembler
	hook    Hook
	options Options
	list    []prog.Test
	long    bool // see tests
	sets    setTable
	named   namedTable
	accept  label
	reject  label // the tests say no

	malformed label // not a packet, or none to see
	parser    parser
}

func newGenerator(h Hook, o Options, list []prog.Test) *generator {
	g := &generator{hook: h, options: o, list: list}
	g.accept, g.reject = g.NewLabel(), g.NewLabel()
	need := h.needsOf(list)
	if o.Sniff || o.Correlate {
		need |= needTime
	}
	if o.Correlate {
		need |= needHash
	}
	if o.Process {
		need |= needSides
	}
	if o.Flows != NoFlows {
		need |= needFlow
	}
	if o.FlowSizes != FlowWhole {
		need |= needPayload
	}
	g.malformed = g.NewLabel()
	g.parser = parser{assembler: &g.assembler, need: need.implied(), family: h.Family, bounded: o.Bounded, doubt: o.Doubt, reject: g.malformed}
	return g
}

func (g *generator) generate(outcome Outcome) {
	g.Emit(asm.Mov.Reg(regContext, asm.R1).WithSymbol(mainName))
	g.cursor()
	g.clock()
	g.parser.parse()
	g.flowBefore()
	g.flowCounts()
	g.parser.sides(g.hook.Direction == Outbound)
	if g.parser.need&needProcess != 0 {
		g.process()
		if g.parser.need&needName != 0 {
			g.processName()
		}
	}
	g.random()
	if outcome != Always {
		t := tests{
			assembler: &g.assembler, loader: &packetLoader{&g.hook}, sets: &g.sets, named: &g.named,
			long: g.long, accept: g.accept, reject: g.reject,
		}
		t.emitAll(g.list)
	}
	g.end(outcome)
}

// cursor leaves with no match if the packet carries the cursor of this handle or of one that comes
// after it.
func (g *generator) cursor() {
	if !g.hook.Cursor.Enabled {
		return
	}
	first, last := g.hook.Cursor.Key.Served()
	g.Emit(
		asm.LoadMem(asm.R1, asm.R6, skbPriority, asm.Word),
		asm.Sub.Imm32(asm.R1, int32(first)),
	)
	g.JumpImm32(asm.JLE, asm.R1, last-first, g.malformed)
}

// clock stores the biased timestamp.
func (g *generator) clock() {
	if g.parser.need&needTime == 0 {
		return
	}
	if g.hook.Clock == ClockConstant {
		g.Emit(asm.LoadImm(asm.R0, g.hook.Timestamp, asm.DWord))
	} else {
		g.Emit(asm.FnKtimeGetNs.Call())
	}
	g.flipSign(asm.R0)
	g.Emit(asm.StoreMem(regFrame, varTime, asm.R0, asm.DWord))
}

// flipSign flips the top bit, which turns a timestamp into a biased one and back. It uses R5.
func (g *generator) flipSign(r asm.Register) {
	g.Emit(
		asm.LoadImm(asm.R5, -1<<63, asm.DWord),
		asm.Xor.Reg(r, asm.R5),
	)
}

// random stores the hash that the random fields are bits of.
func (g *generator) random() {
	if g.parser.need&needRandom == 0 {
		return
	}
	g.Emit(asm.LoadMem(asm.R1, regFrame, varTime, asm.DWord))
	g.flipSign(asm.R1)
	g.parser.hash()
	g.Emit(asm.StoreMem(regFrame, varRandom, asm.R0, asm.DWord))
}

// end emits the two ends of the program. The last test falls into reject.
func (g *generator) end(outcome Outcome) {
	if outcome == Always {
		g.Jump(g.accept)
	}
	g.Mark(g.reject)
	if outcome != Always {
		g.undecided()
	}
	g.Mark(g.malformed)
	g.Emit(asm.Mov.Imm(asm.R0, 0), asm.Return())
	g.Mark(g.accept)
	g.flowVerdict()
	if g.options.Flows == FlowDropped {
		g.parser.walkStep()
		return // which reports only packets with a verdict
	}
	g.clones()
	if g.options.Process && g.parser.need&needProcess == 0 {
		g.process() // of what matched only
	}
	g.count()
	g.correlate()
	result := int32(1)
	if g.options.Sniff {
		g.sniff()
		result = 0
	}
	g.Emit(asm.Mov.Imm(asm.R0, result), asm.Return())
	g.parser.walkStep()
}

// undecided accepts packets that the tests have refused without all the facts: only a part of the packet was walked over, or is
// there.
func (g *generator) undecided() {
	p := &g.parser
	if !(p.bounded && p.need&needWalk != 0 && p.family != IPv4) && !p.doubts() {
		return
	}
	g.Emit(asm.LoadMem(asm.R1, regFrame, varFlags, asm.Word))
	g.JumpImm32(asm.JSet, asm.R1, 1<<flagUndecided, g.accept)
}

func (g *generator) maps() []*ebpf.MapSpec {
	var specs []*ebpf.MapSpec
	if spec := g.sets.spec(); spec != nil {
		specs = append(specs, spec)
	}
	if g.options.Count {
		specs = append(specs, counterSpec())
	}
	if g.options.Clones != nil {
		specs = append(specs, clonesSpec())
	}
	if g.options.Sniff {
		specs = append(specs, packetsSpec(), asleepSpec(), bellSpec())
	}
	if g.options.Correlate {
		size := g.options.CorrelateSize
		if size == 0 {
			size = defaultCorrelateSize
		}
		specs = append(specs, timesSpec(size))
	}
	if g.options.Flows != NoFlows {
		specs = append(specs, flowmap.Spec(flowmap.Decided), flowmap.Spec(flowmap.Totals))
	}
	if g.parser.need&needCounts != 0 {
		specs = append(specs, flowmap.Spec(flowmap.Counted))
	}
	if g.options.Flows != NoFlows || g.parser.need&needCounts != 0 {
		specs = append(specs, flowmap.Spec(flowmap.State))
	}
	if g.options.Process || g.parser.need&needProcess != 0 {
		specs = append(specs, processmap.Specs()...)
	}
	return specs
}

func counterSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: counterMap, Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: counterSize, MaxEntries: 1}
}

func timesSpec(size uint32) *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: correlateMap, Type: ebpf.RingBuf, MaxEntries: size}
}

func packetsSpec() *ebpf.MapSpec {
	return &ebpf.MapSpec{Name: packetsMap, Type: ebpf.PerfEventArray}
}

// String describes the program in a few words.
func (u *Unloaded) String() string {
	if u.Outcome == Never {
		return "a program that never matches"
	}
	return fmt.Sprintf("a program of %d tests, %d instructions, %d maps", u.Tests, len(u.Instructions), len(u.Maps))
}

//go:build linux

package linux

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/opendivert/divert/internal/engine"
	"github.com/opendivert/divert/internal/linux/capture"
	"github.com/opendivert/divert/internal/linux/codegen"
	"github.com/opendivert/divert/internal/linux/cursor"
	"github.com/opendivert/divert/internal/linux/flowmap"
	"github.com/opendivert/divert/internal/linux/kernel"
	"github.com/opendivert/divert/internal/linux/processmap"
	"github.com/opendivert/divert/internal/linux/review"
	"github.com/opendivert/divert/internal/linux/rules"
	"github.com/opendivert/divert/internal/prog"
	"github.com/opendivert/divert/packet"
)

// entries are a handle's programs in the kernel.
type entries struct {
	at       map[rules.Chain]*codegen.Entry // one for each way of packets
	programs map[rules.Chain]slots          // those of the filter in force; where there is none, nothing matches
}

// place is where a chain's programs run: the facts about its packets, and where the rest is found
// (linux/skbuff.h; which device is which was measured at each hook).
type place struct {
	gate codegen.Gate
	hook codegen.Hook
}

var places = map[rules.Chain]place{
	rules.Inbound:          {codegen.NotLoopback, codegen.Hook{Direction: codegen.Inbound, Index: codegen.IndexDevice}},
	rules.InboundFragments: {codegen.NotLoopback, codegen.Hook{Direction: codegen.Inbound, Index: codegen.IndexDevice}},
	rules.Outbound: {codegen.LocalOnly, codegen.Hook{
		Direction: codegen.Outbound, Index: codegen.IndexDevice, Loopback: codegen.LoopbackByInterface,
	}},
	rules.Forward: {codegen.NoGate, codegen.Hook{Direction: codegen.Outbound, Index: codegen.IndexDevice}},
}

// newEntries loads the entries of a handle; no filter is set yet.
func newEntries(cfg *engine.Config, key cursor.Key) (*entries, error) {
	kinds := takes(cfg.Flags&engine.FlagSniff != 0, cfg.Flags&engine.FlagDrop != 0, cfg.Segments)
	es := &entries{at: map[rules.Chain]*codegen.Entry{}}
	for _, chain := range paths(cfg.Program.Layer(), cfg.Flags) {
		e, err := codegen.NewEntry(key, places[chain].gate, cfg.Segments, kinds...)
		if err != nil {
			es.close()
			return nil, err
		}
		es.at[chain] = e
	}
	return es, nil
}

// setting has the maps and outlets of a filter's programs.
type setting struct {
	outlet     *codegen.Outlet     // where matching packets are copied; nil: nowhere
	times      *ebpf.Map           // where matching packets are recorded that are not copied; nil: nowhere
	correlate  bool                // each packet that matches is reported
	clones     *codegen.Outlet     // with cloneCheck
	cloneCheck *codegen.CloneCheck // nil: none
	processes  *processmap.Maps    // nil: the processes of packets are not known
	tell       bool                // with its process
	sniffs     bool                // copies are made
	drops      bool                // packets are dropped, and not received
	counts     *codegen.Outlet     // of a handle that drops: its counter has the segments that are dropped unseen
	flows      *flowmap.Maps       // of verdicts and counts of flows; nil: none
	follows    bool                // programs follow the verdicts
	flowDrops  bool                // some verdicts may drop
	segments   bool                // superpackets of TCP are cut too
	snap       int                 // bytes of each packet to copy at most, 0: all
}

// slots are the programs of an entry. One may stand in several.
type slots = [codegen.NumSlots]*codegen.Program

// set makes a filter decide from now on. If it fails, the filter before stays in force.
func (es *entries) set(p *prog.Program, s setting) (err error) {
	loaded := map[rules.Chain]slots{}
	defer func() {
		if err != nil {
			err = errors.Join(err, closePrograms(loaded))
		}
	}()
	for chain := range es.at {
		b := builder{p: p, s: s, chain: chain, hook: places[chain].hook}
		b.hook.Event = packet.EventPacket
		b.hook.Processes = s.processes != nil
		programs, err := b.build()
		loaded[chain] = programs
		if err != nil {
			return err
		}
	}
	return es.put(loaded)
}

// builder makes the programs of a filter for one chain.
type builder struct {
	p     *prog.Program
	s     setting
	chain rules.Chain
	hook  codegen.Hook
}

// build loads the programs, as far as they are used. If it fails it returns those that are loaded.
func (b *builder) build() (programs slots, err error) {
	cut, exact := b.p.Without(perSegment)
	if programs[codegen.SlotWhole], err = b.load(b.p, b.s.correlate, false); err != nil {
		return programs, err
	}
	switch {
	case b.s.outlet != nil:
		programs[codegen.SlotCut], err = b.load(cut, false, true)
	case b.s.sniffs:
		programs[codegen.SlotCut], err = b.load(cut, true, true) // through the log, which does not tell the size of segments
	case b.s.drops && exact:
		programs[codegen.SlotSure], err = b.load(b.p, false, true)
	case b.s.drops:
		programs[codegen.SlotCut], err = b.load(cut, false, false)
	default:
		rest, plain := b.p.Without(unfinished)
		if programs[codegen.SlotRest] = programs[codegen.SlotWhole]; b.s.correlate || !plain {
			programs[codegen.SlotRest], err = b.load(rest, b.s.correlate, true)
		}
		if programs[codegen.SlotCut] = programs[codegen.SlotRest]; err == nil && !exact {
			programs[codegen.SlotCut], err = b.load(cut, b.s.correlate, true)
		}
	}
	if err != nil || !b.s.flowDrops {
		return programs, err
	}
	if programs[codegen.SlotFlow], err = b.loadFor(codegen.FlowDropped, b.p.Uncounted(), false, false); exact {
		programs[codegen.SlotFlowCut] = programs[codegen.SlotFlow]
	}
	return programs, err
}

// load loads a program, nil if it can match nothing. With tell the program reports the packets that match; with single it finds
// them by their flow, as the handle receives them in another form.
func (b *builder) load(p *prog.Program, tell, single bool) (*codegen.Program, error) {
	use := codegen.NoFlows
	if b.s.follows {
		use = codegen.FlowAccepted
	}
	return b.loadFor(use, p, tell, single)
}

// loadFor is load for a use of the verdicts of flows.
func (b *builder) loadFor(use codegen.FlowUse, p *prog.Program, tell, single bool) (*codegen.Program, error) {
	s := &b.s
	o, outlet := codegen.Options{Correlate: tell, Flow: single, Process: s.tell}, &codegen.Outlet{Times: s.times}
	if s.cloneCheck != nil && clonesCome(b.chain) {
		o.Clones, outlet.Clones = s.cloneCheck, s.clones.Clones
	}
	switch {
	case s.outlet != nil:
		o = codegen.Options{Sniff: true, Snap: uint32(s.snap), Count: true, Tag: uint32(b.hook.Direction), Process: s.tell}
		if single { // all of it is needed to cut it
			o.Snap, o.Tag = 0, o.Tag|capture.TagCut
		}
		outlet = s.outlet
	case s.drops && !s.sniffs && single:
		o.Count, o.Segments, outlet.Counts = true, true, s.counts.Counts
	}
	o.Bounded, o.Doubt, o.CoarseClock = review.Bounded(), true, kernel.CoarseClock.Has()
	o.Flows = use
	switch {
	case s.flows == nil:
	case single || s.segments:
		o.FlowSizes = codegen.FlowSegments
	default:
		o.FlowSizes = codegen.FlowStreams // as one program may stand in several slots
	}
	u, err := codegen.Build(p, b.hook, o)
	if err != nil || u.Outcome == codegen.Never {
		return nil, err
	}
	program, err := u.WithFlows(s.flows).LoadInto(outlet, s.processes)
	if err != nil {
		return nil, err
	}
	return program, program.CloseMaps()
}

// put sets the programs; where there is none, nothing matches. If it fails, those before are in force.
func (es *entries) put(loaded map[rules.Chain]slots) error {
	var begun []rules.Chain
	for chain, e := range es.at {
		begun = append(begun, chain)
		err := setEntry(e, loaded[chain])
		if err == nil {
			continue
		}
		for _, before := range begun {
			if back := setEntry(es.at[before], es.programs[before]); back != nil {
				err = errors.Join(err, fmt.Errorf("the filter before is not in force everywhere, close the handle: %w", back))
			}
		}
		return err
	}
	before := es.programs
	es.programs = loaded
	return closePrograms(before)
}

// setEntry sets the programs of one entry. Tests make it fail.
var setEntry = func(e *codegen.Entry, programs slots) error { return e.Set(programs) }

// closePrograms lets go of programs.
func closePrograms(loaded map[rules.Chain]slots) error {
	var errs []error
	for _, programs := range loaded {
		for i, p := range programs {
			if p != nil && !slices.Contains(programs[:i], p) {
				errs = append(errs, p.Close())
			}
		}
	}
	return errors.Join(errs...)
}

// clear makes nothing match from now on.
func (es *entries) clear() error { return es.put(nil) }

// close lets go of the entries; rules that hold them match nothing.
func (es *entries) close() error {
	if es == nil {
		return nil
	}
	errs := []error{closePrograms(es.programs)}
	for _, e := range es.at {
		errs = append(errs, e.Close())
	}
	return errors.Join(errs...)
}
